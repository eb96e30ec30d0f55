"""How rows go through experts, gates and exits while a network learns: counted, kept, drawn; and training goes on from
weights that a transform carried over."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import archc
from archc.backends.torch.module import to_torch
from archc.backends.torch.training import Recipe, Stepped, evaluate, load_task, loop, stats_picture, summary, train
from archc.backends.torch.training.progress import describe
from archc.facade.model import Model
from archc.facade.train import write_report
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError

ROUTED = """arch routed()
input x: f32[N, 13]
output y: f32[N, 3]
def body = residual(linear(8) -> relu)
y = x -> linear(8) -> relu -> moe(router = linear(3), experts = copies(3, linear(8)), top_k = 2)
    -> skip(gate = linear(1) -> sigmoid, body = body, cost = 0.1)
    -> exit(head = linear(3), rest = skip(gate = linear(1) -> sigmoid, body = body) -> linear(3), threshold = 0.6)
"""
NAMES = {"moe.load", "moe.entropy", "skip.open", "exit.left", "exit.rest.skip.open"}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(**options: Any) -> Recipe:
    return Recipe.for_task(load_task("wine").defaults, **{"epochs": 3, "batch_size": 16, **options})


def test_what_is_counted_is_what_went() -> None:
    """Over all examples at once, by hand: what is behind the exit counts the samples that get there."""
    module, task = to_torch(loads(ROUTED), seed=2), load_task("wine")
    state = module.state_dict()
    for name in ("skip.gate.linear.weight", "exit.head.linear.weight", "exit.rest.skip.gate.linear.weight"):
        state[name].mul_(9)
    stats = evaluate(module, task, "train").stats
    assert stats.keys() == NAMES
    seen: dict[str, torch.Tensor] = {}
    x = loop.Feed(task, torch.device("cpu")).batch("train", torch.arange(len(task.splits["train"])), None, None)[0][0]
    module.eval()
    _, seen = module.forward_with_aux(x)
    for name in NAMES:
        torch.testing.assert_close(torch.tensor(stats[name]).float(), seen[f"stat/{name}"].float())
    assert sum(stats["moe.load"]) == pytest.approx(2)  # type: ignore[arg-type]
    assert all(0 < stats[n] < 1 for n in NAMES if n != "moe.load")  # type: ignore[operator]
    assert float(seen["stat/exit.rest.skip.open.rows"]) == pytest.approx(len(x) * (1 - stats["exit.left"]))  # type: ignore[operator]


def test_batches_weigh_by_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    module, task = to_torch(loads(ROUTED), seed=2).eval(), load_task("wine")
    module.state_dict()["exit.head.linear.weight"].mul_(9)
    whole = evaluate(module, task, "train").stats
    monkeypatch.setattr(sys.modules[evaluate.__module__], "EVALUATION_BATCH", 7)
    parts = evaluate(module, task, "train").stats
    assert parts == {name: pytest.approx(value, rel=1e-5) for name, value in whole.items()}


def test_history_has_them_by_epoch() -> None:
    result = train(to_torch(loads(ROUTED)), load_task("wine"), recipe())
    for row in result.history:
        assert row["stats"]["train"].keys() == row["stats"]["val"].keys() == NAMES
    assert json.loads(json.dumps(result.to_json()))["history"][0]["stats"]["val"]["moe.load"]
    assert result.test is not None
    assert result.test.stats.keys() == NAMES
    (line,) = describe(loop.Validated(result.history[0], best=False))
    assert "gates open" in line
    assert "left early" in line
    plain = "arch a\ninput x: f32[N, 13]\noutput y: f32[N, 3]\ny = x -> linear(3)"
    result = train(to_torch(loads(plain)), load_task("wine"), recipe())
    assert "stats" not in result.history[0]
    assert "stats" not in result.val.to_json()


def test_a_resumed_run_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the middle of an epoch, the history is that of a run that was not."""
    task, whole = load_task("wine"), train(to_torch(loads(ROUTED)), load_task("wine"), recipe())
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)  # after each step

    def stop(event: Any) -> None:
        if isinstance(event, Stepped) and event.step == 10:
            raise KeyboardInterrupt

    path = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(to_torch(loads(ROUTED)), task, recipe(), checkpoint=path, on_event=stop)
    again = train(to_torch(loads(ROUTED)), task, recipe(), checkpoint=path, resume=True)
    assert [row["stats"] for row in again.history] == [row["stats"] for row in whole.history]


def test_the_last_weights_can_be_kept() -> None:
    task = load_task("wine")
    best, last = (train(to_torch(loads(ROUTED)), task, recipe(epochs=6, lr=0.3, keep=k)) for k in ("best", "last"))
    assert last.best_epoch == 6
    assert last.history[-1]["val_accuracy"] == last.val.metrics["accuracy"]
    assert best.val.metrics["accuracy"] >= last.val.metrics["accuracy"]
    with pytest.raises(CompileError) as caught:
        recipe(keep="last", patience=3)
    assert caught.value.diagnostics[0].code == "E0617"


def test_pictures(tmp_path: Path) -> None:
    """One panel each for gates, exits, load and entropy, with the nodes' names."""
    trained = archc.train(Model(loads(ROUTED)), "wine", epochs=2, batch_size=16)
    files = {file.name for file in write_report(trained, tmp_path)}
    assert "routing.png" in files
    stats_picture(trained.result, tmp_path / "routing.svg")
    svg = (tmp_path / "routing.svg").read_text()
    for text in ("share of open gates", "share of rows, for each expert", "exit.rest.skip", "moe"):
        assert f"<!-- {text} -->" in svg
    for row, lost in zip(trained.result.history, ("exit.rest.skip.open", "moe.load"), strict=True):
        del row["stats"]["val"][lost]  # as where no sample came by
    stats_picture(trained.result, tmp_path / "holes.svg")
    assert "<!-- exit.rest.skip -->" in (tmp_path / "holes.svg").read_text()
    assert summary(trained.result.val.stats).keys() == {"gates open", "left early", "router entropy"}


def test_training_goes_on_from_transformed_weights(tmp_path: Path) -> None:
    """Born equal: with a rate of next to nothing, the transformed network scores as the trained one did."""
    head = "arch a\ninput x: f32[N, 13]\noutput y: f32[N, 3]\n"
    text = head + "y = x -> linear(8) -> residual(linear(8) -> relu) -> linear(3)"
    base = archc.train(Model(loads(text)), "wine", tmp_path / "w.safetensors", epochs=20)
    new, weights = archc.transform(Model(loads(text)), "skip(cost = 0.1)", weights=tmp_path / "w.safetensors")
    on = archc.train(new, "wine", weights=weights, epochs=1, lr=1e-9).result
    assert base.result.test is not None
    assert on.test is not None
    assert on.test.metrics == {n: pytest.approx(v, abs=1e-5) for n, v in base.result.test.metrics.items()}
    assert on.test.stats == {"skip.open": 1.0}
    scratch = archc.train(new, "wine", epochs=1, lr=1e-9).result
    assert scratch.test is not None
    assert scratch.test.metrics["loss"] > on.test.metrics["loss"] + 0.1
    with pytest.raises(CompileError) as caught:
        archc.train(new, "wine", weights=tmp_path / "w.safetensors", epochs=1)
    assert {d.code for d in caught.value.diagnostics} == {"E0603"}
