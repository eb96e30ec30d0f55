"""Syntax errors by example: small malformed programs and what to tell their authors.

A program is wrong where the automaton stops: in some states, at some token. Every other program that stops in the
same states at the same kind of token (or at any, where `any_token` says so) makes the same mistake and gets the same
message. No message depends on parser internals, and a new one is one more example.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from archc.grammar.limits import DEFAULT
from archc.grammar.machine import Fault, Machine
from archc.grammar.tables import load
from archc.grammar.tree import TreeBuilder


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is said of programs like `examples`."""

    code: str
    message: str
    help: str
    examples: tuple[str, ...]
    any_token: bool = False
    place: Literal["token", "before", "statement"] = "token"
    """What to point at: where the automaton stops, the token before that, or the first token of the statement."""
    label: str = ""
    """What is said at the place; if nothing, what was found."""


MISTAKES = (
    Mistake(
        "E0108",
        "comparisons do not chain",
        "join two of them by `and`: `a < b and b < c`",
        ("require a < b < c", "y = if a == b == c then d else e"),
    ),
    Mistake(
        "E0115",
        "a port has a type",
        "write the dtype and the dimensions: `input image: f32[N, 3, 32, 32]`",
        ("input x", "input x = y", "output y -> z"),
        any_token=True,
    ),
    Mistake(
        "E0115",
        "the type of a port has dimensions",
        "write them in brackets: `f32[N, 3]`; a scalar is `f32[]`",
        ("input x: f32",),
        any_token=True,
        place="before",
        label="none follow",
    ),
    Mistake(
        "E0116",
        "a `fn` ends with `return`",
        "add `return` and the results before the `}`",
        (
            "y = fn(x) { }",
            "y = fn(x) { let a = x }",
            "y = fn(x) { share a = b }",
            "y = fn(x) { require a < b }",
            "y = fn(x) { let a = x; }",
            "y = fn(x) { ; }",
        ),
    ),
    Mistake(
        "E0117",
        "every `if` has an `else`",
        "write `if condition then a else b`; a module that does nothing is `identity`",
        ("y = if a then b", "y = f(if a then b)"),
        any_token=True,
        place="before",
        label="none follows",
    ),
    Mistake(
        "E0117",
        "an `if` is written `if condition then a else b`",
        "`then` stands after the condition",
        ("y = if a: b else c", "y = if a { b } else { c }", "y = if a b else c"),
        any_token=True,
    ),
    Mistake(
        "E0117",
        "an `if` behind `->` stands in brackets",
        "write `x -> (if condition then a else b)`",
        ("y = x -> if a then b else c", "y = x -> a -> if a then b else c"),
    ),
    Mistake(
        "E0101",
        "modules are joined by `->`",
        "write `x -> f`; `|` separates the alternatives of a choice",
        tuple(f"{start} = {chain} |> b" for start in ("y", "let y") for chain in ("x", "x(a)", "x -> a", "x -> a(x)")),
    ),
    Mistake(
        "E0119",
        "a tuple has two items or more",
        "without a comma, brackets only group: `(a)` is `a`",
        ("y = (a,)", "y = (a, ) -> f"),
    ),
    Mistake(
        "E0119",
        "there is nothing between these brackets",
        "a tuple has two items or more: `(a, b) -> concat(axis = 1)`",
        ("y = ()",),
    ),
    Mistake(
        "E0120",
        "the body of `repeat` stands in braces",
        "write `repeat(3) { body }`, or `repeat(3) as i { body }` to use the index",
        ("y = repeat(3) -> a", "y = repeat(3)", "y = repeat(3) a", "y = repeat(3) as { a }"),
        any_token=True,
    ),
    Mistake(
        "E0120",
        "the body of `repeat` is one module, not statements",
        "wrap the statements: `repeat(3) { fn(x) { let …; return … } }`",
        (
            "y = repeat(3) { let a = b }",
            "y = repeat(3) as i { let a = b }",
            "y = repeat(3) { return a }",
            "y = repeat(3) as i { return a }",
            "y = repeat(3) { share a = b }",
            "y = repeat(3) as i { share a = b }",
        ),
    ),
    Mistake(
        "E0120",
        "the parameters of `fn` are followed by its body in braces",
        "write `fn(x) { return … }`",
        ("y = fn(x) -> x", "y = fn(x) = x", "y = fn() x"),
        any_token=True,
    ),
    Mistake(
        "E0121",
        "inside a `fn`, a name is bound by `let`",
        "write `let y = …` for a value and `return y` for the result",
        (
            "y = fn(x) { a = x }",
            "y = fn(x) { let a = x\n b = a }",
            "y = fn(x) { x -> a }",
            "y = fn(x) { ; a = x }",
        ),
    ),
    Mistake(
        "E0121",
        "a `fn` holds `let`, `share` and `require`, then `return`",
        "move the statement out of the braces",
        (
            "y = fn(x) { def f = g return x }",
            "y = fn(x) { rule f = g return x }",
            "y = fn(x) { let a = x\n def f = g }",
            "y = fn(x) { input a: f32[] }",
            "y = fn(x) { let a = x\n rule f = g }",
        ),
    ),
    Mistake(
        "E0121",
        "`return` is the last statement of a `fn`",
        "move it to the end; several results are separated by commas",
        (
            "y = fn(x) { return x let a = x }",
            "y = fn(x) { return x return x }",
            "y = fn(x) { return x; let a = x }",
            "y = fn(x) { return x; return x }",
            "y = fn(x) { return x, x let a = x }",
        ),
    ),
    Mistake(
        "E0122",
        "the body of a `def` follows `=`",
        "write `def name(…) = expression`; for named values, `= fn(x) { let …; return … }`",
        (
            "def f { a }",
            "def f(x) { a }",
            "rule f { a }",
            "rule f(x) { a }",
            "def f",
            "def f(x)",
            "rule f",
            "rule f(x)",
        ),
        any_token=True,
    ),
    Mistake(
        "E0122",
        "a signature is written `: [inputs] => [outputs]`",
        "write it as in `def double: [N, C] => [N, 2 * C] = …`",
        (
            "def f -> [N] = a",
            "def f(x) -> [N] = a",
            "def f: [N] -> [N] = a",
            "def f: f32[N] -> [N] = a",
            "def f: [N] = a",
            "def f: ([N], [N]) = a",
        ),
    ),
    Mistake(
        "E0124",
        "alternatives are separated by `|`",
        "write `choose { 16 | 32 | 64 }`",
        (
            "y = choose { a, b }",
            "y = choose { a | b, c }",
            "y = choose { 16, 32 }",
            "y = choose { a | 16, 32 }",
            "rule f = a, b",
            "rule f = a | b, c",
        ),
    ),
    Mistake(
        "E0124",
        "a choice has alternatives",
        "write `choose { 16 | 32 | 64 }`",
        ("y = choose { }",),
    ),
    Mistake(
        "E0126",
        "what takes parameters is a `def`",
        "write `def name(…) = …`",
        ("let f(c) = a", "share f(c) = a"),
        place="statement",
        label="this takes none",
    ),
    Mistake(
        "E0127",
        "a statement binds a name",
        "write `y = …` for an output, `let y = …` for a value, `def f(…) = …` for a module with parameters",
        ("f(c)", "f(c) = a", "x -> f", "x + y", "x"),
        any_token=True,
        place="statement",
        label="no name is bound here",
    ),
    Mistake(
        "E0101",
        "`let` and `share` name no type: it is inferred",
        "leave out the `:` and the type",
        ("let x: int = a", "share x: f = a"),
    ),
    Mistake(
        "E0101",
        "an index is one number",
        "for a part of an axis use `slice`: `x -> slice(axis = 1, from = 0, to = 3)`",
        ("y = a[0:3]", "y = a[0, 1]", "y = a[:3]"),
    ),
    Mistake(
        "E0101",
        "statements follow the header line; they are not put in braces",
        "delete the braces",
        ("arch a { }", "arch a(x) { }", "space a: b"),
    ),
    Mistake(
        "E0101",
        "an import names what it takes in brackets",
        'write `import "blocks.arch" (block, stage)`',
        ('import "a.arch" as b', 'import "a.arch": b', 'import "a.arch" { b }'),
    ),
)


_BEFORE = "let p = q\n"  # the automaton is in other states after a statement than at the beginning of the file


@cache
def _by_place() -> tuple[dict[tuple[tuple[int, ...], str], Mistake], dict[tuple[int, ...], Mistake]]:
    exact: dict[tuple[tuple[int, ...], str], Mistake] = {}
    by_state: dict[tuple[int, ...], Mistake] = {}
    for mistake in MISTAKES:
        for example in mistake.examples:
            for text in (example, _BEFORE + example):
                fault = first_fault(text)
                assert fault is not None, f"not malformed: {text}"
                exact.setdefault((fault.states, fault.token.kind), mistake)
                if mistake.any_token:
                    by_state.setdefault(fault.states, mistake)
    return exact, by_state


def first_fault(text: str) -> Fault | None:
    """Where the automaton stops at first; None for a well-formed program."""
    faults: list[Fault] = []

    def keep(fault: Fault) -> bool:
        faults.append(fault)
        return False

    Machine(load(), TreeBuilder("", DEFAULT), DEFAULT).run(text, "", keep)
    return faults[0] if faults else None


def exact_mistake(fault: Fault) -> Mistake | None:
    """The mistake whose examples stop in the same state at the same kind of token."""
    return _by_place()[0].get((fault.states, fault.token.kind))


def mistake_in_state(fault: Fault) -> Mistake | None:
    """The mistake whose examples stop in the same state, whatever the token."""
    return _by_place()[1].get(fault.states)
