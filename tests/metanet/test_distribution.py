"""The networks that metanetworks are trained and judged on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from archc.backends.torch.module import to_torch
from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.canonical import canonical
from archc.ir.cost import cost
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph
from archc.metanet.distribution import SPLITS, TASKS, belongs, nets, twin_pairs

COUNT = 8


def hashes(split: str, count: int = COUNT) -> list[str]:
    return [canonical(graph).hash for _, graph in nets(split, count)]


def ops(graph: Graph) -> Counter[str]:
    return Counter(node.op.name for node in graph.walk())


def test_splits_have_no_network_in_common():
    found = {split: hashes(split) for split in ("train", "val", "test")}
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 3 * COUNT
    for split, identities in found.items():
        others = {s: sum(belongs(s, i) for i in identities) for s in found}
        assert others == {s: COUNT * (s == split) for s in found}


def test_the_same_networks_come_again_and_first():
    names = [name for name, _ in nets("train", COUNT)]
    assert names == [f"train-0-{i}" for i in range(COUNT)]
    assert hashes("train", COUNT) == hashes("train", 2 * COUNT)[:COUNT]
    assert hashes("train") != [canonical(g).hash for _, g in nets("train", COUNT, seed=1)]


@pytest.mark.parametrize("split", SPLITS)
def test_networks_are_small_and_run(split):
    for name, graph in nets(split, 3):
        assert name.startswith(split)
        assert 1000 < cost(graph).params < (24_000 if split in ("train", "val", "test") else 60_000)
        again = loads(print_graph(graph))
        assert canonical(again).hash == canonical(graph).hash
        logits = to_torch(graph)(torch.randn(4, 1, 12, 12))
        assert logits.shape == (4, 10)
        assert float(logits.detach().std(0).max()) > 1e-3  # the input is looked at


@pytest.mark.parametrize("task", TASKS)
def test_a_space_fits_every_task(task):
    for _, graph in nets("train", 3, task=task):
        sizes = TASKS[task]
        x = torch.randn(2, sizes["channels"], sizes["side"], sizes["side"])
        assert to_torch(graph)(x).shape == (2, sizes["classes"])


def test_splits_are_what_they_are_called():
    norms = {"batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm"}

    def mean(split: str, measure) -> float:
        return float(np.mean([measure(graph) for _, graph in nets(split, 12)]))

    normal = {s: mean(s, lambda g: sum(n for op, n in ops(g).items() if op in norms)) for s in ("train", "norm_free")}
    assert normal["norm_free"] == 0
    assert normal["train"] > 1
    size = {s: mean(s, lambda g: cost(g).params) for s in ("train", "wide")}
    assert size["wide"] > 1.5 * size["train"]
    nodes = {s: mean(s, lambda g: sum(ops(g).values())) for s in ("train", "deep")}
    assert nodes["deep"] > 1.2 * nodes["train"]
    joins = {s: mean(s, lambda g: ops(g)["concat"]) for s in ("train", "dense")}
    assert joins["dense"] >= 3 > joins["train"]


def test_train_has_none_of_the_unseen_compositions():
    """Attention behind an RMS norm, gates in a mixer or in experts, a cell without tanh: all ops of them are known."""

    def held_out(graph: Graph) -> set[str]:
        found = set()
        for node in graph.walk():
            inner = [n.op.name for region in node.regions for n in region.walk()]
            if node.op.name == "moe" and "mul" in inner:
                found.add("gated expert")
            if node.op.name == "scan" and "tanh" not in inner:
                found.add("cell without tanh")
            if node.op.name == "attention" and node.inputs[0].producer is not None:
                before = node.inputs[0].producer.op.name
                found |= {"attention behind rms_norm"} if before == "rms_norm" else set()
        return found

    assert set().union(*(held_out(graph) for _, graph in nets("train", 40))) == set()
    seen = set().union(*(held_out(graph) for _, graph in nets("unseen", 40)))
    assert seen == {"gated expert", "cell without tanh", "attention behind rms_norm"}
    known = set().union(*(ops(graph) for _, graph in nets("train", 40)))
    assert set().union(*(ops(graph) for _, graph in nets("unseen", 20))) <= known


def test_wiring_twins_take_each_others_weights_and_are_other_functions():
    x = torch.randn(8, 1, 12, 12)
    for graph, twin in twin_pairs(4):
        assert ops(graph) == ops(twin)
        assert {n: p.type for n, p in graph.parameters().items()} == {n: p.type for n, p in twin.parameters().items()}
        assert canonical(graph).hash != canonical(twin).hash
        assert not belongs("train", canonical(twin).hash)
        module = to_torch(graph, seed=1).eval()
        weights = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        other = to_torch(twin, weights).eval()
        same = to_torch(graph, weights).eval()
        with torch.no_grad():
            assert torch.equal(module(x), same(x))  # the control: put back where they come from
            assert float((module(x) - other(x)).abs().max()) > 1e-3


def test_an_unknown_split_is_told():
    for arguments in (("valid", 1), ("val", 1, 0, "letters")):
        with pytest.raises(CompileError, match="E0709"):
            nets(*arguments)
