"""Every transform at random sites of random networks: a small run of `benchmarks/transforms.py --transforms`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from applications import apply_at_random, plain
from block_nets import block_net, example_names, small_example

from archc.facade.sameness import same_function
from archc.grammar.load import loads
from archc.ir.clone import clone
from archc.ir.cost import cost
from archc.ir.graph import Graph
from archc.metanet.symmetry import random_weights
from archc.passes import catalogue
from archc.passes.catalogue import TRANSFORMS
from archc.passes.manager import Context, Contract, run_passes
from archc.passes.spec import parse_pass
from archc.passes.transform import Site, Transform

SEED, ATTEMPTS = 5, 60


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_keeps_its_contract(name: str) -> None:
    spec = TRANSFORMS[name].variants[0]
    for attempt in range(ATTEMPTS):
        done, result = apply_at_random(SEED, spec, attempt)
        assert not done.wrong, (attempt, done.source, done.wrong)
        if result is not None:
            assert done.sites
            return
    pytest.fail(f"{spec} found nothing to do in {ATTEMPTS} networks")


IN_A_ROW = """arch net
input x: f32[N, 5, 6]
output y: f32[N, 5, 6]
y = x -> linear(8) -> gelu -> linear(6) -> linear(8) -> gelu -> linear(6)
"""


@pytest.mark.parametrize("spec", ["moe(experts = 2)", "moe(experts = 4, top_k = 4, method = split)", "glu"])
def test_a_site_may_read_what_another_made(spec: str) -> None:
    old = loads(IN_A_ROW)
    new, weights = clone(old), random_weights(old, 0)
    context = Context(dict(weights), wide=True)
    run_passes(new, [parse_pass(spec)], context)
    ((_, found),) = context.applied
    assert len(found.sites) == 2
    assert context.weights is not None
    assert same_function(old, new, weights, context.weights).ok


def test_examples_are_small_and_blocks_are_many() -> None:
    for name in example_names():
        assert cost(loads(small_example(name))).params < 10**6, name
    ops = {node.op.name for seed in range(60) for node in loads(block_net(seed)).walk()}
    assert {"linear", "conv", "attention", "batch_norm", "layer_norm", "add", "mul", "kan", "dropout"} <= ops


def test_reasons_are_counted_without_names_and_numbers() -> None:
    assert plain("`a.b` has 12 outputs, of `c`") == plain("`x` has 3 outputs, of `y`")


# -- controls: what breaks its promise is caught


def _spoilt(change: Any) -> Transform[Any]:
    """A transform that claims to be exact wherever `low_rank` acts."""
    honest = TRANSFORMS["low_rank"]

    def apply(graph: Graph, sites: Sequence[Site], options: Any, context: Context) -> None:
        change(graph, sites, context)

    return replace(honest, apply=apply, contract=lambda options: Contract())


def _nudge(graph: Graph, sites: Sequence[Site], context: Context) -> None:
    assert context.weights is not None
    for site in sites:
        for parameter in site.anchor.weights.values():
            context.weights[parameter.name] = context.weights[parameter.name] + 1e-6


def test_a_broken_promise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "TRANSFORMS", {**TRANSFORMS, "low_rank": _spoilt(_nudge)})
    for attempt in range(ATTEMPTS):
        done, result = apply_at_random(SEED, "low_rank(ratio = 0.5)", attempt)
        if result is not None:
            assert {"eval", "train"} <= done.wrong.keys()
            return
    pytest.fail("nothing was applied")
