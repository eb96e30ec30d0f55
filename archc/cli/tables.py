"""Tables on stdout."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from archc.facade.tables import lay_out


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: int | None = None, cut: bool = False
) -> None:
    """Print rows under a head; columns from `right` on stand at the right. `cut` long lines to a screen."""
    screen = shutil.get_terminal_size().columns if cut and sys.stdout.isatty() else sys.maxsize
    for line in lay_out(head, rows, right):
        print(line if len(line) <= screen else line[: screen - 1] + "…")
