"""Generate arch.tables.json from arch.lark: `python -m archc.grammar.build_tables`.

Lark computes the LALR(1) automaton, in strict mode: a conflict, or two terminals that can match the same text without
one having priority, is an error here and never a silent choice. What the parser needs of it is written as JSON.
"""

from __future__ import annotations

import json
import re
from operator import itemgetter
from pathlib import Path
from typing import Any

from lark import Lark
from lark.grammar import Rule
from lark.parsers.lalr_analysis import Shift

from archc.grammar.tables import END

HERE = Path(__file__).parent
NESTING = ("_LPAR", "_LSQB", "_LBRACE", "_IF", "_NOT", "MINUS")


def lark_parser() -> Lark:
    """Lark's own parser for the grammar; the tests hold ours against it."""
    grammar = (HERE / "arch.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="basic", strict=True, maybe_placeholders=True)


def build() -> dict[str, Any]:
    """The content of arch.tables.json."""
    lark = lark_parser()
    table = lark.parser.parser._parse_table
    rules = list(lark.rules)
    terminals = lark._build_lexer().terminals  # in the order in which they are tried
    start = table.start_states["start"]
    numbers = {start: 0}  # in the order of first mention: Lark's own differs from run to run
    for state in (queue := [start]):
        for _, (action, target) in sorted(table.states[state].items(), key=itemgetter(0)):
            if action is Shift and target not in numbers:
                numbers[target] = len(numbers)
                queue.append(target)
    symbols: dict[str, int] = {}
    states = []
    for state in numbers:
        row: list[int] = []
        for symbol, (action, target) in sorted(table.states[state].items(), key=itemgetter(0)):
            number = numbers[target] if action is Shift else ~rules.index(target)
            row += [symbols.setdefault(END if symbol == "$END" else symbol, len(symbols)), number]
        if state == table.end_states["start"]:
            row += [symbols[END], 0]  # accept
        states.append(row)
    return {
        "symbols": list(symbols),
        "states": states,
        "productions": [_production(rule) for rule in rules],
        "terminals": [(t.name, t.pattern.to_regexp()) for t in terminals],
        "words": {t.name: _word(t.pattern.to_regexp()) for t in terminals if t.name not in lark.ignore_tokens},
        "ignored": list(lark.ignore_tokens),
        "nesting": NESTING,
    }


def _word(pattern: str) -> str | None:
    """The text of a terminal that has but one: a literal, or a literal followed by a condition."""
    literal = re.match(r"(?:[a-z]+(?=\(\?[!=]|$)|(?:\\\\?.|[^\w\\\\]){1,2}$)", pattern)
    return None if literal is None else literal[0].replace("\\", "")


def _production(rule: Rule) -> tuple[str, str | None, int, list[tuple[int, bool]], int]:
    """A rule as `Production`'s fields; Lark's conventions for `?rule`, `_TERMINAL` and `[…]` are resolved here."""
    absent = "".join(str(int(b)) for b in rule.options.empty_indices).split("0")  # the absent parts before each symbol
    take: list[tuple[int, bool]] = []
    for position, symbol in enumerate(rule.expansion):
        take += [(0, False)] * len(absent[position]) if rule.options.empty_indices else []
        if not symbol.name.startswith("_") or symbol.name.startswith("__"):
            take.append((position - len(rule.expansion), symbol.name.startswith("__")))
    take += [(0, False)] * len(absent[-1])
    origin = str(rule.origin.name)
    passes_through = rule.options.expand1 and rule.alias is None and len(rule.expansion) == 1
    builder = None if passes_through or origin.startswith("__") else rule.alias or origin
    nesting = sum(symbol.name in NESTING for symbol in rule.expansion)
    return origin, builder, len(rule.expansion), take, nesting


def main() -> None:
    """Write the tables beside the grammar."""
    text = json.dumps(build(), separators=(",", ":"))
    (HERE / "arch.tables.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
