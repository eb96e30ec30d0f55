"""The generated source: what it looks like, that names cannot break it, and how it reads and checks sizes."""

from __future__ import annotations

import ast
import gc
import weakref

import pytest
import torch
from expressions import graph_of

from archc.backends.torch import runtime
from archc.backends.torch.codegen import lowering, parameter_paths, solve
from archc.backends.torch.module import to_torch
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.ir.dims import Dim, symbol
from archc.ir.graph import Graph
from archc.ir.init import Init
from archc.ir.op import REGISTRY, OpDef, Weight
from archc.ir.types import TensorType


def one_op(op: str, *types: TensorType, name: str = "", inputs: tuple[str, ...] = (), **fields: object) -> Graph:
    graph = Graph("net")
    values = [graph.add_input(inputs[i] if inputs else f"a{i}", t) for i, t in enumerate(types)]
    node = graph.add(REGISTRY[op], values, REGISTRY[op].params(**fields), name=name or op)
    graph.outputs, graph.output_names = [node.output], ["y"]
    return graph


def test_the_source_reads_like_pytorch() -> None:
    graph = loads("""
        arch tiny(width = 8)
        input  image:  f32[N, 3, 8, 8]
        output logits: f32[N, 5]
        def block = residual(conv(width, kernel = 3, bias = false) -> batch_norm -> relu)
        logits = image -> conv(width, kernel = 3, stride = 2) -> block -> global_avg_pool -> linear(5)
    """)
    line = "self.block.batch_norm"
    assert (
        to_torch(graph).source
        == f'''\
    def forward(self, image: Tensor) -> Tensor:
        """image: f32[N, 3, 8, 8] -> f32[N, 5]"""
        check_input("image", image, "f32", ("N", 3, 8, 8))
        x = F.conv2d(image, self.conv.weight, self.conv.bias, stride=2, padding=1)  # [N, 8, 4, 4]
        # block
        x1 = F.conv2d(x, self.block.conv.weight, None, padding=1)  # [N, 8, 4, 4]
        p = {line}
        x1 = F.batch_norm(x1, p.running_mean, p.running_var, p.weight, p.bias, self.training, momentum=0.1, eps=1e-05)
        x1 = F.relu(x1)  # [N, 8, 4, 4]
        x1 = x1 + x  # [N, 8, 4, 4]
        x1 = x1.mean(dim=(2, 3))  # [N, 8]
        x1 = F.linear(x1, self.linear.weight, self.linear.bias)  # [N, 5]
        return x1
'''
    )


def test_a_norm_of_images_is_a_batch_norm() -> None:
    norm, batch_norm = (to_torch(graph_of([f"x -> {op}"], ["f32[N, 4, 5, 5]"])).source for op in ("norm", "batch_norm"))
    assert norm.replace("self.norm", "self.batch_norm") == batch_norm


def test_regions_are_nested_functions() -> None:
    graph = graph_of(
        ["x -> skip(gate = mean(1) -> linear(1) -> sigmoid, body = fn(a) { return a * scale }, threshold = 0.25)"],
        ["f32[N, T, 4]"],
        ["let scale = parameter([4])"],
    )
    source = to_torch(graph).source
    assert functions(source) == ["gate", "body"]
    assert "skip(" in source
    assert "threshold=0.25" in source
    experts = graph_of(
        ["x -> moe(router = linear(2), experts = copies(2, linear(4)), shared = linear(4), top_k = 1)"], ["f32[N, 4]"]
    )
    assert functions(to_torch(experts).source) == ["router", "expert0", "expert1", "shared"]


def functions(source: str) -> list[str]:
    """The names of the functions inside the last method."""
    method = ast.parse("class M:\n" + source).body[0].body[-1]  # type: ignore[attr-defined]
    return [n.name for n in method.body if isinstance(n, ast.FunctionDef)]


@pytest.mark.parametrize(
    ("size", "inside"),
    [(6, "T = tokens.shape[1]"), (2 * symbol("T"), "exact_quotient"), (symbol("T") - 1, "T = tokens.shape[1] - (-1)")],
)
def test_sizes_are_solved_from_the_inputs(size: Dim, inside: str) -> None:
    """`T` from an axis of size `2 * T` or `T - 1`."""
    graph = Graph("net")
    tokens = graph.add_input("tokens", TensorType((symbol("N"), symbol("T") if size == 6 else size)))
    expand = REGISTRY["expand"]
    one = graph.add(REGISTRY["constant"], [], REGISTRY["constant"].params(value=1.0)).output
    node = graph.add(expand, [one], expand.params(shape=(symbol("T"), symbol("N"))))
    graph.outputs, graph.output_names = [node.output], ["y"]
    module = to_torch(graph)
    assert inside in module.source
    assert module(torch.zeros(2, 6)).shape == ({6: 6, 2 * symbol("T"): 3}.get(size, 7), 2)
    assert tokens.uses == {}


def test_a_size_that_does_not_fit_is_told() -> None:
    n, t = symbol("N"), symbol("T")
    module = to_torch(one_op("concat", TensorType((n, 2 * t)), TensorType((n, t)), axis=1))
    assert module(torch.zeros(2, 6), torch.zeros(2, 3)).shape == (2, 9)
    with pytest.raises(ValueError, match=r"axis 1 of input `a0` must be 2\*T: found a size that no whole number gives"):
        module(torch.zeros(2, 5), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="axis 1 of input `a1` must be T: needed 3, found 4"):
        module(torch.zeros(2, 6), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="axis 0 of input `a1` must be N: needed 2, found 3"):
        module(torch.zeros(2, 6), torch.zeros(3, 3))


def test_a_size_that_no_input_tells_is_an_error() -> None:
    graph = Graph("net")
    graph.add_input("x", TensorType((symbol("T") // 2,)))
    constant, expand = REGISTRY["constant"], REGISTRY["expand"]
    one = graph.add(constant, [], constant.params(value=1.0)).output
    graph.outputs = [graph.add(expand, [one], expand.params(shape=(symbol("T"),))).output]
    graph.output_names = ["y"]
    with pytest.raises(CompileError, match="E0902") as raised:
        to_torch(graph)
    assert "the size T" in raised.value.diagnostics[0].message


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.zeros(2, 3, 4), "found torch.float32 of shape \\[2, 3, 4\\]"),
        (torch.zeros(2, 5), r"must be f32\[N, 4\], found torch.float32 of shape \[2, 5\]"),
        (torch.zeros(2, 4, dtype=torch.int64), "found torch.int64"),
    ],
)
def test_inputs_are_checked(found: torch.Tensor, message: str) -> None:
    module = to_torch(one_op("relu", TensorType((symbol("N"), 4)), inputs=("image",)))
    with pytest.raises(ValueError, match=message):
        module(found)


HOSTILE = (
    'evil"""\nraise SystemExit\n"""',
    "a\nraise SystemExit",
    "class",
    "self",
    "torch",
    "F",
    "x",
    "0",
    "",
    "p",
    "é#",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_the_source(name: str) -> None:
    """Names of networks, inputs, symbols and nodes are data: none of them is read as code."""
    type_ = TensorType((symbol("F"), symbol("torch"), 4))
    graph = one_op("linear", type_, name=f"{name}.{name}.{name}", inputs=(name,), out=2)
    graph.name = name
    module = to_torch(graph)
    assert list(module.state_dict()) == [f"{name}.{name}.{name}.weight", f"{name}.{name}.{name}.bias"]
    assert module(torch.zeros(3, 5, 4)).shape == (3, 5, 2)


def test_symbols_give_way_to_pythons_names() -> None:
    n, f = symbol("N"), symbol("F")
    graph = one_op("reshape", TensorType((n, f, 2, 3)), shape=(n, 6, f))
    assert "F_1 = a0.shape[1]" in to_torch(graph).source
    assert to_torch(graph)(torch.zeros(2, 5, 2, 3)).shape == (2, 6, 5)


def test_an_activation_dies_when_it_is_no_longer_needed() -> None:
    """A variable's name is taken over, so that no more than two activations are alive at any time."""
    graph = graph_of(["x" + " -> exp -> sqrt" * 20], ["f32[N]"])
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal most
            result = function(*args, **(kwargs or {}))
            if function in (torch.ops.aten.exp.default, torch.ops.aten.sqrt.default):
                alive.append(weakref.ref(result))
                most = max(most, sum(ref() is not None for ref in alive))
            return result

    module = to_torch(graph)
    gc.collect()
    with torch.no_grad(), Watch():
        module(torch.zeros(4))
    assert len(alive) == 40
    assert most <= 3


def test_an_op_without_a_lowering_is_an_error() -> None:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((3,)))
    node = graph.add(OpDef("zap", "", "x[*b] -> [*b]"), [x], name="zap")
    graph.outputs, graph.output_names = [node.output], ["y"]
    with pytest.raises(CompileError, match="E0901"):
        to_torch(graph)


def test_an_op_without_a_lowering_is_decomposed() -> None:
    """Its parts, with its own weights, become a nested function."""

    def decompose(b, node):  # type: ignore[no-untyped-def]
        double = b(REGISTRY["linear"], *node.operands, out=2, bias=False, weights=node.weights)
        return [b(REGISTRY["add"], double, double)]

    line = "x:float[*b, i]; weight[two, i] -> [*b, two]"
    op = OpDef("test_codegen_twice", "", line, weights={"weight": Weight(Init("normal", 1.0))}, decompose=decompose,
               sizes=lambda call, dims: {"two": 2})  # fmt: skip
    graph = Graph("net")
    node = graph.add(op, [graph.add_input("x", TensorType((symbol("N"), 3)))], name="twice")
    graph.outputs, graph.output_names = [node.output], ["y"]
    module, x = to_torch(graph), torch.randn(4, 3)
    assert "def test_codegen_twice(x):" in module.source
    torch.testing.assert_close(module(x), 2 * x @ module.state_dict()["twice.weight"].T)


def test_packages_can_add_ops_and_helpers() -> None:
    @lowering("test_codegen_triple")
    def _(n):  # type: ignore[no-untyped-def]
        return f"test_codegen_times({n.x}, {n.p.model_dump().get('by', 3)})"

    def test_codegen_times(x: torch.Tensor, by: int) -> torch.Tensor:
        return x * by

    runtime.helper(test_codegen_times)
    with pytest.raises(ValueError, match="exists already"):
        runtime.helper(test_codegen_times)
    graph = Graph("net")
    x = graph.add_input("x", TensorType((3,)))
    node = graph.add(OpDef("test_codegen_triple", "", "x[*b] -> [*b]"), [x], name="triple")
    graph.outputs, graph.output_names = [node.output], ["y"]
    assert torch.equal(to_torch(graph)(torch.ones(3)), torch.full((3,), 3.0))
    del runtime.HELPERS["test_codegen_times"]


def test_attributes_of_modules_are_not_hidden() -> None:
    names = ["train.weight", "train_.weight", "a", "a.b", "forward", "x..y", ".z", "0.weight", "__init__.w", "a_.b"]
    paths = parameter_paths(names)
    assert len(set(paths.values())) == len(names)
    assert paths["0.weight"] == ("0", "weight")
    containers = {path[:i] for path in paths.values() for i in range(1, len(path))}
    assert not containers & set(paths.values())
    assert not {part for path in paths.values() for part in path} & set(dir(torch.nn.Module()))


def test_solve() -> None:
    n, t = symbol("N"), symbol("T")
    assert solve(3 * t + 2 * n + 1, frozenset("T")) == ("T", 2 * n + 1, 3)
    assert solve(n * t, frozenset("T")) is None
    assert solve(n + t, frozenset("NT")) is None
