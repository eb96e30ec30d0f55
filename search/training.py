"""Training for a search: many small networks, each for a few hundred steps, and nothing beside that.

What is learned is what `archc.backends.torch.training.train` learns: the same recipe, rate and batches, up to the order
in which floats are added. What differs is what takes the time when networks are small: here all parameters stand in
one vector, so that clipping and a step of the optimiser are a few operations however many layers there are, and the
task's data are prepared once for all networks.

A training may stop after any step and go on, in another process too, as if it had not: the rate is that of the whole
training, and `state` holds all that counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archc.backends.torch.training.checkpoint import load_state, to_array, to_tensor
from archc.backends.torch.training.evaluate import EVALUATION_BATCH, Feed, evaluating, run_with_aux
from archc.backends.torch.training.recipe import Recipe, counter_rng
from archc.backends.torch.training.tasks import ArraySplit, Batch, Task
from archc.ir.diagnostics import fail

Arrays = Mapping[str, Any]

LEFT_OUT = ("ema", "patience", "nowcast")
"""Options of a recipe that a search has no use for."""
PREPARED_BYTES = 1 << 28
"""A split of at most this size is prepared as a whole."""


def check_recipe(recipe: Recipe) -> Recipe:
    """The same recipe. Raises: CompileError (E0720) for one that searches do not train by."""
    for name in LEFT_OUT:
        if getattr(recipe, name) is not None:
            raise fail("E0720", f"a search does not train with `{name}`", help="leave it out of the recipe")
    return recipe


class Diverged(ArithmeticError):
    """The loss is not finite; `args[0]` says where."""


class Batches:
    """A task's splits, ready for networks: prepared once where they stand in tensors and nothing varies them."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._feed = Feed(task, torch.device("cpu"))
        self._whole: dict[str, Batch | None] = {}

    def __call__(self, split: str, rows: Tensor, step: int | None, recipe: Recipe | None) -> Batch:
        """Examples by number; those of a training step are varied as the recipe says."""
        varied = recipe is not None and (recipe.shift > 0 or recipe.flip)
        if not varied and (whole := self._prepared(split)) is not None:
            inputs, targets = whole
            return tuple(x.index_select(0, rows) for x in inputs), targets.index_select(0, rows)
        rng = None if recipe is None or step is None else counter_rng(recipe.seed, "augment", step)
        return self._feed.batch(split, rows, rng, recipe)

    def slices(self, split: str, limit: int | None = None) -> Iterator[Batch]:
        """The whole split in large batches; of one that is larger than `limit`, so many examples, always the same."""
        count = len(self.task.splits[split])
        rows = torch.arange(count)
        if limit is not None and limit < count:
            rows = torch.from_numpy(np.sort(counter_rng(0, "order", 0).permutation(count)[:limit]))
        for some in torch.split(rows, EVALUATION_BATCH):
            yield self(split, some, None, None)

    def prepare(self, split: str) -> None:
        """Prepare a split now: what processes that are forked from this one share."""
        self._prepared(split)

    def _prepared(self, split: str) -> Batch | None:
        if split not in self._whole:
            part = self.task.splits[split]
            fits = isinstance(part, ArraySplit) and sum(4 * x.numel() for x in part.inputs) <= PREPARED_BYTES
            self._whole[split] = self._feed.batch(split, torch.arange(len(part)), None, None) if fits else None
        return self._whole[split]


class Training:
    """One network's training, `steps` long as a whole; `step` is how far it has come."""

    def __init__(self, module: nn.Module, batches: Batches, recipe: Recipe, steps: int) -> None:
        self.module, self.batches, self.recipe, self.steps = module.train(), batches, check_recipe(recipe), steps
        self.step = 0
        self.examples = len(batches.task.splits["train"])
        self.batch_size = min(recipe.batch_size, self.examples)
        vectors = _vectors(module)
        if not vectors:
            raise fail("E0620", "there is nothing to train", label="no parameter of the network takes a gradient")
        self._vectors = [vector for vector, _ in vectors]
        self._optimiser = _optimiser(vectors, recipe)
        self._order: tuple[int, Tensor] | None = None

    @property
    def samples(self) -> int:
        """Training examples seen so far."""
        return self.step * self.batch_size

    def run(self, until: int) -> None:
        """Train up to step `until`. Raises: Diverged."""
        while self.step < until:
            self._train_step()

    def _train_step(self) -> None:
        recipe = self.recipe
        inputs, targets = self.batches("train", self._rows(), self.step, recipe)
        outputs, aux = run_with_aux(self.module, inputs)
        judge = self.batches.task.objective.loss
        loss = judge(outputs, targets, recipe.label_smoothing)
        for name, value in aux.items():
            if name.startswith("loss/"):
                loss = loss + value
            elif name.startswith("exit/"):
                loss = loss + recipe.exit_weight * judge(value, targets, recipe.label_smoothing)
        if not math.isfinite(loss.item()):
            raise Diverged(f"the loss is not finite at step {self.step + 1} of {self.steps}")
        self._optimiser.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_([v.whole for v in self._vectors], recipe.clip)
        for group in self._optimiser.param_groups:
            group["lr"] = recipe.rate(self.step, self.steps)
        self._optimiser.step()
        self.step += 1

    def _rows(self) -> Tensor:
        epoch, position = divmod(self.step, self.examples // self.batch_size)
        if self._order is None or self._order[0] != epoch:
            rng = counter_rng(self.recipe.seed, "order", epoch)
            self._order = epoch, torch.from_numpy(rng.permutation(self.examples))
        return self._order[1][position * self.batch_size : (position + 1) * self.batch_size]

    def judge(self, split: str = "val", limit: int | None = None) -> dict[str, float]:
        """The task's metrics over a split. Raises: Diverged."""
        sums: dict[str, float] = {}
        elements = 0
        with evaluating(self.module):
            for inputs, targets in self.batches.slices(split, limit):
                outputs, _ = run_with_aux(self.module, inputs)
                for name, values in self.batches.task.objective.metrics(outputs, targets).items():
                    sums[name] = sums.get(name, 0.0) + float(values.double().sum())
                elements += targets.numel()
        if not all(map(math.isfinite, sums.values())):
            raise Diverged(f"the {split} loss is not finite after step {self.step} of {self.steps}")
        return {name: total / elements for name, total in sums.items()}

    def weights(self) -> dict[str, Any]:
        """Parameters and buffers by name, as numpy arrays."""
        return {name: to_array(tensor) for name, tensor in self.module.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """All that a training needs to go on, besides the weights: moments of the optimiser by parameter, random
        numbers, the step."""
        found: dict[str, Any] = {}
        for vector in self._vectors:
            for key, moment in self._optimiser.state[vector.whole].items():
                if moment.shape == vector.whole.shape:
                    parts = zip(vector.names, vector.parts(moment), strict=True)
                    found |= {f"{key}/{name}": to_array(part) for name, part in parts}
        found["rng"] = to_array(torch.get_rng_state())
        found["step"] = to_array(torch.tensor(self.step))
        return found

    def restore(self, state: Arrays, weights: Arrays, where: str) -> None:
        """Go on from what `state` and `weights` gave. Raises: CompileError for weights of another network."""
        load_state(self.module, weights, where)
        self.step = int(state["step"])
        for vector in self._vectors:
            moments = {key: torch.zeros_like(vector.whole) for key in _MOMENTS if f"{key}/{vector.names[0]}" in state}
            for key, moment in moments.items():
                for name, part in zip(vector.names, vector.parts(moment), strict=True):
                    part.copy_(to_tensor(state[f"{key}/{name}"]))
            if "exp_avg" in moments:
                moments["step"] = torch.tensor(float(self.step))
            self._optimiser.state[vector.whole] = moments
        torch.set_rng_state(to_tensor(state["rng"]))


_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


def waken() -> None:
    """Let torch load what it loads when an optimiser is first used (2 s of it): processes that are forked have it."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    optimiser = torch.optim.AdamW([parameter], fused=True)
    nn.utils.clip_grad_norm_([parameter], 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=False)


class Vector:
    """Parameters of a module, and their gradients, as stretches of one vector each: `whole` and its gradient."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.names, members = list(parameters), list(parameters.values())
        self._shapes = [p.shape for p in members]
        self.whole = nn.Parameter(torch.empty(sum(p.numel() for p in members), dtype=members[0].dtype))
        self.whole.grad = torch.zeros_like(self.whole)
        for p, value, gradient in zip(members, self.parts(self.whole.data), self.parts(self.whole.grad), strict=True):
            value.copy_(p.data)
            p.data, p.grad = value, gradient

    def parts(self, vector: Tensor) -> list[Tensor]:
        """A vector like this one, as tensors of the parameters' shapes that share its memory."""
        sizes = [shape.numel() for shape in self._shapes]
        return [_shaped(part, shape) for part, shape in zip(torch.split(vector, sizes), self._shapes, strict=True)]


def _vectors(module: nn.Module) -> list[tuple[Vector, bool]]:
    """A module's trained parameters by dtype, and whether they decay: biases and gains do not."""
    kinds: dict[tuple[torch.dtype, bool], dict[str, nn.Parameter]] = {}
    for name, p in module.state_dict(keep_vars=True).items():
        if p.requires_grad:
            kinds.setdefault((p.dtype, p.ndim > 1), {})[name] = p
    return [(Vector(members), decays) for (_, decays), members in kinds.items()]


def _optimiser(vectors: Sequence[tuple[Vector, bool]], recipe: Recipe) -> torch.optim.Optimizer:
    groups = [{"params": [v.whole], "weight_decay": recipe.weight_decay if decays else 0.0} for v, decays in vectors]
    if recipe.optimiser == "sgd":
        nesterov = recipe.momentum > 0
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=True)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def _shaped(part: Tensor, shape: torch.Size) -> Tensor:
    """A stretch of a vector as a tensor; kernels of convolutions with their channels last, which is faster."""
    if len(shape) != 4:
        return part.view(shape)
    out, channels, height, width = shape
    return part.view(out, height, width, channels).permute(0, 3, 1, 2)
