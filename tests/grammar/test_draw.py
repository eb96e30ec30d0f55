"""Drawing from spaces: what is drawn, how often, and that it can be drawn again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import archc
from archc.grammar.choices import Grid, Table
from archc.grammar.draw import draw, read_space, redraw
from archc.grammar.load import loads
from archc.ir.canonical import canonical
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph

HEAD = "space s\ninput x: f32[N, 4]\noutput y: f32[N, 4]\n"
EXAMPLES = Path(archc.__file__).parents[1] / "examples" / "spaces"
BRANCHES = Path(archc.__file__).parent / "metanet" / "spaces" / "branches.arch"


def ops(graph: Graph) -> str:
    return " ".join(node.op.name for node in graph.nodes)


def chi_square(found: Counter[str], expected: dict[str, float]) -> float:
    total = sum(found.values())
    assert set(found) <= set(expected)
    return sum((found[k] - total * p) ** 2 / (total * p) for k, p in expected.items())


# A convolution does not fit, and below three rules only `relu` is open.
WEIGHED = HEAD + "rule A = 0.5: relu | 0.3: tanh -> A when depth < 2 | 0.2: conv(4, kernel = 3)\ny = x -> A\n"


def enumerated(weights: dict[str, float], depth: int = 0) -> dict[str, float]:
    """The exact distribution of WEIGHED: what fits, by weight."""
    open_ = weights if depth < 2 else {"relu": 1.0}
    total = sum(open_.values())
    found = {"relu": open_["relu"] / total}
    if "tanh" in open_:
        found |= {f"tanh {k}": p * open_["tanh"] / total for k, p in enumerated(weights, depth + 1).items()}
    return found


def test_draws_have_the_probabilities_of_their_weights_among_what_fits():
    found = Counter(ops(draw(WEIGHED, seed=3, index=i).graph) for i in range(400))
    exact = enumerated({"relu": 0.5, "tanh": 0.3})
    assert sum(exact.values()) == pytest.approx(1)
    assert chi_square(found, exact) < 13.8  # two degrees of freedom: exceeded once in 1000
    assert chi_square(found, enumerated({"relu": 1, "tanh": 1})) > 13.8  # the control: other weights


def test_a_draw_depends_on_seed_and_index_alone():
    first = [draw(WEIGHED, seed=1, index=i).text for i in range(20)]
    assert [draw(WEIGHED, seed=1, index=i).text for i in reversed(range(20))] == first[::-1]
    assert [draw(WEIGHED, seed=2, index=i).text for i in range(20)] != first


def test_what_is_drawn_is_an_architecture_and_its_trace_replays():
    for index in range(8):
        drawn = draw(BRANCHES, seed=5, index=index)
        again = loads(drawn.text)
        assert canonical(again).hash == canonical(drawn.graph).hash
        assert list(again.parameters()) == list(drawn.graph.parameters())
        replayed = redraw(BRANCHES, drawn.trace, seed=99)
        assert (replayed.text, replayed.trace, replayed.attempts) == (drawn.text, drawn.trace, 1)
        assert draw(BRANCHES, seed=99, index=index).text != drawn.text  # the control: without the trace


WIDTHS = HEAD + (
    "rule Layer = linear(choose { 8 | 16 | 32 | 64 }) -> choose { relu | tanh | gelu }\n"
    "y = x -> Layer -> Layer -> Layer -> linear(4)\n"
)


def test_a_mutation_keeps_what_its_trace_says():
    drawn = draw(WIDTHS)
    assert list(drawn.trace)[:3] == ["Layer", "Layer:0/choose", "Layer:0/choose#1"]
    kept = {path: n for path, n in drawn.trace.items() if not path.startswith("Layer#1")}
    mutants = [redraw(WIDTHS, kept, seed=1, index=i) for i in range(12)]
    for mutant in mutants:
        assert {path: mutant.trace[path] for path in kept} == kept
    assert len({m.text for m in mutants}) > 4
    assert redraw(WIDTHS, drawn.trace | {"Layer:0/choose": 3}).graph.nodes[0].call.params.out == 64
    assert redraw(WIDTHS, drawn.trace | {"Layer:0/choose": 9}).trace == drawn.trace  # no such production


def test_a_mention_is_one_draw_and_its_copies_are_alike():
    def same(body: str) -> list[bool]:
        found = []
        for index in range(12):
            graph = draw(HEAD + f"rule Act = relu | tanh | gelu | silu\ny = x -> {body}\n", index=index).graph
            first, second = [n.op.name for n in graph.nodes if n.op.name != "add"]
            found.append(first == second)
        return found

    for copies in ("repeat(2) { Act }", "branch(2, Act)", "sequential(copies(2, Act))"):
        assert all(same(copies))
    for fresh in ("repeat(2) as i { Act }", "branch(Act, Act)", "Act -> Act"):
        assert not all(same(fresh))


def test_definitions_and_rules_with_arguments_are_drawn_at_every_use():
    space = HEAD + (
        "def twice(m) = m -> Act\nrule Act = relu | tanh | gelu\nrule Wide(w, bias = true) = linear(w, bias = bias)\n"
        "y = x -> twice(Wide(8)) -> twice(Wide(4, bias = false))\n"
    )
    drawn = [draw(space, index=i) for i in range(10)]
    assert {ops(d.graph).split()[1] == ops(d.graph).split()[3] for d in drawn} == {True, False}
    assert list(drawn[0].graph.parameters()) == ["twice.linear.weight", "twice.linear.bias", "twice1.linear.weight"]


def test_only_the_choice_to_blame_changes():
    fits = HEAD + "rule A = relu | tanh | gelu\nrule B = linear(4) | linear(4)\ny = x -> A -> B -> A\n"
    bites = fits.replace("linear(4) | linear(4)", "linear(4) | conv(4, kernel = 3)")
    tried = 0
    for index in range(20):
        free, bound = draw(fits, index=index), draw(bites, index=index)
        assert bound.trace == free.trace | {"B": 0}
        tried += free.trace["B"] == 1
    assert tried > 4


def test_widths_that_meet_are_made_to_fit():
    space = HEAD + (
        "rule Width = 4 | 8 | 12 | 16\nrule Block = linear(Width) -> relu -> dropout(range(0.0, 0.5))\n"
        "y = x -> branch(Block, Block) -> linear(4)\n"
    )
    drawn = [draw(space, index=i) for i in range(20)]
    for one in drawn:
        assert one.trace["Block:0/Width"] == one.trace["Block#1:0/Width"]
    assert len({one.trace["Block:0/Width"] for one in drawn}) == 4
    assert max(one.attempts for one in drawn) == 1


def test_a_requirement_limits_what_is_drawn():
    for limit, widths in ((140, {8}), (200, {8, 16}), (1000, {8, 16, 32, 64})):
        space = HEAD + f"require params < {limit}\ny = x -> linear(choose {{ 8 | 16 | 32 | 64 }}) -> linear(4)\n"
        assert {draw(space, index=i).graph.nodes[0].call.params.out for i in range(30)} == widths


PLACES = [(i + 0.5) / 3000 for i in range(3000)]


def test_ranges():
    assert {Grid(8, 32, 8, False)(u) for u in PLACES} == {8, 16, 24, 32}
    assert Counter(Grid(1, 3, 1, False)(u) for u in PLACES) == dict.fromkeys((1, 2, 3), 1000)
    values = [Grid(0.001, 1.0, None, True)(u) for u in PLACES]
    assert 0.001 <= min(values) < 0.0012
    assert 0.9 < max(values) <= 1.0
    assert sum(v < 0.0316 for v in values) / 3000 == pytest.approx(0.5, abs=0.01)  # the middle of a logarithmic scale
    assert {Grid(1, 100, 1, True)(u) for u in (1e-9, 1 - 1e-9)} == {1, 100}
    drawn = draw(HEAD + "y = x -> dropout(range(0.1, 0.4))\n")
    assert drawn.trace["range"] == drawn.graph.nodes[0].call.params.p


def test_one_number_orders_a_table_by_weight_without_replacement():
    def order(place: float) -> tuple[int, ...]:
        table, found = Table([0, 2, 5], [3.0, 1.0, 1.0]), []
        while table.numbers:
            number, place = table.draw(place)
            found.append(number)
            table = table.without(number)
        return tuple(found)

    orders = Counter(order(place) for place in PLACES)
    expected = {
        (0, 2, 5): 0.3, (0, 5, 2): 0.3, (2, 0, 5): 0.15, (5, 0, 2): 0.15, (2, 5, 0): 0.05, (5, 2, 0): 0.05,
    }  # fmt: skip
    assert {k: n / 3000 for k, n in orders.items()} == pytest.approx(expected, abs=0.001)


def failure(text: str) -> CompileError:
    with pytest.raises(CompileError) as caught:
        draw(text)
    return caught.value


def test_an_unsatisfiable_space_says_what_bites_and_how_often():
    (found,) = failure(HEAD + "require params < 10\ny = x -> choose { linear(4) | linear(4) -> relu }\n").diagnostics
    assert (found.code, found.span.line) == ("E0705", 1)
    assert [(n.message.partition(" times ")[2], n.span.line) for n in found.notes] == [
        ("E0336: a requirement is not met (params = 20 or more)", 4)
    ]
    (found,) = failure(HEAD + "y = x -> choose { conv(4, kernel = 3) | linear(5) }\n").diagnostics
    assert {n.message.split()[2] for n in found.notes} == {"E0302:", "E0340:"}
    (found,) = failure(HEAD + "rule A = relu -> A when depth < 3\ny = x -> A\n").diagnostics
    assert "E0706: no alternative of `A` is open here (at depth 3)" in found.notes[0].message
    (found,) = failure(HEAD + "y = x -> linear(range(8, 4))\n").diagnostics
    assert "E0205" in found.notes[0].message


def test_mistakes_are_told_before_anything_is_drawn():
    assert [d.code for d in failure(HEAD + "rule A = rleu | tanh\ny = x -> A\n").diagnostics] == ["E0201"]
    (found,) = failure("arch a\ninput x: f32[N, 4]\noutput y: f32[N, 4]\ny = x -> relu\n").diagnostics
    assert (found.code, found.span.line) == ("E0707", 1)


def test_the_published_grammar_is_drawn():
    space = read_space(EXAMPLES / "einspace.arch", {"max_depth": 6})
    drawn = [space.draw(seed=1, index=i) for i in range(6)]
    assert len({canonical(d.graph).hash for d in drawn}) > 3
    assert all(str(d.graph.outputs[0].type) == "f32[N, 10]" for d in drawn)
