"""Plain tables: aligned columns that still read well in a pipe."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: int | None = None, cut: bool = False
) -> None:
    """Print rows under a head; columns from `right` on stand at the right. `cut` long lines to a screen."""
    columns = len(head)
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(columns)]
    screen = shutil.get_terminal_size().columns if cut and sys.stdout.isatty() else sys.maxsize
    for row in (head, tuple("-" * w for w in widths), *rows):
        cells = [
            cell.rjust(width) if right is not None and i >= right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        print(line if len(line) <= screen else line[: screen - 1] + "…")
