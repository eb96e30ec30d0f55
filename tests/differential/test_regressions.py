"""Mistakes that random networks have found, each as the smallest program that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracles import against_judge, compile_and_run, trial
from random_nets import RandomNet

from archc.backends.initial import InitialWeights
from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.canonical import canonical
from archc.ir.clone import clone
from archc.ir.diagnostics import CompileError
from archc.ir.dims import symbol
from archc.ir.equal import structurally_equal
from archc.ir.graph import Graph, Node
from archc.ir.op import bind
from archc.metanet.symmetry import certify

TWO_EXITS = """
arch a
input  x: f32[N, 4]
output y: f32[N, 3]
output z: f32[N, 3]
def leave = exit(head = linear(3), rest = moe(router = linear(2), experts = copies(2, linear(3)), top_k = 1),
                 threshold = 0.5)
y = x -> leave
z = x -> relu -> leave
"""


def own_symbols_renamed(graph: Graph) -> Graph:
    """The same network, every region's symbol called otherwise, no two alike."""
    copy, count = clone(graph), 0

    def rename(node: Node, outer: dict[str, object]) -> None:
        nonlocal count
        for region in node.regions:
            mine = dict(outer)
            for value in region.inputs:
                for name in sorted(value.type.symbols):
                    if name not in mine:
                        count += 1
                        mine[name] = symbol(f"R{count}")
                value.type = value.type.substitute(mine)  # type: ignore[arg-type]
            for inner in region.nodes:
                rename(inner, mine)
        node.bound = bind(node.op, node.call)
        for value, type_ in zip(node.outputs, node.bound.results, strict=True):
            value.type = type_

    outer: dict[str, object] = {s: symbol(s) for s in graph.symbols()}
    for node in copy.nodes:
        rename(node, outer)
    return copy


def test_regions_side_by_side_may_call_their_symbols_alike_or_not() -> None:
    graph = loads(TWO_EXITS)
    renamed = own_symbols_renamed(graph)
    assert {str(r.inputs[0].type.shape[0]) for n in renamed.nodes for r in n.regions} > {"N", "R1"}
    assert structurally_equal(graph, renamed) is None
    assert structurally_equal(renamed, graph) is None
    assert canonical(graph).hash == canonical(renamed).hash


@pytest.mark.parametrize("result", ["x > 0", "x -> argmax(1)", "parameter([3, 4])"])
def test_certificates_of_bools_whole_numbers_and_bare_parameters(result: str) -> None:
    type_ = {"x > 0": "bool[N, 4]", "x -> argmax(1)": "i64[N]"}.get(result, "f32[3, 4]")
    graph = loads(f"arch a\ninput x: f32[N, 4]\noutput y: {type_}\noutput z: f32[N, 2]\ny = {result}\n"
                  "z = x -> linear(5) -> relu -> linear(2)\n")  # fmt: skip
    assert certify(graph).ok


@pytest.mark.parametrize("made", ['parameter([3], dtype = "i64")', 'x -> argmax(1) -> embedding(4, 3, dtype = "i32")'])
def test_what_is_trained_is_float(made: str) -> None:
    with pytest.raises(CompileError) as error:
        loads(f"arch a\ninput x: f32[N, 4]\noutput y: i64[3]\ny = {made}\n")
    assert [d.code for d in error.value.diagnostics] == ["E0304"]


def test_shared_weights_with_given_values_have_a_text() -> None:
    graph = loads(
        "arch a\ninput x: f32[N, 4]\noutput y: f32[N, 4]\n"
        'share k = kan(4, basis = "grkan", groups = 2)\ny = x -> k -> k\n'
    )
    text = print_graph(graph)
    assert "values(" in text
    assert structurally_equal(graph, loads(text)) is None


@pytest.mark.parametrize("init", ["values(1, 2)", "values(1, x)", "values(1, 2, 3, 4)"])
def test_as_many_values_as_there_are_numbers(init: str) -> None:
    with pytest.raises(CompileError) as error:
        loads(f'arch a\ninput x: f32[N, 3]\noutput y: f32[N, 3]\ny = x + parameter([3], init = "{init}")\n')
    assert [d.code for d in error.value.diagnostics] == ["E0309"]


@pytest.mark.parametrize(
    "body",
    [
        "x -> sigmoid -> rsqrt -> log_softmax(axis = 1)",  # a lane's value went to all
        "x -> abs -> rsqrt -> softmax(axis = 1)",
        'x -> cast("f64") -> gelu -> slice(1, to = 1) -> tanh -> cast("f32") -> expand([-1, 7, -1])',  # did not build
        "x * (x -> mean -> tanh)",
        "x -> conv_transpose(7, 3, dilation = 2, padding = 2) -> conv_transpose(7, 1, stride = 1, output_padding = 1, "
        "dilation = 2) -> slice(2, to = -1)",  # an extra row beyond the stride
    ],
)
def test_what_tvm_computes_lane_by_lane(body: str, tmp_path: Path) -> None:
    text = f"arch a\ninput x: f32[N, 7, 5]\noutput y: f32[N, 7, 5]\ny = {body}\n"
    t = trial(RandomNet(0, 0, "", loads(text), text, {"N": 2}))
    assert against_judge(t, compile_and_run([t], tmp_path)[0]) == ""


RANK_0 = """arch a
input x: f64[N, 4]
input s: f64[]
output y: f64[N, 4]
output z: f64[]
let squeezed = parameter([1], dtype = "f64", init = "normal(1.0)") -> squeeze(-1)
def expert = fn(r) { return (r -> linear(4)) * squeezed }
y = x -> moe(router = linear(2), experts = [expert, linear(4)], top_k = 1)
z = s * parameter([], dtype = "f64", init = "trunc_normal(1.0)") + parameter([], dtype = "f64", init = "uniform(1.0)")
"""


def test_numbers_of_rank_0_stay_so(tmp_path: Path) -> None:
    """Drawn, judged, folded while compiling, and captured by a region."""
    t = trial(RandomNet(0, 0, "", loads(RANK_0), RANK_0, {"N": 5}))
    assert t.judged.exact[1].shape == ()
    assert {w.shape for name, w in InitialWeights(t.graph).items() if name.startswith("z.")} == {()}
    assert against_judge(t, compile_and_run([t], tmp_path)[0]) == ""


ROWS_IN_A_LOOP = """arch a
input xs: f32[N, 3, 4]
input c: f32[N, 4]
output ys: f32[N, 3, 4]
output last: f32[N, 4]
def cell = fn(x, c) {
    let next = (x -> linear(4)) + (c -> BRANCH)
    return next, next
}
ys, last = scan(xs, c, cell = cell)
"""


def test_a_layer_before_rows_are_counted_takes_their_result_in_a_loop(tmp_path: Path) -> None:
    """Fused, the sum stands where the layer stood, and kernels of the rows before their number is known."""
    branches = [
        "exit(head = linear(4), rest = linear(4), threshold = 0.3)",
        "moe(router = linear(2), experts = copies(2, linear(4)), top_k = 1)",
    ]
    texts = [ROWS_IN_A_LOOP.replace("BRANCH", branch) for branch in branches]
    trials = [trial(RandomNet(0, i, "", loads(text), text, {"N": 5})) for i, text in enumerate(texts)]
    for t, made in zip(trials, compile_and_run(trials, tmp_path), strict=True):
        assert against_judge(t, made) == ""


RATIONAL_OF_WINDOWS = """arch a
input x: f32[1, 4, 12, 12]
output y: f32[1, 16, 32]
y = x -> im2col(kernel = [3, 3], stride = [3, 3], padding = [1, 1]) -> kan(32, basis = "grkan", base = "identity")
"""


def test_a_guarded_value_that_arithmetic_reads_often_compiles(tmp_path: Path) -> None:
    """TVM follows a name into its guard, and asks of a float whether it is at least 0 as if it were a whole number."""
    t = trial(RandomNet(0, 0, "", loads(RATIONAL_OF_WINDOWS), RATIONAL_OF_WINDOWS, {}))
    assert against_judge(t, compile_and_run([t], tmp_path)[0]) == ""
