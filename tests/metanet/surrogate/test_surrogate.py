"""The accuracy surrogate: it learns what there is to learn, its intervals cover, and files keep all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.diagnostics import CompileError
from archc.metanet.distribution import nets
from archc.metanet.store import Card, load
from archc.metanet.surrogate import Surrogate
from archc.metanet.surrogate.features import Seen, see
from archc.metanet.surrogate.kind import KIND, Options
from archc.metanet.vocabulary import Vocabulary, vocabulary

COUNT, TRAIN = 90, 60


@pytest.fixture(scope="module")
def graphs():
    return [graph for _, graph in nets("train", COUNT, seed=5)]


@pytest.fixture(scope="module")
def seen(graphs) -> list[Seen]:
    return [see(graph) for graph in graphs]


@pytest.fixture(scope="module")
def accuracies(seen: list[Seen]) -> np.ndarray:
    """A made-up truth that depends on size, on ops and on noise."""
    rng = np.random.default_rng(0)
    logit = [0.6 * (s.features["size.params"] - 13) - 0.8 * s.features.get("op.attention", 0) for s in seen]
    return 1 / (1 + np.exp(-np.array(logit) - rng.normal(0, 0.3, len(seen))))


def test_it_ranks_networks_that_it_has_not_seen(seen: list[Seen], accuracies: np.ndarray) -> None:
    surrogate = Surrogate()
    surrogate.fit(seen[:TRAIN], accuracies[:TRAIN])
    told = surrogate.predict(seen[TRAIN:])
    params = [s.features["size.params"] for s in seen[TRAIN:]]
    tau = kendalltau(told.mean, accuracies[TRAIN:]).statistic
    assert tau > 0.5
    assert tau > kendalltau(params, accuracies[TRAIN:]).statistic


def test_it_learns_nothing_from_shuffled_accuracies(seen: list[Seen], accuracies: np.ndarray) -> None:
    found = []
    for seed in range(3):
        surrogate = Surrogate()
        surrogate.fit(seen[:TRAIN], np.random.default_rng(seed).permutation(accuracies[:TRAIN]))
        found.append(kendalltau(surrogate.predict(seen[TRAIN:]).mean, accuracies[TRAIN:]).statistic)
    assert np.nanmean(found) < 0.35


def test_intervals_cover_as_they_say(seen: list[Seen], accuracies: np.ndarray) -> None:
    covered = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(COUNT)
        learned, rest = order[:TRAIN], order[TRAIN:]
        surrogate = Surrogate()
        surrogate.fit([seen[i] for i in learned], accuracies[learned])
        told = surrogate.predict([seen[i] for i in rest])
        covered.append(((told.low <= accuracies[rest]) & (accuracies[rest] <= told.high)).mean())
        narrow = surrogate.predict([seen[i] for i in rest], coverage=0.6)
        assert (narrow.high - narrow.low < told.high - told.low).all()
    assert 0.82 < np.mean(covered) < 0.97


def test_more_results_make_it_better(seen: list[Seen], accuracies: np.ndarray) -> None:
    surrogate = Surrogate()
    surrogate.fit(seen[:16], accuracies[:16])
    few = surrogate.predict(seen[TRAIN:])
    surrogate.update(seen[16:TRAIN], accuracies[16:TRAIN])
    many = surrogate.predict(seen[TRAIN:])
    truth = accuracies[TRAIN:]
    assert np.abs(many.mean - truth).mean() < np.abs(few.mean - truth).mean()
    assert many.spread.mean() < few.spread.mean()


def test_a_file_keeps_what_was_learned(graphs, seen: list[Seen], accuracies: np.ndarray, tmp_path: Path) -> None:
    surrogate = Surrogate()
    surrogate.fit(seen[:30], accuracies[:30])
    path = tmp_path / "s.safetensors"
    surrogate.save(path, Card(kind="surrogate", name="s", config={}, command="none"))
    again = Surrogate.of(load(path, "surrogate"))
    before, after = surrogate.predict(graphs[80:85]), again.predict(graphs[80:85])
    assert np.allclose(before.mean, after.mean)
    assert np.allclose(before.high, after.high)


def test_training_and_measuring_from_files(graphs, accuracies: np.ndarray, tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": print_graph(g), "test": [0.1, float(a)]}) for g, a in zip(graphs, accuracies, strict=True)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:45]))
    (tmp_path / "test.jsonl").write_text("\n".join(lines[45:]))
    out = tmp_path / "s.safetensors"
    card = KIND.train(Options(results=str(tmp_path / "train.jsonl")), out, False, lambda line: None)
    assert card.trained["networks"] == 45
    assert card.figures["tau"] > 0.4
    figures = KIND.evaluate(load(out), Options(results=str(tmp_path / "test.jsonl")), lambda line: None)
    assert figures["tau"] > 0.4
    assert figures["networks"] == 45


def refused(code: str, act) -> None:
    with pytest.raises(CompileError) as caught:
        act()
    assert caught.value.diagnostics[0].code == code


def test_what_is_refused(seen: list[Seen], tmp_path: Path) -> None:
    refused("E0815", lambda: Surrogate().fit(seen[:3], [0.1, 0.2, 0.3]))
    refused("E0815", lambda: Surrogate().fit(seen[:10], [0.5] * 9 + [1.2]))
    refused("E0815", lambda: Surrogate().predict(seen[:1]))
    words = vocabulary()
    short = Surrogate(Vocabulary(tuple(op for op in words.ops if op != "kan"), words.roles, words.attributes))
    kan = loads("arch a\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = x -> kan(2)")
    short.fit(seen[:10], [0.5 + 0.01 * i for i in range(10)])
    refused("E0810", lambda: short.predict([kan]))
    (tmp_path / "notes.txt").write_text("hello")
    refused("E0816", lambda: KIND.train(Options(results=str(tmp_path / "notes.txt")), tmp_path / "s", False, print))
    refused("E0804", lambda: KIND.train(Options(), tmp_path / "s", False, print))
