"""The table of cases that backends are tried on, read from `cases.txt`; plain data that imports nothing of archc.

A case is a result, or several separated by commas, over the inputs x, y, z and w. Kinds of values are `normal` (unless
said otherwise), `positive`, `distinct` (no two equal), `ties` (few different ones), `nan` (normal with some NaN),
`special` (NaN, infinities, zeros of both signs, tiny and large ones), `wide` (the same without infinities), `large` (up
to 1e4), `bytes` (-100 to 100 with fractions), `index` (whole numbers from 0 to 5), `bools`, `mask` (bools, all false in
row 1) and `lowered` (normal, and -inf where a mask is false). Symbols take each of several sizes: odd ones and, in one
of them, a batch of one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

Sizes = tuple[tuple[str, int], ...]
ODD: tuple[Sizes, ...] = ((("N", 3), ("T", 5)), (("N", 1), ("T", 7)))


@dataclass(frozen=True)
class Case:
    """One expression of one op: `dict(sizes[i])` maps symbols to sizes."""

    op: str
    statements: tuple[str, ...]
    results: tuple[str, ...]
    inputs: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: tuple[Sizes, ...] = ODD

    def __str__(self) -> str:
        kinds = [k for k in dict.fromkeys(self.kinds) if k != "normal"]
        text = f"{self.op} {'; '.join([*self.statements, ', '.join(self.results)])} on {', '.join(self.inputs)}"
        return " ".join([text, *kinds])


def read_cases(text: str) -> tuple[Case, ...]:
    """The cases of a table.

    >>> [case] = read_cases('''
    ... [top_k] f32[N, 9] distinct @ N=3 | N=1
    ...     let a, b = top_k(x, 2) ;; a, b
    ... ''')
    >>> case.statements, case.results, case.inputs, case.kinds, case.sizes[1]
    (('let a, b = top_k(x, 2)',), ('a', 'b'), ('f32[N, 9]',), ('distinct',), (('N', 1),))
    """
    found: list[Case] = []
    ops: list[str] = []
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        header = re.fullmatch(r"\[([a-z0-9_ ]+)\] ([^@]*)(?:@(.*))?", line)
        if header:
            ops = header[1].split()
            typed = re.findall(r"(\w+\[[^\]]*\])\s*(\w*)", header[2])
            inputs, kinds = tuple(t for t, _ in typed), tuple(kind or "normal" for _, kind in typed)
            rows = [re.findall(r"(\w+)=(\d+)", row) for row in header[3].split("|")] if header[3] else []
            sizes = tuple(tuple((name, int(size)) for name, size in row) for row in rows) or ODD
            continue
        for op in ops:
            *statements, result = [part.strip() for part in line.replace("$op", op).split(";;")]
            names = tuple(r.strip() for r in result.split(","))
            results = names if all(n.isidentifier() for n in names) else (result,)
            found.append(Case(op, tuple(statements), results, inputs, kinds, sizes))
    return tuple(found)


CASES = read_cases((Path(__file__).parent / "cases.txt").read_text(encoding="utf-8"))
