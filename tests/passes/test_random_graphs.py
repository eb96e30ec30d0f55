"""Every pass on random networks over the whole registry: well formed, said truly, settled, and the same function.

The manager verifies what a pass leaves and that it says truly whether it changed anything; here the function is
compared, by torch with random weights and inputs, against what the network computes in float64 (with the error that
its own number format brings), and for passes that do no arithmetic in float64 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from margins import close_call
from oracles import Trial, against_judge, in_torch, trial
from random_nets import random_net

from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.canonical import canonical
from archc.ir.clone import clone
from archc.ir.decompose import decompose
from archc.ir.equal import structurally_equal
from archc.ir.graph import Graph
from archc.ir.op import REGISTRY
from archc.ir.ops.convolution import CONV, CONV_TRANSPOSE
from archc.ir.ops.elementwise import ADD, SUB
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.norm import BATCH_NORM
from archc.ir.verify import verify
from archc.passes.canonicalise import CANONICALISE
from archc.passes.cse import CSE
from archc.passes.dce import DCE
from archc.passes.fold_batch_norm import FOLD_BATCH_NORM
from archc.passes.fold_constants import FOLD_CONSTANTS
from archc.passes.manager import Context, Pass, run_passes
from archc.passes.pipeline import CLEANUP, INFERENCE

SEED, COUNT = 2, 32
PASSES: dict[str, Sequence[Pass]] = {
    "cse": [CSE],
    "dce": [DCE],
    "canonicalise": [CANONICALISE],
    "fold constants": [FOLD_CONSTANTS],
    "fold batch norm": [FOLD_BATCH_NORM],
    "cleanup": CLEANUP,
    "inference": INFERENCE,
}
SETTLED = ("cse", "dce", "cleanup", "inference")
"""Those after which there is nothing left for them to do."""
EXACT = ("cse", "dce", "canonicalise")
"""Those that do no arithmetic: the function stays in float64, too."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def after(t: Trial, passes: Sequence[Pass]) -> tuple[Graph, Context]:
    """What passes make of a copy of the network, and of its weights."""
    graph, context = clone(t.graph), Context(dict(t.weights))
    run_passes(graph, passes, context)
    verify(graph)
    return graph, context


def moved(t: Trial, graph: Graph, context: Context) -> str:
    """How the function differs from the network's; a decision on too close a margin excuses it."""
    changed = replace(t, weights=context.weights or {})
    reason = against_judge(t, in_torch(graph, changed))
    if reason and "shape" not in reason and "dtype" not in reason and close_call(t.graph, t.weights, t.inputs):
        return ""
    return reason


@pytest.mark.parametrize("index", range(COUNT))
def test_passes_keep_the_function(index: int) -> None:
    t = trial(random_net(SEED, index))
    before = print_graph(t.graph)
    for name, passes in PASSES.items():
        graph, context = after(t, passes)
        assert moved(t, graph, context) == "", name
        assert context.weights is not None
        assert context.weights.keys() >= graph.parameters().keys(), name
        assert all(context.weights[n].shape == p.shape for n, p in graph.parameters().items()), name
        assert structurally_equal(graph, loads(print_graph(graph))) is None, name
        if name in SETTLED:
            assert not any(ran.changed for ran in run_passes(graph, passes, context)), name
    assert print_graph(t.graph) == before, "passes ran on copies"


def with_norms(graph: Graph) -> Graph:
    """The network with a batch norm behind every layer that has channels on axis 1."""
    copy = clone(graph)
    for region in list(copy.graphs()):
        for node in list(region.nodes):
            if node.op not in (CONV, CONV_TRANSPOSE) and not (node.op is LINEAR and node.output.type.rank == 2):
                continue
            norm = region.add(BATCH_NORM, [node.output], BATCH_NORM.params(), name=f"{node.name}.norm")
            node.output.replace_all_uses(norm.output, region)
            norm.set_inputs((node.output,))
        region.sort()
    return copy


@pytest.mark.parametrize("start", range(0, 3 * len(REGISTRY), len(REGISTRY)))
def test_batch_norms_behind_layers_fold(start: int) -> None:
    names = [list(REGISTRY).index(op.name) for op in (CONV, CONV_TRANSPOSE, LINEAR)]
    folded = 0
    for index in names:
        net = random_net(SEED, start + index)
        t = trial(replace(net, graph=with_norms(net.graph)))
        graph, context = after(t, [FOLD_BATCH_NORM])
        folded += len(list(t.graph.walk())) - len(list(graph.walk()))
        assert moved(t, graph, context) == ""
        assert not run_passes(graph, [FOLD_BATCH_NORM], context)[0].changed
    assert folded


# -- controls: every comparison above can fail


PROGRAM = """arch a
input x: f32[N, 4]
output y: f32[N, 4]
let a = x -> linear(4) -> tanh
y = a - (x -> linear(4) -> batch_norm)
"""


def spoilt(change: Callable[[Graph, Context], None]) -> Pass:
    def run(graph: Graph, context: Context) -> bool:
        change(graph, context)
        return True

    return Pass("spoil", run)


def swap_operands(graph: Graph, context: Context) -> None:
    (node,) = (n for n in graph.nodes if n.op is SUB)
    node.set_inputs(node.inputs[::-1])


def add_for_sub(graph: Graph, context: Context) -> None:
    (node,) = (n for n in graph.nodes if n.op is SUB)
    node.op, node.params = ADD, ADD.params()
    node.bound = graph.add(ADD, node.inputs).bound
    graph.erase(graph.nodes[-1])


def nudge_a_weight(graph: Graph, context: Context) -> None:
    assert context.weights is not None
    name = next(iter(graph.parameters()))
    context.weights[name] = context.weights[name] * 1.001


@pytest.mark.parametrize("change", [swap_operands, add_for_sub, nudge_a_weight], ids=lambda f: f.__name__)
def test_a_pass_that_changes_the_function_is_caught(change: Callable[[Graph, Context], None]) -> None:
    net = replace(random_net(SEED, 0), graph=loads(PROGRAM), text=PROGRAM, sizes={"N": 3})
    t = trial(net)
    assert moved(t, *after(t, INFERENCE)) == ""
    assert "off by" in moved(t, *after(t, [spoilt(change)]))


def test_a_pass_that_never_settles_is_caught() -> None:
    def grow(graph: Graph, context: Context) -> None:
        graph.add(ADD, [graph.inputs[0]] * 2, name=f"more{len(graph.nodes)}")

    graph = loads(PROGRAM)
    assert [run_passes(graph, [spoilt(grow)])[0].changed for _ in range(2)] == [True, True]


def test_random_networks_give_every_pass_something_to_do() -> None:
    busy: dict[str, int] = dict.fromkeys(PASSES, 0)
    hashes: dict[str, int] = {"same": 0, "other": 0}
    for index in range(COUNT):
        net = random_net(SEED, index)
        weights: Any = {name: p.init.sample(p.shape, 0, name) for name, p in net.graph.parameters().items()}
        for name, passes in PASSES.items():
            graph = clone(net.graph)
            busy[name] += any(ran.changed for ran in run_passes(graph, passes, Context(dict(weights))))
            if name == "dce":  # what no output needs is no part of the identity
                hashes["same" if canonical(graph).hash == canonical(net.graph).hash else "other"] += 1
        decompose(clone(net.graph), lambda op: op.decompose is None)
    assert hashes == {"same": COUNT, "other": 0}
    assert all(count for name, count in busy.items() if name != "fold batch norm"), busy
