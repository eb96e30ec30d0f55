"""What a region uses from outside must not be moved to before the number of its rows is known."""

from __future__ import annotations

from pathlib import Path

from archc.backends import runtime
from archc.backends.tvm.compile import compile_graph
from archc.backends.tvm.targets import parse_target
from archc.facade.numerics import verify_run
from archc.facade.weights import resolve
from archc.grammar.load import loads

PROGRAM = """
arch captures
input x: f32[N, 8]
output y: f32[N, 8]
output z: f32[N, 8]
let c = x -> mean(0) -> tanh
def expert = fn(r) { return (r -> linear(8)) * c }
def inner = skip(gate = linear(1) -> sigmoid, body = linear(8), mode = "hard")
y = x -> moe(router = linear(2), experts = copies(2, expert), top_k = 1)
z = x -> skip(gate = linear(1) -> sigmoid, body = fn(r) { return (r -> inner) * c })
"""


def test_regions_use_values_from_outside(tmp_path: Path) -> None:
    graph = loads(PROGRAM)
    weights = resolve(graph, None).arrays
    compile_graph(graph, weights, tmp_path / "a.archc", spec=parse_target("cpu", threads=1))
    with runtime.load(tmp_path / "a.archc") as artifact:
        for seed, batch in ((0, 1), (1, 5)):
            verification = verify_run(graph, weights, artifact.run, seed=seed, sizes={"N": batch})
            assert verification.ok, verification
