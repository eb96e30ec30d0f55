"""Several seeds of one network trained at once: the steps of the training loop under `torch.func.vmap`.

What a seed sees is what `training.train` gives it: its initial weights, the order of its batches, its variations of
images, the rate of each step, clipping by its own gradient's norm, AdamW and the average of its weights. So the curves
of a population are those of as many runs, at a fraction of the time (small networks spend it on calls, not on sums).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from archc.backends.torch.module import initial, to_torch
from archc.backends.torch.training import Recipe, Task
from archc.backends.torch.training.evaluate import Feed, check_fit, main_output
from archc.backends.torch.training.recipe import counter_rng
from archc.ir.graph import Graph
from archc.metanet.nowcast.incidence import Incidence, incidence


class Population:
    """S runs of one network, of one recipe and seeds of their own.

    `flat` f32[S, n] are their weights, in the order of `incidence.names`; writing into it moves the runs. The network
    must keep no running estimates, drop nothing at random and have no loss of its own; `recipe.steps` must be set.

    >>> from archc.backends.torch.training import load_task
    >>> from archc.metanet.nowcast.nets import NETS
    >>> runs = Population(NETS["mlp"].graph(), load_task("digits"), Recipe(steps=20, schedule="constant"), [0, 1])
    >>> losses = [runs.step() for _ in range(20)]
    >>> bool((losses[-1] < losses[0]).all()), runs.flat.shape
    (True, torch.Size([2, 3466]))
    """

    def __init__(self, graph: Graph, task: Task, recipe: Recipe, seeds: Sequence[int]) -> None:
        assert recipe.steps is not None
        assert recipe.optimiser == "adamw"
        self.task, self.recipe, self.seeds = task, recipe, tuple(seeds)
        self.steps = recipe.steps
        self.incidence: Incidence = incidence(graph)
        self.module = to_torch(graph)
        self.feed = Feed(task, torch.device("cpu"))
        check_fit(self.module, task, self.feed)
        parameters = graph.parameters()
        assert set(parameters) == set(self.incidence.names), "running estimates cannot be kept for several runs"
        rows = [torch.cat([initial(parameters[n], s).reshape(-1) for n in self.incidence.names]) for s in self.seeds]
        self.flat = torch.stack(rows).requires_grad_()
        self.paths = [".".join(self.module.parameter_paths[name]) for name in self.incidence.names]
        decays = [float(len(shape) > 1) for shape in self.incidence.shapes]
        self.decays = torch.tensor(decays)[torch.from_numpy(self.incidence.tensor)]
        self.optimiser = torch.optim.AdamW([self.flat], lr=recipe.lr, betas=recipe.betas, weight_decay=0.0)
        self.examples = len(self.feed.split("train"))
        self.batch_size = min(recipe.batch_size, self.examples)
        self.epoch_steps = self.examples // self.batch_size
        self.orders: list[Tensor] = []
        self.average = self.flat.detach().clone() if recipe.ema else None
        self.done = 0

    def step(self) -> Tensor:
        """Take one step; the losses f32[S] on its batches, before it."""
        inputs, targets = self.batch()
        rate = self.recipe.rate(self.done, self.steps)
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        losses = self.losses(self.flat, inputs, targets)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        gradient = self.flat.grad
        assert gradient is not None
        with torch.no_grad():
            if self.recipe.clip is not None:  # as torch.nn.utils.clip_grad_norm_ does
                norms = gradient.norm(dim=1, keepdim=True)
                gradient.mul_((self.recipe.clip / (norms + 1e-6)).clamp(max=1.0))
            self.flat.mul_(1 - rate * self.recipe.weight_decay * self.decays)
        self.optimiser.step()
        if self.average is not None:
            assert self.recipe.ema is not None
            decay = min(self.recipe.ema, (1 + self.done) / (10 + self.done))
            self.average.lerp_(self.flat.detach(), 1 - decay)
        self.done += 1
        return losses.detach()

    def batch(self) -> tuple[Tensor, Tensor]:
        """The batches of the next step, (S, B, …): the same until it is taken."""
        epoch, position = divmod(self.done, self.epoch_steps)
        if position == 0 or not self.orders:
            self.orders = [
                torch.from_numpy(counter_rng(s, "order", epoch).permutation(self.examples)) for s in self.seeds
            ]
        inputs, targets = [], []
        for seed, order in zip(self.seeds, self.orders, strict=True):
            rows = order[position * self.batch_size : (position + 1) * self.batch_size]
            (x,), y = self.feed.batch("train", rows, counter_rng(seed, "augment", self.done), self.recipe)
            inputs.append(x)
            targets.append(y)
        return torch.stack(inputs), torch.stack(targets)

    @torch.no_grad()
    def jump(self, changes: Tensor) -> tuple[Tensor, int]:
        """Move each run by the first of its changes f32[S, K, n] at which the loss on its next batch is no worse.

        Which change each took, i64[S] (K: none, refused), and how many forward passes the runs needed, all together:
        one that has found its place needs no more. The optimiser keeps its state, as in the training loop.
        """
        inputs, targets = self.batch()
        before = self.losses(self.flat, inputs, targets)
        taken = torch.full((len(self.flat),), changes.shape[1])
        forwards = len(self.flat)
        for k, change in enumerate(changes.unbind(1)):
            forwards += int((taken == changes.shape[1]).sum())
            better = self.losses(self.flat + change, inputs, targets) <= before  # false for what is not a number
            taken = torch.where(better & (taken == changes.shape[1]), k, taken)
        chosen = torch.cat([changes, torch.zeros_like(changes[:, :1])], 1)[torch.arange(len(taken)), taken]
        self.flat.add_(chosen)
        return taken, forwards

    def losses(self, flat: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each run, f32[S], on its own batch."""

        def loss(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self.task.objective.loss(self._run(weights, x), y, self.recipe.label_smoothing)

        return vmap(loss)(flat, inputs, targets)

    @torch.no_grad()
    def evaluate(self, flat: Tensor, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Loss and primary metric of each run, f32[S] both, on the first `limit` examples of a split, unvaried."""
        rows = torch.arange(min(limit or len(self.feed.split(split)), len(self.feed.split(split))))
        (x,), y = self.feed.batch(split, rows, None, None)

        def judge(weights: Tensor) -> tuple[Tensor, Tensor]:
            found = self.task.objective.metrics(self._run(weights, x), y)
            return found["loss"].mean(), found[self.task.objective.primary].float().mean()

        loss, primary = vmap(judge)(flat)
        return loss, primary

    def _run(self, weights: Tensor, x: Tensor) -> Tensor:
        parts = torch.split(weights, list(self.incidence.sizes))
        named = {p: w.view(s) for p, w, s in zip(self.paths, parts, self.incidence.shapes, strict=True)}
        return main_output(functional_call(self.module, named, (x,)))
