"""The CPU pipeline against torch in float64: every kernel family, awkward sizes, symbolic sizes, NaN and infinities.

Tolerance: 3e-6 of the largest value for sums of up to a few hundred float32 products, unless a test says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from torch.nn import functional
from tvm import relax, tirx
from tvm.relax import op

from archc.backends.tvm.codegen import PIPELINE
from archc.backends.tvm.cpu import generic_kernels, optimise
from archc.backends.tvm.cpu.loops import TASK

Array = np.ndarray
HOST = tvm.target.Target({"kind": "llvm", "mcpu": tvm_ffi.get_global_func("target.llvm_get_system_cpu")()})


def run(
    network: Callable[..., Any], *arrays: Array, symbolic: tuple[int, ...] = (), target: Any = HOST, threads: int = 1
) -> Callable[..., Any]:
    """Compile `network(emit, *inputs)` for the shapes of `arrays`; every extent in `symbolic` is a named dimension.

    The result is called with arrays and gives one, or a list where the network is a tuple.
    """
    builder = relax.BlockBuilder()
    dims: dict[int, Any] = {}
    inputs = []
    for i, array in enumerate(arrays):
        shape = [dims.setdefault(d, tirx.Var(f"d{d}", "int64")) if d in symbolic else d for d in array.shape]
        inputs.append(relax.Var(f"x{i}", relax.TensorType(shape, str(array.dtype))))
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_output(network(builder.emit, *inputs))
        builder.emit_func_output(result)
    module = optimise(builder.get(), target, threads=threads)
    main = relax.VirtualMachine(tvm.compile(module, target, tir_pipeline=PIPELINE), tvm.cpu())["main"]

    def call(*arrays: Array) -> Any:
        result = main(*(tvm.runtime.tensor(a) for a in arrays))
        return result.numpy() if isinstance(result, tvm.runtime.Tensor) else [r.numpy() for r in result]

    return call


def draw(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype("float32")


def double(array: Array) -> Any:
    return torch.from_numpy(np.asarray(array)).double()


def assert_close(actual: Array, expected: Any, tolerance: float = 3e-6, what: str = "") -> None:
    expected = np.asarray(expected)
    assert actual.shape == expected.shape, what
    if actual.size:
        error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-6)
        assert error < tolerance, f"{what} off by {error:.1e}"


# Convolutions


def check_convolution(rng: np.random.Generator, symbolic: str = "none", **case: Any) -> None:
    """One random convolution (or that of `case`), with bias and ReLU, against torch."""
    ndim = case.get("ndim", int(rng.integers(1, 4)))
    groups = case.get("groups", int(rng.choice([1, 1, 2, 3])))
    each_in, each_out = (case.get(k, int(rng.integers(1, 24))) for k in ("each_in", "each_out"))
    if case.get("depthwise"):
        groups, each_in, each_out = int(rng.integers(2, 40)), 1, 1
    kernel = [int(k) for k in rng.integers(1, 4, ndim)]
    stride = [int(s) for s in rng.integers(1, 3, ndim)]
    dilation = [int(d) for d in rng.integers(1, 3, ndim)]
    before, after = ([int(p) for p in rng.integers(0, 3, ndim)] for _ in range(2))
    size = [int(s) for s in rng.integers(7, 15, ndim)] if ndim < 3 else [int(s) for s in rng.integers(6, 9, ndim)]
    batch = int(rng.integers(1, 4)) + (16 if symbolic != "none" else 0)
    x = draw(rng, batch, groups * each_in, *size)
    weight = draw(rng, groups * each_out, each_in, *kernel)
    bias = draw(rng, groups * each_out, *(1,) * ndim)
    convolve = getattr(op.nn, f"conv{ndim}d")

    def network(emit: Any, x: Any) -> Any:
        y = emit(
            convolve(
                x, relax.const(weight), strides=stride, padding=[*before, *after], dilation=dilation, groups=groups
            )
        )
        return op.nn.relu(emit(op.add(y, relax.const(bias))))

    sizes = {"none": (), "batch": (batch,), "all": (batch, *(s for s in size if s != groups * each_in))}[symbolic]
    if groups * each_in in sizes:
        sizes = ()
    pads = [p for lo, hi in reversed(list(zip(before, after, strict=True))) for p in (lo, hi)]
    reference = getattr(functional, f"conv{ndim}d")
    padded = functional.pad(double(x), pads)
    expected = torch.relu(
        reference(padded, double(weight), stride=stride, dilation=dilation, groups=groups) + double(bias)
    )
    assert_close(run(network, x, symbolic=sizes)(x), expected)


@pytest.mark.parametrize("seed", range(6))
def test_convolutions_of_any_shape(seed: int) -> None:
    check_convolution(np.random.default_rng(seed))


@pytest.mark.parametrize("ndim", [1, 2])
def test_depthwise_convolution(ndim: int) -> None:
    check_convolution(np.random.default_rng(10 + ndim), ndim=ndim, depthwise=True)


def test_pixels_a_page_apart() -> None:
    """1024 channels: the copied rows have a gap between pixels."""
    check_convolution(np.random.default_rng(1), ndim=2, groups=1, each_in=1024, each_out=5)


@pytest.mark.parametrize("symbolic", ["batch", "all"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_convolution_of_symbolic_size(symbolic: str, depthwise: bool) -> None:
    check_convolution(np.random.default_rng(20), symbolic, ndim=2, depthwise=depthwise)


def check_transposed(rng: np.random.Generator, symbolic: str = "none", **case: Any) -> None:
    """One random transposed convolution (or that of `case`), with bias and ReLU, against torch."""
    ndim = case.get("ndim", int(rng.integers(1, 4)))
    groups, each_in, each_out = int(rng.choice([1, 1, 2])), int(rng.integers(1, 20)), int(rng.integers(1, 40))
    kernel = case.get("kernel", [int(k) for k in rng.integers(1, 6, ndim)])
    stride = case.get("stride", [int(s) for s in rng.integers(1, 4, ndim)])
    dilation = case.get("dilation", [1] * ndim)
    padding = [int(rng.integers(0, (k - 1) * d + 1)) for k, d in zip(kernel, dilation, strict=True)]
    extra = [int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True)]
    size = [int(s) for s in rng.integers(5, 12 if ndim < 3 else 8, ndim)]
    batch = 47 if symbolic != "none" else int(rng.integers(1, 4))
    x, weight = draw(rng, batch, groups * each_in, *size), draw(rng, groups * each_in, each_out, *kernel)
    bias = draw(rng, groups * each_out, *(1,) * ndim)
    options = {"padding": padding, "output_padding": extra, "dilation": dilation, "groups": groups}

    def network(emit: Any, x: Any) -> Any:
        transposed = getattr(op.nn, f"conv{ndim}d_transpose")
        y = emit(transposed(x, relax.const(weight), strides=stride, **options))
        return op.nn.relu(emit(op.add(y, relax.const(bias))))

    reference = getattr(functional, f"conv_transpose{ndim}d")
    expected = torch.relu(reference(double(x), double(weight), stride=stride, **options) + double(bias))
    sizes = {"none": (), "batch": (batch,), "all": (batch, *set(size))}[symbolic]
    compiled = run(network, x, symbolic=() if groups * each_in in sizes else sizes)
    assert_close(compiled(x), expected, what=f"{x.shape} by {weight.shape}, {stride=}, {options}")


@pytest.mark.parametrize("seed", range(4))
def test_transposed_convolutions_of_any_shape(seed: int) -> None:
    check_transposed(np.random.default_rng(30 + seed))


@pytest.mark.parametrize(
    ("symbolic", "kernel"), [("none", [4, 4]), ("none", [3, 1]), ("batch", [2, 1]), ("all", [4, 3])]
)
def test_transposed_convolution_that_enlarges(symbolic: str, kernel: list[int]) -> None:
    """Kernels that divide evenly by the stride, that do not, and that leave outputs which no input reaches."""
    check_transposed(np.random.default_rng(40), symbolic, ndim=2, kernel=kernel, stride=[2, 2])


def test_transposed_convolution_with_dilation() -> None:
    check_transposed(np.random.default_rng(41), ndim=2, kernel=[3, 2], stride=[2, 2], dilation=[1, 2])


@pytest.mark.slow
def test_three_hundred_transposed_convolutions() -> None:
    for seed in range(300):
        check_transposed(np.random.default_rng(7000 + seed), ("none", "batch", "all")[seed % 3])


def test_a_residual_block_is_four_kernels() -> None:
    """Bias, residual and ReLU are stored by the convolution itself; only the two ends are transposed."""
    rng = np.random.default_rng(4)
    weight, bias = relax.const(draw(rng, 32, 32, 3, 3)), relax.const(draw(rng, 32, 1, 1))
    x = relax.Var("x", relax.TensorType((1, 32, 8, 8), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(op.nn.conv2d(x, weight, padding=1))
            y = builder.emit(op.nn.relu(builder.emit(op.add(y, bias))))
            y = builder.emit(op.add(builder.emit(op.nn.conv2d(y, weight, padding=1)), bias))
            y = builder.emit_output(op.nn.relu(builder.emit(op.add(y, x))))
        builder.emit_func_output(y)
    module = optimise(builder.get(), HOST, threads=1)
    names = sorted(g.name_hint for g, f in module.functions_items() if isinstance(f, tirx.PrimFunc))
    assert len(names) == 4, names


@pytest.mark.slow
def test_a_thousand_convolutions() -> None:
    for seed in range(1000):
        rng = np.random.default_rng(1000 + seed)
        check_convolution(rng, ("none", "batch", "all")[seed % 3], **({"depthwise": True} if seed % 5 == 0 else {}))


# Matrix products


def check_linear(rng: np.random.Generator, rows: int, *, known: bool) -> None:
    k, n = int(rng.integers(1, 70)), int(rng.integers(1, 90))
    x, weight, bias = draw(rng, rows, k), draw(rng, n, k), draw(rng, n)

    def network(emit: Any, x: Any) -> Any:
        y = emit(op.matmul(x, emit(op.permute_dims(relax.const(weight)))))
        return op.nn.gelu(emit(op.add(y, relax.const(bias))))

    expected = functional.gelu(double(x) @ double(weight).T + double(bias))
    if known or rows in (k, n):
        assert_close(run(network, x)(x), expected)
        return
    compiled = run(network, x, symbolic=(rows,))
    for other in (rows, 1, 0, 2 * rows + 1):
        x = draw(rng, other, k)
        assert_close(compiled(x), functional.gelu(double(x) @ double(weight).T + double(bias)))


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_linear_with_gelu(rows: int) -> None:
    check_linear(np.random.default_rng(rows), rows, known=True)


def test_linear_with_rows_a_page_apart() -> None:
    """Nine rows or more would evict one another; a single row by few columns is split into eight sums."""
    rng = np.random.default_rng(60)
    weight = draw(rng, 1024, 10)
    for rows in (1, 2, 20, 33):
        x = draw(rng, rows, 1024)
        assert_close(run(lambda _, v: op.matmul(v, relax.const(weight)), x)(x), double(x) @ double(weight))


@pytest.mark.parametrize("rows", [91, 100])
def test_linear_of_symbolic_rows_runs_at_any_number_of_them(rows: int) -> None:
    check_linear(np.random.default_rng(rows), rows, known=False)


@pytest.mark.slow
def test_three_hundred_matrix_products() -> None:
    for seed in range(300):
        rng = np.random.default_rng(5000 + seed)
        check_linear(rng, int(rng.integers(1, 60)) + (100 if seed % 2 else 0), known=seed % 2 == 0)


def attention(emit: Any, q: Any, k: Any, v: Any) -> Any:
    """q, k, v [n, t, heads, width]; the permutes are read through, not executed."""
    q, k, v = (emit(op.permute_dims(t, [0, 2, 1, 3])) for t in (q, k, v))
    scores = emit(op.matmul(q, emit(op.permute_dims(k, [0, 1, 3, 2]))))
    scores = emit(op.nn.softmax(emit(op.multiply(scores, relax.const(np.float32(0.3)))), -1))
    return op.permute_dims(emit(op.matmul(scores, v)), [0, 2, 1, 3])


def attention_reference(q: Array, k: Array, v: Array) -> Any:
    q, k, v = (double(t).permute(0, 2, 1, 3) for t in (q, k, v))
    return (torch.softmax(q @ k.transpose(2, 3) * 0.3, -1) @ v).permute(0, 2, 1, 3)


def test_attention_at_any_batch_and_length() -> None:
    rng = np.random.default_rng(5)
    q, k, v = (draw(rng, 2, 19, 3, 8) for _ in range(3))
    compiled = run(attention, q, k, v, symbolic=(2, 19))
    for batch, length in ((2, 19), (1, 1), (3, 64), (0, 5)):
        q, k, v = (draw(rng, batch, length, 3, 8) for _ in range(3))
        assert_close(compiled(q, k, v), attention_reference(q, k, v))


@pytest.mark.parametrize("shapes", [((3, 1, 9), (3, 9, 21)), ((4, 5, 9), (9, 21)), ((2, 1, 5, 9), (1, 3, 9, 21))])
def test_batches_broadcast(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(6)
    a, b = (draw(rng, *s) for s in shapes)
    assert_close(run(lambda _, a, b: op.matmul(a, b), a, b)(a, b), double(a) @ double(b))


# Functions of one value


SPECIAL = np.array(
    [0.0, -0.0, 1e-40, -1e-40, 1.0, -1.0, 0.3, 5.0, -5.0, 20.0, -20.0, 88.0, 89.5, -87.0, -95.0, -104.0, 3e38, -3e38,
     np.inf, -np.inf, np.nan],
    dtype="float32",
)  # fmt: skip
POINTWISE: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "relu": (op.nn.relu, torch.relu),
    "exp": (op.exp, torch.exp),
    "log": (op.log, torch.log),
    "sigmoid": (op.sigmoid, torch.sigmoid),
    "tanh": (op.tanh, torch.tanh),
    "erf": (op.erf, torch.erf),
    "clip": (lambda x: op.clip(x, -1, 1), lambda x: torch.clip(x, -1, 1)),
    "negative": (op.negative, torch.neg),
    "sqrt": (op.sqrt, torch.sqrt),
    "floor": (op.floor, torch.floor),
    "isnan": (op.isnan, torch.isnan),
    "isinf": (op.isinf, torch.isinf),
    "isfinite": (op.isfinite, torch.isfinite),
    "sin": (op.sin, torch.sin),
}


def test_pointwise_at_the_edges() -> None:
    """NaN, infinities, overflow and denormals as torch has them; elsewhere within 4 units in the last place of one."""
    x = np.concatenate([SPECIAL, np.linspace(-90, 90, 4001, dtype="float32"), np.linspace(-2, 2, 999, dtype="float32")])
    x = x[: len(x) // 3 * 3].reshape(3, -1)
    every = run(lambda emit, v: relax.Tuple([emit(ours(v)) for ours, _ in POINTWISE.values()]), x)(x)
    for (name, (_, theirs)), actual in zip(POINTWISE.items(), every, strict=True):
        with np.errstate(over="ignore"):
            expected = theirs(double(x)).numpy().astype(actual.dtype)
        atol = 1e-37 if name == "exp" else 5e-7
        np.testing.assert_allclose(actual, expected, rtol=5e-7, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid", "erf", "log"])
def test_double_precision_is_the_c_librarys(name: str) -> None:
    ours, theirs = POINTWISE[name]
    x = np.linspace(-8, 8, 1001)
    np.testing.assert_allclose(run(lambda _, v: ours(v), x)(x), theirs(torch.from_numpy(x)).numpy(), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "int32", "int64", "float64"])
def test_other_types_take_the_generic_path(dtype: str) -> None:
    x = np.arange(1, 41, dtype=dtype).reshape(4, 10) / (8 if dtype.startswith("float") else 1)
    x = x.astype(dtype)
    network = lambda emit, v: op.sum(emit(op.multiply(v, emit(op.add(v, v)))), -1)
    np.testing.assert_allclose(run(network, x)(x), (2 * x.astype("float64") ** 2).sum(-1), rtol=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
def test_long_axes_are_shared_out(threads: int) -> None:
    """Tasks of many elements, and what is left behind the last whole one; of known and of open length."""
    x = draw(np.random.default_rng(9), 2 * TASK + TASK // 2 + 5)
    for symbolic in ((), x.shape):
        shared = run(lambda _, v: op.multiply(v, v), x, symbolic=symbolic, threads=threads)
        np.testing.assert_array_equal(shared(x), x * x)


def test_extrema_keep_nan() -> None:
    rng = np.random.default_rng(7)
    a, b = draw(rng, 5, 37), draw(rng, 5, 37)
    a[0, 0] = b[1, 1] = a[2, 2] = b[2, 2] = np.nan
    pair = run(lambda _, a, b: op.maximum(a, b), a, b)(a, b)
    np.testing.assert_array_equal(pair, np.maximum(a, b))
    for axis in (0, 1):
        np.testing.assert_array_equal(run(lambda _, a, axis=axis: op.max(a, axis), a)(a), a.max(axis))
        np.testing.assert_array_equal(run(lambda _, a, axis=axis: op.min(a, axis), a)(a), a.min(axis))


def test_softmax_with_masks() -> None:
    """-inf entries weigh nothing; a row of nothing but -inf is NaN, as in torch."""
    x = draw(np.random.default_rng(8), 4, 33)
    x[0, 3:] = -np.inf
    x[1] = -np.inf
    x[2, 5] = np.nan
    x[3, 4] = 1e30
    expected = torch.softmax(double(x), -1).numpy()
    np.testing.assert_allclose(run(lambda _, v: op.nn.softmax(v, -1), x)(x), expected, rtol=2e-6, atol=1e-7)


def test_a_vector_guard_beside_a_shared_value() -> None:
    """A padded value that is used twice: TVM alone would hand the last lane's value to the whole vector."""
    x = draw(np.random.default_rng(9), 1, 6, 5, 3)

    def network(emit: Any, v: Any) -> Any:
        y = emit(op.permute_dims(emit(op.nn.pad(v, [0, 0, 1, 2, 3, 4, 0, 0])), [0, 3, 1, 2]))
        return op.add(y, emit(op.exp(y)))

    padded = np.pad(x, [(0, 0), (1, 2), (3, 4), (0, 0)]).transpose(0, 3, 1, 2).astype("float64")
    assert_close(run(network, x)(x), padded + np.exp(padded))


# Reductions, norms, pools


NORM = np.linspace(-1, 2, 24, dtype="float32")
AFTER_CONVOLUTION: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "max pool": (lambda e, v: op.nn.max_pool2d(v, 3, 2, 1), lambda v: functional.max_pool2d(v, 3, 2, 1)),
    "max pool, ceil": (
        lambda e, v: op.nn.max_pool2d(v, 3, 2, 1, ceil_mode=True),
        lambda v: functional.max_pool2d(v, 3, 2, 1, ceil_mode=True),
    ),
    "average pool": (
        lambda e, v: op.nn.avg_pool2d(v, 3, 2, 1),
        lambda v: functional.avg_pool2d(v, 3, 2, 1, count_include_pad=False),
    ),
    "mean over space": (lambda e, v: op.mean(v, [2, 3]), lambda v: v.mean((2, 3))),
    "sum over channels": (lambda e, v: op.sum(v, [1]), lambda v: v.sum(1)),
    "squeeze and excite": (
        lambda e, v: op.multiply(v, e(op.sigmoid(e(op.mean(v, [2, 3], keepdims=True))))),
        lambda v: v * torch.sigmoid(v.mean((2, 3), keepdim=True)),
    ),
    "group norm": (
        lambda e, v: op.nn.group_norm(v, relax.const(NORM), relax.const(NORM), 6, 1, [2, 3]),
        lambda v: functional.group_norm(v, 6, double(NORM), double(NORM)),
    ),
    "batch norm": (
        lambda e, v: relax.TupleGetItem(
            e(op.nn.batch_norm(v, *[relax.const(NORM + 2)] * 4, axis=1, training=False)), 0
        ),
        lambda v: functional.batch_norm(v, *[double(NORM + 2)] * 4),
    ),
    "layer norm": (
        lambda e, v: op.nn.layer_norm(e(op.permute_dims(v, [0, 2, 3, 1])), relax.const(NORM), relax.const(NORM), [-1]),
        lambda v: functional.layer_norm(v.permute(0, 2, 3, 1), (24,), double(NORM), double(NORM)),
    ),
    "rms norm": (
        lambda e, v: op.nn.rms_norm(e(op.permute_dims(v, [0, 2, 3, 1])), relax.const(NORM), [-1], 1e-5),
        lambda v: functional.rms_norm(v.permute(0, 2, 3, 1), (24,), double(NORM), eps=1e-5),
    ),
    "concat": (lambda e, v: op.concat([v, e(op.nn.relu(v))], 1), lambda v: torch.cat([v, v.relu()], 1)),
    "pad": (lambda e, v: op.nn.pad(v, [0, 0, 0, 0, 1, 2, 3, 4]), lambda v: functional.pad(v, (3, 4, 1, 2))),
    "softmax over channels": (lambda e, v: op.nn.softmax(v, 1), lambda v: v.softmax(1)),
    "log softmax": (lambda e, v: op.nn.log_softmax(v, -1), lambda v: v.log_softmax(-1)),
    "flatten": (lambda e, v: op.reshape(v, (v.ty.shape[0], -1)), lambda v: v.flatten(1)),
    "argmax": (lambda e, v: op.argmax(v, 1), lambda v: v.argmax(1)),
    "cumulative sum": (lambda e, v: op.cumsum(v, 1), lambda v: v.cumsum(1)),
}


@pytest.mark.parametrize("symbolic", [(), (17,)], ids=["static", "symbolic"])
def test_behind_a_convolution(symbolic: tuple[int, ...]) -> None:
    """Each operator on a value that lies in channels-last order."""
    rng = np.random.default_rng(11)
    x, weight = draw(rng, 17, 5, 9, 10), draw(rng, 24, 5, 3, 3)
    filters = relax.const(weight)

    def network(emit: Any, v: Any) -> Any:
        # a convolution for each: one that several operators read is fused with none of them
        return relax.Tuple(
            [emit(ours(emit, emit(op.nn.conv2d(v, filters, padding=1)))) for ours, _ in AFTER_CONVOLUTION.values()]
        )

    convolved = functional.conv2d(double(x), double(weight), padding=1)
    every = run(network, x, symbolic=symbolic)(x)
    for (name, (_, theirs)), actual in zip(AFTER_CONVOLUTION.items(), every, strict=True):
        assert_close(actual, theirs(convolved), 1e-5, name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layer_norm_of_large_numbers(dtype: str) -> None:
    """E[x²] − E[x]² would have no digit left at 1e4 ± 1."""
    x = (1e4 + np.random.default_rng(12).standard_normal((3, 257))).astype(dtype)
    one = relax.const(np.ones(257, dtype), dtype)
    actual = run(lambda _, v: op.nn.layer_norm(v, one, one, [-1]), x)(x)
    expected = functional.layer_norm(torch.from_numpy(x).double(), (257,)) + 1
    np.testing.assert_allclose(actual, expected, atol=1e-3 if dtype == "float32" else 1e-10)


def test_no_images_at_all() -> None:
    rng = np.random.default_rng(13)
    x, weight = draw(rng, 17, 5, 9, 10), draw(rng, 24, 5, 3, 3)
    network = lambda emit, v: op.mean(emit(op.nn.conv2d(v, relax.const(weight), padding=1)), [2, 3])
    assert run(network, x, symbolic=(17,))(x[:0]).shape == (0, 24)


def test_only_what_is_no_equation_is_left_to_tvm() -> None:
    x = relax.Var("x", relax.TensorType((4, 33), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            soft = builder.emit(op.nn.softmax(x, -1))
            y = builder.emit_output(relax.Tuple([op.argmax(soft, 1), op.max(soft, 0)]))
        builder.emit_func_output(y)
    names = generic_kernels(optimise(builder.get(), HOST, threads=1))
    assert names == ["argmax"]


def test_the_comparison_can_fail() -> None:
    """A kernel that drops one tap in a thousand would be caught: the negative control of every test here."""
    with pytest.raises(AssertionError, match="off by"):
        assert_close(np.ones((2, 2), "float32"), np.full((2, 2), 1.0001))


# Other processors and threads


@pytest.mark.parametrize("cpu", ["x86-64", "haswell"])
def test_narrower_instruction_sets(cpu: str) -> None:
    if not str(tvm_ffi.get_global_func("target.llvm_get_system_triple")()).startswith("x86_64"):
        pytest.skip("runs x86 code")
    rng = np.random.default_rng(14)
    x, weight = draw(rng, 2, 5, 9, 10), draw(rng, 24, 5, 3, 3)
    network = lambda emit, v: op.nn.softmax(emit(op.nn.conv2d(v, relax.const(weight), padding=1)), -1)
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
    expected = functional.conv2d(double(x), double(weight), padding=1).softmax(-1)
    assert_close(run(network, x, target=target)(x), expected, 1e-5)


def test_plans_for_several_threads_give_the_same_values() -> None:
    rng = np.random.default_rng(15)
    x, weight = draw(rng, 1, 16, 12, 12), draw(rng, 64, 16, 3, 3)
    network = lambda emit, v: op.nn.conv2d(v, relax.const(weight), padding=1)
    one, eight = run(network, x)(x), run(network, x, threads=8)(x)
    np.testing.assert_array_equal(one, eight)
