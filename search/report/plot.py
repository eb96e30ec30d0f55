"""Studies as a static picture: fronts beside each other, and progress against budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archc.backends.weights import atomic_file
from archc.ir.diagnostics import did_you_mean, fail
from archc.search.compare import Entry
from archc.search.pareto import front

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = ("#0069b4", "#c8480a", "#228833", "#aa3377", "#7a7000", "#555555")


def demand_suffix(path: Path) -> None:
    """Raises: CompileError (E0022, exit 2) when the suffix names no format of pictures."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        found = f"`{suffix}` is not one of {', '.join(SUFFIXES)}" if suffix else f"`{path}` has no suffix"
        help = did_you_mean(suffix, SUFFIXES) or "the suffix names the format"
        raise fail("E0022", "cannot draw in this format", label=found, help=help, exit_code=2)


def plot(entries: Sequence[Entry], path: Path) -> None:
    """Draw studies that have the same goals: the first two objectives against each other, the front as a staircase; and
    the best of the first objective against whole trainings spent. With one objective, only the latter."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    demand_suffix(path)
    goals = entries[0].goals
    several = len(goals.objectives) > 1
    figure = Figure(figsize=(10.5 if several else 6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, 2 if several else 1, squeeze=False)[0])
    for i, entry in enumerate(entries):
        colour = COLOURS[i % len(COLOURS)]
        if several:
            _draw_front(axes[0], entry, colour)
        _draw_progress(axes[-1], entry, colour)
    if several:
        second = goals.objectives[1]
        axes[0].set_xlabel(f"{second.key} ({'more' if second.larger_is_better else 'less'} is better)")
        axes[0].set_ylabel(goals.objectives[0].key)
    axes[-1].set_xlabel("whole trainings spent")
    axes[-1].set_ylabel(f"{goals.objectives[0].key}, best so far")
    for ax in axes:
        ax.grid(alpha=0.3, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].legend(frameon=False, loc="lower right" if goals.objectives[0].larger_is_better else "upper right")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _draw_front(ax: Any, entry: Entry, colour: str) -> None:
    losses = entry.losses()
    signs = [-1 if o.larger_is_better else 1 for o in entry.goals.objectives]
    values = losses * signs
    best = front(losses[:, :2])
    order = sorted(best, key=lambda i: losses[i, 1])
    ax.plot(values[:, 1], values[:, 0], "o", color=colour, alpha=0.25, markersize=3.5, markeredgewidth=0)
    ax.step(values[order, 1], values[order, 0], "o-", where="post", color=colour, markersize=5, linewidth=1.2)
    if len(values) and values[:, 1].min() > 0 and values[:, 1].max() > 30 * values[:, 1].min():
        ax.set_xscale("log")


def _draw_progress(ax: Any, entry: Entry, colour: str) -> None:
    sign = -1 if entry.goals.objectives[0].larger_is_better else 1
    reached = entry.best_so_far()
    ax.step([x for x, _ in reached], [sign * y for _, y in reached], where="post", color=colour, label=entry.name)
