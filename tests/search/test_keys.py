"""Addresses: every part of what a result follows from changes them, and nothing else does."""

from __future__ import annotations

import pytest

from archc.grammar.load import loads
from archc.ir.canonical import canonical
from archc.ir.diagnostics import CompileError
from archc.search.evaluation import Evaluation
from archc.search.goals import parse_goals
from archc.search.keys import code_key, recipe_of, train_key

NET = """arch net
input x: f32[N, 13]
output y: f32[N, 3]
let a = x -> linear(8)
let b = x -> linear(8) -> tanh
y = a * b -> relu -> linear(3)
"""
REORDERED = """arch other
input x: f32[N, 13]
output y: f32[N, 3]
let gate = x -> linear(8, name = "gate") -> tanh
y = gate * (x -> linear(8, name = "value")) -> relu -> linear(3, name = "head")
"""
EVALUATION = Evaluation(task="wine", goals=parse_goals(["accuracy"]), steps=20)


def hash_of(text: str) -> str:
    return canonical(loads(text)).hash


def test_equal_networks_have_one_address_however_they_are_written() -> None:
    assert NET != REORDERED
    assert train_key(hash_of(NET), EVALUATION) == train_key(hash_of(REORDERED), EVALUATION)
    assert code_key(loads(NET), "x86-64-v3") == code_key(loads(REORDERED), "x86-64-v3")
    assert train_key(hash_of(NET), EVALUATION) != train_key(hash_of(NET.replace("relu", "gelu")), EVALUATION)
    assert code_key(loads(NET), "x86-64-v3") != code_key(loads(NET.replace("relu", "gelu")), "x86-64-v3")


@pytest.mark.parametrize(
    "change",
    [
        {"task": "wine?seed=1"},  # another split
        {"task": "breast_cancer"},
        {"steps": 21},
        {"recipe": {"lr": 0.01}},
        {"seed": 1},
        {"threads": 2},
        {"architecture_aware": True},
        {"warm_start": "ghn-small"},
        {"early_stop": True},
        {"goals": parse_goals(["accuracy", "params"])},
    ],
)
def test_every_part_of_an_evaluation_counts(change: dict[str, object]) -> None:
    assert train_key("ab", EVALUATION.model_copy(update=change)) != train_key("ab", EVALUATION)


def test_share_start_data_and_torch_count(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [train_key("ab", EVALUATION), train_key("ab", EVALUATION, 1 / 3), train_key("ab", EVALUATION, 1.0, "cd")]
    assert len({*keys}) == 3
    assert train_key("ab", EVALUATION) == keys[0]
    # What says nothing new changes nothing: a default that is written down.
    assert train_key("ab", EVALUATION.model_copy(update={"recipe": {"clip": 1.0}})) == keys[0]
    from archc.search import keys as module

    monkeypatch.setattr(module, "version", lambda package: "0")
    module._how.cache_clear()
    try:
        assert train_key("ab", EVALUATION) != keys[0]
    finally:
        module._how.cache_clear()


def test_the_data_count_not_their_name(tmp_path: object) -> None:
    from pathlib import Path

    import numpy as np

    from archc.search import keys as module

    def key(name: str, value: float) -> str:
        path = Path(str(tmp_path)) / name
        x = np.arange(60, dtype=np.float32).reshape(20, 3)
        x[0, 0] = value
        np.savez(path, x=x, y=np.arange(20) % 2)
        module._how.cache_clear()
        module.load_once.cache_clear()
        return train_key("ab", EVALUATION.model_copy(update={"task": f"npz:{path}"}))

    assert key("a.npz", 0.0) == key("b.npz", 0.0) != key("a.npz", 1.0)


def test_every_part_of_code_counts() -> None:
    graph = loads(NET)
    keys = [
        code_key(graph, "x86-64-v3"),
        code_key(graph, "x86-64-v2"),
        code_key(graph, "x86-64-v3", batch=8),
        code_key(graph, "x86-64-v3", threads=2),
        code_key(graph, "x86-64-v3", weights="ab"),
    ]
    assert len({*keys}) == len(keys)
    assert code_key(graph, "x86-64-v3") == keys[0]


def test_a_recipe_that_searches_have_no_use_for() -> None:
    with pytest.raises(CompileError, match=r"E0720.*ema"):
        recipe_of(EVALUATION.model_copy(update={"recipe": {"ema": 0.9}}))
    with pytest.raises(CompileError, match="E0617"):
        recipe_of(EVALUATION.model_copy(update={"recipe": {"rate": 0.9}}))
