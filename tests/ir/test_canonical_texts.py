"""One network, written in many ways: names, order, layout and the order of what commutes are no part of its identity.

A program is drawn as data and written twice, the second time with everything changed that should not count.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archc.grammar.format import format_source
from archc.grammar.load import loads
from archc.ir.canonical import canonical

UNARY = ("relu", "tanh", "sigmoid", "softmax", "layer_norm", "linear(8)", "linear(8, bias = false)", "gelu")


@dataclass
class Statement:
    """`let name = …`: a kind, the statements that it reads, and the modules that it applies."""

    name: str
    kind: str
    reads: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass
class Drawn:
    statements: list[Statement]
    results: tuple[str, ...]


def draw(rng: random.Random) -> Drawn:
    """A program on f32[N, 8], in which every statement is needed."""
    statements: list[Statement] = []
    values = ["x", "w"]
    for i in range(rng.randint(2, 8)):
        kind = rng.choice(list(WRITE))
        reads = tuple(rng.choice(values[-4:]) for _ in range(2))
        statements.append(Statement(f"v{i}", kind, reads, tuple(rng.choice(UNARY) for _ in range(2))))
        values.append(f"v{i}")
    read = {name for s in statements for name in s.reads[: READS[s.kind]]}
    return Drawn(statements, tuple(s.name for s in statements if s.name not in read))


@dataclass
class Writer:
    """How a program is written: with what names, and what is swapped."""

    names: Mapping[str, str] = field(default_factory=dict)
    rng: random.Random | None = None

    def __call__(self, name: str) -> str:
        return self.names.get(name, name)

    def either(self, *ways: str) -> str:
        """One of several ways to write the same; the first, when nothing is to be changed."""
        return ways[0] if self.rng is None else self.rng.choice(ways)


def _fn(w: Writer, a: str, b: str, m: str, n: str) -> str:
    v, u, t = w("v"), w("u"), w("t")
    first, second = f"let {u} = {v} -> {m}", f"let {t} = {v} -> {n}"
    body = w.either(f"{first}\n {second}", f"{second}\n {first}")
    return f"{a} -> fn({v}) {{ {body}\n return {w.either(f'{u} + {t}', f'{t} + {u}')} }}"


WRITE: dict[str, Callable[[Writer, str, str, str, str], str]] = {
    "unary": lambda w, a, b, m, n: w.either(f"{a} -> {m} -> {n}", f"({a} -> {m}) -> identity -> {n}"),
    "sum": lambda w, a, b, m, n: w.either(f"{a} + {b}", f"{b} + {a}", f"({a}, {b}) -> add", f"add({b}, {a})"),
    "product": lambda w, a, b, m, n: w.either(f"{a} * {b}", f"{b} * {a}", f"mul({a}, {b})"),
    "three": lambda w, a, b, m, n: w.either(
        f"{a} + {b} + (x -> {m})", f"(x -> {m}) + ({b} + {a})", f"{b} + ((x -> {m}) + {a})"
    ),
    "difference": lambda w, a, b, m, n: w.either(f"{a} - ({b} -> tanh)", f"({a}, tanh({b})) -> sub"),
    "branch": lambda w, a, b, m, n: w.either(
        f'{a} -> branch({m}, {n} -> tanh, merge = "add")',
        f'{a} -> branch({n} -> tanh, {m}, merge = "add")',
        f"({a} -> {n} -> tanh) + ({a} -> {m})",
    ),
    "residual": lambda w, a, b, m, n: w.either(f"{a} -> residual({m} -> {n})", f"({a} -> {m} -> {n}) + {a}"),
    "join": lambda w, a, b, m, n: f"concat({a}, {b}, axis = 1) -> linear(8)",
    "def": lambda w, a, b, m, n: f"{a} -> {w('block')}({w.either('8', w('c') + ' = 8', 'width')})",
    "share": lambda w, a, b, m, n: f"{a} -> {w('table')}",
    "fn": _fn,
    "skip": lambda w, a, b, m, n: w.either(
        f"{a} -> skip(gate = linear(1) -> sigmoid, body = fn(v) {{ return (v -> {m}) * scale }})",
        f"skip(body = fn({w('u')}) {{ return scale * {m}({w('u')}) }}, gate = linear(1) -> sigmoid)({a})"
        if m.startswith("linear")
        else f"skip(body = {m} -> fn({w('u')}) {{ return scale * {w('u')} }}, gate = linear(1) -> sigmoid)({a})",
    ),
    "repeat": lambda w, a, b, m, n: w.either(
        f"{a} -> repeat(2) as i {{ if i == 0 then {m} else {n} }}", f"{a} -> {m} -> {n}"
    ),
}
READS = {kind: 2 if kind in ("sum", "product", "three", "difference", "join") else 1 for kind in WRITE}


def write(drawn: Drawn, w: Writer) -> str:
    """The text: each `let` behind those that it reads, otherwise in any order."""
    waiting, lines, done = list(drawn.statements), [], {"x", "w"}
    while waiting:
        ready = [s for s in waiting if set(s.reads[: READS[s.kind]]) <= done]
        statement = w.rng.choice(ready) if w.rng is not None else ready[0]
        waiting.remove(statement)
        done.add(statement.name)
        a, b = map(w, statement.reads)
        lines.append(f"let {w(statement.name)} = {WRITE[statement.kind](w, a, b, *statement.modules)}")
    results = ", ".join(f"z{i} = {w(r)}" for i, r in enumerate(drawn.results))
    lines += [line.strip() for line in results.split(", ")]
    block = f"def {w('block')}({w('c')}, {w('k')} = 2) = linear({w('k')} * {w('c')}) -> relu -> linear({w('c')})"
    lines.insert(0 if w.rng is None else w.rng.randint(0, len(lines)), block)
    lines.insert(0, f"share {w('table')} = linear(8)")
    ports = "input x: f32[N, 8]\ninput w: f32[N, 8]\ninput scale: f32[8]\n"
    ports += "".join(f"output z{i}: f32[N, 8]\n" for i in range(len(drawn.results)))
    return f"arch {w('net')}(width = 8)\n{ports}" + "\n".join(lines) + "\n"


def otherwise(drawn: Drawn, rng: random.Random) -> str:
    """The same network, written otherwise."""
    own = [s.name for s in drawn.statements] + ["block", "table", "c", "k", "v", "u", "t", "net"]
    fresh = [f"{rng.choice(['a', 'left', 'relu_', 'input1', 'q'])}{i}" for i in range(len(own))]
    rng.shuffle(fresh)
    text = write(drawn, Writer(dict(zip(own, fresh, strict=True)), rng))
    lines = [f"{line}{rng.choice(['', '  # why', ' ', chr(10)])}" for line in text.splitlines()]
    text = "\n".join(lines).replace(" -> ", rng.choice([" -> ", "->", " \n    -> "]))
    return format_source(text) if rng.random() < 0.5 else text


def hash_of(text: str) -> str:
    return canonical(loads(text)).hash


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_what_does_not_count(rng: random.Random) -> None:
    drawn = draw(rng)
    plain = write(drawn, Writer())
    assert hash_of(plain) == hash_of(otherwise(drawn, rng))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_what_counts(rng: random.Random) -> None:
    """The control: one module of one statement is another."""
    drawn = draw(rng)
    plain = hash_of(write(drawn, Writer()))
    changeable = [s for s in drawn.statements if s.kind in ("unary", "branch", "residual", "fn", "repeat")]
    if not changeable:
        return
    chosen = rng.choice(changeable)
    chosen.modules = (chosen.modules[0], "elu(0.5)")
    assert hash_of(write(drawn, Writer())) != plain


@pytest.mark.parametrize("kind", WRITE)
def test_every_kind_of_statement_is_written_in_several_ways_or_one(kind: str) -> None:
    """All ways of each kind are networks, and the same one."""
    drawn = Drawn([Statement("v0", kind, ("x", "w"), ("tanh", "linear(8)"))], ("v0",))
    hashes = {hash_of(otherwise(drawn, random.Random(seed))) for seed in range(12)}
    assert hashes == {hash_of(write(drawn, Writer()))}
