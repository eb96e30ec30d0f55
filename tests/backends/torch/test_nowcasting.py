"""Jumps in training: kept only when they are no worse, counted, and resumed exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from archc.backends.torch.module import ArchModule, to_torch
from archc.backends.torch.training import Event, Jump, Recipe, load_task, state_arrays, train
from archc.backends.torch.training.nowcast import Forecaster
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.metanet.nowcast.forecast import forecaster, pinned
from archc.metanet.nowcast.nets import NETS

NET = """arch net()
input image: f32[N, 1, 8, 8]
output logits: f32[N, 10]
logits = image -> conv(4, kernel = 3) -> batch_norm -> relu -> dropout(0.1) -> flatten -> linear(16) -> linear(10)
"""
GRAPH = loads(NET)
TASK = load_task("digits")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Told:
    """A forecaster whose changes are told: `size` times random numbers."""

    window, every, sha256 = 3, 10, None

    def __init__(self, names: tuple[str, ...], size: float) -> None:
        self.names, self.size = names, size

    def predict(self, history: Tensor, ahead: Sequence[float]) -> Tensor:
        make = torch.Generator().manual_seed(0)
        return self.size * torch.randn(1, len(ahead), history.shape[-1], generator=make)


def recipe(**options: Any) -> Recipe:
    given = {"steps": 90, "batch_size": 64, "keep": "last", "lr": 1e-3, "schedule": "constant", **options}
    return Recipe.for_task(TASK.defaults, **given)


NOWCASTING = {"nowcast": "linear", "nowcast_every": 40, "nowcast_start": 40, "nowcast_ahead": 9}


def run(module: ArchModule, options: Recipe, found: Forecaster | None, **more: Any) -> tuple[Any, list[Jump]]:
    jumps: list[Jump] = []

    def note(event: Event) -> None:
        if isinstance(event, Jump):
            jumps.append(event)

    return train(module, TASK, options, forecaster=found, on_event=note, **more), jumps


def same(one: ArchModule, other: ArchModule) -> bool:
    a, b = state_arrays(one), state_arrays(other)
    return all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_refused_jumps_leave_no_trace() -> None:
    """Nonsense and what is not a number are refused, and the run is then byte for byte one without nowcasting: weights,
    running estimates, dropout."""
    plain, names = to_torch(GRAPH), forecaster(GRAPH, "linear").names
    run(plain, recipe(), None)
    for size in (100.0, float("nan")):
        module = to_torch(GRAPH)
        result, jumps = run(module, recipe(**NOWCASTING), Told(names, size))
        assert result.nowcasts == {"kept": 0, "refused": 2, "forwards": 8}
        assert [(j.step, j.kept) for j in jumps] == [(40, False), (80, False)]
        assert same(module, plain)
    standing = to_torch(GRAPH)
    result, _ = run(standing, recipe(**NOWCASTING), Told(names, 0.0))  # no worse: kept
    assert result.nowcasts == {"kept": 2, "refused": 0, "forwards": 4}
    assert same(standing, plain)


def test_jumps_lower_the_loss_and_are_told(tmp_path: Path) -> None:
    module = to_torch(GRAPH)
    result, jumps = run(module, recipe(**NOWCASTING), forecaster(GRAPH, "linear"))
    assert result.nowcasts["kept"] > 0
    assert all(jump.after <= jump.before for jump in jumps if jump.kept)
    assert result.to_json()["nowcasts"] == dict(result.nowcasts)
    assert result.history[-1]["nowcasts"] == dict(result.nowcasts)
    plain = to_torch(GRAPH)
    without, _ = run(plain, recipe(), None)
    assert not same(module, plain)
    assert "nowcasts" not in without.to_json()


def test_a_resumed_run_jumps_as_an_uninterrupted_one(tmp_path: Path) -> None:
    """The window of snapshots and the counts are in the checkpoint; a run that had lost them would end elsewhere."""
    options, found, path = recipe(**NOWCASTING, ema=0.9), forecaster(GRAPH, "nowcast-small"), tmp_path / "c.safetensors"
    options = options.model_copy(update={"nowcast": "nowcast-small"})
    straight = to_torch(GRAPH)
    whole, jumps = run(straight, options, found)
    assert any(jump.kept for jump in jumps)
    for epochs in (1, 3):  # 18 steps each: within the first window, and within the second
        resumed = to_torch(GRAPH, seed=7)
        first = to_torch(GRAPH)
        run(first, options, found, checkpoint=path, stop_after_epoch=epochs)
        again, _ = run(resumed, options, found, checkpoint=path, resume=True)
        assert same(resumed, straight)
        assert again.nowcasts == whole.nowcasts


def test_a_lost_window_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    options, found, path = recipe(**NOWCASTING), forecaster(GRAPH, "linear"), tmp_path / "c.safetensors"
    straight, resumed = to_torch(GRAPH), to_torch(GRAPH)
    run(straight, options, found)
    run(to_torch(GRAPH), options, found, checkpoint=path, stop_after_epoch=1)
    monkeypatch.setattr("archc.backends.torch.training.nowcast.Nowcasting.restore", lambda *_: None)
    run(resumed, options, found, checkpoint=path, resume=True)
    assert not same(resumed, straight)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"nowcast_every": 10}, "E0837"),
        ({"steps": 40}, "E0837"),
        ({"nowcast_start": 500}, "E0837"),
    ],
)
def test_too_few_snapshots_are_refused_before_training(options: dict[str, int], code: str) -> None:
    with pytest.raises(CompileError, match=code):
        run(to_torch(GRAPH), recipe(**{**NOWCASTING, **options}), forecaster(GRAPH, "linear"))


def test_a_forecaster_of_another_network_is_refused() -> None:
    with pytest.raises(CompileError, match="E0836"):
        run(to_torch(GRAPH), recipe(**NOWCASTING), forecaster(NETS["vit"].graph(), "linear"))


def test_a_recipe_names_its_model_by_content() -> None:
    found = forecaster(GRAPH, "nowcast-small")
    filled = pinned(recipe(nowcast="nowcast-small"), found)
    assert filled.nowcast_sha256 == found.sha256
    assert pinned(filled, found) == filled
    for options in ({"nowcast_sha256": "0" * 64}, {"nowcast_ahead": 100}):
        with pytest.raises(CompileError, match="E0839"):
            pinned(recipe(nowcast="nowcast-small", **options), found)
    with pytest.raises(CompileError, match="E0617"):
        recipe(nowcast_every=50)
