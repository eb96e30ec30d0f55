"""Searching: `archc.search`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archc.facade.compile import compile
from archc.facade.model import loads
from archc.facade.study import Budget, Study, go_on, tell
from archc.grammar.draw import read_space
from archc.grammar.enumerate import count
from archc.ir.diagnostics import CompileError, Note, fail
from archc.search import engine, vault
from archc.search import study as studies
from archc.search.evaluation import Evaluation
from archc.search.executors import make_executor
from archc.search.goals import Goals, parse_goals
from archc.search.space import SearchSpace, open_space
from archc.search.work import SYNTHETIC

Paths = Sequence[Path | str]
LAG = 4
"""Of a deterministic search, where none is asked for: it can have so many workers."""
TRIED, DRAWN = 3, 200
"""Architectures that an estimate evaluates, and that it draws."""


def search(
    space: Path | str,
    task: str,
    objectives: Sequence[str] = ("accuracy:max",),
    constraints: Sequence[str] = (),
    *,
    strategy: str = "evolution",
    budget: Budget = 100,
    seed: int = 0,
    study: Path | str | None = None,
    workers: int | None = None,
    ray: str | None = None,
    deterministic: bool = False,
    progress: bool = False,
    **more: Any,
) -> Study:
    """Search a space for architectures that are good by all objectives, as measured.

    space          an `.arch` file that begins with `space`
    task           as `archc.train` takes it, by name
    objectives     such as `"accuracy:max"`, `"params:min"`, `"latency_ms:min@cpu"`; the first one decides where one is
                   needed. Values are from the validation split
    constraints    such as `"params < 500k"`: what does not keep to them is not trained where that can be known before
    budget         whole trainings (`200`), or minutes (`"20m"`)
    study          the folder that holds all that comes of it, which must not hold a study yet; without it one below the
                   system's folder for temporary files. Interrupted, it goes on with `archc.Study.open(folder).resume()`
    workers, ray   processes on this machine (one for each core), or the address of a Ray cluster
    deterministic  the same proposals on any number of workers, and after a crash: for budgets of trainings, and
                   objectives that are no times
    progress       tell on stderr how it goes
    more           what `begin` takes besides: `options` of the strategy, `seeds`, `transforms`, `evaluation`, …

    Raises: CompileError for what is wrong with any of these, E0727 when nothing feasible was found.
    """
    folder = Path(study) if study is not None else Path(tempfile.mkdtemp(prefix="archc-study-"))
    options = {"strategy": strategy, "budget": budget, "seed": seed, "deterministic": deterministic, **more}
    with begin(space, task, folder, objectives, constraints, workers=workers, **options) as begun:
        return go_on(begun, workers, ray, show=tell if progress else None)


def begin(
    space: Path | str,
    task: str,
    study: Path | str,
    objectives: Sequence[str] = ("accuracy:max",),
    constraints: Sequence[str] = (),
    *,
    strategy: str = "evolution",
    options: Mapping[str, Any] | None = None,
    budget: Budget = 100,
    seed: int = 0,
    workers: int | None = None,
    deterministic: bool = False,
    lag: int | None = None,
    dedupe: bool = True,
    seeds: Paths = (),
    transforms: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> studies.Study:
    """A new study, ready to `go_on` with; nothing has been evaluated.

    options      of the strategy
    lag          of a deterministic search: a proposal knows the results of all trials up to so many before it, which is
                 also the most workers that it can have
    dedupe       compute equal work once
    seeds        `.arch` files to begin with
    transforms   passes that mutations may apply, weights inherited: `"widen(factor = 2)"`
    values, dims parameters of the space, and sizes of its symbols
    evaluation   fields of `archc.search.evaluation.Evaluation`: `steps`, `recipe`, `memory_mb`, `early_stop`, …

    Raises: CompileError for what is wrong with any of these.
    """
    goals = parse_goals(list(objectives), list(constraints))
    how = evaluation_of(task, goals, evaluation or {})
    files = [Path(s) for s in seeds]
    check(how, open_space(Path(space), values=values, dims=dims, seeds=files, transforms=transforms))
    return studies.Study.create(
        Path(study),
        Path(space),
        evaluation=how,
        budget=studies.parse_budget(str(budget)),
        strategy=strategy,
        options=options,
        seed=seed,
        lag=(lag or max(LAG, workers or 1)) if deterministic else None,
        dedupe=dedupe,
        values=values,
        dims=dims,
        seeds=files,
        transforms=transforms,
    )


def evaluation_of(task: str, goals: Goals, fields: Mapping[str, Any]) -> Evaluation:
    """How candidates are evaluated. Raises: CompileError (E0617)."""
    from archc.backends.torch.training.options import build

    return build(Evaluation, {**fields, "task": task, "goals": goals}, "E0617", "the evaluation")


def check(evaluation: Evaluation, space: SearchSpace) -> None:
    """See that the task can be had, that networks of the space fit it, that what is asked for can be told of them, and
    that targets can run here, before any trial is spent on it.

    Raises: CompileError E0610-E0617 for task and recipe, E0615 and E0616 for a space that does not fit, E0721 and E0722
    for quantities, E0801, E0802 and E0822 for a hypernetwork, E0746 (exit code 4) for a target that this machine lacks.
    """
    if evaluation.task == SYNTHETIC:
        return
    from archc.search.keys import recipe_of, task_of
    from archc.search.objectives import check_goals
    from archc.search.trial import SMALLEST, demand_fit, targets_of

    recipe_of(evaluation)
    check_goals(evaluation.goals, task_of(evaluation))
    demand_fit(loads(space.draw("fit").text).graph, task_of(evaluation))
    if evaluation.warm_start is not None:
        from archc.search.warm import check as check_model

        check_model(evaluation.warm_start, task_of(evaluation))
    for target in targets_of(evaluation):
        try:
            compile(loads(SMALLEST), target, threads=evaluation.threads)
        except CompileError as error:
            raise fail(
                "E0746",
                f"nothing can be measured on `{target}` here",
                notes=[Note(f"{d.code}: {d.message}{d.label and f' ({d.label})'}") for d in error.diagnostics],
                help="`archc doctor` says what works on this machine",
                exit_code=4,
            ) from error


@dataclass(frozen=True)
class Estimate:
    """What a search would take, told from a few evaluations.

    size            how many architectures there are in the space; None: too many to list
    derivations     how many its grammar derives, whether they fit or not: a number, its logarithm, or `endless`
    drawn, distinct architectures that were drawn, and how many of them differ
    tried           architectures that were evaluated, `infeasible` of them in vain
    seconds         of one whole training on one worker, and of measuring it with all workers paused
    bytes           that one evaluation keeps
    minutes, trainings, disk: what the whole budget comes to
    """

    size: int | None
    derivations: str
    drawn: int
    distinct: int
    tried: int
    infeasible: int
    training_seconds: float
    measuring_seconds: float
    bytes: float
    workers: int
    minutes: float
    trainings: float
    disk: float


def estimate(
    space: Path | str,
    task: str,
    objectives: Sequence[str] = ("accuracy:max",),
    constraints: Sequence[str] = (),
    *,
    budget: Budget = 100,
    workers: int | None = None,
    **more: Any,
) -> Estimate:
    """What a search would take: draws some architectures, evaluates a few in a folder that is removed then."""
    workers = workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="archc-estimate-") as folder:
        options = more | {"strategy": "random", "options": None, "budget": TRIED, "deterministic": False}
        begun = begin(space, task, Path(folder) / "study", objectives, constraints, **options)
        with begun:
            asked = begun.config.model_copy(
                update={name: more[name] for name in ("strategy", "options") if name in more}
            )
            studies.strategy_options(asked)
            drawn = [begun.space.draw(f"estimate/{i}").hash for i in range(DRAWN)]
            size = begun.space.size()
            derivations = str(count(read_space(space, more.get("values"), more.get("dims"))))
            try:
                engine.run(begun, make_executor("pool", begun.folder, workers=1))
            except CompileError as error:
                if error.diagnostics[0].code != "E0727":  # so few tell nothing of whether all are infeasible
                    raise
            history = begun.history
            whole = max(history.spent, 1e-9)
            training = sum(history.seconds_of_work.values()) / whole
            measuring = history.overheads["measuring"] / whole
            kept = sum(size for _, size in vault.sizes(begun.folder).values()) / whole
    wanted = studies.parse_budget(str(budget))
    one = training / workers + measuring
    trainings = wanted.evaluations or 60 * (wanted.minutes or 0) / one
    return Estimate(
        size=size,
        derivations=derivations,
        drawn=DRAWN,
        distinct=len(set(drawn)),
        tried=len(history.told),
        infeasible=history.counts["infeasible"],
        training_seconds=training,
        measuring_seconds=measuring,
        bytes=kept,
        workers=workers,
        minutes=wanted.minutes or trainings * one / 60,
        trainings=trainings,
        disk=kept * trainings,
    )
