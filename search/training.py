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
from collections.abc import Mapping
from typing import Any

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

    def slices(self, split: str, limit: int | None = None) -> list[Batch]:
        """The whole split, or its first examples, in large batches."""
        count = min(limit or len(self.task.splits[split]), len(self.task.splits[split]))
        whole = self._prepared(split)
        found = []
        for begin in range(0, count, EVALUATION_BATCH):
            end = min(begin + EVALUATION_BATCH, count)
            if whole is not None:
                found.append((tuple(x[begin:end] for x in whole[0]), whole[1][begin:end]))
            else:
                found.append(self._feed.batch(split, torch.arange(begin, end), None, None))
        return found

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
        self._vectors, self._optimiser = _flat(module, recipe)
        if not self._vectors:
            raise fail("E0620", "there is nothing to train", label="no parameter of the network takes a gradient")
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
        for vector in self._vectors:
            assert vector.grad is not None
            vector.grad.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(self._vectors, recipe.clip)
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
        """All that a training needs to go on: weights, moments of the optimiser, random numbers, the step."""
        found = {f"model/{name}": array for name, array in self.weights().items()}
        for number, vector in enumerate(self._vectors):
            for key, tensor in self._optimiser.state[vector].items():
                found[f"optimiser/{number}/{key}"] = to_array(tensor)
        found["rng"] = to_array(torch.get_rng_state())
        found["step"] = to_array(torch.tensor(self.step))
        return found

    def restore(self, arrays: Arrays, where: str) -> None:
        """Go on from what `state` gave. Raises: CompileError for the state of another network."""
        weights = {name.removeprefix("model/"): a for name, a in arrays.items() if name.startswith("model/")}
        load_state(self.module, weights, where)
        for number, vector in enumerate(self._vectors):
            prefix = f"optimiser/{number}/"
            self._optimiser.state[vector] = {
                name.removeprefix(prefix): to_tensor(a) for name, a in arrays.items() if name.startswith(prefix)
            }
        torch.set_rng_state(to_tensor(arrays["rng"]))
        self.step = int(arrays["step"])


def _flat(module: nn.Module, recipe: Recipe) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Make a module's parameters, and their gradients, parts of a few vectors: by dtype, those that decay apart."""
    kinds: dict[tuple[torch.dtype, bool], list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            kinds.setdefault((p.dtype, p.ndim > 1), []).append(p)
    groups: list[dict[str, Any]] = []
    for (dtype, decays), members in kinds.items():
        vector = nn.Parameter(torch.empty(sum(p.numel() for p in members), dtype=dtype))
        vector.grad = torch.zeros_like(vector)
        begin = 0
        for p in members:
            end = begin + p.numel()
            value, gradient = (_shaped(v[begin:end], p.shape) for v in (vector.data, vector.grad))
            value.copy_(p.data)
            p.data, p.grad = value, gradient
            begin = end
        groups.append({"params": [vector], "weight_decay": recipe.weight_decay if decays else 0.0})
    vectors = [group["params"][0] for group in groups]
    if not vectors:
        return [], torch.optim.SGD([torch.zeros(1)])
    if recipe.optimiser == "sgd":
        nesterov = recipe.momentum > 0
        return vectors, torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=True)
    return vectors, torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def _shaped(part: Tensor, shape: torch.Size) -> Tensor:
    """A stretch of a vector as a tensor; kernels of convolutions with their channels last, which is faster."""
    if len(shape) != 4:
        return part.view(shape)
    out, channels, height, width = shape
    return part.view(out, height, width, channels).permute(0, 3, 1, 2)
