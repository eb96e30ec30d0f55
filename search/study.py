"""A study: a folder that holds a search, as far as it has come.

    study.sqlite                     configuration and log (`archc.search.store`)
    study.lock                       held by the process that writes
    space/                           the space and the nets of the user's, as they were when the study began
    results/, weights/, artifacts/   the vault (`archc.search.vault`)
    winners/                         what was chosen from the front

Nothing else is kept: what is known of a study is what its log comes to (`archc.search.history`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import Field, ValidationError

from archc.backends.weights import atomic_file
from archc.grammar.imports import STANDARD
from archc.grammar.load import load
from archc.grammar.parser import parse
from archc.grammar.printer import print_graph
from archc.grammar.syntax import Import
from archc.ir.diagnostics import did_you_mean, fail
from archc.search import vault
from archc.search.evaluation import Evaluation
from archc.search.goals import Constraint, Goals, Objective
from archc.search.history import Ended, History, Trial
from archc.search.objectives import LATENCY
from archc.search.records import Proposal, Record, Result
from archc.search.space import SearchSpace, open_space
from archc.search.store import LOG, Entry, Event, Lock, Store, damaged, demand, writing
from archc.search.strategy import Options, Strategy, replay, strategy_kind
from archc.search.work import SYNTHETIC

SPACE = "space"
_BUDGET = re.compile(r"(?P<amount>\d+(\.\d+)?)(?P<unit>m|h)?")


class Budget(Record):
    """When a search ends: after so many whole trainings' worth of samples, or after so many minutes."""

    evaluations: float | None = Field(None, gt=0)
    minutes: float | None = Field(None, gt=0)

    def __str__(self) -> str:
        return f"{self.evaluations:g}" if self.evaluations is not None else f"{self.minutes or 0:g}m"


def parse_budget(text: str) -> Budget:
    """`200` (whole trainings), `20m` or `2h`. Raises: CompileError (E0710).

    >>> str(parse_budget("200")), str(parse_budget("1.5h"))
    ('200', '90m')
    """
    found = _BUDGET.fullmatch(text.strip())
    if found is None or not float(found["amount"]):
        raise fail("E0710", f"`{text}` is no budget", help="write `200` for whole trainings, or `20m` for minutes")
    amount = float(found["amount"])
    if found["unit"] is None:
        return Budget(evaluations=amount)
    return Budget(minutes=amount * (60 if found["unit"] == "h" else 1))


class SpaceFiles(Record):
    """A space as it was when the study began: `files` maps the names of files in the study's `space/` to their texts.

    `name` is that of the space itself, `sha256` that of its text, `seeds` those of the user's nets. The rest is what
    `open_space` takes.
    """

    name: str
    sha256: str
    files: Mapping[str, str]
    seeds: tuple[str, ...] = ()
    values: Mapping[str, Any] = {}
    dims: Mapping[str, int] = {}
    transforms: tuple[str, ...] = ()
    kinds: Mapping[str, float] | None = None

    def options(self) -> dict[str, Any]:
        found: dict[str, Any] = {"values": self.values, "dims": self.dims, "transforms": self.transforms}
        return found if self.kinds is None else found | {"kinds": self.kinds}


class StudyConfig(Record):
    """All that a study depends on.

    whole      samples of a whole training: what budgets count in
    lag        deterministic: proposal t sees the results of trials up to t - lag, and no others. None: it sees whatever
               has ended
    dedupe     whether equal work is done once
    versions   of the packages that the study was begun with
    """

    space: SpaceFiles
    strategy: str
    options: Mapping[str, Any] = {}
    evaluation: Evaluation
    budget: Budget
    seed: int = 0
    whole: int = Field(ge=1)
    lag: int | None = Field(None, ge=1)
    dedupe: bool = True
    versions: Mapping[str, str] = {}


class Study:
    """A search in a folder. To go on with it, `archc.search.engine.run` it.

    One process may have it open to write; `readonly` ones see what it has logged after each `refresh`.
    """

    def __init__(self, folder: Path, config: StudyConfig, store: Store, lock: Lock | None) -> None:
        self.folder, self.config = folder, config
        self.history = History(config.whole)
        self._store, self._lock = store, lock

    @staticmethod
    def create(
        folder: Path,
        space: Path,
        *,
        evaluation: Evaluation,
        budget: Budget,
        strategy: str = "evolution",
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        lag: int | None = None,
        dedupe: bool = True,
        values: Mapping[str, Any] | None = None,
        dims: Mapping[str, int] | None = None,
        seeds: Sequence[Path] = (),
        transforms: Sequence[str] = (),
        kinds: Mapping[str, float] | None = None,
    ) -> Study:
        """Begin a study in a folder, which is made. `space` is a file, and what it imports.

        Raises: CompileError: for mistakes in the space, the nets and the options; E0726, E0728, E0730 when the folder
        cannot be had; E0731 for what a deterministic study cannot keep.
        """
        where: dict[str, Any] = {"values": values or {}, "dims": dims or {}, "transforms": tuple(transforms)}
        if kinds is not None:
            where["kinds"] = kinds
        open_space(space, seeds=seeds, **where)  # mistakes are found before there is a study
        config = StudyConfig(
            space=_space_files(space, seeds, where),
            strategy=strategy,
            options=options or {},
            evaluation=evaluation,
            budget=budget,
            seed=seed,
            whole=whole_samples(evaluation),
            lag=lag,
            dedupe=dedupe,
            versions=versions(),
        )
        strategy_options(config)
        _demand_repeatable(config)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder)
        try:
            Store.create(folder, config.model_dump_json())
            return Study._load(folder, lock)
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def open(folder: Path, *, readonly: bool = False) -> Study:
        """The study in a folder.

        Raises: CompileError: E0725 for one of another version, E0726 while another process writes to it, E0729 when
        there is none or it is damaged.
        """
        demand(folder)
        lock = None if readonly else Lock(folder)
        try:
            return Study._load(folder, lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    @staticmethod
    def _load(folder: Path, lock: Lock | None) -> Study:
        store = Store.open(folder, readonly=lock is None)
        try:
            study = Study(folder, StudyConfig.model_validate_json(store.config), store, lock)
            study.refresh()
        except (ValueError, LookupError) as error:  # pydantic's and json's are of the first kind
            store.close()
            raise damaged(folder / LOG, f"it holds what is no study's: {str(error).splitlines()[0]}") from error
        if lock is not None:
            with writing(folder):
                vault.make(folder)
        return study

    def close(self) -> None:
        self._store.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The log

    def refresh(self) -> list[Entry]:
        """Take in what was logged since; these events."""
        entries = []
        for entry in self._store.entries(self.history.last):
            self.history.apply(entry)
            entries.append(entry)
        return entries

    def record(self, *events: Event) -> list[Entry]:
        """Log events, all or none, and take them in. Raises: CompileError (E0728) when the disk is full."""
        entries = self._store.append(*events)
        for entry in entries:
            self.history.apply(entry)
        return entries

    def reload(self) -> None:
        """Read the log from its beginning."""
        self.history = History(self.config.whole)
        self.refresh()

    # What the configuration stands for

    @property
    def goals(self) -> Goals:
        return self.config.evaluation.goals

    @cached_property
    def space(self) -> SearchSpace:
        """The space, from the study's own copy of it. Raises: CompileError."""
        files, folder = self.config.space, self.folder / SPACE
        for name, text in files.files.items():
            path = folder / name
            if Path(name).is_absolute() or ".." in path.parts[len(folder.parts) :]:  # imports stay below their file
                raise damaged(self.folder / LOG, f"the place of `{name}` is outside of the study")
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                with writing(self.folder):
                    path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        return open_space(folder / files.name, seeds=[folder / name for name in files.seeds], **files.options())

    def strategy(self, heard: Sequence[Proposal | Result] | None = None) -> Strategy:
        """A new strategy that has heard all that this study's has (or what is given)."""
        kind = strategy_kind(self.config.strategy)
        made = kind.make(self.space, self.goals, self.config.seed, strategy_options(self.config))
        return replay(made, self.history.heard if heard is None else heard)

    def changed_versions(self) -> dict[str, tuple[str, str]]:
        """Packages that have another version now than when the study was begun: (then, now)."""
        now = versions()
        return {name: (then, now.get(name, "")) for name, then in self.config.versions.items() if now.get(name) != then}

    # What has come of it

    @property
    def trials(self) -> list[Trial]:
        return self.history.trials

    @property
    def ended(self) -> list[Ended]:
        return self.history.ended

    def front(self) -> list[Trial]:
        """The whole trainings that none dominates, by the first objective."""
        return self.history.front(self.goals)

    def best(self) -> Trial | None:
        """The best of the front in the first objective."""
        return next(iter(self.front()), None)

    @property
    def complete(self) -> bool:
        """Whether the search has come to its end: nothing is left to be done."""
        return self.history.closed == "complete"

    def replay(self) -> list[tuple[int, str, str]]:
        """Let a new strategy propose again what the log holds, hearing what that heard.

        Returns: where it proposes something else: (number of the trial, hash in the log, hash proposed now).
        """
        strategy, differences = self.strategy([]), []
        for record in self.history.heard:
            if isinstance(record, Result):
                strategy.tell(record)
                continue
            again = strategy.ask(record.number)
            if again != record:
                differences.append((record.number, record.candidate.hash, again.candidate.hash if again else ""))
            strategy.proposed(record)
        return differences

    def collect(self, keep: Collection[int] = (), *, pretend: bool = False) -> int:
        """Remove weights and artifacts that nothing needs; the bytes freed (`pretend`: that would be).

        Needed are those of the front and of the trials `keep`; while the search is not complete, also all weights that
        it may yet start from. Results stay, so that nothing is ever evaluated twice.
        """
        kept = {t.number for t in self.front()} | set(keep)
        weights, artifacts = set[str](), set[str]()
        for trial in self.trials:
            result = trial.result
            if trial.number in kept and result is not None:
                weights |= {sha for sha in (trial.start, result.weights) if sha}
                others = [str(v) for name, v in result.extra.items() if name.startswith("artifact@")]
                artifacts |= {key for key in (result.artifact, *others) if key}
            elif not self.complete and trial.state != "infeasible":
                weights |= {sha for sha in (trial.start, result and result.weights) if sha}
        if not self.complete:
            weights |= vault.states(self.folder, weights)
        return vault.collect(self.folder, weights, artifacts, pretend=pretend)


def versions() -> dict[str, str]:
    """What results may depend on."""
    return {name: metadata.version(name) for name in ("archc", "torch", "apache-tvm", "numpy")}


def strategy_options(config: StudyConfig) -> Options:
    """The strategy's options, checked. Raises: CompileError (E0711)."""
    kind = strategy_kind(config.strategy)
    try:
        return kind.options.model_validate(config.options)
    except ValidationError as error:
        first = error.errors()[0]
        name, known = str((first["loc"] or ("",))[0]), list(kind.options.model_fields)
        raise fail(
            "E0711",
            f"`{name}` of strategy `{config.strategy}`: {first['msg'].lower()}",
            help=did_you_mean(name, known) if name not in known else kind.options.model_fields[name].description,
        ) from error


def whole_samples(evaluation: Evaluation) -> int:
    """The samples of a whole training."""
    if evaluation.task == SYNTHETIC:
        return 64 * evaluation.steps
    from archc.search.keys import recipe_of, task_of

    return evaluation.steps * min(recipe_of(evaluation).batch_size, len(task_of(evaluation).splits["train"]))


def measured_goals(goals: Goals) -> list[Objective | Constraint]:
    """What depends on quantities that the coordinator measures; each of them once."""
    every: list[Objective | Constraint] = [*goals.objectives, *goals.constraints]
    return list({g.key: g for g in every if g.name == LATENCY}.values())


def _space_files(space: Path, seeds: Sequence[Path], options: Mapping[str, Any]) -> SpaceFiles:
    text = space.read_text(encoding="utf-8")
    files = {space.name: text} | _imported(space, space.parent)
    names = []
    for i, path in enumerate(seeds):
        names.append(f"seed_{i}{path.suffix}")
        is_trace = path.suffix == ".json"
        files[names[-1]] = path.read_text(encoding="utf-8") if is_trace else print_graph(load(path))  # stands alone
    return SpaceFiles(
        name=space.name,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        files=files,
        seeds=tuple(names),
        **options,
    )


def _imported(file: Path, root: Path) -> dict[str, str]:
    """The texts of the files that a file imports, and these, by their places below `root`."""
    found: dict[str, str] = {}
    for item in parse(file.read_text(encoding="utf-8"), str(file)).items:
        if isinstance(item, Import) and not item.path.value.startswith(STANDARD):
            path = file.parent / item.path.value
            found[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
            found |= _imported(path, root)
    return found


def _demand_repeatable(config: StudyConfig) -> None:
    """Raises: CompileError (E0731) for a deterministic study whose course would depend on time."""
    if config.lag is None:
        return
    help = "leave out `--deterministic`, or name a budget of whole trainings and objectives that are no times"
    if config.budget.evaluations is None:
        raise fail("E0731", f"a deterministic study cannot have a budget of time (`{config.budget}`)", help=help)
    for goal in measured_goals(config.evaluation.goals):
        raise fail("E0731", f"a deterministic study cannot depend on `{goal}`: it is measured", help=help)
