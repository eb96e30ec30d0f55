"""Evaluating candidates: what comes of them, and that nothing is opened, lost or done twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archc.grammar.load import loads
from archc.ir.canonical import canonical
from archc.ir.diagnostics import CompileError
from archc.search import vault
from archc.search.evaluation import Evaluation, evaluate, final_test, warm
from archc.search.executor import Job
from archc.search.goals import parse_goals
from archc.search.keys import task_of, train_key
from archc.search.objectives import check_goals, metrics_of, objective_kind, objectives
from archc.search.records import Candidate, Point, Proposal, Result
from archc.search.trial import batches_of, fresh

NET = """arch net
input x: f32[N, 13]
output y: f32[N, 3]
y = x -> linear(8, name = "a") -> relu -> linear(3, name = "b")
"""
EVALUATION = Evaluation(task="wine", goals=parse_goals(["accuracy", "params"]), steps=36, recipe={"lr": 0.02})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vault.make(tmp_path)
    return tmp_path


def run(folder: Path, text: str = NET, evaluation: Evaluation = EVALUATION, report: Any = None, **more: Any) -> Result:
    try:
        digest = canonical(loads(text)).hash
    except CompileError:
        digest = "0" * 64
    proposal = {k: more.pop(k) for k in ("fidelity", "continues") if k in more}
    origin = {k: more.pop(k) for k in ("origin", "inherit") if k in more}
    candidate = Candidate(text=text, hash=digest, **origin)
    job = Job(
        key="0" * 64,
        proposal=Proposal(number=5, candidate=candidate, **proposal),
        evaluation=evaluation,
        **more,
    )
    return evaluate(job, folder, report or (lambda point: True))


def changed(**fields: Any) -> Evaluation:
    return EVALUATION.model_copy(update=fields)


def test_a_candidate_that_is_fine(folder: Path) -> None:
    points: list[Point] = []
    result = run(folder, report=lambda point: points.append(point) or True)
    assert (result.status, result.number, result.samples) == ("finished", 5, 36 * 32)
    assert result.values["params"] == 13 * 8 + 8 + 8 * 3 + 3
    assert result.values["accuracy"] > 0.8
    assert tuple(points) == result.curve
    assert [p.samples for p in points] == [32 * step for step in (4, 8, 12, 18, 24, 36)]
    assert points[-1].score == result.values["accuracy"]
    weights = vault.load_weights(folder, result.weights or "")
    assert set(weights.arrays) == set(loads(NET).parameters())
    assert "archc.preprocessing" in weights.metadata  # the compiler finds how to feed it
    # What was kept is what was judged.
    training = fresh(loads(NET), EVALUATION)
    training.module.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in weights.arrays.items()})
    assert training.judge("val")["accuracy"] == result.values["accuracy"]
    again = run(folder)
    assert (again.weights, again.values, again.curve) == (result.weights, result.values, result.curve)


def test_the_test_split_stays_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    batches = batches_of("wine")
    original = type(batches).__call__

    def spy(self: Any, split: str, *more: Any) -> Any:
        opened.append(split)
        return original(self, split, *more)

    monkeypatch.setattr(type(batches), "__call__", spy)
    run(folder)
    assert set(opened) == {"train", "val"}
    opened.clear()
    found = final_test(Candidate(text=NET, hash="0"), EVALUATION, repeats=3)
    assert opened.count("test") == 3
    assert len({tuple(f.values()) for f in found}) > 1, "three trainings, not one"
    assert all(f["accuracy"] > 0.8 for f in found)


@pytest.mark.parametrize(
    ("text", "constraint", "reason"),
    [
        (NET, "params < 100", "params"),
        (NET, "weight_bytes < 10", "weight_bytes"),
        (NET.replace("linear(3,", "linear(4,").replace("N, 3", "N, 4"), "", "invalid"),
        (NET.replace("13", "12"), "", "invalid"),
        (NET.replace("N, 13", "2, 13").replace("N, 3", "2, 3"), "", "invalid"),
        ("arch net\ninput x: f32[N, 13]\ny = x -> linearr(3)\n", "", "invalid"),
        (
            "arch net\ninput x: f32[N, 13]\noutput y: f32[N, 3]\nlet a, b = x -> split([3, 10], axis = 1)\ny = a",
            "",
            "invalid",
        ),
    ],
)
def test_what_is_infeasible_is_told_without_training(folder: Path, text: str, constraint: str, reason: str) -> None:
    goals = parse_goals(["accuracy"], [constraint] if constraint else [])
    result = run(folder, text, changed(goals=goals))
    assert (result.status, result.reason, result.samples) == ("infeasible", reason, 0)
    assert result.message
    assert not list((folder / "weights").iterdir())


def test_divergence_is_a_result(folder: Path) -> None:
    result = run(folder, evaluation=changed(recipe={"lr": 1e30, "clip": None, "warmup": 0.0}))
    assert (result.status, result.reason) == ("infeasible", "diverged")
    assert 0 < result.samples < 36 * 32


def test_rungs_are_one_training_in_parts(folder: Path) -> None:
    whole = run(folder)
    third = run(folder, fidelity=1 / 3)
    assert third.samples == 12 * 32
    assert third.curve[:2] == whole.curve[:2]
    rest = run(folder, continues=3, start=third.weights)
    assert rest.samples == 24 * 32
    assert (rest.weights, rest.values) == (whole.weights, whole.values)
    # Another program of the same network goes on as well: weights and moments are found by their canonical places.
    renamed = NET.replace('"a"', '"first"').replace('"b"', '"last"')
    other = run(folder, renamed, continues=3, start=third.weights)
    assert other.values == whole.values
    # The state may have been collected as garbage: then it is trained up to there once more.
    kept = {third.weights or ""}
    vault.collect(folder, kept, [])
    again = run(folder, continues=3, start=third.weights)
    assert (again.weights, again.samples) == (whole.weights, 36 * 32)


def test_weights_are_inherited(folder: Path) -> None:
    parent = run(folder)
    child = NET.replace("relu", "gelu")
    start: dict[str, Any] = {"start": parent.weights, "parent": NET, "inherit": 3, "origin": "mutation/x"}
    short = changed(steps=2)
    inherits = run(folder, child, short, **start)
    afresh = run(folder, child, short)
    assert inherits.extra["inherited_share"] == 1.0
    assert inherits.values["loss"] < 0.5 * afresh.values["loss"]


def test_a_report_can_stop_a_training(folder: Path) -> None:
    result = run(folder, report=lambda point: point.samples < 8 * 32)
    assert (result.status, result.samples, len(result.curve)) == ("stopped", 8 * 32, 2)
    assert result.values["accuracy"] == result.curve[-1].score


def test_a_hopeless_curve_is_stopped(folder: Path) -> None:
    whole = run(folder)
    good = [tuple(p.model_copy(update={"score": 2 + 0.1 * k}) for p in whole.curve) for k in range(20)]
    jobs: dict[str, Any] = {"curves": tuple(good)}
    stopped = run(folder, evaluation=changed(early_stop=True), **jobs)
    assert (stopped.status, stopped.samples) == ("stopped", 4 * 32)
    assert run(folder, **jobs).status == "finished", "only where it is asked for"
    bad = tuple(p.model_copy(update={"score": 0.0}) for p in whole.curve)
    assert run(folder, evaluation=changed(early_stop=True), curves=(bad,) * 20).status == "finished"


def test_an_architecture_aware_recipe_is_another_training(folder: Path) -> None:
    deep = NET.replace("relu ->", "relu -> linear(8) -> relu -> linear(8) -> relu -> linear(8) -> relu ->")
    plain, aware = fresh(loads(deep), EVALUATION), fresh(loads(deep), changed(architecture_aware=True))
    assert aware.recipe.lr == pytest.approx(plain.recipe.lr * (27 / 5**3) ** 0.5)  # five layers, one path
    found = aware.weights()["a.weight"]
    assert found.std() == pytest.approx((2 / 13) ** 0.5, rel=0.2)
    assert (plain.weights()["a.weight"] != found).any()
    result = run(folder, deep, changed(architecture_aware=True))
    assert result.status == "finished"


IMAGES = """arch images
input image: f32[N, 1, 12, 12]
output logits: f32[N, 10]
logits = image -> conv(16, kernel = 3) -> relu -> max_pool(2) -> flatten -> linear(32) -> relu -> linear(10)
"""


def test_a_hypernetwork_predicts_where_a_training_begins(folder: Path) -> None:
    cold = changed(task="hard_digits", steps=1, recipe={"lr": 1e-4})
    predicted = cold.model_copy(update={"warm_start": "ghn-small"})
    fresh_start, warm_start = run(folder, IMAGES, cold), run(folder, IMAGES, predicted)
    assert warm_start.extra["warm_start"] == "predicted"
    assert "warm_start" not in fresh_start.extra
    assert warm_start.values["loss"] < fresh_start.values["loss"] - 0.1


def test_a_net_that_the_hypernetwork_has_no_words_for_begins_afresh(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from archc.search.warm import hypernetwork

    cold = changed(task="hard_digits", steps=1, recipe={"lr": 1e-4})
    words = hypernetwork("ghn-small")[1].words
    monkeypatch.delitem(words.places["ops"], "max_pool")  # type: ignore[arg-type]
    told = run(folder, IMAGES, cold.model_copy(update={"warm_start": "ghn-small"}))
    assert str(told.extra["warm_start"]).startswith("afresh: E0810")
    assert told.values == run(folder, IMAGES, cold).values


def test_a_task_that_the_hypernetwork_does_not_know_is_told_before(folder: Path) -> None:
    candidate = Candidate(text=NET, hash="0" * 64)
    job = Job(
        key="0" * 64, proposal=Proposal(number=0, candidate=candidate), evaluation=changed(warm_start="ghn-small")
    )
    with pytest.raises(CompileError, match=r"E0822.*wine"):
        warm(job)


def test_own_arrays_are_a_task(folder: Path, tmp_path: Path) -> None:
    """Values to predict: no accuracy, and a curve of losses, turned so that larger is better."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x, y=x[:, :1] - x[:, 1:2])
    own = changed(task=f"npz:{tmp_path / 'own.npz'}", goals=parse_goals(["loss", "flops"]), steps=60)
    net = NET.replace("N, 13", "N, 4").replace("N, 3", "N, 1").replace("linear(3", "linear(1")
    result = run(folder, net, own)
    assert result.status == "finished", result.message
    assert "accuracy" not in result.values
    assert result.values["loss"] == -result.curve[-1].score < 0.2
    assert result.curve[0].score < result.curve[-1].score
    with pytest.raises(CompileError, match=r"E0722.*accuracy"):
        check_goals(EVALUATION.goals, task_of(own))


def test_goals_that_cannot_be_had() -> None:
    from archc.backends.torch.training import load_task

    wine = load_task("wine")
    assert metrics_of(wine) == {"accuracy", "loss"}
    for objective, code in [
        ("acuracy", "E0721"),
        ("bits_per_char", "E0722"),
        ("latency_ms", "E0722"),
        ("params@cpu", "E0722"),
    ]:
        with pytest.raises(CompileError, match=code):
            check_goals(parse_goals([objective]), wine)
    check_goals(parse_goals(["accuracy", "latency_ms@cpu"], ["params < 5k"]), wine)
    assert all(objective_kind(name).name == name for name in objectives())


def test_what_all_jobs_share_is_loaded_once() -> None:
    job = Job(
        key="0", proposal=Proposal(number=0, candidate=Candidate(text=NET, hash="0")), evaluation=changed(task="wime")
    )
    with pytest.raises(CompileError, match=r"E0610.*wime"):
        warm(job)


def test_a_trained_network_is_compiled(folder: Path) -> None:
    from archc.backends.runtime import load

    goals = parse_goals(["accuracy", "latency_ms@cpu"])
    result = run(folder, evaluation=changed(goals=goals))
    assert result.artifact is not None
    assert result.extra["artifact@cpu"] == result.artifact
    artifact = load(vault.artifact_path(folder, result.artifact))
    batch = batches_of("wine")("val", torch.arange(4), None, None)
    training = fresh(loads(NET), EVALUATION)
    arrays = vault.load_weights(folder, result.weights or "").arrays
    training.module.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in arrays.items()})
    expected = training.module.eval()(*batch[0]).detach().numpy()
    (found,) = artifact.run({"x": batch[0][0].numpy()}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert train_key("a", EVALUATION) != train_key("a", changed(goals=goals))
