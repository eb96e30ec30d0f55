"""One candidate, evaluated: built, checked, trained, judged, kept, compiled. What a worker does with most jobs."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archc.backends.torch.module import initial, to_torch
from archc.backends.torch.training import Recipe, Task
from archc.backends.weights import Weights
from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.canonical import canonical
from archc.ir.diagnostics import CompileError, fail
from archc.ir.dims import symbols
from archc.ir.graph import Graph, Value
from archc.ir.types import TensorType
from archc.search import vault
from archc.search.early import hopeless
from archc.search.evaluation import Evaluation
from archc.search.executor import Job
from archc.search.goals import Constraint
from archc.search.keys import code_key, load_once, recipe_of, task_of
from archc.search.objectives import Context, check_goals, goals_of
from archc.search.records import Candidate, Point, Result
from archc.search.training import Batches, Diverged, Training, waken
from archc.search.work import Report

CHECKS = (1 / 9, 2 / 9, 1 / 3, 1 / 2, 2 / 3)
"""Shares of a whole training after which there is a validation; there is always one at the end."""
CHECKED = 2048
"""Examples of a validation on the way, at most."""
ORDER = "archc.order"
"""Metadata of weights: the parameters' names in canonical order."""


class Infeasible(Exception):
    """A candidate that cannot be a solution: `reason` is one word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def told(error: CompileError) -> str:
    """A diagnostic in one line."""
    found = error.diagnostics[0]
    return f"{found.code}: {found.message}" + (f" ({found.label})" if found.label else "")


@lru_cache(maxsize=2)
def batches_of(spec: str) -> Batches:
    """A task's data, prepared; `spec` names the task."""
    found = Batches(load_once(spec))
    for split in ("train", "val"):
        found.prepare(split)
    return found


@contextmanager
def computing_on(count: int) -> Iterator[None]:
    """Compute on so many: sums are rounded as they are split, so another number comes to other weights."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Trial:
    """The evaluation of one job's candidate; `run` does it."""

    def __init__(self, job: Job, folder: Path, report: Report) -> None:
        self.job, self.folder, self.report = job, folder, report
        self.evaluation, self.candidate = job.evaluation, job.proposal.candidate
        self.task = task_of(self.evaluation)
        self.values: dict[str, float] = {}
        self.curve: list[Point] = []
        self.extra: dict[str, float | str] = {}
        self.seconds: dict[str, float] = {}
        self.spent = 0

    def run(self) -> Result:
        number = self.job.proposal.number
        begin = time.perf_counter()
        status, reason, message = "finished", "", ""
        kept: dict[str, Any] = {}
        try:
            with torch.random.fork_rng(devices=[]), computing_on(self.evaluation.threads):
                kept, stopped = self._evaluate()
            status = "stopped" if stopped else "finished"
        except Infeasible as found:
            status, reason, message = "infeasible", found.reason, found.message
        except Diverged as error:
            status, reason, message = "infeasible", "diverged", str(error)
        seconds = {f"{name}_seconds": round(taken, 4) for name, taken in self.seconds.items()}
        return Result.model_validate(
            {
                "number": number,
                "status": status,
                "values": self.values,
                "reason": reason,
                "message": message,
                "curve": tuple(self.curve),
                "samples": self.spent,
                "seconds": round(time.perf_counter() - begin, 4),
                "extra": self.extra | seconds,
                **kept,
            }
        )

    def _evaluate(self) -> tuple[dict[str, Any], bool]:
        with self._timed("build"):
            graph = self._graph()
            self._know(graph)
        with self._timed("start"):
            training = self._training(graph)
        stopped = self._train(training)
        with self._timed("validate"):
            metrics = training.judge("val")
        weights = training.weights()
        for goal, kind in goals_of(self.evaluation.goals):
            if kind.trained and not kind.measured:
                self.values[goal.key] = kind.measure(Context(graph, self.task, metrics, weights, self.folder))
        self.values |= metrics
        with self._timed("keep"):
            sha256 = self._keep(graph, training, weights, metrics)
        kept: dict[str, Any] = {"weights": sha256}
        for target in targets_of(self.evaluation):
            with self._timed("compile"):
                artifact = self._compile(graph, weights, sha256, target)
            self.extra[f"artifact@{target}"] = artifact
            kept.setdefault("artifact", artifact)
        return kept, stopped

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        """Count CPU time."""
        begin = time.process_time()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.process_time() - begin

    # Before the training

    def _graph(self) -> Graph:
        """The candidate's network. Raises: Infeasible for one that is no program, or does not fit the task."""
        try:
            graph = loads(self.candidate.text)
            demand_fit(graph, self.task)
        except CompileError as error:
            raise Infeasible("invalid", told(error)) from error
        return graph

    def _know(self, graph: Graph) -> None:
        """What is known without training. Raises: Infeasible where a constraint on it is broken."""
        context = Context(graph, self.task, folder=self.folder)
        known = [(goal, kind) for goal, kind in goals_of(self.evaluation.goals) if not (kind.trained or kind.measured)]
        for goal, kind in known:
            self.values[goal.key] = kind.measure(context)
        for goal, _ in known:
            if isinstance(goal, Constraint) and not goal.holds(self.values):
                raise Infeasible(goal.name, f"{goal.key} is {self.values[goal.key]:g}, needed {goal}")

    def _training(self, graph: Graph) -> Training:
        """The training, where it begins or goes on."""
        before = vault.load_weights(self.folder, self.job.start) if self.job.start is not None else None
        inherits = None
        if before is not None and self.job.proposal.continues is None:
            inherits = self._inherited(graph, before)
        elif before is None and self.evaluation.warm_start is not None:
            from archc.search.warm import predicted

            inherits, self.extra["warm_start"] = predicted(graph, self.evaluation.warm_start, self.task)
        try:
            training = fresh(graph, self.evaluation, inherits)
        except CompileError as error:
            raise Infeasible("invalid", told(error)) from error
        if before is not None and self.job.proposal.continues is not None:
            self._go_on(training, graph, before)
        return training

    def _inherited(self, graph: Graph, before: Weights) -> dict[str, Any]:
        from archc.search.inherit import inherited

        assert self.job.parent is not None, "inherited weights come with the parent's program"
        theirs = loads(self.job.parent)
        found = inherited(theirs, renamed(before, theirs), graph, self.candidate.origin, self.evaluation.seed)
        self.extra["inherited_share"] = round(found.share, 4)
        self.extra["inherited_by"] = found.contract
        return found.weights

    def _go_on(self, training: Training, graph: Graph, before: Weights) -> None:
        """Restore the state that a rung left; where the vault has lost it, train up to there again: the same comes."""
        state = before.metadata.get(vault.STATE, "")
        if state and vault.has_weights(self.folder, state):
            found = vault.load_weights(self.folder, state)
            training.restore(renamed(found, graph), renamed(before, graph), str(self.folder))
        else:
            with self._timed("train"):
                training.run(int(before.metadata["archc.step"]))
            self.spent = training.samples

    # The training

    def _train(self, training: Training) -> bool:
        """Train as far as the fidelity says; whether it was stopped before."""
        last = max(1, round(self.job.proposal.fidelity * training.steps))
        checks = [c for c in (round(share * training.steps) for share in CHECKS) if training.step < c < last]
        for until in [*checks, last]:
            begin = training.samples
            try:
                with self._timed("train"):
                    training.run(until)
            finally:
                self.spent += training.samples - begin
            if until == last:
                break
            with self._timed("validate"):
                score = self._score(training.judge("val", CHECKED))
            self.curve.append(Point(samples=training.samples, score=score))
            if not self.report(self.curve[-1]):
                return True
            if self.evaluation.early_stop and hopeless(self.curve, self.job.curves):
                self.extra["stopped_by"] = "curve"
                return True
        return False

    def _score(self, metrics: Mapping[str, float]) -> float:
        return self.task.objective.score(metrics)[0]

    # After the training

    def _keep(self, graph: Graph, training: Training, weights: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
        """Write the weights to the vault, with what there is to know of them; their address."""
        self.curve.append(Point(samples=training.samples, score=self._score(metrics)))
        if len(self.curve) < 2 or self.curve[-2].samples < training.samples:
            self.report(self.curve[-1])
        else:  # stopped right after a validation: the whole split is the better word
            del self.curve[-2]
        facts = {
            "task": self.task.key,
            "recipe": training.recipe.model_dump(mode="json"),
            "preprocessing": self.task.preprocessing.model_dump(mode="json"),
            "metrics": {"val": dict(metrics)},
            "order": [p.name for p in canonical(graph).parameters],
            "step": training.step,
        }
        metadata = {f"archc.{name}": json.dumps(value, sort_keys=True) for name, value in facts.items()}
        if training.step < training.steps:
            metadata[vault.STATE] = vault.store_weights(self.folder, training.state(), {ORDER: metadata[ORDER]})
        return vault.store_weights(self.folder, weights, metadata)

    def _compile(self, graph: Graph, weights: Mapping[str, Any], sha256: str, target: str) -> str:
        """Compile the trained network into the vault; its address. Raises: Infeasible."""
        key = code_key(graph, target, self.evaluation.batch, self.evaluation.threads, sha256)
        path = vault.artifact_path(self.folder, key)
        if not path.exists():
            try:
                compiled(graph, weights, path, self.evaluation, target, self.task)
            except CompileError as error:
                raise Infeasible("invalid", f"cannot be compiled: {told(error)}") from error
        return key


def demand_fit(graph: Graph, task: Task) -> None:
    """See that a network takes a task's examples and gives what it asks for, in batches of any size.

    Raises: CompileError E0615, E0616.
    """
    found = ", ".join(str(v.type) for v in graph.inputs)
    if len(graph.inputs) != len(task.inputs) or not all(map(_takes, graph.inputs, task.inputs)):
        needed = ", ".join(map(_batched, task.inputs))
        raise fail(
            "E0615",
            f"the network does not take the inputs of task `{task.name}`",
            label=f"needed {needed}, found {found}",
            help="give the space an input of this type, or `--set` the parameter that decides it",
        )
    if not graph.outputs or not _takes(graph.outputs[0], task.output):
        raise fail(
            "E0616",
            f"the network's output is not that of task `{task.name}`",
            label=f"needed {_batched(task.output)}, found {graph.outputs[0].type if graph.outputs else 'none'}",
            help=f"end the space with {task.output.shape[-1]} outputs, or `--set` the parameter that counts them"
            if task.output.shape
            else None,
        )


def _takes(value: Value, one: TensorType) -> bool:
    shape = value.type.shape
    fits = bool(shape) and bool(symbols(shape[0])) and shape[1:] == one.shape
    return fits and value.type.dtype == one.dtype


def _batched(spec: TensorType) -> str:
    return f"{spec.dtype}[{', '.join(['N', *map(str, spec.shape)])}]"


def prepare(evaluation: Evaluation) -> None:
    """Load what evaluations share. Raises: CompileError E0610-E0617, E0720-E0722."""
    recipe_of(evaluation)
    check_goals(evaluation.goals, task_of(evaluation))
    batches_of(evaluation.task)
    if evaluation.warm_start is not None:
        from archc.search.warm import check

        check(evaluation.warm_start, task_of(evaluation))
    waken()
    graph = loads(SMALLEST)
    with tempfile.TemporaryDirectory(prefix="archc-") as folder:
        for target in targets_of(evaluation):  # what a first compilation loads and sets up takes longer than the rest
            compiled(graph, first_weights(graph, 0), Path(folder) / "smallest.archc", evaluation, target)


SMALLEST = "arch probe()\ninput x: f32[N, 2]\noutput y: f32[N, 2]\ny = x -> linear(2)\n"


def targets_of(evaluation: Evaluation) -> list[str]:
    """The targets on which something is measured."""
    return list(dict.fromkeys(g.target for g, kind in goals_of(evaluation.goals) if kind.measured and g.target))


def compiled(
    graph: Graph, weights: Mapping[str, Any], path: Path, evaluation: Evaluation, target: str, task: Task | None = None
) -> None:
    """Compile a network for a target. Raises: CompileError."""
    from archc.backends.tvm.compile import compile_graph
    from archc.backends.tvm.targets import parse_target

    spec = parse_target(target, threads=evaluation.threads)
    arrays = {name: np.asarray(array) for name, array in weights.items()}
    preprocessing = None if task is None else task.preprocessing
    compile_graph(graph, arrays, path, spec=spec, source=print_graph(graph), preprocessing=preprocessing)


def tested(candidate: Candidate, evaluation: Evaluation, seed: int) -> dict[str, float]:
    """A whole training from a seed, and what the test split says of it. Raises: CompileError (E0618)."""
    evaluation = evaluation.model_copy(update={"seed": seed})
    graph = loads(candidate.text)
    demand_fit(graph, task_of(evaluation))
    with torch.random.fork_rng(devices=[]), computing_on(evaluation.threads):
        training = fresh(graph, evaluation)
        try:
            training.run(training.steps)
            return training.judge("test")
        except Diverged as error:
            raise fail("E0618", str(error), help="a lower rate, or another network") from error


def fresh(graph: Graph, evaluation: Evaluation, inherits: Mapping[str, Any] | None = None) -> Training:
    """A training that has not begun: weights as the program says, as its topology asks for, or as a hypernetwork
    predicts them, but for those that are given. Raises: CompileError (E0620)."""
    recipe = recipe_of(evaluation)
    weights = None
    if evaluation.architecture_aware:
        weights, recipe = aware(graph, recipe)
    if not inherits and evaluation.warm_start is not None:
        from archc.search.warm import predicted

        inherits, _ = predicted(graph, evaluation.warm_start, task_of(evaluation))
    if inherits:
        weights = {**(weights or first_weights(graph, recipe.seed)), **inherits}
    torch.manual_seed(recipe.seed)
    module = to_torch(graph, weights, seed=recipe.seed)
    return Training(module, batches_of(evaluation.task), recipe, evaluation.steps)


def aware(graph: Graph, recipe: Recipe) -> tuple[dict[str, Any], Recipe]:
    """First weights that know the topology, and the recipe with the rate that suits it (Chen et al. 2024, Principled
    Architecture-aware Scaling of Hyperparameters, ICLR, arXiv:2402.17440)."""
    from archc.metanet.ghn.starts import architecture_aware

    start = architecture_aware(graph, recipe.seed)
    drawn = {name: w for name, w in start.weights.items() if graph.parameters()[name].type.dtype == "f32"}
    return first_weights(graph, recipe.seed) | drawn, recipe.model_copy(update={"lr": recipe.lr * start.rate})


def first_weights(graph: Graph, seed: int) -> dict[str, Any]:
    """Initial values, as the program says."""
    return {name: initial(parameter, seed) for name, parameter in graph.parameters().items()}


def renamed(weights: Weights, graph: Graph) -> dict[str, Any]:
    """Weights by the parameter names of a program that is canonically equal to the one they were trained in."""
    written = json.loads(weights.metadata.get(ORDER, "[]"))
    names = dict(zip(written, (p.name for p in canonical(graph).parameters), strict=True)) if written else {}
    found = {}
    for key, array in weights.arrays.items():
        kind, slash, name = key.rpartition("/")  # moments of an optimiser: `exp_avg/NAME`
        found[kind + slash + names.get(name, name)] = array
    return found
