"""Every operator through the TVM backend against its hand-written reference.

A case is lowered, scheduled and compiled at the dtypes of the table, once, and run at each of its sizes. All cases of
an op are one module. The examples of all ops run by default; the whole table is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case
from harness import all_cases, build, difference, inputs, run_reference, weights

from archc.backends.tvm.compile import prepare
from archc.backends.tvm.targets import parse_target
from archc.ir.op import REGISTRY

TRIED = [case for case in all_cases() if case.op in REGISTRY]
EXAMPLES = [case for case in TRIED if case.statements[:1] == (f"def example = {REGISTRY[case.op].example}",)]
BATCH = 12


def batches(cases: Sequence[Case]) -> list[list[Case]]:
    return [list(cases[i : i + BATCH]) for i in range(0, len(cases), BATCH)]


def compiled(cases: Sequence[Case]) -> Any:
    """A virtual machine with a function `f0`, `f1`, … for each case."""
    from archc.backends.tvm.cpu import optimise
    from archc.backends.tvm.load import tvm
    from archc.backends.tvm.lower import add_function

    target = parse_target("cpu", threads=1).to_tvm()
    builder = tvm.relax.BlockBuilder()
    for i, case in enumerate(cases):
        arrays = {name: w.numpy() for name, w in weights(case, "f32").items()}
        prepared = prepare(build(case), arrays, passes=())
        add_function(builder, f"f{i}", prepared.graph, prepared.weights)
    return tvm.relax.VirtualMachine(
        tvm.compile(optimise(builder.get(), target, threads=1), target), tvm.runtime.device("cpu")
    )


def disagreements(cases: Sequence[Case]) -> list[str]:
    from archc.backends.tvm.load import tvm

    machine, found = compiled(cases), []
    for i, case in enumerate(cases):
        for sizes in case.sizes:
            values = inputs(case, sizes, "f32")
            needed = run_reference(build(case), values, weights(case, "f32"), "f32")
            arguments = [tvm.runtime.tensor(np.ascontiguousarray(v.numpy())) for v in values]
            results = machine[f"f{i}"](*arguments)
            results = [results] if hasattr(results, "numpy") else list(results)
            for a, b in zip(results, needed, strict=True):
                wrong = difference(torch.from_numpy(a.numpy()), b, "f32")
                found += [f"{case} at {dict(sizes)}: {wrong}"] if wrong else []
    return found


def test_every_op_can_be_lowered() -> None:
    from archc.backends.tvm.lower import can_lower

    assert not [op.name for op in REGISTRY.values() if not can_lower(op) and op.decompose is None]


@pytest.mark.parametrize("cases", batches(EXAMPLES), ids=lambda cases: f"{cases[0].op}-{cases[-1].op}")
def test_examples_agree(cases: list[Case]) -> None:
    assert not disagreements(cases)


@pytest.mark.slow
@pytest.mark.parametrize("cases", batches(TRIED), ids=lambda cases: f"{cases[0].op}-{cases[-1].op}")
def test_the_whole_table_agrees(cases: list[Case]) -> None:
    assert not disagreements(cases)
