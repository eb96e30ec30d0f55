"""What has come of a search: `archc.Study`."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from archc.facade.winners import Winner, keep_winners, winner
from archc.search import engine
from archc.search import study as studies
from archc.search.executor import Executor
from archc.search.executors import make_executor
from archc.search.history import Ended, Trial
from archc.search.report.commands import search_command
from archc.search.report.status import Standing, standing
from archc.search.store import LOCK

Budget = int | float | str
Show = Callable[[Standing], None]
_HOLDER = re.compile(r"process (?P<id>\d+) on (?P<host>\S+)")
OFTEN = 0.5
"""Seconds between two times that somebody is shown how a search stands."""


class Study:
    """What has come of a search, as far as it has come; read from the study's folder, which others may write to.

    >>> archc.Study.open("runs/digits").front                            # doctest: +SKIP
    [Winner(57: accuracy=0.9742, latency_ms@cpu=0.03127, mutation/resample), …]
    """

    def __init__(self, study: studies.Study) -> None:
        self._study = study
        self.folder, self.config, self.goals = study.folder, study.config, study.goals

    @staticmethod
    def open(folder: Path | str) -> Study:
        """The study in a folder. Raises: CompileError E0725, E0729."""
        return Study(studies.Study.open(Path(folder), readonly=True))

    def close(self) -> None:
        self._study.close()

    def refresh(self) -> Study:
        """Take in what was logged since."""
        self._study.refresh()
        return self

    def resume(
        self,
        workers: int | None = None,
        ray: str | None = None,
        *,
        budget: Budget | None = None,
        progress: bool = False,
    ) -> Study:
        """Go on with the search; `budget` is in the place of its own, and may be larger."""
        writer = studies.Study.open(self.folder)
        go_on(writer, workers, ray, budget=budget, show=tell if progress else None).close()
        return self.refresh()

    @property
    def trials(self) -> list[Trial]:
        """Every proposal, and what became of it."""
        return self._study.trials

    @property
    def ended(self) -> list[Ended]:
        """The trials with results, in the order in which they ended."""
        return self._study.ended

    @property
    def standing(self) -> Standing:
        """How far it has come, in figures."""
        return standing(self.config, self._study.history)

    @property
    def front(self) -> list[Winner]:
        """What no other is better than in all objectives, by the first of them."""
        return [winner(self._study, trial) for trial in self._study.front()]

    @property
    def best(self) -> Winner | None:
        """The best in the first objective."""
        return next(iter(self.front), None)

    def in_use(self) -> bool:
        """Whether a process searches, as far as can be told: one on another machine is believed."""
        if self._study.history.closed:
            return False
        try:
            holder = _HOLDER.match((self.folder / LOCK).read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return False
        return holder is not None and (
            holder["host"] != socket.gethostname() or os.path.exists(f"/proc/{holder['id']}")
        )

    def state(self) -> str:
        """`searching`, `complete`, `interrupted`, or `killed`: no process is at work, and none said goodbye."""
        return self._study.history.closed or ("searching" if self.in_use() else "killed")

    def times(self) -> dict[str, float]:
        """Where time went, in seconds: of workers by kind of work, and of the coordinator."""
        return {**self._study.history.seconds_of_work, **self._study.history.overheads}

    def to_json(self) -> dict[str, Any]:
        """How far it has come, how it was set, and the command that carries it out again."""
        more = {"study": self.folder, "state": self.state(), "strategy": self.config.strategy, "times": self.times()}
        config = self.config.model_dump(mode="json")
        return (
            self.standing.model_dump() | more | {"config": config, "command": search_command(self.config, self.folder)}
        )

    def replay(self) -> list[tuple[int, str, str]]:
        """Where the strategy would now propose something else: (trial, hash in the log, hash now)."""
        return self._study.replay()

    def report(self, path: Path | str) -> Path:
        """Write the report: one HTML file that loads nothing. Raises: CompileError (E0608)."""
        from archc.facade.report import write_report

        return write_report(self._study, Path(path))

    def plot(self, path: Path | str) -> Path:
        """Draw front and progress (.png, .svg, .pdf)."""
        from archc.search.compare import entry_of
        from archc.search.report.plot import plot

        plot([entry_of(self._study)], Path(path))
        return Path(path)

    def export(self, path: Path | str, format: str = "csv") -> Path:
        """Write all trials that have ended. Raises: CompileError (E0747) where a package is missing."""
        from archc.search.export import export

        front = [t.number for t in self._study.front()]
        export(self.ended, front, self.goals, Path(path), format, self.folder.resolve().name)
        return Path(path)

    def __repr__(self) -> str:
        return f"Study({self.folder}: {self.standing.line()})"

    def _repr_html_(self) -> str:
        keys = [o.key for o in self.goals.objectives]
        rows = [("trial", *keys, "made by")]
        rows += [(str(w.number), *(f"{w.values[k]:.4g}" for k in keys), w.origin) for w in self.front]
        table = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        return f"<p>{escape(repr(self))}</p><table>{table}</table>"


def go_on(
    study: studies.Study,
    workers: int | None = None,
    ray: str | None = None,
    *,
    budget: Budget | None = None,
    show: Show | None = None,
) -> Study:
    """Search until the budget (the study's, or another one) is spent, and keep the front in the study's `winners/`.

    The study is closed then. KeyboardInterrupt goes through and loses nothing.
    """
    shown = 0.0

    def on_event(entry: object) -> None:
        nonlocal shown
        if show is not None and time.monotonic() - shown > OFTEN:
            show(standing(study.config, study.history))
            shown = time.monotonic()

    with study:
        more = studies.parse_budget(str(budget)) if budget is not None else None
        engine.run(study, _executor(study, workers, ray), on_event, budget=more)
        if show is not None:
            show(standing(study.config, study.history))
        keep_winners(study)
    return Study.open(study.folder)


def _executor(study: studies.Study, workers: int | None, ray: str | None) -> Executor:
    if ray is not None:
        return make_executor("ray", study.folder, address=ray, workers=workers, threads=study.config.evaluation.threads)
    lag = study.config.lag
    if workers is None and lag is not None:
        workers = min(lag, len(os.sched_getaffinity(0)))
    return make_executor("pool", study.folder, workers=workers)


def tell(now: Standing) -> None:
    """How a search stands, as a line on stderr."""
    print(now.line(), file=sys.stderr, flush=True)
