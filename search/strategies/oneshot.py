"""One-shot search: one supernet is trained, and tells which architectures to train (DARTS: Liu et al. 2019,
arXiv:1806.09055).

Every choice that can be one is a weighted sum (`archc.search.supernet`). Weights of the network and of the sums take
turns, each on its own half of the training split (first order: neither looks ahead), the sums' after a warm-up, and
with a temperature that falls until they nearly choose. The derivations of largest weight are then trained as any
candidate is. What cannot be summed is drawn, once for each supernet. The supernet's training is paid for from the
budget: every example that passes through it counts, whichever weights it is for.

Only the task's own loss is learned from: of several objectives the others come out as they may.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from archc.grammar.load import loads
from archc.ir.canonical import canonical
from archc.ir.diagnostics import CompileError, fail
from archc.search.goals import Goals
from archc.search.records import Candidate, Point, Proposal, Result
from archc.search.space import GrammarSpace, SearchSpace
from archc.search.strategies.base import Base, CommonOptions
from archc.search.strategy import StrategyKind
from archc.search.supernet import Supernet, relax
from archc.search.work import Report

if TYPE_CHECKING:
    import torch

    from archc.search.executor import Job
    from archc.search.training import Training

TIMES = 4
"""Steps of a supernet at fidelity 1, in whole trainings of a candidate."""
WARM_UP = 0.25
"""Share of the steps before the sums' weights begin to learn."""
RATE = 0.03
"""Of Adam, for the sums' weights."""
HOT, COLD = 1.0, 0.2
"""Temperatures at the end of the warm-up, and at the end."""
SUMS = "sums"
"""The entry of a result's `extra` that holds the weights of the sums, as JSON: name -> list."""


class OneShotOptions(CommonOptions):
    supernets: int = Field(1, ge=1, description="how many; each draws anew what cannot be summed")
    effort: float = Field(1.0, gt=0, le=1, description=f"training of a supernet; 1: {TIMES} whole trainings' steps")
    depth: int = Field(1, ge=1, le=3, description="how far inside of each other choices are summed")
    weighing: Literal["softmax", "max_w"] = Field(
        "softmax", description="max_w: 1 - the largest + each, so that the largest is 1 (sharpDARTS)"
    )


class OneShot(Base[OneShotOptions]):
    """First the supernets, then their derivations, one of each in turn."""

    def __init__(self, space: SearchSpace, goals: Goals, seed: int, options: OneShotOptions) -> None:
        super().__init__(space, goals, seed, options)
        if not isinstance(space, GrammarSpace):
            raise fail("E0742", "a one-shot search needs a space with choices", label="this one is a list")
        self._space = space
        self._derivations: dict[int, tuple[Iterator[Candidate], list[Candidate]]] = {}

    @cached_property
    def _supernets(self) -> list[Supernet]:
        keys = (f"{self.seed}/supernet/{i}" for i in range(self.options.supernets))
        return [relax(self._space.space, key, self.options.depth) for key in keys]

    def ask(self, number: int) -> Proposal | None:
        if number < len(self._supernets):
            return self._supernet(number)
        known = [n for n in range(len(self._supernets)) if n in self.results and SUMS in self.results[n].extra]
        for at in range(len(known)):
            trial = known[(number + at) % len(known)]
            derived = next((c for c in self._of(trial) if c.hash not in self.hashes), None)
            if derived is not None:
                return Proposal(number=number, candidate=derived)
        return None

    def _supernet(self, number: int) -> Proposal:
        found = self._supernets[number]
        digest = canonical(found.graph).hash
        origin = f"supernet/{self.options.weighing}"
        candidate = Candidate(text=found.text, hash=digest, origin=origin, trace=found.trace)
        return Proposal(number=number, candidate=candidate, fidelity=self.options.effort, work="oneshot")

    def _of(self, trial: int) -> Iterator[Candidate]:
        """The derivations of a supernet, by weight; those made before are kept."""
        if trial not in self._derivations:
            self._derivations[trial] = self._derive(trial), []
        source, made = self._derivations[trial]
        yield from made
        for candidate in source:
            made.append(candidate)
            yield candidate

    def _derive(self, trial: int) -> Iterator[Candidate]:
        supernet = self._supernets[trial]
        weights: dict[str, list[float]] = json.loads(str(self.results[trial].extra[SUMS]))
        for chosen in supernet.ranked(weights):
            try:
                drawn = self._space.space.redraw({**supernet.trace, **chosen})
            except CompileError:
                continue
            if all(drawn.trace.get(path) == number for path, number in chosen.items()):  # else it met no requirement
                made = Candidate(
                    text=drawn.text,
                    hash=drawn.hash,
                    origin="oneshot",
                    trace=drawn.trace,
                    parents=(trial,),
                    inherit=trial,
                )
                yield self.heir(made)


def evaluate(job: Job, folder: Path, report: Report) -> Result:
    """Train a supernet; its result's `extra` tells the weights of its sums, and its accuracy as a mixture."""
    import torch

    from archc.search import vault
    from archc.search.training import Diverged
    from archc.search.trial import ORDER

    number, evaluation = job.proposal.number, job.evaluation
    steps = max(2, round(TIMES * evaluation.steps * job.proposal.fidelity))
    with torch.random.fork_rng(devices=[]):
        search = _Search(job, steps)
        curve: list[Point] = []
        status: Literal["finished", "stopped"] = "finished"
        try:
            for until in [round(steps * (k + 1) / 4) for k in range(4)]:
                search.run(until)
                score = evaluation_score(search.training)
                curve.append(Point(samples=search.samples, score=score))
                if not report(curve[-1]):
                    status = "stopped"
                    break
        except Diverged as error:
            return Result(
                number=number,
                status="infeasible",
                reason="diverged",
                message=str(error),
                curve=tuple(curve),
                samples=search.samples,
            )
        order = [p.name for p in canonical(search.graph).parameters]
        sha256 = vault.store_weights(folder, search.weights(), {ORDER: json.dumps(order)})
    return Result(
        number=number,
        status=status,
        curve=tuple(curve),
        samples=search.samples,
        weights=sha256,
        extra={SUMS: json.dumps(search.sums()), "score": curve[-1].score},
    )


def warm(job: Job) -> None:
    """Load what trainings share."""
    from archc.search.trial import prepare

    prepare(job.evaluation)


def evaluation_score(training: Training) -> float:
    """The task's score over the validation split, larger is better."""
    return training.batches.task.objective.score(training.judge("val"))[0]


class _Search:
    """A supernet in training: the network's weights by the recipe, the sums' by Adam."""

    def __init__(self, job: Job, steps: int) -> None:
        import torch

        from archc.backends.torch.module import to_torch
        from archc.search.keys import recipe_of
        from archc.search.trial import batches_of

        evaluation = job.evaluation
        recipe = recipe_of(evaluation)
        self.graph = loads(job.proposal.candidate.text)
        self.batches = batches_of(evaluation.task)
        self.steps, self.samples = steps, 0
        torch.manual_seed(recipe.seed)
        mixes = self.graph.inputs[len(self.batches.task.inputs) :]
        self._names = [v.name for v in mixes]
        noise = torch.Generator().manual_seed(recipe.seed)
        sizes = [int(str(v.type.shape[0])) for v in mixes]
        self._logits = [(1e-3 * torch.randn(size, generator=noise)).requires_grad_() for size in sizes]
        self._optimiser = torch.optim.Adam(self._logits, lr=RATE, betas=(0.5, 0.999))
        self._max_w = job.proposal.candidate.origin.endswith("max_w")
        self._module = _mixture(to_torch(self.graph, seed=recipe.seed), self._weighed)
        self.training = _half(self._module, self.batches, recipe, steps)
        self._order = np.random.Generator(np.random.Philox(recipe.seed))

    def _weighed(self) -> list[torch.Tensor]:
        """The sums' weights as they are now."""
        import torch

        done = max(0.0, (self.training.step / self.steps - WARM_UP) / (1 - WARM_UP))
        heat = HOT * (COLD / HOT) ** done
        found = [torch.softmax(logits / heat, 0) for logits in self._logits]
        return [1 - w.max() + w for w in found] if self._max_w else found

    def run(self, until: int) -> None:
        """Train up to a step. Raises: Diverged."""
        while self.training.step < until:
            if self.training.step >= WARM_UP * self.steps:
                self._weigh()
            self.training.run(self.training.step + 1)
            self.samples += self.training.batch_size

    def _weigh(self) -> None:
        """A step of the sums' weights, on the other half of the training split."""
        import torch

        from archc.backends.torch.training.evaluate import run_with_aux

        half = self.training.examples
        rows = torch.from_numpy(half + self._order.permutation(half)[: self.training.batch_size])
        inputs, targets = self.batches("train", rows, None, None)
        outputs, _ = run_with_aux(self._module, inputs)
        loss = self.batches.task.objective.loss(outputs, targets, 0.0)
        gradients = torch.autograd.grad(loss, self._logits)
        for logits, gradient in zip(self._logits, gradients, strict=True):
            logits.grad = gradient
        self._optimiser.step()
        self.samples += self.training.batch_size

    def sums(self) -> dict[str, list[float]]:
        """The weights of the sums by name, each from 0 to 1."""
        import torch

        return {n: torch.softmax(w.detach(), 0).tolist() for n, w in zip(self._names, self._logits, strict=True)}

    def weights(self) -> dict[str, Any]:
        """The network's weights, by the supernet's names."""
        prefix = "network."
        return {name.removeprefix(prefix): array for name, array in self.training.weights().items()}


def _mixture(network: torch.nn.Module, weighed: Any) -> torch.nn.Module:
    """The supernet as a network of the task: the weights of its sums are put in."""
    from torch import nn

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: torch.Tensor) -> Any:
            return self.network(*inputs, *weighed())

        def forward_with_aux(self, *inputs: torch.Tensor) -> Any:
            return self.network.forward_with_aux(*inputs, *weighed())  # type: ignore[operator]

    return Mixture()


def _half(module: torch.nn.Module, batches: Any, recipe: Any, steps: int) -> Training:
    """A training on the first half of the training split."""
    from archc.search.training import Training

    training = Training(module, batches, recipe, steps)
    training.examples = math.floor(training.examples / 2)
    training.batch_size = min(training.batch_size, training.examples)
    return training


KIND = StrategyKind("oneshot", "a supernet learns which choices are worth training (DARTS)", OneShotOptions, OneShot)
