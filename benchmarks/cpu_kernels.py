"""Compiled networks against ONNX Runtime and torch on one thread (or more), side by side in one process.

    python benchmarks/cpu_kernels.py                    # the seven networks
    python benchmarks/cpu_kernels.py resnet18 --threads 2
    python benchmarks/cpu_kernels.py --layers           # single layers, with GFLOP/s

Times are medians in milliseconds; the runs of the contestants alternate, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tvm
import tvm_ffi
from torch import nn
from tvm import relax
from tvm.relax import op

from archc.backends.tvm.codegen import PIPELINE
from archc.backends.tvm.cpu import optimise

# Networks: torch modules, and the Relax of the same modules


class Block(nn.Module):
    """ResNet's basic block (or bottleneck, with `squeeze`)."""

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: int | None = None) -> None:
        super().__init__()
        if squeeze is None:
            shapes = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)]
        else:
            shapes = [(inputs, squeeze, 1, 1), (squeeze, squeeze, 3, stride), (squeeze, outputs, 1, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2) for i, o, k, s in shapes)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for conv in self.convs[:-1]:
            y = torch.relu(conv(y))
        return torch.relu(self.convs[-1](y) + (x if self.skip is None else self.skip(x)))

    def relax(self, b: Builder, x: Any) -> Any:
        y = x
        for conv in self.convs[:-1]:
            y = b(op.nn.relu(b.conv(conv, y)))
        return b(op.nn.relu(b(op.add(b.conv(self.convs[-1], y), x if self.skip is None else b.conv(self.skip, x)))))


class ResNet(nn.Module):
    """For 32 x 32 images: a 3 x 3 stem, no max-pool."""

    def __init__(self, counts: list[int], bottleneck: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 1, 1)
        blocks, width = [], 64
        for stage, count in enumerate(counts):
            squeeze = 64 << stage
            outputs = squeeze * 4 if bottleneck else squeeze
            for i in range(count):
                stride = 2 if stage and not i else 1
                blocks.append(Block(width, outputs, stride, squeeze if bottleneck else None))
                width = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))

    def relax(self, b: Builder, x: Any) -> Any:
        x = b(op.nn.relu(b.conv(self.stem, x)))
        for block in self.blocks:
            x = block.relax(b, x)
        return b.linear(self.head, b(op.mean(x, [2, 3])))


class MobileNet(nn.Module):
    """Depthwise separable convolutions for 32 x 32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 1, 1)
        layers: list[nn.Module] = []
        width = 32
        for outputs, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
            layers += [nn.Conv2d(width, width, 3, stride, 1, groups=width), nn.Conv2d(width, outputs, 1)]
            width = outputs
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))

    def relax(self, b: Builder, x: Any) -> Any:
        x = b(op.nn.relu(b.conv(self.stem, x)))
        for layer in self.layers:
            x = b(op.nn.relu(b.conv(layer, x)))
        return b.linear(self.head, b(op.mean(x, [2, 3])))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(784, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 10)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)

    def relax(self, b: Builder, x: Any) -> Any:
        for layer in self.layers[:-1]:
            x = b(op.nn.relu(b.linear(layer, x)))
        return b.linear(self.layers[-1], x)


class Encoder(nn.Module):
    """Two pre-norm transformer layers."""

    def __init__(self, width: int = 256, heads: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.mixes = nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in range(4)) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, width)]) for _ in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, (mix, mlp) in enumerate(zip(self.mixes, self.mlps, strict=True)):
            y = self.norms[2 * i](x)
            n, t, width = y.shape
            q, k, v = (f(y).reshape(n, t, self.heads, width // self.heads).permute(0, 2, 1, 3) for f in mix[:3])
            scores = torch.softmax(q @ k.transpose(2, 3) * (width // self.heads) ** -0.5, -1)
            x = x + mix[3]((scores @ v).permute(0, 2, 1, 3).reshape(n, t, width))
            x = x + mlp[1](torch.nn.functional.gelu(mlp[0](self.norms[2 * i + 1](x))))
        return x

    def relax(self, b: Builder, x: Any) -> Any:
        for i, (mix, mlp) in enumerate(zip(self.mixes, self.mlps, strict=True)):
            y = b.norm(self.norms[2 * i], x)
            n, t, width = x.ty.shape
            each = int(width) // self.heads
            q, k, v = (
                b(op.permute_dims(b(op.reshape(b.linear(f, y), (n, t, self.heads, each))), [0, 2, 1, 3]))
                for f in mix[:3]
            )
            scores = b(op.matmul(q, b(op.permute_dims(k, [0, 1, 3, 2]))))
            scores = b(op.nn.softmax(b(op.multiply(scores, relax.const(np.float32(each**-0.5)))), -1))
            mixed = b(op.reshape(b(op.permute_dims(b(op.matmul(scores, v)), [0, 2, 1, 3])), (n, t, width)))
            x = b(op.add(x, b.linear(mix[3], mixed)))
            hidden = b(op.nn.gelu(b.linear(mlp[0], b.norm(self.norms[2 * i + 1], x))))
            x = b(op.add(x, b.linear(mlp[1], hidden)))
        return x


class Builder:
    """Emits Relax for torch layers, weights as constants."""

    def __init__(self) -> None:
        self.block = relax.BlockBuilder()

    def __call__(self, value: Any) -> Any:
        return self.block.emit(value)

    def conv(self, layer: nn.Conv2d, x: Any) -> Any:
        weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
        y = self(
            op.nn.conv2d(
                x, relax.const(weight), strides=layer.stride, padding=layer.padding, dilation=layer.dilation,
                groups=layer.groups,
            )
        )  # fmt: skip
        return self(op.add(y, relax.const(bias.reshape(1, -1, 1, 1))))

    def linear(self, layer: nn.Linear, x: Any) -> Any:
        weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
        return self(op.add(self(op.matmul(x, self(op.permute_dims(relax.const(weight))))), relax.const(bias)))

    def norm(self, layer: nn.LayerNorm, x: Any) -> Any:
        scale, shift = (relax.const(p.detach().numpy()) for p in (layer.weight, layer.bias))
        return self(op.nn.layer_norm(x, scale, shift, axes=[-1], epsilon=layer.eps))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: ResNet([2, 2, 2, 2], False), (1, 3, 32, 32)),
    "resnet18-b32": (lambda: ResNet([2, 2, 2, 2], False), (32, 3, 32, 32)),
    "mlp": (Mlp, (1, 784)),
    "mlp-b64": (Mlp, (64, 784)),
    "encoder": (Encoder, (1, 128, 256)),
    "mobilenet": (MobileNet, (1, 3, 32, 32)),
    "resnet50": (lambda: ResNet([3, 4, 6, 3], True), (1, 3, 32, 32)),
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv 64-64 3x3 at 32": (lambda: nn.Conv2d(64, 64, 3, 1, 1), (1, 64, 32, 32)),
    "conv 128-128 3x3 at 16": (lambda: nn.Conv2d(128, 128, 3, 1, 1), (1, 128, 16, 16)),
    "conv 256-256 3x3 at 8": (lambda: nn.Conv2d(256, 256, 3, 1, 1), (1, 256, 8, 8)),
    "conv 512-512 3x3 at 4": (lambda: nn.Conv2d(512, 512, 3, 1, 1), (1, 512, 4, 4)),
    "conv 3-64 3x3 at 32": (lambda: nn.Conv2d(3, 64, 3, 1, 1), (1, 3, 32, 32)),
    "conv 64-128 3x3/2 at 32": (lambda: nn.Conv2d(64, 128, 3, 2, 1), (1, 64, 32, 32)),
    "conv 64-64 3x3 at 56": (lambda: nn.Conv2d(64, 64, 3, 1, 1), (1, 64, 56, 56)),
    "conv 512-512 3x3 at 7": (lambda: nn.Conv2d(512, 512, 3, 1, 1), (1, 512, 7, 7)),
    "conv 256-64 1x1 at 32": (lambda: nn.Conv2d(256, 64, 1), (1, 256, 32, 32)),
    "depthwise 64 3x3 at 32": (lambda: nn.Conv2d(64, 64, 3, 1, 1, groups=64), (1, 64, 32, 32)),
    "depthwise 256 3x3 at 8": (lambda: nn.Conv2d(256, 256, 3, 1, 1, groups=256), (1, 256, 8, 8)),
    "linear 512-512 of 512": (lambda: nn.Linear(512, 512), (512, 512)),
    "linear 1024-1024 of 64": (lambda: nn.Linear(1024, 1024), (64, 1024)),
}


def compiled(model: Any, shape: tuple[int, ...], threads: int) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """A function of arrays, and the seconds it took to compile."""
    builder = Builder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.block.function("main", [x]):
        with builder.block.dataflow():
            if isinstance(model, nn.Conv2d):
                y = builder.conv(model, x)
            else:
                y = builder.linear(model, x) if isinstance(model, nn.Linear) else model.relax(builder, x)
            y = builder.block.emit_output(y)
        builder.block.emit_func_output(y)
    target = tvm.target.Target({"kind": "llvm", "mcpu": tvm_ffi.get_global_func("target.llvm_get_system_cpu")()})
    start = time.perf_counter()
    executable = tvm.compile(optimise(builder.block.get(), target, threads=threads), target, tir_pipeline=PIPELINE)
    seconds = time.perf_counter() - start
    main = relax.VirtualMachine(executable, tvm.cpu())["main"]
    return lambda array: main(array), seconds


def onnx_session(model: nn.Module, example: torch.Tensor, threads: int) -> Callable[[], Any] | None:
    """ONNX Runtime on the same weights; None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    file = io.BytesIO()
    torch.onnx.export(model, (example,), file, dynamo=False, input_names=["x"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    array = example.numpy()
    return lambda: session.run(None, {"x": array})


def milliseconds(contestants: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Medians of alternating runs."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(len(t) for t in times.values()) < 5:
        for name, run in contestants.items():
            run()  # brings this contestant's weights back into the cache
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def compare(name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model, example = make().eval(), torch.randn(shape)
    ours, compile_seconds = compiled(model, shape, arguments.threads)
    array = tvm.runtime.tensor(example.numpy())
    with torch.no_grad():
        reference = model.double()(example.double()).numpy()
        model.float()
    result = ours(array).numpy()
    error = np.abs(result - reference).max() / np.abs(reference).max()
    assert error < 1e-5, f"{name}: wrong by {error:.1e}"
    contestants: dict[str, Callable[[], Any]] = {"archc": lambda: ours(array)}
    session = onnx_session(model, example, arguments.threads)
    if session is not None:
        contestants["onnxruntime"] = session
    if arguments.torch:

        def eager() -> None:
            with torch.no_grad():
                model(example)

        contestants["torch"] = eager
    times = milliseconds(contestants, arguments.seconds)
    ratio = times["archc"] / times.get("onnxruntime", float("nan"))
    columns = "  ".join(f"{who} {ms:9.3f}" for who, ms in times.items())
    print(f"{name:24} {columns}  ratio {ratio:5.2f}  error {error:.0e}  compile {compile_seconds:4.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks or layers (default: all networks)")
    parser.add_argument("--layers", action="store_true", help="single layers instead of networks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time for each")
    parser.add_argument("--torch", action="store_true", help="time eager torch too")
    arguments = parser.parse_args()
    # read when the first parallel loop starts the thread pool
    os.environ.update(TVM_NUM_THREADS=str(arguments.threads), TVM_BIND_THREADS="0")
    torch.set_num_threads(arguments.threads)
    table = LAYERS if arguments.layers else NETWORKS
    for name, (make, shape) in table.items():
        if not arguments.names or any(name.startswith(n) for n in arguments.names):
            compare(name, make, shape, arguments)


if __name__ == "__main__":
    main()
