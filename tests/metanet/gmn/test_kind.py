"""`archc metanet train gmn`: trained, resumed, judged, and asked about one net."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.metanet.gmn import kind
from archc.metanet.gmn.learn import scores
from archc.metanet.gmn.zoo import ZooConfig, grow, read_zoo
from archc.metanet.store import load
from archc.metanet.symmetry import random_weights


def _quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    grow(folder, ZooConfig(families=("mlp",), architectures=2, nets=40, steps=60), _quiet)
    return folder


@pytest.fixture(scope="module")
def config(zoo: Path) -> kind.TrainConfig:
    return kind.TrainConfig(zoo=zoo, epochs=6, batch=16, nodes=16, rounds=2, lr=1e-2)


@pytest.fixture(scope="module")
def model(config: kind.TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    kind.train(config, out, False, _quiet)
    return out


def test_it_learns_something_and_eval_says_the_same(model: Path, config: kind.TrainConfig) -> None:
    stored = load(model, "gmn")
    assert stored.card.log[-1]["loss"] < stored.card.log[0]["loss"]
    assert not model.with_name("tiny.safetensors.state").exists()
    figures = kind.evaluate(stored, config, _quiet)
    for name, value in stored.card.figures.items():
        assert figures[name] == pytest.approx(value, rel=1e-3, abs=1e-5)


def test_an_interrupted_run_ends_as_one_that_was_not(model: Path, config: kind.TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "tiny.safetensors"

    def stop(line: str) -> None:
        if line.startswith("epoch 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kind.train(config, out, False, stop)
    assert not out.exists()
    with pytest.raises(CompileError) as caught:
        kind.train(config.model_copy(update={"lr": 0.5}), out, True, _quiet)
    assert caught.value.diagnostics[0].code == "E0833"
    said: list[str] = []
    kind.train(config, out, True, said.append)
    assert said[0] == "goes on after epoch 3"
    there, before = load(out).arrays, load(model).arrays
    assert all(np.array_equal(there[n], before[n]) for n in before)


def test_it_tells_of_one_net_and_refuses_others(model: Path, zoo: Path) -> None:
    stored, net = load(model), read_zoo(zoo)[0]
    told = kind.tell(stored, net.architecture.graph, net.weights)
    assert set(told) == set(kind.TARGETS)
    assert all(np.isfinite(v) for v in told.values())
    conv = loads("arch a  input x: f32[N, 1, 8, 8]  output y: f32[N, 4, 8, 8]  y = x -> conv(4, kernel = 3)")
    bad = {n: np.where(np.arange(w.size).reshape(w.shape) == 1, np.nan, w) for n, w in net.weights.items()}
    for code, graph, weights in (
        ("E0832", conv, random_weights(conv, 0)),
        ("E0812", net.architecture.graph, bad),
        ("E0603", net.architecture.graph, random_weights(conv, 0)),
    ):
        with pytest.raises(CompileError) as caught:
            kind.tell(stored, graph, weights)
        assert code in {d.code for d in caught.value.diagnostics}


def test_the_one_that_comes_with_archc_can_tell_trained_from_untrained(zoo: Path) -> None:
    """By its own zoo's measure: nets that learned are expected to do better than they did before their first step."""
    stored, nets = load("gmn-zoo", "gmn"), read_zoo(zoo)
    best = sorted(nets, key=lambda n: -n.record.test_accuracy)[:5]
    for net in best:
        graph = net.architecture.graph
        start = {n: p.init.sample(p.shape, net.record.seed, n) for n, p in graph.parameters().items()}
        assert kind.tell(stored, graph, net.weights)["test accuracy"] > kind.tell(stored, graph, start)["test accuracy"]


def test_too_few_nets(zoo: Path) -> None:
    with pytest.raises(CompileError) as caught:
        kind.split(read_zoo(zoo)[:19], kind.TrainConfig())
    assert caught.value.diagnostics[0].code == "E0834"


def test_scores_tell_good_from_bad() -> None:
    true = np.arange(10.0)
    assert [round(scores(said, true)["tau"], 6) for said in (true + 1, -true)] == [1, -1]
    assert scores(np.full(10, 4.5) + 1e-9 * true, true)["r2"] == pytest.approx(0, abs=1e-6)
