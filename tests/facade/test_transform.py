"""`archc.transform` from Python."""

from __future__ import annotations

import numpy as np
import pytest

import archc
from archc.facade.sameness import same_function
from archc.facade.transform import joined
from archc.ir.graph import Graph
from archc.metanet.symmetry import random_weights
from archc.passes.manager import Context, Contract, Pass

MODEL = archc.loads("""
arch ffn()
input  x: f32[N, 8]
output y: f32[N, 8]
y = x -> linear(32) -> gelu -> dropout(0.5) -> linear(8)
""")


def weights() -> dict[str, np.ndarray]:
    return {n: w.astype(np.float32) for n, w in random_weights(MODEL.graph, 0).items()}


def test_it_unpacks_and_the_old_model_stays() -> None:
    before = MODEL.text()
    old = weights()
    model, new = archc.transform(MODEL, "glu", weights=old)
    assert MODEL.text() == before
    assert {n: w.dtype for n, w in new.items()} == dict.fromkeys(model.graph.parameters(), np.float32)
    assert all((new[n] == old[n]).all() for n in old)
    assert same_function(MODEL.graph, model.graph, old, new).ok


def test_structure_alone_without_weights() -> None:
    made = archc.transform(MODEL, "glu")
    assert made.weights is None
    assert made.checks == ()
    initial = archc.transform(MODEL, "glu", weights=random_weights(MODEL.graph, 0) and weights())
    assert initial.model.hash == made.model.hash


def test_what_is_checked() -> None:
    made = archc.transform(MODEL, "glu", "canonicalise", weights=weights())
    assert [(c.mode, c.format, c.ok) for c in made.checks] == [
        ("eval", "f64", True), ("train", "f64", True), ("eval", "f32", True),
    ]  # fmt: skip
    assert max(c.relative for c in made.checks[:2]) < 1e-12
    assert made.to_json()["contract"]["eval"] == "exact"
    assert archc.transform(MODEL, "glu", weights=weights(), check=False).checks == ()


def _spoil(graph: Graph, context: Context) -> bool:
    assert context.weights is not None
    context.weights["linear.bias"] = context.weights["linear.bias"] + 1e-6
    return True


def test_a_broken_contract_is_told() -> None:
    with pytest.raises(archc.CompileError) as caught:
        archc.transform(MODEL, Pass("spoil", _spoil), weights=weights())
    assert (caught.value.diagnostics[0].code, caught.value.exit_code) == ("E0407", 3)
    honest = archc.transform(MODEL, Pass("spoil", _spoil, Contract("approximate", "approximate")), weights=weights())
    assert 1e-9 < honest.checks[0].relative < 1e-3


def test_weights_are_drawn_anew_only_when_that_is_allowed() -> None:
    anew = Pass("anew", _spoil, Contract("reinitialised", "reinitialised", "all of it"))
    with pytest.raises(archc.CompileError, match="draws weights anew"):
        archc.transform(MODEL, anew, weights=weights())
    assert archc.transform(MODEL, anew, weights=weights(), allow_reinit=True).weights is not None


def test_contracts_join_to_the_weakest() -> None:
    assert joined([]) == Contract()
    weak = joined([Contract("exact", "approximate", "a"), Contract("reinitialised", "exact", "b")])
    assert (weak.eval, weak.train, weak.why) == ("reinitialised", "approximate", "a; b")


def test_other_ports_cannot_be_compared() -> None:
    other = archc.loads("arch o input x: f32[N, 8] output y: f32[N, 4] y = x -> linear(4)")
    with pytest.raises(archc.CompileError) as caught:
        same_function(MODEL.graph, other.graph, weights(), {})
    assert caught.value.diagnostics[0].code == "E0406"


def test_same_function_is_a_function_of_places_too() -> None:
    """Infinities and NaN in other places are a difference, whatever the numbers."""
    old, new = (
        archc.loads(f"arch a input x: f32[N, 4] output y: f32[N, 4] y = x -> {body}").graph
        for body in ("log", "abs -> log")
    )
    found = same_function(old, new, {}, {})
    assert not found.ok
    assert "other places" in found.outputs[0].reason
    assert same_function(old, old, {}, {}).ok
