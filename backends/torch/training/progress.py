"""Training progress on stderr: a bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from archc.backends.torch.training.loop import Event, OnEvent, Saved, Started, Stepped, Validated
from archc.backends.torch.training.nowcast import Jump
from archc.backends.torch.training.statistics import summary


@contextmanager
def show_progress(quiet: bool = False) -> Iterator[OnEvent]:
    """An `on_event` that shows progress for the block: `with show_progress() as on_event: train(…, on_event=on_event)`.

    >>> with show_progress(quiet=True) as on_event:
    ...     on_event(Saved(path=None, step=1))
    """
    if quiet:
        yield lambda event: None
        return
    if not sys.stderr.isatty():
        yield lambda event: _line(event)
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        training = bar.add_task("training", total=None)

        def draw(event: Event) -> None:
            if isinstance(event, Started):
                bar.update(training, total=event.steps, completed=event.step)
            elif isinstance(event, Stepped):
                said = f"epoch {event.epoch + 1}, loss {event.loss:.3f}"
                bar.update(training, completed=event.step, description=said)
            if not isinstance(event, Stepped | Saved | Jump):
                for text in describe(event):
                    bar.console.print(text, highlight=False, markup=False)

        yield draw


def _line(event: Event) -> None:
    for text in describe(event):
        print(text, file=sys.stderr, flush=True)


def describe(event: Event) -> list[str]:
    """The lines that tell an event; a step has none.

    >>> describe(Validated({"epoch": 1, "train_loss": 0.5, "val_accuracy": 0.9, "seconds": 2.0}, best=True))
    ['epoch 1: train loss 0.5000, val accuracy 0.9000, 2.0 s (best so far)']
    """
    if isinstance(event, Started):
        going = f"going on at step {event.step} of {event.steps}" if event.step else f"{event.steps} steps"
        threads = f", {event.threads} threads" if event.device == "cpu" else ""
        head = f"training {event.parameters:,} parameters on {event.device}{threads}: {event.epochs} epochs, {going}"
        return [head, *(f"note: {note}" for note in event.notes)]
    if isinstance(event, Validated):
        row = event.row
        numbers = [f"{key.replace('_', ' ')} {_number(row[key])}" for key in row if key[:4] in ("trai", "val_")]
        if "stats" in row:
            numbers += [f"{what} {_number(value)}" for what, value in summary(row["stats"]["val"]).items()]
        if "nowcasts" in row:
            tried = row["nowcasts"]
            numbers.append(f"{tried['kept']} of {tried['kept'] + tried['refused']} jumps")
        return [f"epoch {row['epoch']}: {', '.join(numbers)}, {row['seconds']:.1f} s" + " (best so far)" * event.best]
    return []


def _number(value: Any) -> str:
    return "not finite" if value is None else f"{value:.4f}"
