"""Two tasks on implicit neural representations: say which digit a network shows, and change what it shows.

A graph metanetwork and a plain MLP on all weights in a row are trained by the same loop, on the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from archc.backends.weights import Array
from archc.grammar.load import loads
from archc.metanet.gmn.baselines import flat_mlp
from archc.metanet.gmn.batch import Collator
from archc.metanet.gmn.inr import SIZE, TEXT, Inrs, augmented, dilated, pictures, rendered
from archc.metanet.gmn.learn import LearnConfig, optimiser_of, step
from archc.metanet.gmn.model import Gmn, GmnConfig, vocabulary_sizes
from archc.metanet.gmn.stacked import Stack, Stacked

Aim = Literal["classify", "edit"]

STRENGTH = 0.1
"""What a model says of a change times this is added to the weights: models start with small changes."""


class OnGraphs(nn.Module):
    """A graph metanetwork on stacked weights of one architecture: [n, 10] logits, or [n, weights] changes."""

    def __init__(self, aim: Aim, shape: GmnConfig, pictures: bool = False) -> None:
        """With `pictures`, classifying says the grey values of all pixels, too: [n, 10 + SIZE²]."""
        super().__init__()
        self.aim, self.graph, self.collator = aim, loads(TEXT), Collator()
        changes = aim == "edit"
        outputs = 0 if changes else 10 + SIZE**2 * pictures
        shape = shape.model_copy(update={"outputs": outputs, "changes": changes})
        self.gmn = Gmn(shape, *vocabulary_sizes(self.collator.words))
        self.names = self.collator.arrays(self.graph).names
        self.edges = len(self.collator.arrays(self.graph).edge_type)

    def forward(self, weights: Stacked) -> Tensor:
        rows = flat(weights, self.names)
        columns = torch.cat((rows, torch.ones(len(rows), self.edges - rows.shape[1])), 1)  # links have weight 1
        said, change = self.gmn(self.collator.join([self.graph] * len(rows), list(columns)))
        result: Tensor = said if self.aim == "classify" else change.reshape(rows.shape)
        return result


class OnRows(nn.Module):
    """A plain MLP on all weights in a row."""

    def __init__(self, aim: Aim, hidden: int = 256) -> None:
        super().__init__()
        shapes = {n: p.shape for n, p in loads(TEXT).parameters().items()}
        self.names = list(shapes)
        size = sum(int(np.prod(s)) for s in shapes.values())
        self.mlp = flat_mlp(size, 10 if aim == "classify" else size, hidden)

    def forward(self, weights: Stacked) -> Tensor:
        result: Tensor = self.mlp(flat(weights, self.names))
        return result


def flat(weights: Stacked, names: list[str]) -> Tensor:
    """All weights of each network in a row, [n, weights]."""
    return torch.cat([weights[n].flatten(1) for n in names], 1)


def changed(weights: Stacked, names: list[str], change: Tensor) -> Stacked:
    """The weights plus `STRENGTH` times a change, [n, weights]."""
    parts = torch.split(change, [weights[n][0].numel() for n in names], 1)
    moves = zip(names, parts, strict=True)
    return {n: weights[n] + STRENGTH * part.reshape(weights[n].shape) for n, part in moves}


@dataclass(frozen=True)
class Recipe:
    """Steps of how many networks, and which of `augmented`'s changes they go through."""

    steps: int
    batch: int = 32
    lr: float = 4e-3
    orders: bool = False
    signs: bool = False
    moves: bool = False
    pictures: float = 0.0
    """Weight of a second loss of classifying: the squared error of what is said of each pixel."""
    seed: int = 0


def train(aim: Aim, model: OnGraphs | OnRows, inrs: Inrs, recipe: Recipe) -> list[float]:
    """Train in place; the losses, step by step."""
    rng = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    weights = {n: torch.from_numpy(np.array(w)) for n, w in inrs.weights.items()}
    labels, targets, stack = torch.from_numpy(np.array(inrs.label)), None, Stack(loads(TEXT))
    if aim == "edit":
        targets = dilated(pictures("train")[0])[torch.from_numpy(np.array(inrs.image))]
    config = LearnConfig(lr=recipe.lr)
    optimiser = optimiser_of(model, config)
    model.train()
    losses = []
    for k in range(recipe.steps):
        rows = torch.randint(len(labels), (recipe.batch,), generator=rng)
        own = augmented(
            {n: w[rows] for n, w in weights.items()}, rng, recipe.orders, recipe.signs, recipe.moves and aim != "edit"
        )
        if targets is None:
            said = model(own)
            loss = nn.functional.cross_entropy(said[:, :10], labels[rows])
            if recipe.pictures:
                shown = rendered(stack, own).flatten(1).detach()
                loss = loss + recipe.pictures * (said[:, 10:] - shown).square().mean()
        else:
            shown = rendered(stack, changed(own, model.names, model(own)))
            loss = (shown - targets[rows]).square().mean()
        step(model, optimiser, loss, config.rate(k, recipe.steps))
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def judge(aim: Aim, model: OnGraphs | OnRows | None, inrs: Inrs, split: str) -> Array:
    """For each network of a split, 1 where its digit is told (`classify`), or the mean squared error between what it
    shows after the change and the dilated image (`edit`; without a model: with no change)."""
    if model is not None:
        model.eval()
    weights = {n: torch.from_numpy(np.array(w)) for n, w in inrs.weights.items()}
    image = torch.from_numpy(np.array(inrs.image))
    targets, stack = dilated(pictures(split)[0])[image], Stack(loads(TEXT))
    found = []
    for rows in torch.split(torch.arange(len(image)), 100):
        own = {n: w[rows] for n, w in weights.items()}
        if aim == "classify":
            assert model is not None
            found.append((model(own)[:, :10].argmax(1).numpy() == inrs.label[rows.numpy()]).astype(np.float64))
            continue
        after = own if model is None else changed(own, model.names, model(own))
        found.append((rendered(stack, after) - targets[rows]).square().mean((1, 2)).numpy())
    return np.concatenate(found)
