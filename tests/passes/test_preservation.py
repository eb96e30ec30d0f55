"""Cleanups on random networks, with detours to find and without: a small `benchmarks/transforms.py --cleanups`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from preservation import PASSES, check_cleanups
from provocations import provoked, widened
from random_nets import random_net

from archc.grammar.load import loads
from archc.ir.clone import clone
from archc.ir.graph import Graph
from archc.ir.types import FLOATS
from archc.ir.verify import verify
from archc.passes.dce import DCE
from archc.passes.manager import Context, Pass, run_passes
from archc.passes.pipeline import CLEANUP, INFERENCE

SEED, COUNT = 23, 18


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_cleanups_keep_random_networks_and_each_finds_something() -> None:
    changed: Counter[str] = Counter()
    for index in range(COUNT):
        net = random_net(SEED, index)
        graph = provoked(net.graph, index) if index % 3 else net.graph
        verify(graph)
        kept = check_cleanups(graph, index, net.sizes)
        assert not kept.wrong, (index, kept.wrong)
        changed.update(kept.changed)
    assert changed.keys() == PASSES.keys()


def test_widened_networks_have_float64_alone() -> None:
    for index in range(COUNT):
        graph = widened(random_net(SEED, index).graph)
        verify(graph)
        values = [v for g in graph.graphs() for v in (*g.inputs, *(o for n in g.nodes for o in n.outputs))]
        assert {v.type.dtype for v in values} & FLOATS <= {"f64"}


# -- controls: every check can fail

PROGRAM = """arch a
input x: f32[N, 4]
output y: f32[N, 4]
let a = x -> linear(4) -> tanh
y = a - (x -> linear(4) -> relu)
"""


def _swap(graph: Graph, context: Context) -> bool:
    node = graph.nodes[-1]
    node.set_inputs(node.inputs[::-1])
    return True


def _nudge(graph: Graph, context: Context) -> bool:
    assert context.weights is not None
    name = next(iter(graph.parameters()))
    context.weights[name] = context.weights[name] * (1 + 1e-6)
    return True


@pytest.mark.parametrize("run", [_swap, _nudge])
def test_what_a_pass_breaks_is_caught(run: Callable[[Graph, Context], bool]) -> None:
    """Under the name of one that keeps every bit, in training too, and of one that keeps the function."""
    spoilt = {name: [Pass(name, run)] for name in ("cse", "merge_layers")}
    kept = check_cleanups(loads(PROGRAM), 0, {"N": 3}, spoilt)
    checks = {"cse/bits", "cse/train", "cse/idempotent", "merge_layers/eval", "merge_layers/idempotent"}
    assert kept.wrong.keys() == checks
    assert check_cleanups(loads(PROGRAM), 0, {"N": 3}, {"dce": [DCE]}).wrong == {}


def test_time_grows_with_the_network_and_not_faster() -> None:
    """The processor time of the longest pipeline, on 12 and on 48 layers; see `benchmarks/pass_time.py`."""
    program = """arch net(depth: int = 12)
input x: f32[N, 8]
output y: f32[N, 8]
y = x -> repeat(depth) { residual(batch_norm -> linear(16) -> relu -> relu -> linear(8) -> linear(8) -> dropout) }
"""
    times = []
    for depth in (12, 48):
        graph, best = loads(program, values={"depth": depth}), float("inf")
        weights = {n: p.init.sample(p.shape, 0, n) for n, p in graph.parameters().items()}
        for _ in range(3):
            copy = clone(graph)
            start = time.process_time()
            run_passes(copy, INFERENCE, Context(dict(weights)))
            best = min(best, time.process_time() - start)
        times.append(best)
        assert {n.op.name for n in copy.nodes} == {"linear", "relu", "add"}
        assert not run_passes(copy, CLEANUP)[0].changed
    assert times[1] < 4 * 2.5 * times[0]
