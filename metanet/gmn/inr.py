"""Digits as implicit neural representations: for each image a small network from a place to a grey value.

Networks are SIRENs (Sitzmann et al. 2020, arXiv:2006.09661), 2 → 32 → 32 → 1 with sines, their frequencies inside the
first weights; each starts from weights of its own, so that no two share an order of hidden units. Images are the 8×8
digits, scaled up to `SIZE` pixels; every image is fitted `views` times, and all views of an image are in one split.

A folder holds one file a split and view (`train0.safetensors` …): stacked parameters, `label`, `image` (the number of
the image in its split) and `psnr`, with the configuration as JSON in the metadata.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn import functional as F

from archc.backends.torch.training import load_task
from archc.backends.weights import Array, read_weights, write_weights
from archc.grammar.load import loads
from archc.ir.diagnostics import fail
from archc.metanet.gmn.stacked import Optimiser, Stack, Stacked, initial_weights
from archc.metanet.gmn.zoo import check_finite

SIZE = 12
"""Images are SIZE × SIZE."""

TEXT = """\
arch siren(width = 32)

input  place: f32[N, 2]
output grey:  f32[N, 1]

grey = place -> linear(width, init = "uniform(6)") -> sin
    -> linear(width, init = "uniform(0.43)") -> sin
    -> linear(1)
"""

CARD = "archc.inr"
SPLITS = ("train", "val", "test")
_GROUP = 300  # networks fitted at once


class InrConfig(BaseModel):
    """How images are fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    views: int = Field(2, ge=1, le=100, description="networks for each image")
    images: int = Field(1797, ge=10, description="the most images of a split")
    steps: int = Field(250, ge=1)
    lr: float = Field(1e-2, gt=0)
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Inrs:
    """Fitted networks of one split: weights stacked, [n, *shape] by name, and what each shows."""

    weights: dict[str, Array] = field(repr=False)
    label: Array
    image: Array
    psnr: Array

    def __len__(self) -> int:
        return len(self.label)


def pictures(split: str) -> tuple[Tensor, Tensor]:
    """The images of a split, [n, SIZE, SIZE] from 0 to 1, and their digits."""
    part = load_task("digits").splits[split]
    (x,), y = part.batch(torch.arange(len(part)))
    return F.interpolate(x / 16, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0], y


def dilated(images: Tensor) -> Tensor:
    """Thicker strokes: each pixel becomes the brightest of its 3×3 neighbours. [n, SIZE, SIZE] both."""
    return F.max_pool2d(images[:, None], 3, stride=1, padding=1)[:, 0]


def places() -> Tensor:
    """The centres of the pixels, from -1 to 1: [SIZE², 2], row by row."""
    at = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    return torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).reshape(-1, 2)


def rendered(stack: Stack, weights: Stacked) -> Tensor:
    """What networks show: [n, SIZE, SIZE]."""
    count = len(next(iter(weights.values())))
    shown: Tensor = stack(weights, places().expand(count, -1, -1))
    return shown.reshape(count, SIZE, SIZE)


def augmented(
    weights: Stacked, rng: torch.Generator, orders: bool = True, signs: bool = True, moves: bool = True
) -> Stacked:
    """Other weights for (nearly) the same digits, drawn net by net.

    orders  hidden units change places: the same function
    signs   a hidden unit's weights change sign, in and out: the same function, as a sine is odd
    moves   the picture is turned (±0.2), scaled (±10 %) and shifted (±0.1): the same digit
    """
    w = dict(weights)
    count, width = w["linear.bias"].shape

    def uniform(*shape: int, most: float = 1.0) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=rng) - 1) * most

    for layer, following in (("linear", "linear1"), ("linear1", "linear2")):
        if signs:
            sign = uniform(width).sign()
            w[f"{layer}.weight"] = w[f"{layer}.weight"] * sign[:, :, None]
            w[f"{layer}.bias"] = w[f"{layer}.bias"] * sign
            w[f"{following}.weight"] = w[f"{following}.weight"] * sign[:, None, :]
        if orders:
            order = torch.rand(count, width, generator=rng).argsort(1)
            row = torch.arange(count)[:, None]
            w[f"{layer}.weight"] = w[f"{layer}.weight"][row, order]
            w[f"{layer}.bias"] = w[f"{layer}.bias"][row, order]
            w[f"{following}.weight"] = w[f"{following}.weight"].transpose(1, 2)[row, order].transpose(1, 2)
    if moves:
        turn, scale, shift = uniform(most=0.2), 1 + uniform(most=0.1), uniform(2, most=0.1)
        cos, sin = turn.cos() * scale, turn.sin() * scale
        matrix = torch.stack((cos, -sin, sin, cos), 1).reshape(count, 2, 2)
        w["linear.bias"] = w["linear.bias"] + torch.einsum("nhi,ni->nh", w["linear.weight"], shift)
        w["linear.weight"] = w["linear.weight"] @ matrix
    return w


def fit(images: Tensor, seeds: list[int], config: InrConfig) -> tuple[Stacked, Tensor]:
    """Networks that show `images` [n, SIZE, SIZE]: stacked weights, and the peak signal-to-noise ratios in dB."""
    stack = Stack(loads(TEXT))
    weights = initial_weights(stack.graph, seeds)
    for value in weights.values():
        value.requires_grad_()
    count = len(images)
    optimiser = Optimiser(weights, torch.ones(count, dtype=torch.bool), torch.zeros(count))
    for step in range(config.steps):
        loss = (rendered(stack, weights) - images).square().mean((1, 2))
        gradients = torch.autograd.grad(loss.sum(), list(weights.values()))
        rate = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        optimiser.step(dict(zip(weights, gradients, strict=True)), torch.full((count,), rate))
    with torch.no_grad():
        error = (rendered(stack, weights) - images).square().mean((1, 2))
    return {n: w.detach() for n, w in weights.items()}, -10 * error.log10()


def grow_inrs(folder: Path, config: InrConfig, say: Callable[[str], None] = print) -> None:
    """Fit what the folder does not hold yet.

    Raises: CompileError E0831 for a folder with networks of another configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for view in range(config.views):
        for number, split in enumerate(SPLITS):
            path = folder / f"{split}{view}.safetensors"
            if path.exists():
                _card(path, config)
                continue
            begun = time.process_time()
            images, labels = pictures(split)
            images, labels = images[: config.images], labels[: config.images]
            parts = []
            for first in range(0, len(images), _GROUP):
                rows = images[first : first + _GROUP]
                seeds = [hash_seed(config.seed, view, number, first + k) for k in range(len(rows))]
                parts.append(fit(rows, seeds, config))
            weights = {n: torch.cat([p[0][n] for p in parts]).numpy() for n in parts[0][0]}
            psnr = torch.cat([p[1] for p in parts]).numpy()
            spent = time.process_time() - begun
            card = {"config": config.model_dump(), "text": TEXT, "cpu_seconds": spent, "torch": torch.__version__}
            arrays = {"label": labels.numpy(), "image": np.arange(len(images)), "psnr": psnr}
            write_weights(path, weights | {f"@{n}": a for n, a in arrays.items()}, {CARD: json.dumps(card)})
            say(f"{path.stem}: {len(images)} networks, PSNR {psnr.mean():.1f} dB "
                f"(1 % below {np.quantile(psnr, 0.01):.1f}), {spent:.0f} s")  # fmt: skip


def hash_seed(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _card(path: Path, config: InrConfig | None = None) -> dict[str, Array]:
    weights = read_weights(path)
    try:
        card = json.loads(weights.metadata[CARD])
        found = InrConfig.model_validate(card["config"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise fail("E0831", f"{path} holds no fitted images", help="delete it, and fit them again") from error
    if config is not None and found != config:
        message = f"{path} was fitted with another configuration"
        raise fail("E0831", message, label=str(found), help="choose another folder")
    check_finite(weights.arrays, str(path))
    return dict(weights.arrays)


def read_inrs(folder: Path, split: str) -> Inrs:
    """The networks of a split, all views.

    Raises: CompileError E0831 for a folder without them or a file that is not sound.
    """
    paths = sorted(folder.glob(f"{split}*.safetensors"))
    if not paths:
        raise fail("E0831", f"there are no fitted images in {folder}", help="`python benchmarks/inr.py` fits them")
    parts = [_card(path) for path in paths]
    arrays = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    weights = {n: a for n, a in arrays.items() if not n.startswith("@")}
    return Inrs(weights, arrays["@label"], arrays["@image"], arrays["@psnr"])
