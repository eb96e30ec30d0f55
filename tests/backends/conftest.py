"""Small Relax modules, compiled once per session into a cache of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests never touch the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    folder.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHC_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def cuda_compiler() -> None:
    """Skips a test where neither nvcc nor nvrtc is."""
    from archc.backends.tvm.cuda import find_cuda_compiler
    from archc.ir.diagnostics import CompileError

    try:
        find_cuda_compiler()
    except CompileError:
        pytest.skip("neither nvcc nor nvrtc is here")


def mlp_weights(sizes: tuple[int, ...] = (64, 128, 10), seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((i, o), dtype=np.float32) / np.float32(i**0.5), rng.standard_normal(o, dtype=np.float32))
        for i, o in pairwise(sizes)
    ]


def mlp_reference(x: np.ndarray) -> np.ndarray:
    h = x.astype(np.float64)
    for weight, bias in mlp_weights():
        h = np.maximum(h @ weight + bias, 0)
    return h


def mlp_module() -> Any:
    """`relu(relu(x W1 + b1) W2 + b2)`, x f32[N, 64]."""
    from archc.backends.tvm.load import tvm

    relax = tvm.relax
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((tvm.tirx.Var("N", "int64"), 64), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            h = x
            for weight, bias in mlp_weights():
                product = builder.emit(relax.op.matmul(h, relax.const(weight)))
                h = builder.emit(relax.op.nn.relu(relax.op.add(product, relax.const(bias))))
            h = builder.emit_output(h)
        builder.emit_func_output(h)
    return builder.get()


def mlp_facts(**changes: Any) -> Any:
    from archc.backends.artifact import Facts, Port

    facts: dict[str, Any] = {
        "name": "mlp",
        "inputs": (Port(name="x", dtype="f32", dims=("N", 64)),),
        "outputs": (Port(name="y", dtype="f32", dims=("N", 10)),),
        "ir_hash": "0" * 64,
        "weights_hash": "1" * 64,
        "weights_origin": "seed:0",
        "passes": ("fold_bn",),
    }
    return Facts(**facts | changes)


def fuse(module: Any, target: Any, *, threads: int) -> Any:
    """TVM's own fusion: these tests are not about kernels."""
    from archc.backends.tvm.load import tvm

    with target:
        return tvm.relax.get_pipeline("zero")(module)


@pytest.fixture(scope="session")
def compile_relax(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile a Relax module for this CPU; the artifact's path."""

    def compile_it(module: Any, facts: Any, **options: Any) -> Path:
        from archc.backends.tvm.build import compile_module
        from archc.backends.tvm.targets import parse_target

        path = tmp_path_factory.mktemp("artifact") / f"{facts.name}.archc"
        options = {"spec": parse_target("cpu"), "optimise": fuse} | options
        compile_module(module, path, facts=facts, **options)
        return path

    return compile_it


@pytest.fixture(scope="session")
def mlp_path(compile_relax: Callable[..., Path]) -> Path:
    """The MLP's artifact."""
    return compile_relax(mlp_module(), mlp_facts(), source="arch mlp")


@pytest.fixture(scope="session")
def mlp() -> Any:
    """The MLP: its module, its facts, its reference, and TVM's fusion as schedule."""
    from types import SimpleNamespace

    return SimpleNamespace(module=mlp_module, facts=mlp_facts, reference=mlp_reference, fuse=fuse)
