"""Edits of choice traces: what each kind changes, what it leaves, and between which parts crossover goes."""

from __future__ import annotations

from itertools import islice

import pytest

from archc.grammar.choices import Grid
from archc.grammar.draw import Space, Trace, read_space
from archc.grammar.mutate import crossings, grid_steps, parts, variants
from archc.grammar.traces import beneath, cut, part_of, put, taking

HEAD = "space s\ninput x: f32[N, 4]\noutput y: f32[N, 4]\n"
NETS = HEAD + (
    "rule Net = Layer -> Layer -> Layer\n"
    "rule Layer = 0.7: linear(Width) -> Act | residual(Act -> dropout(range(0.1, 0.5, step = 0.1)))\n"
    "rule Width = 4 | 16 | 8\n"
    "rule Act = relu | tanh | gelu\n"
    "y = x -> linear(8) -> Net -> linear(4)\n"
)


@pytest.fixture(scope="module")
def space() -> Space:
    return read_space(NETS)


def trace_with(space: Space, **layers: int) -> Trace:
    """A draw whose layers have these productions."""
    wanted = {f"Net:0/{name.replace('_', '#')}": number for name, number in layers.items()}
    drawn = space.redraw(wanted, 2)
    assert wanted.items() <= drawn.trace.items()
    return drawn.trace


def edits(space: Space, trace: Trace, kind: str, count: int = 30) -> list[tuple[str, Trace]]:
    return [(v.path, v.trace) for v in islice(variants(space, trace, "key", {kind: 1.0}), count)]


def test_parts_tell_what_is_open_and_the_types_of_modules(space: Space):
    trace = space.draw(0, 0).trace
    found = parts(space, trace)
    assert list(found) == list(trace)
    for path, part in found.items():
        assert part.taken == trace[path]
        assert part.taken not in part.others
    net = found["Net"]
    assert net.others == ()
    assert net.types is not None
    assert str(net.types[0][0]) == "f32[N, 8]"
    layer = found["Net:0/Layer"]
    assert layer.others == (1 - layer.taken,)
    width = next(p for path, p in found.items() if path.endswith("Width"))
    assert width.types is None  # of numbers
    assert len(width.others) == 2


def test_steps_go_to_the_next_number(space: Space):
    found = {}
    for index in range(12):
        trace = space.draw(3, index).trace
        found |= {(p.path.rpartition("/")[2], p.taken): p.steps for p in parts(space, trace).values()}
    assert found[("Width", 0)] == (2,)  # 4 -> 8
    assert found[("Width", 1)] == (2,)  # 16 -> 8
    assert found[("Width", 2)] == (0, 1)
    assert found[("Act", 0)] == ()
    assert grid_steps(Grid(0.1, 0.5, 0.1, False), 0.1) == (0.2,)
    assert grid_steps(Grid(2.0, 2.0, None, False), 2.0) == ()
    assert grid_steps(Grid(0.0, 1.0, None, False), 0.55) == (0.45, 0.65)


def test_a_trace_can_be_cut_and_put_together(space: Space):
    trace = trace_with(space, Layer=0, Layer_1=0, Layer_2=1)
    for path in trace:
        left, part = cut(trace, path), part_of(trace, path)
        assert len(left) + len(part) == len(trace)
        assert all(not beneath(path, p) for p in left)
        assert put(left, path, part) == trace
    kept = taking(trace, "Net:0/Layer", 1)
    assert kept["Net:0/Layer:1/Act"] == trace["Net:0/Layer:0/Act"]
    assert not any(p.startswith("Net:0/Layer:0/") for p in kept)
    assert kept["Net:0/Layer#1:0/Act"] == trace["Net:0/Layer#1:0/Act"]  # the control: another `Layer`


def test_each_kind_changes_its_place_alone(space: Space):
    trace = trace_with(space, Layer=0, Layer_1=0, Layer_2=1)
    for path, edit in edits(space, trace, "resample"):
        assert edit == cut(trace, path)
    for path, edit in edits(space, trace, "production"):
        assert edit[path] != trace[path]
        assert cut(edit, path) == cut(trace, path)
    for path, edit in edits(space, trace, "parameter"):
        assert [p for p in trace if edit[p] != trace[p]] == [path]
        assert path.endswith(("Width", "range"))
    swaps = edits(space, trace, "exchange")
    for path, edit in swaps:
        one, other = path.split()
        assert part_of(edit, one) == part_of(trace, other) != part_of(trace, one)
        assert put(put(edit, one, part_of(trace, one)), other, part_of(trace, other)) == trace
    assert swaps


def test_equal_parts_are_not_exchanged(space: Space):
    layer = {"": 1, ":1/Act": 2, ":1/range": 0.2}
    alike = {"Net": 0} | {f"Net:0/Layer{n}{p}": v for n in ("", "#1", "#2") for p, v in layer.items()}
    assert space.redraw(alike).trace == alike
    assert not edits(space, alike, "exchange")
    assert edits(space, {**alike, "Net:0/Layer:1/Act": 1}, "exchange")  # the control


def test_parts_change_places_when_rule_and_types_agree(space: Space):
    residual = {f"Net:0/Layer{n}{p}": v for n, v in (("", 0.2), ("#1", 0.3)) for p, v in (("", 1), (":1/range", v))}
    acts = {"Net:0/Layer:1/Act": 0, "Net:0/Layer#1:1/Act": 1, "Net:0/Layer#2:0/Act": 2}
    trace = {"Net": 0, **residual, "Net:0/Layer#2": 0, "Net:0/Layer#2:0/Width": 0, **acts}
    assert space.redraw(trace).trace == trace  # two of [N, 8] => [N, 8], then one to [N, 4]
    found = parts(space, trace)
    pairs = {frozenset(path.split()) for path, _ in edits(space, trace, "exchange", 100)}
    for pair in pairs:
        first, second = (found[p] for p in pair)
        assert (first.rule, first.types) == (second.rule, second.types)
    assert frozenset(("Net:0/Layer", "Net:0/Layer#1")) in pairs
    assert frozenset(("Net:0/Layer", "Net:0/Layer#2")) not in pairs


def test_kinds_are_drawn_by_weight_in_keyed_order(space: Space):
    trace = space.draw(0, 2).trace

    def order(key: str, **kinds: float) -> list[tuple[str, str]]:
        return [(v.kind, v.path) for v in islice(variants(space, trace, key, kinds), 40)]

    assert order("a", resample=1, production=1) == order("a", resample=1, production=1)
    assert order("a", resample=1, production=1) != order("b", resample=1, production=1)
    assert {kind for kind, _ in order("a", resample=1, production=0)} == {"resample"}
    first = [order(str(key), resample=9, production=1)[0][0] for key in range(40)]
    assert 28 <= first.count("resample") < 40


def test_every_other_production_of_every_place_comes_once(space: Space):
    trace = space.draw(0, 3).trace
    found = [(path, edit[path]) for path, edit in edits(space, trace, "production", 1000)]
    assert sorted(found) == sorted((p.path, o) for p in parts(space, trace).values() for o in p.others)


@pytest.mark.parametrize(
    ("branches", "choices", "others"),
    [("copies(4, linear(Width))", 1, set()), ("linear(Width), linear(Width)", 2, {0, 1})],
)
def test_replicas_change_together(branches: str, choices: int, others: set[int]):
    """Of what is copied, a mutation changes every copy; of what is drawn apart, one."""
    space = read_space(HEAD + f'rule Width = 4 | 8 | 16\ny = x -> branch({branches}, merge = "concat") -> linear(4)\n')
    trace = space.draw(0, 1).trace
    assert len(trace) == choices

    def widths(of: Trace) -> list[int]:
        return [n.call.params.out for n in space.redraw(of).graph.nodes if n.op.name == "linear"][:-1]

    before, unchanged = widths(trace), set()
    for _, edit in edits(space, trace, "production"):
        unchanged |= {i for i, (old, new) in enumerate(zip(before, widths(edit), strict=True)) if old == new}
    assert unchanged == others


def test_crossover_puts_a_part_of_one_into_the_other(space: Space):
    first, second = (space.draw(5, i).trace for i in range(2))
    found = list(crossings(space, (first, second), "key"))
    assert found
    own, foreign = parts(space, first), parts(space, second)
    for variant in found:
        here, there = variant.path.split()
        assert part_of(variant.trace, here) == part_of(second, there) != part_of(first, here)
        assert cut(variant.trace, here) == cut(first, here)
        assert (own[here].rule, own[here].types) == (foreign[there].rule, foreign[there].types)
