"""How long it takes to predict the weights of a net: reading its graph, the hypernetwork, one after the other.

    python benchmarks/predict_time.py [--model ghn-small]

Times are the least of `--repeat` runs in one process on one thread, after a first one: wall time, and CPU time, which
is what counts on a machine that others use as well. Imports and reading the model are told apart. The net of 50
convolutions is residual, 32 channels wide; ResNet-50 has 25.6 million weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"


def layers(count: int, width: int = 32) -> str:
    """A residual net of `count` convolutions."""
    return (
        f"arch deep{count}\ninput x: f32[N, 1, 12, 12]\noutput y: f32[N, 10]\n"
        f"y = x -> conv({width}, kernel = 3) -> repeat({(count - 2) // 2}) as i {{\n"
        f"    residual(conv({width}, kernel = 3) -> batch_norm -> relu -> conv({width}, kernel = 3) -> batch_norm)\n"
        "    -> relu\n"
        "} -> global_avg_pool -> linear(10)"
    )


def clock(action: Any, repeat: int) -> tuple[float, float]:
    """Wall and CPU milliseconds of the fastest of `repeat` calls."""
    wall, cpu = [], []
    for _ in range(repeat):
        begun = time.perf_counter(), time.process_time()
        action()
        wall.append(time.perf_counter() - begun[0])
        cpu.append(time.process_time() - begun[1])
    return 1000 * min(wall), 1000 * min(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ghn-small")
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    begun = time.perf_counter()
    import torch

    from archc.grammar.load import load, loads
    from archc.metanet.ghn.kind import restore
    from archc.metanet.ghn.model import Ghn, GhnConfig
    from archc.metanet.ghn.subject import subject
    from archc.metanet.store import load as load_model
    from archc.metanet.store import shipped

    torch.set_num_threads(1)
    print(f"imports: {time.perf_counter() - begun:.2f} s")
    begun = time.perf_counter()
    known = arguments.model in shipped() or Path(arguments.model).exists()
    model = restore(load_model(arguments.model, "ghn")) if known else Ghn(GhnConfig(), ["hard_digits"])
    print(f"model {arguments.model if known else '(untrained)'}: {1000 * (time.perf_counter() - begun):.0f} ms")
    nets = {
        "50 convolutions": loads(layers(50)),
        "100 convolutions": loads(layers(100)),
        "resnet50": load(EXAMPLES / "resnet50.arch"),
        "vit_s16": load(EXAMPLES / "vit_s16.arch"),
    }
    print(f"{'net':17}{'ops':>5}{'parameters':>12}{'wall: graph + predict ms':>27}{'CPU: graph + predict ms':>26}")
    for name, graph in nets.items():
        read = subject(graph, model.words)
        with torch.no_grad():
            model([read], [0])
            graph_ms = clock(lambda graph=graph: subject(graph, model.words), arguments.repeat)
            predict_ms = clock(lambda read=read: model([read], [0]), arguments.repeat)
        size = sum(p.size for p in graph.parameters().values())
        wall, cpu = (f"{g:.0f} + {p:.0f} = {g + p:.0f}" for g, p in zip(graph_ms, predict_ms, strict=True))
        print(f"{name:17}{sum(1 for _ in graph.walk()):5}{size:12,}{wall:>27}{cpu:>26}")


if __name__ == "__main__":
    main()
