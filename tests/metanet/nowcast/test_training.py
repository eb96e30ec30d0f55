"""Populations are as many runs; recorded runs, training, resuming, measuring; damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from archc.backends.torch.module import to_torch
from archc.backends.torch.training import Recipe, load_task, train
from archc.backends.weights import read_weights, write_weights
from archc.ir.diagnostics import CompileError
from archc.metanet.nowcast import fit, kind
from archc.metanet.nowcast.nets import NETS
from archc.metanet.nowcast.population import Population
from archc.metanet.nowcast.trajectories import METADATA, Plan, read, record
from archc.metanet.store import CARD, load, save


def quiet(line: str) -> None:
    pass


def test_a_population_is_as_many_runs() -> None:
    task, graph = load_task("digits"), NETS["mlp"].graph()
    recipe = Recipe.for_task(task.defaults, steps=40, batch_size=32, ema=0.9, keep="last", seed=3)
    runs = Population(graph, task, recipe, [2, 3])
    for _ in range(40):
        runs.step()
    module = to_torch(graph, seed=3)
    train(module, task, recipe)  # it ends with the average
    alone = torch.cat([module.state_dict()[name].reshape(-1) for name in runs.incidence.names])
    assert runs.average is not None
    torch.testing.assert_close(runs.average[1], alone, rtol=1e-4, atol=1e-5)
    assert (runs.average[0] - alone).abs().max() > 0.01


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two planned files, of short runs."""
    folder = tmp_path_factory.mktemp("runs")
    options = kind.Options(files=2, run_steps=300)
    kind.recorded(options, folder, quiet)
    return folder


def test_recorded_runs_are_read_back(data: Path, tmp_path: Path) -> None:
    path = record(Plan("mlp", "digits", "slow"), data)  # there already
    runs = read(path)
    assert runs.snapshots.shape == (4, 31, 3466)
    assert runs.origin.every == 10
    assert bool((runs.losses[:, -1] < runs.losses[:, 0]).all())
    weights = read_weights(path)
    for arrays, text in (
        ({"snapshots": weights.arrays["snapshots"][:, :, :-1], "losses": weights.arrays["losses"]}, None),
        ({"snapshots": weights.arrays["snapshots"] * np.float32(np.nan), "losses": weights.arrays["losses"]}, None),
        (weights.arrays, "{}"),
    ):
        bad = tmp_path / "bad.safetensors"
        write_weights(bad, arrays, {METADATA: text or weights.metadata[METADATA]})
        with pytest.raises(CompileError, match="E0835"):
            read(bad)


def test_runs_that_are_too_short_are_refused(data: Path) -> None:
    runs = read(data / Plan("mlp", "digits", "slow").file)
    for options in ({"furthest": 40}, {"every": 5}):
        with pytest.raises(CompileError, match="E0837"):
            fit.Recorded.of(runs, kind.Options(**options).shape, "mlp")


def options_for(data: Path, **more: object) -> kind.Options:
    return kind.Options(
        data=str(data), files=2, run_steps=300, hidden=8, rounds=1, iterations=100, windows=1, lr=1e-2, **more
    )


def test_training_learns_and_resumes_exactly(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_for(data)
    straight, resumed = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    card = kind.train(options, straight, False, quiet)
    assert card.figures["error of still"] < 1
    draw, calls = fit.draw, 0

    def interrupted(*args: object, **named: object) -> fit.Windows:
        nonlocal calls
        calls += 1
        if calls == 45:
            raise KeyboardInterrupt
        return draw(*args, **named)

    monkeypatch.setattr(fit, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kind.train(options, resumed, False, quiet)
    kind.train(options, resumed, True, quiet)
    first, second = load(straight).arrays, load(resumed).arrays
    assert all((first[name] == second[name]).all() for name in first)
    assert not (tmp_path / "b.safetensors.state").exists()
    other = kind.train(options_for(data, seed=1), tmp_path / "c.safetensors", False, quiet)
    assert other.figures != card.figures


def test_a_state_of_other_options_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **named: object) -> fit.Windows:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        kind.train(options_for(data), tmp_path / "m.safetensors", False, quiet)
    with pytest.raises(CompileError, match="E0835"):
        kind.train(options_for(data, seed=5), tmp_path / "m.safetensors", True, quiet)


def test_the_shipped_model_beats_standing_still_where_it_has_not_been() -> None:
    stored = load("nowcast-small", "nowcast")
    figures = kind.evaluate(stored, kind.Options.model_validate({**stored.card.config, "files": 1}), quiet)
    assert figures["of still"] < 1
    assert figures["of linear"] < 1


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    stored = load("nowcast-small", "nowcast")
    names = sorted(stored.arrays)
    bad = tmp_path / "bad.safetensors"
    for arrays, config in (
        ({n: stored.arrays[n] for n in names[1:]}, {}),
        ({**stored.arrays, names[0]: stored.arrays[names[0]] * np.float32(np.nan)}, {}),
        (stored.arrays, {"hidden": 12}),
        (stored.arrays, {"rounds": -1}),
    ):
        save(bad, stored.card.model_copy(update={"config": stored.card.config | config}), arrays)
        with pytest.raises(CompileError, match="E0835"):
            kind.model_of(load(bad, "nowcast"))
    assert CARD in read_weights(bad).metadata
