"""Programs and the graphs that they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from archc.grammar.load import load, loads
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph
from archc.ir.verify import verify

PORTS = "arch a\ninput x: f32[N, 8]\noutput y: f32[N, 8]\n"


def build(body: str, **values: object) -> Graph:
    graph = loads(PORTS + body, values)
    verify(graph)
    return graph


def ops(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


def weights(graph: Graph) -> list[str]:
    return [name for name in graph.parameters() if name.endswith("weight")]


def test_a_pipe_feeds_tensors_and_composes_modules() -> None:
    direct = build("y = x -> linear(4) -> relu -> linear(8)")
    composed = build("def body = linear(4) -> relu -> linear(8)\ny = x -> body")
    called = build("y = linear(relu(linear(x, 4)), 8)")
    assert ops(direct) == ops(composed) == ops(called) == ["linear", "relu", "linear"]


def test_several_tensors_feed_a_module_in_order() -> None:
    for feed in ("(a, b) -> f", "f(a, b)", "a -> f(b)"):
        graph = build(f"def f = fn(p, q) {{ return p - q }}\nlet a = x -> relu\nlet b = x -> tanh\ny = {feed}")
        assert [v.producer.op.name for v in graph.nodes[-1].operands if v.producer] == ["relu", "tanh"]


def test_a_definition_has_fresh_weights_at_every_use_and_a_share_has_one_set() -> None:
    fresh = build("def f = linear(8)\ny = x -> f -> f")
    assert weights(fresh) == ["f.linear.weight", "f1.linear.weight"]
    shared = build("share f = linear(8)\ny = x -> f -> f")
    assert weights(shared) == ["f.weight"]
    assert shared.nodes[0].weights["weight"] is shared.nodes[1].weights["weight"]


def test_module_arguments_are_templates_unless_shared() -> None:
    twice = "def twice(m) = m -> m\n"
    assert len(weights(build(twice + "y = x -> twice(linear(8))"))) == 2
    assert len(weights(build(twice + "share s = linear(8)\ny = x -> twice(s)"))) == 1


def test_a_share_of_several_ops_ties_each_of_them() -> None:
    graph = build("share f = linear(8) -> relu -> linear(8)\ny = x -> f -> f")
    assert weights(graph) == ["f.linear.weight", "f.linear1.weight"]
    assert [n.name for n in graph.nodes] == ["f.linear", "f.relu", "f.linear1", "f@1.linear", "f@1.relu", "f@1.linear1"]


def test_a_share_inside_a_definition_belongs_to_one_use_of_it() -> None:
    graph = build("def d = fn(v) { share s = linear(8) return s(s(v)) }\ny = x -> d -> d")
    assert weights(graph) == ["d.s.weight", "d1.s.weight"]


def test_repeat_makes_fresh_copies_or_ties_them() -> None:
    assert len(weights(build("y = x -> repeat(3) { linear(8) }"))) == 3
    assert len(weights(build("y = x -> repeat(3, tied = true) { linear(8) }"))) == 1
    assert ops(build("y = x -> repeat(0) { linear(8) }")) == []


def test_repeat_counts_with_an_index() -> None:
    graph = build("y = x -> repeat(4) as i { if i % 2 == 0 then relu else tanh }")
    assert ops(graph) == ["relu", "tanh", "relu", "tanh"]


def test_residual_adds_its_shortcut() -> None:
    assert ops(build("y = x -> residual(linear(8))")) == ["linear", "add"]
    graph = build("y = x -> residual(linear(8), shortcut = linear(8, bias = false))")
    assert weights(graph) == ["linear.weight", "shortcut.linear.weight"]


@pytest.mark.parametrize("merge", ["add", "mul", "concat"])
def test_branch_merges(merge: str) -> None:
    graph = build(f'y = x -> branch(linear(8), relu, merge = "{merge}") -> linear(8)')
    assert ops(graph) == ["linear", "relu", merge, "linear"]


def test_branch_makes_copies_and_groups() -> None:
    assert ops(build("y = x -> branch(3, linear(8))")) == ["linear"] * 3 + ["add"] * 2
    grouped = build('y = x -> branch(2, linear(4), split = "group", merge = "concat")')
    assert ops(grouped) == ["split", "linear", "linear", "concat"]


def test_einspace_words_are_sugar() -> None:
    graph = build("y = x -> sequential(computation(relu), routing(identity, linear(8), identity))")
    assert ops(graph) == ["relu", "linear"]


def test_a_sequence_of_nothing_is_the_identity() -> None:
    assert ops(build("y = x -> sequential() -> sequential(sequential(), relu)")) == ["relu"]
    assert ops(build("let a = (x, x) -> sequential() -> add\ny = a -> branch(2, sequential())")) == ["add", "add"]


def test_functions_name_values_and_return_several() -> None:
    graph = build("def f = fn(v) { let a = v -> relu let b = v -> tanh return a, b }\nlet p, q = x -> f\ny = p * q + p")
    assert ops(graph) == ["relu", "tanh", "mul", "add"]


def test_numbers_among_tensors_become_constants_of_their_dtype() -> None:
    graph = loads("arch a\ninput x: f16[N]\ninput i: i64[N]\noutput y: f16[N]\noutput j: i64[N]\ny = 1 - x\nj = i * 2")
    constants = [n.output.type for n in graph.nodes if n.op.name == "constant"]
    assert [str(t) for t in constants] == ["f16[]", "i64[]"]


def test_numbers_of_where_have_the_dtype_of_the_numbers_beside_them() -> None:
    assert ops(build("y = where(x > 0, x, 0)")) == ["constant", "gt", "constant", "where"]


def test_dimensions_are_symbols_and_can_be_calculated_with() -> None:
    graph = loads("arch a\ninput x: f32[N, T, 8]\noutput y: f32[N, 2 * T, 4]\ny = x -> reshape([N, 2 * T, 4])")
    assert str(graph.outputs[0].type) == "f32[N, 2*T, 4]"


def test_a_signature_binds_dimensions() -> None:
    graph = loads(
        "arch a\ninput x: f32[N, 3, 8, 8]\noutput y: f32[N, 6, 4, 4]\n"
        "def down: [N, C, H, W] => [N, 2 * C, H / 2, W / 2] = conv(2 * C, kernel = 2, stride = 2)\n"
        "y = x -> down"
    )
    assert str(graph.outputs[0].type) == "f32[N, 6, 4, 4]"


def test_a_rest_in_a_signature_stands_for_any_axes() -> None:
    body = "def wide: [*S, C] => [*S, 2 * C] = linear(2 * C)\n"
    for shape in ("N, 4", "N, T, 4", "N, 3, 3, 4"):
        double = shape[:-1] + "8"
        loads(f"arch a\ninput x: f32[{shape}]\noutput y: f32[{double}]\n{body}y = x -> wide")


def test_parameters_are_set_and_dimensions_fixed() -> None:
    text = "arch a(width = 4, act: bool = true)\ninput x: f32[N, T]\noutput y: f32[N, width]\ny = x -> linear(width)"
    graph = loads(text, {"width": "6"}, {"T": 5})
    assert str(graph.inputs[0].type) == "f32[N, 5]"
    assert str(graph.outputs[0].type) == "f32[N, 6]"


def test_a_tied_linear_reads_its_size_off_the_table() -> None:
    graph = loads(
        "arch a\ninput t: i64[N]\noutput y: f32[N, 10]\n"
        "share table = embedding(10, 4)\ny = t -> table -> tied_linear(table)"
    )
    assert [n.params.model_dump().get("out") for n in graph.nodes] == [None, 10]
    assert graph.nodes[0].weights["weight"] is graph.nodes[1].weights["weight"]


def test_one_weight_of_a_share_can_be_used_by_role() -> None:
    graph = build("share f = linear(8)\ny = x -> f -> linear(8, weight = f.weight)")
    first, second = graph.nodes
    assert first.weights["weight"] is second.weights["weight"]
    assert first.weights["bias"] is not second.weights["bias"]


def test_partial_application_of_keyword_tensors() -> None:
    graph = loads(
        "arch a\ninput x: f32[N, T, 8]\ninput m: bool[T, T]\noutput y: f32[N, T, 8]\n"
        "y = x -> attention(2, mask = m) -> concat(x, axis = 2) -> linear(8)"
    )
    assert [len(n.operands) for n in graph.nodes] == [4, 2, 1]


# Regions


def test_a_tensor_from_outside_becomes_a_capture_of_every_region() -> None:
    graph = loads(
        "arch a\ninput x: f32[N, T, 8]\ninput g: f32[8]\noutput y: f32[N, T, 8]\n"
        "y = x -> moe(router = linear(2), experts = [linear(8), fn(v) { return v * g }], top_k = 1)"
    )
    verify(graph)
    (moe,) = graph.nodes
    assert [v.name for v in moe.captured] == ["g"]
    assert [len(r.inputs) for r in moe.regions] == [2, 2, 2]
    assert [str(r.inputs[0].type) for r in moe.regions] == ["f32[N, T, 8]", "f32[Rows, 8]", "f32[Rows, 8]"]


def test_captures_pass_through_nested_regions() -> None:
    graph = loads(
        "arch a\ninput x: f32[N, T, 8]\noutput y: f32[N, T, 8]\nlet m = x -> mean([0, 1])\n"
        "def inner = moe(router = linear(1), experts = copies(1, fn(v) { return v + m }), top_k = 1)\n"
        "y = x -> skip(gate = mean(1) -> linear(1) -> sigmoid, body = inner)"
    )
    verify(graph)
    skip = graph.nodes[-1]
    inner = skip.regions[1].nodes[-1]
    assert skip.captured == (graph.nodes[0].output,)
    assert inner.captured == (skip.regions[1].inputs[-1],)
    assert str(inner.regions[1].inputs[0].type) == "f32[Rows1, 8]"  # Rows is taken by the skip around it


def test_a_region_can_name_its_rows() -> None:
    graph = loads(
        "arch a\ninput x: f32[N, 8]\noutput y: f32[N, 2]\n"
        "def rest = fn(v) { return v -> reshape([Rows, 2, 4]) -> mean(2) }\n"
        "y = x -> exit(head = linear(2), rest = rest, threshold = 0.9)"
    )
    verify(graph)


def test_scan_starts_at_zeros_or_at_tensors() -> None:
    cell = "def cell = fn(v, h) { let n = concat(v, h, axis = 1) -> linear(4) -> tanh return n, n }\n"
    ports = "arch a\ninput x: f32[N, T, 3]\ninput s: f32[N, 4]\noutput y: f32[N, T, 4]\n"
    zeros = loads(ports + cell + "let a, b = x -> scan(cell, state = [[4]], axis = 1)\ny = a")
    given = loads(ports + cell + "let a, b = x -> scan(cell, state = [s], axis = 1)\ny = a")
    assert ops(zeros) == ["constant", "expand", "scan"]
    assert ops(given) == ["scan"]
    assert [str(v.type) for v in given.nodes[0].outputs] == ["f32[N, T, 4]", "f32[N, 4]"]


# Names


RESNET = """
arch resnet(width = 4)
input  image: f32[N, 3, 8, 8]
output logits: f32[N, 10]
def conv_bn(c, stride = 1) = conv(c, kernel = 3, stride = stride, bias = false) -> batch_norm
def block(c, stride = 1) =
    residual(conv_bn(c, stride) -> relu -> conv_bn(c),
        shortcut = if stride == 1 then identity else conv(c, kernel = 1, stride = stride, bias = false) -> batch_norm)
    -> relu
def stage(c, n, stride) = block(c, stride) -> repeat(n - 1) { block(c) }
logits = image -> conv_bn(width) -> relu -> stage(width, 3, 1) -> stage(2 * width, 3, 2) -> mean([2, 3]) -> linear(10)
"""


def test_names_are_scope_paths_numbered_from_0_with_0_left_out() -> None:
    names = loads(RESNET).parameters()
    assert "conv_bn.conv.weight" in names
    assert "stage.block1.conv_bn.conv.weight" in names
    assert "stage1.block2.conv_bn1.batch_norm.running_var" in names
    assert "stage1.block.shortcut.conv.weight" in names


def test_names_do_not_change_when_unrelated_lines_are_added() -> None:
    plain = "let a = x -> linear(8)\nlet b = x -> linear(8)\ny = a + b -> linear(8)"
    more = (
        "share s = linear(8)\ndef unused = linear(3)\nlet a = x -> linear(8)\nlet c = x -> linear(8) -> linear(8)\n"
        "let b = x -> linear(8)\ny = a   +   b\n  -> linear(8)"
    )
    assert set(build(plain).parameters()) < set(build(more).parameters())
    # the control: names do belong to statements, so a renamed one renames its weights
    assert not set(build(plain).parameters()) <= set(
        build(plain.replace("let b", "let c").replace("+ b", "+ c")).parameters()
    )


def test_other_outputs_do_not_rename_the_first() -> None:
    one = loads("arch a input x: f32[N, 8] output y: f32[N, 8] y = x -> linear(8)")
    two = loads(
        "arch a input x: f32[N, 8] output y: f32[N, 8] output z: f32[N, 8] z = x -> linear(8) y = x -> linear(8)"
    )
    assert weights(one) == ["linear.weight"]
    assert weights(two) == ["z.linear.weight", "linear.weight"]


def test_a_fixed_name_is_a_path_below_the_innermost_definition() -> None:
    graph = build(
        'def block = linear(8, name = "proj")\n'
        'let a = x -> linear(8, name = "model/enc:0.w x")\n'
        'y = a -> block -> block -> block(name = "last.one") -> block(name = "")'
    )
    expected = ["model/enc:0.w x", "block.proj", "block1.proj", "last.one.proj", "proj"]
    assert [node.name for node in graph.nodes] == expected


def test_a_call_that_fixes_a_name_numbers_its_definition_once() -> None:
    calls = 'def f = linear(8)\ndef g = f(name = "")\ndef h = f(name = "own")\n'
    assert weights(build(calls + "y = x -> g -> g")) == ["g.linear.weight", "g1.linear.weight"]
    assert weights(build(calls + "y = x -> h -> h")) == ["h.own.linear.weight", "h1.own.linear.weight"]


def test_zero_keeps_its_sign() -> None:
    graph = build("def f(c) = fn(v) { return v * c }\ny = x -> f(0.0) -> f(-0.0)")
    assert [str(n.params.value) for n in graph.nodes if n.op.name == "constant"] == ["0.0", "-0.0"]


# Files


def test_definitions_are_imported_from_below_the_file_and_from_the_library(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "blocks.arch").write_text(
        'import "inner.arch" (half)\ndef block(c) = linear(half(c)) -> linear(c)\n'
    )
    (tmp_path / "parts" / "inner.arch").write_text("def half(c) = c // 2\n")
    main = tmp_path / "main.arch"
    main.write_text(
        'arch a\nimport "parts/blocks.arch" (block)\nimport "std/ffn.arch"\n'
        "input x: f32[N, 8]\noutput y: f32[N, 8]\ny = x -> block(8) -> swiglu_ffn(16, 8)\n"
    )
    assert weights(load(main))[0] == "block.linear.weight"


@pytest.mark.parametrize("name", ["ffn", "transformer", "vision", "recurrent"])
def test_the_standard_library_is_sound(name: str) -> None:
    from archc.grammar.imports import standard_files
    from archc.grammar.load import check_text

    assert check_text(standard_files()[f"std/{name}.arch"], file=f"std/{name}.arch") == ()


@pytest.mark.parametrize(
    ("file", "shape", "use"),
    [
        ("ffn", "N, T, 8", "glu_ffn(16, 8) -> reglu_ffn(16, 8) -> geglu_ffn(16, 8) -> swiglu_ffn(16, 8) -> mlp(16, 8)"),
        ("transformer", "N, 6, 8", "transformer_block(8, 2) -> llama_block(8, 2) -> mixer_block(6, 8)"),
        ("vision", "N, 8, 4, 4", "basic_block(8) -> bottleneck(2, change = true) -> squeeze_excite(8)"),
    ],
)
def test_blocks_of_the_standard_library_keep_their_shape(file: str, shape: str, use: str) -> None:
    text = f'arch a import "std/{file}.arch" input x: f32[{shape}] output y: f32[{shape}] y = x -> {use}'
    verify(loads(text))


@pytest.mark.parametrize(("cell", "states"), [("gru", 1), ("lstm", 2), ("minimal_gated_unit", 1)])
def test_cells_of_the_standard_library(cell: str, states: int) -> None:
    names = ", ".join(f"s{i}" for i in range(states))
    text = (
        f'arch a import "std/recurrent.arch" input x: f32[N, T, 3] output y: f32[N, T, 4] '
        f"let ys, {names} = x -> scan({cell}(4), state = [{', '.join(['[4]'] * states)}]) y = ys"
    )
    verify(loads(text))


# Cost


def test_elaboration_is_linear() -> None:
    """Counted in calls of Python functions, not in seconds."""
    import sys

    def calls(count: int) -> int:
        lines = [f"let a{i} = {'x' if i == 0 else f'a{i - 1}'} -> linear(8)" for i in range(count)]
        text = PORTS + "\n".join(lines) + f"\ny = a{count - 1}"
        from archc.grammar.parser import parse
        from archc.grammar.program import Program

        syntax = parse(text)
        counted = 0

        def count_call(frame: object, event: str, argument: object) -> None:
            nonlocal counted
            counted += event == "call"

        sys.setprofile(count_call)
        try:
            Program(syntax).elaborate()
        finally:
            sys.setprofile(None)
        return counted

    calls(10)
    small, large = calls(250), calls(2000)
    assert large < 8.5 * small  # 8 times the lines


def test_a_deep_repeat_and_a_long_pipe_are_fine() -> None:
    assert len(build("y = x -> repeat(1000) { residual(relu) }").nodes) == 2000
    assert len(build("y = x" + " -> relu" * 3000).nodes) == 3000


def test_definitions_may_use_each_other_hundreds_deep() -> None:
    chain = "def a0 = relu\n" + "".join(f"def a{i} = a{i - 1} -> relu\n" for i in range(1, 300))
    assert len(build(chain + "y = x -> a299").nodes) == 300


@pytest.mark.parametrize(
    ("dtype", "number", "fits"),
    [
        ("f32", "3.4028235e38", True),
        ("f32", "-1e38 * 10.0", False),
        ("f32", "1e308 * 10.0", True),  # infinite, and meant so
        ("f16", "65504.0", True),
        ("f16", "-1e9", False),
        ("bf16", "3.39e38", True),
        ("bf16", "3.4e38", False),
        ("f64", "-1e300", True),
        ("i8", "-128", True),
        ("i8", "128", False),
        ("i64", "9223372036854775808", False),
    ],
)
def test_a_constant_fits_its_dtype(dtype: str, number: str, fits: bool) -> None:
    ports = f"arch a\ninput x: {dtype}[N]\noutput y: {dtype}[N]\n"
    for body in (f"y = x * ({number})", f'y = x * constant({number}, dtype = "{dtype}")'):
        if fits:
            assert len(loads(ports + body).nodes) == 2
            continue
        with pytest.raises(CompileError) as caught:
            loads(ports + body)
        (found,) = caught.value.diagnostics
        assert (found.code, found.message) == ("E0205", f"a constant is beyond {dtype}")
        assert found.span is not None
        assert (found.span.line, found.span.column) == (4, 5 if "constant" not in body else 9)
