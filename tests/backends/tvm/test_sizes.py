"""Open sizes that are too small for what a network does with them are told, before memory is read that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from archc.backends import runtime
from archc.backends.initial import InitialWeights
from archc.backends.tvm.compile import compile_graph
from archc.backends.tvm.lower import lower
from archc.backends.tvm.targets import parse_target
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.ir.needs import needs, unknowable

# name: what is computed of f32[N, T, 3], its type, the least T
ASKS = {
    "a": ("select(1, 4)", "f32[N, 3]", 5),
    "b": ("select(1, -4)", "f32[N, 3]", 4),
    "c": ("slice(1, from = 2, to = 6)", "f32[N, 4, 3]", 6),
    "d": ("slice(1, from = -4)", "f32[N, 4, 3]", 4),
    "e": ("fn(x) { let v, i = top_k(x, 3, axis = 1) return v }", "f32[N, 3, 3]", 3),
    "f": ("argmax(1)", "i64[N, 3]", 1),
    "g": ("max(1)", "f32[N, 3]", 1),
    "h": ('pad([0, 0, 3, 2], mode = "reflect")', "f32[N, Th + 5, 3]", 4),
    "i": ("fn(x) { let v, w = split(x, [4, Ti - 4], axis = 1) return w }", "f32[N, Ti - 4, 3]", 4),
    "j": ("skip(gate = linear(1) -> sigmoid, body = fn(r) { return r * (r -> select(1, 1) -> unsqueeze(1)) })",
          "f32[N, Tj, 3]", 2),
    "k": ('transpose(1, 2) -> upsample(2, mode = "bilinear") -> transpose(1, 2)', "f32[N, 2 * Tk, 3]", 1),
}  # fmt: skip
PROGRAM = "arch asks\n" + "".join(
    [f"input {n}: f32[N, T{n}, 3]\n" for n in ASKS]
    + [f"output o{n}: {type_}\n" for n, (_, type_, _) in ASKS.items()]
    + [f"o{n} = {n} -> {body}\n" for n, (body, _, _) in ASKS.items()]
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Artifact]:
    path = tmp_path_factory.mktemp("sizes") / "a.archc"
    graph = loads(PROGRAM)
    compile_graph(graph, InitialWeights(graph), path, spec=parse_target("cpu", threads=1))
    with runtime.load(path) as loaded:
        yield loaded


def inputs(**sizes: int) -> dict[str, np.ndarray]:
    return {n: np.ones((2, sizes.get(n, least), 3), np.float32) for n, (_, _, least) in ASKS.items()}


def test_the_least_sizes_will_do(artifact: runtime.Artifact) -> None:
    assert artifact.run(inputs())["oh"].shape == (2, 9, 3)


@pytest.mark.parametrize("name", ASKS)
def test_one_less_will_not(name: str, artifact: runtime.Artifact) -> None:
    least = ASKS[name][2]
    with pytest.raises(CompileError) as error:
        artifact.run(inputs(**{name: least - 1}))
    (diagnostic,) = error.value.diagnostics
    assert diagnostic.code == "E0522"
    assert f"needs `T{name}` to be at least {least}" in diagnostic.message
    assert f"`T{name}` is {least - 1}" in diagnostic.message


def test_what_always_holds_is_not_asked() -> None:
    text = "arch a\ninput x: f32[N, T, 8]\noutput y: f32[N, T, 8]\noutput z: f32[N, T//2, 8]\n"
    text += "y = x -> softmax(axis = 1) -> linear(8)\nz = x -> transpose(1, 2) -> max_pool(2) -> transpose(1, 2)\n"
    assert needs(loads(text)) == []


def test_the_variance_of_nothing_is_nan(tmp_path_factory: pytest.TempPathFactory) -> None:
    graph = loads("arch a\ninput x: f32[N, T]\noutput y: f32[N]\ny = x -> var(1)\n")
    path = tmp_path_factory.mktemp("var") / "a.archc"
    compile_graph(graph, InitialWeights(graph), path, spec=parse_target("cpu", threads=1))
    with runtime.load(path) as loaded:
        for size, value in ((0, np.nan), (1, np.nan), (2, 0.0)):
            np.testing.assert_array_equal(loaded(np.ones((3, size), np.float32)), np.full(3, value, np.float32))


PIECES = {  # what is computed of f32[1, 3, T, 4], its type, the same by NumPy
    "a": ("select(2, -1)", "f32[1, 3, 4]", lambda x: x[:, :, -1]),
    "b": ("slice(2, to = -2)", "f32[1, 3, T - 2, 4]", lambda x: x[:, :, :-2]),
    "c": ("slice(2, from = -3, to = -1)", "f32[1, 3, 2, 4]", lambda x: x[:, :, -3:-1]),
    "d": ("slice(2, from = 1, to = -1, step = 2)", "f32[1, 3, (T - 1)//2, 4]", lambda x: x[:, :, 1:-1:2]),
    "e": ('pad([0, 0, 0, 2], mode = "reflect") -> clamp(min = -1.0, max = 1.0)', "f32[1, 3, T + 2, 4]",
          lambda x: np.clip(np.pad(x, ((0, 0), (0, 0), (0, 2), (0, 0)), "reflect"), -1, 1)),
}  # fmt: skip


def test_pieces_up_to_an_open_size_have_no_conditions_in_their_types(tmp_path: Path) -> None:
    """Relax has no type for a condition in a size, and its passes fail where they visit one. With a kernel that wants
    its channels last behind a border they do."""
    lines = [f"output o{n}: {type_}\n" for n, (_, type_, _) in PIECES.items()]
    lines += ["output conv: f32[1, 4, T + 2, 4]\n", *(f"o{n} = x -> {body}\n" for n, (body, *_) in PIECES.items())]
    lines += ["conv = oe -> conv(4, kernel = 1, bias = false) -> clamp(min = -6.0, max = 3.0)\n"]
    lines += ["output thrice: f32[1, 4, 3 * T, 4]\nthrice = concat(x, x, x, axis = 2) -> conv(4, kernel = 1) -> relu\n"]
    graph = loads("arch a\ninput x: f32[1, 3, T, 4]\n" + "".join(lines))
    weights = InitialWeights(graph)
    assert "if_then_else" not in str(lower(graph, weights)["main"])
    compile_graph(graph, weights, tmp_path / "a.archc", spec=parse_target("cpu", threads=1))
    with runtime.load(tmp_path / "a.archc") as loaded:
        for size in (3, 6):
            x = np.random.default_rng(size).normal(size=(1, 3, size, 4)).astype(np.float32)
            made = loaded.run({"x": x})
            for n, (_, _, expected) in PIECES.items():
                np.testing.assert_array_equal(made[f"o{n}"], expected(x), err_msg=n)
            assert made["conv"].shape == (1, 4, size + 2, 4)
            first, *others = np.split(made["thrice"], 3, axis=2)
            assert all(np.allclose(first, other, atol=1e-6) for other in others)


@pytest.mark.parametrize("size", [1, 4])
def test_a_transposed_convolution_that_cuts_off_more_than_there_is(size: int, tmp_path: Path) -> None:
    graph = loads(
        "arch a\ninput x: f32[N, 1, T]\noutput y: f32[N, 1, T]\n"
        'y = x -> conv_transpose(1, kernel = 1, padding = 2, output_padding = 4, dilation = 5, name = "c")\n'
    )
    weights = {"c.weight": np.ones((1, 1, 1), np.float32), "c.bias": np.full(1, 7, np.float32)}
    compile_graph(graph, weights, tmp_path / "a.archc", spec=parse_target("cpu", threads=1))
    x = np.arange(1, 1 + size, dtype=np.float32).reshape(1, 1, size)
    with runtime.load(tmp_path / "a.archc") as loaded:
        np.testing.assert_array_equal(loaded(x), np.append(x.ravel()[2:], np.zeros(min(2, size)))[None, None] + 7)


def test_what_needs_rows_that_an_expert_may_not_get_is_refused() -> None:
    """It would read memory that is not there; one row is there wherever it matters."""
    program = """arch a()
input x: f32[N, 4]
output y: f32[N, 4]
def expert = fn(x) {{ return x + (x -> select(0, {}) -> unsqueeze(0)) }}
y = x -> moe(router = linear(2), experts = copies(2, expert), top_k = 1)
"""
    assert [need.words for need in unknowable(loads(program.format(0)))] == []
    graph = loads(program.format(5))
    with pytest.raises(CompileError, match="to be at least 6") as error:
        compile_graph(graph, InitialWeights(graph), Path("never.archc"), spec=parse_target("cpu"))
    assert error.value.diagnostics[0].code == "E0507"
