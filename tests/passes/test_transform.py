"""The framework of transforms: sites and refusals, selection, specs, editing, settling. With transforms of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from pydantic import Field

from archc.facade.sameness import same_function
from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.clone import clone
from archc.ir.diagnostics import CompileError
from archc.ir.equal import structurally_equal
from archc.ir.graph import Graph
from archc.ir.init import Init
from archc.ir.ops.elementwise import MUL
from archc.ir.ops.linear import LINEAR
from archc.ir.verify import verify
from archc.metanet.symmetry import random_weights
from archc.passes.blocks import between, feed_forwards, residuals
from archc.passes.editing import Editor, common_scope, renewed
from archc.passes.manager import Context, Contract, run_passes
from archc.passes.spec import parse_pass, parse_transform
from archc.passes.transform import Options, Refusal, Site, Transform, as_pass, find_sites
from archc.passes.where import EVERYWHERE, Where

STACK = """arch stack()
input x: f32[N, T, 8]
output y: f32[N, T, 8]
def ffn = layer_norm -> linear(16) -> gelu -> linear(8)
def layer = residual(ffn)
y = x -> repeat(4) { layer } -> linear(8)
"""


class DoubleOptions(Options):
    """by  the factor"""

    by: float = Field(default=2.0, gt=0)


def _find(graph: Graph, options: DoubleOptions) -> Iterator[Site | Refusal]:
    for node in graph.nodes:
        if node.op is LINEAR and node.output.type.shape[-1] == 16:
            yield Refusal(node, "it needs 8 outputs", "found 16")
        elif node.op is LINEAR:
            yield Site(node, (node,), graph)


def _apply(graph: Graph, sites: Sequence[Site], options: DoubleOptions, context: Context) -> None:
    """y = W x + b becomes (W / by) x + b / by, times `by`: a parameter of its own."""
    from archc.ir.ops.constants import PARAMETER

    for site in sites:
        e = Editor(graph, site.graph, site.anchor)
        for parameter in site.anchor.weights.values():
            if context.weights is not None:
                context.store(parameter, context.value(parameter) / options.by)
        scale = e.node(PARAMETER, name="scale", shape=(8,), init=f"constant({options.by})")
        old = site.anchor
        copy = e(LINEAR, old.operands[0], full_name=old.name, params=old.params, weights=old.weights)
        old.output.replace_all_uses(e(MUL, copy, scale.output, name="scaled"), site.graph)


DOUBLE = Transform("double", "Scales.", DoubleOptions, _find, _apply, lambda o: Contract(), where="linear layers")


def changed(graph: Graph, where: Where = EVERYWHERE) -> tuple[Graph, Context]:
    new, context = clone(graph), Context(dict(random_weights(graph, 1)), wide=True)
    run_passes(new, [as_pass(DOUBLE, DoubleOptions(), where)], context)
    verify(new)
    return new, context


def test_a_transform_keeps_names_weights_and_function() -> None:
    old = loads(STACK)
    new, context = changed(old)
    assert context.weights is not None
    assert context.weights.keys() == new.parameters().keys() > old.parameters().keys()
    assert same_function(old, new, random_weights(old, 1), context.weights).ok
    assert structurally_equal(new, loads(print_graph(new))) is None
    spoilt = {**context.weights, "layer2.ffn.scale.weight": context.weights["layer2.ffn.scale.weight"] * (1 + 1e-6)}
    assert not same_function(old, new, random_weights(old, 1), spoilt).ok


def test_sites_and_refusals_by_selection() -> None:
    graph = loads(STACK)
    everywhere = find_sites(DOUBLE, graph, DoubleOptions())
    assert [s.anchor.name for s in everywhere.sites][-2:] == ["layer3.ffn.linear1", "linear"]
    assert len(everywhere.refusals) == 4
    some = find_sites(DOUBLE, graph, DoubleOptions(), Where(("layers 1..2",)))
    assert [s.anchor.name for s in some.sites] == ["layer1.ffn.linear1", "layer2.ffn.linear1"]
    assert [r.anchor.name for r in some.refusals] == ["layer1.ffn.linear", "layer2.ffn.linear"]
    assert len(some.others) == 3


@pytest.mark.parametrize(
    ("terms", "count"),
    [
        (("layer*.ffn",), 4),
        (("layer2.**",), 1),
        (("*",), 5),
        (("linear", "layer"), 2),
        (("op linear",), 5),
        (("not op linear",), 0),
        (("not layers 0..2",), 2),
        (("layers 0..2 and not layer1",), 2),
        (("params > 100",), 4),
        (("params <= 0.1k",), 1),
        (("flops > 1M",), 0),
        (("ffn",), 0),
    ],
)
def test_selections(terms: tuple[str, ...], count: int) -> None:
    assert len(find_sites(DOUBLE, loads(STACK), DoubleOptions(), Where(terms)).sites) == count


@pytest.mark.parametrize(
    "term", ["layers 8..4", "layers a", "op lineer", "params 100", "params > many", "a b", "a-b", ""]
)
def test_selections_that_cannot_be_read(term: str) -> None:
    with pytest.raises(CompileError) as caught:
        parse_pass("glu", term)
    assert caught.value.diagnostics[0].code == "E0404"


def test_nothing_to_change_says_where_there_is_something() -> None:
    with pytest.raises(CompileError) as caught:
        changed(loads(STACK), Where(("decoder",)))
    (found,) = caught.value.diagnostics
    assert (found.code, found.label) == ("E0402", "the selection `decoder` has no site")
    assert found.help == (
        "sites are at `layer.ffn.linear1`, `layer1.ffn.linear1`, `layer2.ffn.linear1`, `layer3.ffn.linear1`, `linear`"
    )


def test_only_refusals_are_errors_with_places() -> None:
    with pytest.raises(CompileError) as caught:
        changed(loads("arch a\ninput x: f32[N, 4]\noutput y: f32[N, 16]\ny = x -> linear(16)"))
    (found,) = caught.value.diagnostics
    assert (found.code, found.message) == ("E0403", "`double` cannot be applied at `linear`: it needs 8 outputs")
    assert (found.span.line, found.span.column) == (4, 10)


def test_overlapping_sites_are_refused() -> None:
    def both(graph: Graph, options: DoubleOptions) -> Iterator[Site]:
        for node in graph.nodes:
            if node.op is LINEAR:
                yield Site(node, (node,), graph)
                yield Site(node, (node,), graph)

    twice = Transform("twice", "", DoubleOptions, both, _apply, lambda o: Contract())
    found = find_sites(twice, loads(STACK), DoubleOptions())
    assert len(found.sites) == 9
    assert len(found.refusals) == 9
    assert "overlaps the site at `layer.ffn.linear`" in found.refusals[0].reason


# -- specs


@pytest.mark.parametrize(
    ("spec", "code", "column"),
    [
        ("gluu", "E0401", None),
        ("glu(", "E0102", 4),
        ("glu(kind = swigluu)", "E0205", 12),
        ("glu(kindd = same)", "E0204", 5),
        ('glu(name = "x")', "E0204", 12),
        ("glu(1 + 2)", "E0405", 5),
        ("glu -> glu", "E0405", 1),
        ("glu(kind = same, kind = same)", "E0110", 18),
        ("dce(1)", "E0207", 5),
        ("", "E0101", None),
        ("glu; glu", "E0127", 6),
    ],
)
def test_specs_that_are_wrong(spec: str, code: str, column: int | None) -> None:
    with pytest.raises(CompileError) as caught:
        parse_pass(spec)
    found = caught.value.diagnostics[0]
    assert found.code == code
    if column is not None:
        assert found.span is not None
        assert (found.span.line, found.span.column) == (1, column)


def test_specs() -> None:
    transform, options = parse_transform('glu(kind = "swiglu")')
    assert (transform.name, options.kind) == ("glu", "swiglu")  # type: ignore[attr-defined]
    assert parse_transform("glu(swiglu)")[1] == options
    assert parse_pass("glu at layers 1..2").spec == "glu at layers 1..2"
    graph = loads(STACK)
    for spec in ("glu at layers 1..2", "glu(same) at layer*.ffn and not layers 0..1"):
        find = parse_pass(spec).find
        assert find is not None
        assert len(find(graph).sites) == 2


# -- recognisers


def test_blocks_of_a_stack() -> None:
    graph = loads(STACK)
    found = list(feed_forwards(graph))
    assert [b.activation.name for b in found] == [
        "layer.ffn.gelu",
        "layer1.ffn.gelu",
        "layer2.ffn.gelu",
        "layer3.ffn.gelu",
    ]
    assert found[0].hidden == 16
    blocks = list(residuals(graph))
    assert [len(b.body) for b in blocks] == [4] * 4
    assert blocks[1].x is blocks[0].add.output


GATED = """arch gated
input x: f32[N, 8]
output y: f32[N, 8]
let gate = x -> linear(16) -> silu
let up = x -> linear(16)
y = gate * up -> dropout(0.1) -> linear(8)
"""


def test_gated_blocks_and_near_misses() -> None:
    (block,) = feed_forwards(loads(GATED))
    assert block.gate is not None
    assert (block.gate.name, block.up.name, block.down.name) == ("gate.linear", "up.linear", "linear")
    assert [n.op.name for n in block.nodes] == ["linear", "silu", "linear", "mul", "dropout", "linear"]
    for wrong in (
        GATED.replace("let up = x", "let up = exp(x)"),  # another operand
        GATED.replace("y = gate", "y = gate + gate"),  # the activation is read twice
        GATED.replace("linear(8)", "exp -> linear(8)"),
    ):
        assert not list(feed_forwards(loads(wrong)))


def test_residuals_with_shortcuts() -> None:
    source = """arch r
input x: f32[N, 8]
output y: f32[N, 4]
let a = x -> relu
y = (a -> linear(4) -> gelu -> linear(4)) + (a -> linear(4)) -> relu
"""
    (block,) = residuals(loads(source.replace("-> relu\n", "-> relu\n")))
    assert [n.name for n in block.shortcut] == ["linear2"]
    assert [n.op.name for n in block.body] == ["linear", "gelu", "linear"]
    leaking = source.replace("output y: f32[N, 4]", "output y: f32[N, 4]\noutput z: f32[N, 4]") + "z = y\n"
    assert len(list(residuals(loads(leaking)))) == 1


def test_between_is_closed() -> None:
    graph = loads("arch b input x: f32[N, 4] output y: f32[N, 4] let a = x -> exp  let c = a -> sin  y = c * x -> neg")
    exp, sin, mul, neg = graph.nodes
    assert between(graph, graph.inputs[0], sin.output) == (exp, sin)
    assert between(graph, exp.output, sin.output) == (sin,)
    assert between(graph, exp.output, mul.output) == ()  # x enters, too
    assert between(graph, graph.inputs[0], mul.output) == (exp, sin, mul)
    assert between(graph, graph.inputs[0], neg.output) == ()  # an output of the network


# -- editing


def test_copies_are_typed_anew_with_weights_of_their_own() -> None:
    graph = loads(STACK)
    block = next(feed_forwards(graph))
    e = Editor(graph, graph, block.activation)
    assert common_scope(n.name for n in block.nodes) == e.prefix == "layer.ffn"
    region, (x,) = e.region("experts.0", [block.x.type.substitute({"N": 3, "T": 1})])
    copies: dict = {}
    values = {block.x: x}
    e.inside(region, "").copy(block.nodes, values, rename=lambda n: f"moe.{n}", weigh=renewed(copies))
    assert [n.name for n in region.nodes] == ["moe.layer.ffn.linear", "moe.layer.ffn.gelu", "moe.layer.ffn.linear1"]
    assert str(values[block.down.output].type) == "f32[3, 1, 8]"
    assert next(p.name for p in copies.values()) == "moe.layer.ffn.linear.weight"
    assert e.name("linear") == "layer.ffn.linear2"


def test_new_parameters_without_a_value_get_their_initial_one() -> None:
    from archc.ir.ops.constants import PARAMETER

    def apply(graph: Graph, sites: Sequence[Site], options: Options, context: Context) -> None:
        e = Editor(graph, graph, sites[0].anchor)
        one = e(PARAMETER, name="one", shape=(8,), init="constant(1.0)")
        old = sites[0].anchor.output
        scaled = e.node(MUL, old, one, name="scaled")
        old.replace_all_uses(scaled.output, graph)
        scaled.set_inputs((old, one))

    born = Transform("born", "", DoubleOptions, _find, apply, lambda o: Contract())
    graph = loads(STACK)
    for wide, dtype in ((True, np.float64), (False, np.float32)):
        new, context = clone(graph), Context(dict(random_weights(graph, 0)), wide=wide)
        run_passes(new, [as_pass(born, DoubleOptions())], context)
        assert context.weights is not None
        assert context.weights["layer.ffn.one.weight"].dtype == dtype
        assert (context.weights["layer.ffn.one.weight"] == 1).all()


def test_init_is_as_declared() -> None:
    assert Init("constant", 1.0).sample((2,), 0, "a").tolist() == [1.0, 1.0]
