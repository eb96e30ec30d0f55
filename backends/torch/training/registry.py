"""Tasks by name: `load_task("digits")`, `load_task("text:book.txt?length=128")`.

Another package adds its own data set and loss by an entry point in the group `archc.tasks` that names a `TaskKind`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any
from urllib.parse import parse_qsl

from archc.backends.torch.training import composed, datasets, images, sequences, text
from archc.backends.torch.training.options import build
from archc.backends.torch.training.tasks import Task, TaskKind
from archc.ir.diagnostics import did_you_mean, fail

ENTRY_POINTS = "archc.tasks"


def task_kinds() -> dict[str, TaskKind]:
    """Every kind of task by name: those of archc, then those of installed packages.

    >>> sorted(task_kinds())[:2]
    ['add_digits', 'breast_cancer']
    """
    own = (*datasets.KINDS, *composed.KINDS, *sequences.KINDS, images.IMAGES, text.TEXT)
    kinds = {kind.name: kind for kind in own}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            kind = entry.load()
        except Exception as error:  # whatever a foreign package raises, its user needs to hear which one it was
            raise fail(
                "E0610", f"task `{entry.name}` cannot be loaded from `{entry.value}`", label=f"{error!r}"
            ) from error
        if not isinstance(kind, TaskKind):
            raise fail("E0610", f"`{entry.value}` is not a TaskKind", label=f"found {type(kind).__name__}")
        kinds.setdefault(kind.name, kind)
    return kinds


def load_task(spec: str, **options: Any) -> Task:
    """A task from `NAME`, `NAME:PATH` or `NAME:PATH?option=value&…`; keywords add to the options.

    Raises E0610 for an unknown name or a wrong option, E0611–E0614 for data that cannot be used.

    >>> task = load_task("wine?seed=1")
    >>> str(task.inputs[0]), task.labels, [len(s) for s in task.splits.values()]
    ('f32[13]', ('class_0', 'class_1', 'class_2'), [106, 36, 36])
    """
    place, _, query = spec.partition("?")
    name, colon, path = place.partition(":")
    kinds = task_kinds()
    if name not in kinds:
        help = did_you_mean(name, kinds) or f"tasks: {', '.join(sorted(kinds))}"
        raise fail("E0610", f"there is no task `{name}`", help=help)
    given = dict(parse_qsl(query, keep_blank_values=True)) | options
    if colon:
        given["path"] = path
    kind = kinds[name]
    return kind.build(build(kind.config, given, "E0610", f"task `{name}`"))
