"""Text and graph are one: what is printed means the same graph again."""

from __future__ import annotations

import pytest

import archc.ir.ops  # noqa: F401
from archc.grammar.load import loads
from archc.grammar.parser import parse
from archc.grammar.printer import RESERVED, print_graph
from archc.grammar.program import Program
from archc.grammar.tables import keywords
from archc.grammar.values import tensors_of
from archc.ir.dims import symbol
from archc.ir.equal import structurally_equal
from archc.ir.graph import Graph, Parameter
from archc.ir.init import Init
from archc.ir.op import REGISTRY
from archc.ir.ops.elementwise import ADD
from archc.ir.ops.linear import LINEAR, LinearParams
from archc.ir.types import TensorType
from archc.ir.verify import verify

HEAD = "arch a\ninput x: f32[N, T, 8]\ninput m: f32[8]\noutput y: f32[N, T, 8]\n"
PROGRAMS = {
    "nothing": "arch a input x: f32[N] output y: f32[N] y = x",
    "one value twice": "arch a input x: f32[N] output y: f32[N] output z: f32[N] let a = relu(x) y = a z = a",
    "several results": HEAD + "let a, b = x -> split(2, axis = 2)\ny = concat(b, a, axis = 2)",
    "unused": HEAD + "let a = x -> linear(3)\ny = x",
    "shared": HEAD + "share s = linear(8)\ny = x -> s -> residual(s)",
    "half shared": HEAD + "share s = linear(8)\ny = x -> s -> linear(8, weight = s.weight)",
    "tied": "arch a input t: i64[N] output y: f32[N, 9] share e = embedding(9, 4) y = t -> e -> tied_linear(e)",
    "strange names": HEAD + 'y = x -> linear(8, name = "a/b \\"c\\" \\\\ \\u{202e} \\n.d", bias = "other.b")',
    "regions": HEAD + "y = x -> skip(gate = mean(1) -> linear(1) -> sigmoid, body = moe(router = linear(2), "
    "experts = copies(2, fn(v) { return v * m }), shared = linear(8), top_k = 1))",
    "named rows": HEAD
    + "y = x -> moe(router = linear(1), experts = [fn(v) { return v -> reshape([Rows, 2, 4]) -> reshape([Rows, 8]) }], "
    "top_k = 1)",
    "kept tokens": HEAD
    + "y = x -> skip(gate = linear(1), budget = 0.5, body = fn(v) { return v -> reshape([N, 8 * Kept]) "
    "-> reshape([N, Kept, 8]) })",
    "shared across regions": HEAD
    + "share s = linear(8)\ny = x -> s -> moe(router = linear(2), experts = [s, linear(8)], top_k = 2)",
    "recurrence": HEAD
    + "def cell = fn(v, h) { let n = v + h * m return n, n }\nlet ys, h = x -> scan(cell, state = [[8]], axis = 1)\n"
    "y = ys + (h -> unsqueeze(1))",
    "exit": "arch a input x: f32[N, 4] output y: f32[N, 3] "
    "y = x -> exit(head = linear(3), rest = linear(3), threshold = 0.9)",
    "ports named as ops": "arch a input relu: f32[N] input add: f32[N] output mul: f32[N] "
    "mul = (relu, add) -> sub -> tanh",
    "odd numbers": HEAD + 'y = x * 1e-30 + 1e308 * 10.0 + constant([[1, -2, 3, 4, 5, 6, 7, 8]], dtype = "f32")',
}


def round_trip(graph: Graph) -> str:
    text = print_graph(graph)
    again = loads(text)
    verify(again)
    assert structurally_equal(graph, again) is None, text
    assert print_graph(again) == text
    return text


@pytest.mark.parametrize("name", PROGRAMS)
def test_printed_programs_mean_the_same_graph(name: str) -> None:
    round_trip(loads(PROGRAMS[name]))


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_the_example_of_every_op_survives_printing(name: str) -> None:
    op = REGISTRY[name]
    if not op.example:
        pytest.skip("this op needs a share: see the programs above")
    ports = "".join(f"input x{i}: {t}\n" for i, t in enumerate(op.example_inputs))
    feed = ", ".join(f"x{i}" for i in range(len(op.example_inputs)))
    program = Program(parse(f"arch e\n{ports}let r = {f'({feed})' if ',' in feed else feed} -> {op.example}\n"))
    program.check()
    assert [d.code for d in program.e.sink.diagnostics] == ["E0216"]  # it has no output; the results become some
    found = tensors_of(program.env.names["r"])
    assert found is not None
    program.graph.outputs = [t.value for t in found]  # type: ignore[union-attr]
    program.graph.output_names = [f"o{i}" for i in range(len(found))]
    round_trip(program.graph)


def two_layers(first: Parameter | None = None, second: Parameter | None = None) -> Graph:
    graph = Graph("made by hand")
    x = graph.add_input("x", TensorType((symbol("N"), 4)))
    given = [{"weight": p} if p is not None else {} for p in (first, second)]
    one = graph.add(LINEAR, [x], LinearParams(out=4), name="one", weights=given[0])
    two = graph.add(LINEAR, [one.output], LinearParams(out=4), name="two", weights=given[1])
    graph.outputs, graph.output_names = [two.output], ["y"]
    return graph


def parameter(name: str, **changes: object) -> Parameter:
    made = Parameter(name, TensorType((4, 4)), Init("uniform", 0.5))
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def test_graphs_that_no_program_wrote_have_a_text() -> None:
    same = parameter("any name: ☃/0")
    texts = [
        round_trip(two_layers(same, same)),
        round_trip(two_layers(parameter("p"), parameter("two.weight"))),
        round_trip(two_layers(parameter("p", trainable=False))),
        round_trip(two_layers(parameter("p", init=Init("constant", 0.3)))),
        round_trip(two_layers(parameter("p", type=TensorType((4, 4), "f16")))),
    ]
    assert texts[0].count('"any name: ☃/0"') == 1
    assert "buffer(" in texts[2]


@pytest.mark.parametrize("word", sorted(keywords()))
def test_ports_may_be_named_by_words_of_the_language(word: str) -> None:
    graph = Graph("a")
    x, y = graph.add_input(word, TensorType((symbol("N"),))), graph.add_input("y", TensorType((symbol("N"),)))
    graph.outputs = [graph.add(ADD, [x, graph.add(ADD, [y, x], name="inner").output]).output, x]
    graph.output_names = ["z", "first"]
    again = loads(print_graph(graph))
    renamed = word in RESERVED
    assert renamed != (
        word in ("arch", "space", "language", "import", "input", "output", "def", "share", "let", "rule")
    )
    assert again.inputs[0].name == (f"{word}_" if renamed else word)
    assert (structurally_equal(graph, again) is None) != renamed


def test_two_captures_of_one_value_are_one_value() -> None:
    graph = loads(PROGRAMS["regions"])
    skip = graph.nodes[-1]
    for region in skip.regions:  # what a pass might leave behind: a capture that nobody reads
        region.add_input("again", graph.inputs[1].type)
    skip.captures += 1
    skip.set_inputs((*skip.inputs, graph.inputs[1]))
    verify(graph)
    assert structurally_equal(graph, loads(print_graph(graph))) is None


def test_symbols_and_ports_that_are_no_names_are_renamed() -> None:
    graph = Graph("1x1")
    x = graph.add_input("input.1", TensorType((symbol("batch"), symbol("T"))))
    graph.outputs, graph.output_names = [graph.add(ADD, [x, x]).output], ["T"]
    again = loads(print_graph(graph))
    assert [v.name for v in again.inputs] == ["input_1"]
    assert structurally_equal(graph, again) == "inputs are named input.1 and input_1"
    assert again.output_names == ["T"]


CHANGES = {
    "an op": ("-> relu", "-> tanh", "a.relu and a.tanh"),
    "a parameter": ("linear(8)", "linear(8, bias = false)", "bias is True and False"),
    "a name": ("let a", "let b", "named a.linear and b.linear"),
    "a type": ("f32[N, 8]", "f16[N, 8]", "f32[N, 8] and f16[N, 8]"),
    "sharing": ("share s = linear(4)", "def s = linear(4)", ""),
    "an operand": ("p - q", "q - p", "value 0"),
    "an output": ("output y", "output z", "outputs are named"),
    "a region": ("let v = w", "let v = w -> relu", "nodes"),
}
PROGRAM = """arch a
input x: f32[N, 8]
output y: f32[N, 8]
share s = linear(4)
let a = x -> linear(8) -> relu
let p = x -> s
let q = a -> s
let r = p - q
y = x -> skip(gate = linear(1), body = fn(w) { let v = w return v -> linear(8) })
"""


@pytest.mark.parametrize("change", CHANGES)
def test_structural_equality_sees_a_change_of(change: str) -> None:
    old, new, difference = CHANGES[change]
    text = (
        PROGRAM.replace("let a", "let b").replace("a -> s", "b -> s")
        if change == "a name"
        else PROGRAM.replace(old, new)
    )
    text = text.replace("y = x", "z = x") if change == "an output" else text
    assert text != PROGRAM
    found = structurally_equal(loads(PROGRAM), loads(text))
    assert found is not None
    assert difference in found
    assert structurally_equal(loads(PROGRAM), loads(PROGRAM)) is None
