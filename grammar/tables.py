"""The parse tables: generated from arch.lark (see build_tables.py), shipped as JSON, loaded here.

Loading takes a few milliseconds; constructing the same tables with Lark at each start takes 300 (and its cache of them
is a pickle, which is never to be loaded from a place that others can write).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

END = "END"
"""The terminal that stands for the end of the file."""
OTHER = "OTHER"
"""The terminal that stands for a character which begins no other one; no state takes it."""


@dataclass(frozen=True, slots=True)
class Production:
    """One expansion of a rule.

    `take` says what a builder is handed, in order: for each child its offset from the top of the stack (-1 is the last
    symbol; 0 stands for an optional part that is absent), and whether it is a list to be spliced in. `nesting` counts
    the levels of nesting that the production closes.
    """

    origin: str
    builder: str | None
    size: int
    take: tuple[tuple[int, bool], ...]
    nesting: int
    passes_through: bool
    """Only renames its single symbol."""
    gathers: bool
    """A step of a `(…)*`: its value is a plain list."""
    grows: bool
    """A step of a `(…)*` that adds to the list of the step before."""


@dataclass(frozen=True, slots=True)
class Tables:
    """An LALR(1) automaton and its lexer.

    `states[s][symbol]` is the state to go to, or `~p` to reduce by `productions[p]`. `words` are the terminals, with
    the text of those that have but one. `nesting` are the terminals that open a level of nesting.
    """

    states: list[dict[str, int]]
    productions: tuple[Production, ...]
    lexer: re.Pattern[str]
    words: dict[str, str | None]
    ignored: frozenset[str]
    nesting: frozenset[str]


def _production(origin: str, builder: str | None, size: int, take: list[tuple[int, bool]], nesting: int) -> Production:
    gathers = origin.startswith("__")
    grows = gathers and bool(take) and take[0][1]
    kept = tuple((offset, bool(splice)) for offset, splice in take[grows:])
    return Production(origin, builder, size, kept, nesting, builder is None and not gathers, gathers, grows)


@cache
def load() -> Tables:
    """The tables of the `.arch` grammar."""
    data = json.loads(files("archc.grammar").joinpath("arch.tables.json").read_text(encoding="utf-8"))
    symbols = data["symbols"]
    lexer = "|".join(f"(?P<{name}>{pattern})" for name, pattern in data["terminals"])
    return Tables(
        states=[{symbols[s]: action for s, action in zip(r[::2], r[1::2], strict=True)} for r in data["states"]],
        productions=tuple(_production(*fields) for fields in data["productions"]),
        lexer=re.compile(rf"{lexer}|(?P<{END}>\Z)|(?P<{OTHER}>.)"),
        words={**data["words"], END: None},
        ignored=frozenset(data["ignored"]),
        nesting=frozenset(data["nesting"]),
    )


def keywords() -> frozenset[str]:
    """The words of the language.

    >>> sorted(keywords())[:3]
    ['and', 'arch', 'as']
    """
    return frozenset(word for word in load().words.values() if word and word.isalpha())
