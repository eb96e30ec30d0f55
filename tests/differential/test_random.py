"""Sixty random networks against every oracle: text, hash, inferred types, torch, TVM, decompositions, symmetry.

The same oracles run on thousands in `benchmarks/differential.py`. Each has a control here: a mistake that it must
catch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from margins import close_call
from oracles import (
    Findings,
    against_judge,
    check,
    compile_and_run,
    decompositions,
    hashing,
    judge_compiled,
    round_trip,
    symmetry,
    torch_itself,
    trial,
    types,
)
from random_nets import RandomNet, random_net
from recipes import RECIPES

from archc.grammar.load import loads
from archc.ir.graph import Graph
from archc.ir.op import REGISTRY

SEED, COUNT, BATCH = 0, 60, 5
TOO_MANY_EXCUSED = 2


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("start", range(0, COUNT, BATCH))
def test_random_networks(start: int, tmp_path: Path) -> None:
    nets = [random_net(SEED, i) for i in range(start, start + BATCH)]
    found = [check(net) for net in nets]
    trials = [trial(net) for net in nets]
    for t, findings, made in zip(trials, found, compile_and_run(trials, tmp_path), strict=True):
        judge_compiled(findings, t, lambda t, made=made: against_judge(t, made))  # type: ignore[misc]
    wrong = {f"{n.index} ({n.focus})": f.wrong for n, f in zip(nets, found, strict=True) if f.wrong}
    assert not wrong, "\n".join([f"{k}: {v}" for k, v in wrong.items()])
    assert sum(bool(f.excused) for f in found) <= TOO_MANY_EXCUSED


def test_every_op_has_a_recipe_and_is_met() -> None:
    assert RECIPES.keys() == REGISTRY.keys()
    for index in range(len(REGISTRY)):
        net = random_net(1, index)
        assert net.focus in net.ops


def test_networks_are_the_same_every_time() -> None:
    assert [random_net(3, i).text for i in range(20)] == [random_net(3, i).text for i in range(20)]
    assert random_net(3, 0).text != random_net(4, 0).text


# -- controls: every oracle can fail


def net_of(program: str, **sizes: int) -> RandomNet:
    return RandomNet(0, 0, "", loads(program), program, sizes)


TANH = "arch a\ninput x: f32[N, 4]\noutput y: f32[N, 3]\ny = x -> linear(5) -> tanh -> linear(3)\n"


def test_a_broken_tvm_lowering_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm import relax

    from archc.backends.tvm.lower import LOWERINGS, can_lower
    from archc.ir.ops.activations import TANH as TANH_OP

    t = trial(net_of(TANH, N=3))
    assert against_judge(t, compile_and_run([t], tmp_path)[0]) == ""
    assert can_lower(TANH_OP)
    monkeypatch.setitem(LOWERINGS, "tanh", lambda n: relax.op.multiply(relax.op.tanh(n.x), n.const(1.0001)))
    assert "off by" in against_judge(t, compile_and_run([t], tmp_path)[0])


def test_a_broken_torch_lowering_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from archc.backends.torch.codegen import lowering

    t = trial(net_of(TANH, N=3))
    assert torch_itself(t) == types(t) == ""
    monkeypatch.setitem(lowering._functions, "tanh", lambda n: f"torch.tanh({n.x}) * 1.0001")
    assert "off by" in torch_itself(t)
    monkeypatch.setitem(lowering._functions, "tanh", lambda n: f"torch.tanh({n.x}).double()")
    last = trial(net_of("arch a\ninput x: f32[N, 4]\noutput y: f32[N, 4]\ny = x -> tanh\n", N=3))
    assert "torch made torch.float64" in types(last)
    assert "dtype" in torch_itself(last)


def test_a_broken_decomposition_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    t = trial(net_of("arch a\ninput x: f32[N, 4]\noutput y: f32[N, 4]\ny = x -> silu\n", N=3))
    assert decompositions(t) == ""
    other = REGISTRY["hardswish"].decompose
    object.__setattr__(REGISTRY["silu"], "decompose", (before := REGISTRY["silu"].decompose) and other)
    try:
        assert "off by" in decompositions(t)
    finally:
        object.__setattr__(REGISTRY["silu"], "decompose", before)


def test_a_wrong_axis_class_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cumulative sum whose axis were free: hidden units could then be permuted, and they cannot."""
    program = "arch a\ninput x: f32[N, 4]\noutput y: f32[N, 3]\ny = x -> linear(5) -> cumsum(axis = 1) -> linear(3)\n"
    assert symmetry(trial(net_of(program, N=3))) == ""
    op = REGISTRY["cumsum"]
    before: Any = op.line
    object.__setattr__(op, "line", lambda call: before(call).replace("!~", ""))
    try:
        from archc.ir.op import _bind_cached

        _bind_cached.cache_clear()
        assert "moves the function" in symmetry(trial(net_of(program, N=3)))
    finally:
        object.__setattr__(op, "line", before)
        _bind_cached.cache_clear()


def test_a_wrong_text_is_caught() -> None:
    net = net_of(TANH, N=3)
    text = TANH.replace("tanh", "sigmoid")
    assert "tanh and sigmoid" in round_trip(RandomNet(0, 0, "", net.graph, text, net.sizes))
    assert hashing(RandomNet(0, 0, "", net.graph, text, net.sizes)) != ""


def test_only_close_decisions_are_excused() -> None:
    """A gate on the edge is a close call; one that is far from it, and a network without one, are not."""
    gate = "arch a\ninput x: f32[N, 4]\noutput y: bool[N, 4]\ny = x > {}\n"
    t = trial(net_of(gate.format("0.25"), N=3))
    assert close_call(t.graph, t.weights, t.inputs) == ""
    edge = {"x": t.inputs["x"] * 0 + 0.25 * (1 + 2.0**-23)}
    assert "threshold" in close_call(t.graph, t.weights, {"x": edge["x"].astype("float32")})
    plain = trial(net_of(TANH, N=3))
    assert close_call(plain.graph, plain.weights, plain.inputs) == ""


def test_a_mismatch_without_a_close_decision_is_not_excused() -> None:
    t = trial(net_of(TANH, N=3))
    made = {"y": t.judged.exact[0].astype("float32") + 1}
    findings = Findings()
    judge_compiled(findings, t, lambda t: against_judge(t, made))
    assert "off by" in findings.wrong["tvm"]
    assert not findings.excused


def test_reduction_finds_the_small_network() -> None:
    from reduction import reduced

    program = "arch a\ninput x: f32[N, 4]\noutput y: f32[N, 4]\noutput z: f32[N, 2]\n"
    program += "let h = x -> linear(4) -> relu\ny = h -> tanh -> sin\nz = h -> linear(2)\n"

    def fails(graph: Graph) -> bool:
        return any(node.op.name == "tanh" for node in graph.walk())

    small = reduced(loads(program), fails)
    assert [node.op.name for node in small.walk()] == ["tanh"]
