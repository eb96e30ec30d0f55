"""The example of every op compiled for CUDA: Relax, TVM's schedules, CUDA C, machine code. No GPU is needed.

Ops go in groups, one module each; what is wrong with a group is looked for op by op.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "reference"))

from cases import Case
from harness import all_cases, build, weights

from archc.backends.tvm.cuda import build_cuda, demand_static
from archc.backends.tvm.targets import parse_target
from archc.ir.diagnostics import CompileError
from archc.ir.op import REGISTRY

EXAMPLES = {c.op: c for c in all_cases() if c.statements[:1] == (f"def example = {REGISTRY[c.op].example}",)}
FEW = ("linear", "conv", "softmax", "max_pool", "top_k", "moe", "cumsum")
GROUP = 16


pytestmark = pytest.mark.usefixtures("cuda_compiler")


def problem(cases: list[Case]) -> str | None:
    """What goes wrong when the cases are compiled as one module."""
    from archc.backends.tvm.compile import prepare
    from archc.backends.tvm.lift import lift_constants
    from archc.backends.tvm.load import tvm
    from archc.backends.tvm.lower import add_function

    builder = tvm.relax.BlockBuilder()
    try:
        for i, case in enumerate(cases):
            graph = build(case)
            demand_static(graph)
            prepared = prepare(graph, {name: w.numpy() for name, w in weights(case, "f32").items()}, passes=())
            add_function(builder, "main" if i == 0 else f"f{i}", prepared.graph, prepared.weights, "cuda")
        module, _ = lift_constants(builder.get())
        build_cuda(module, parse_target("cuda:sm_90"))
    except CompileError as e:
        return f"{e}: {e.diagnostics[0].label}"
    return None


def failing(names: list[str]) -> dict[str, str]:
    found = {}
    for i in range(0, len(names), GROUP):
        group = names[i : i + GROUP]
        if problem([EXAMPLES[name] for name in group]):
            single = {name: problem([EXAMPLES[name]]) for name in group}
            found |= {name: told for name, told in single.items() if told}
            assert any(single.values()), f"together they fail, each alone does not: {group}"
    return found


def test_some_ops_compile_for_cuda() -> None:
    assert not failing([name for name in FEW if name in EXAMPLES])


@pytest.mark.slow
def test_every_op_compiles_for_cuda() -> None:
    # a loop over an axis of open length is refused, with its reason
    found = failing(sorted(EXAMPLES))
    assert all("E0531" in told for told in found.values()), found
    assert set(found) <= {"scan"}
