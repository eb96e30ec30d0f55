"""A search as it goes, on stderr: a bar and the front on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archc.search.report.status import Standing

OFTEN, SELDOM = 2.0, 30.0
"""Seconds between lines when something got better, and when nothing did."""
ROWS = 8
"""Of the front."""

Show = Callable[["Standing"], None]


@contextmanager
def live(quiet: bool = False) -> Iterator[Show]:
    """A function that shows how a search stands; calling it often costs little."""
    if quiet:
        yield lambda standing: None
    elif sys.stderr.isatty():
        with _screen() as show:
            yield show
    else:
        yield _Lines()


class _Lines:
    """A line when the front has changed, and every half minute."""

    def __init__(self) -> None:
        self._said = 0.0
        self._front: list[dict[str, Any]] = []

    def __call__(self, standing: Standing) -> None:
        now = time.monotonic()
        ended = bool(standing.closed)
        if ended or now - self._said >= (OFTEN if standing.front != self._front else SELDOM):
            self._said, self._front = now, standing.front
            print(standing.line(), file=sys.stderr, flush=True)


@contextmanager
def _screen() -> Iterator[Show]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Table

    bar = Progress(TextColumn("{task.description}"), BarColumn(40), TextColumn("{task.fields[left]}"))
    search = bar.add_task("searching", total=1.0, left="")

    def table(standing: Standing) -> Table:
        keys = list(standing.front[0]["values"]) if standing.front else []
        found = Table(box=None, pad_edge=False)
        found.add_column("trial", justify="right")
        for key in keys:
            found.add_column(key, justify="right")
        found.add_column("made by")
        for row in standing.front[:ROWS]:
            found.add_row(f"{row['number']}", *(f"{row['values'][key]:.4g}" for key in keys), row["origin"])
        if len(standing.front) > ROWS:
            found.add_row("…", *[""] * len(keys), f"{len(standing.front) - ROWS} more")
        return found

    with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as screen:

        def show(standing: Standing) -> None:
            share = min(1.0, standing.share)
            left = standing.minutes * (1 - share) / share if share > 0.01 else None
            bar.update(search, completed=share, left="" if left is None else f"{left:.0f} min left")
            screen.update(Group(bar, standing.line(), *([table(standing)] if standing.front else [])))

        yield show
