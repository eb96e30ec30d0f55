"""Plain tables and figures: aligned columns that still read well in a pipe."""

from __future__ import annotations

from collections.abc import Sequence


def lay_out(head: Sequence[str], rows: Sequence[Sequence[str]], right: int | None = None) -> list[str]:
    """The lines of a table; columns from `right` on stand at the right.

    >>> lay_out(("op", "params"), [("linear", "72"), ("relu", "")], right=1)
    ['op      params', '------  ------', 'linear      72', 'relu']
    """
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if right is not None and i >= right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, tuple("-" * w for w in widths), *rows)
    ]


def human(number: float, unit: str = "") -> str:
    """A large number for people.

    >>> human(11689512), human(1024), human(0)
    ('11.69 M', '1.02 k', '0')
    """
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= scale:
            return f"{number / scale:.2f} {letter}{unit}"
    return f"{number:g}{' ' + unit if unit else ''}"
