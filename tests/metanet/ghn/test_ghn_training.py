"""Training a hypernetwork: it learns, resumes exactly, skips what is not finite; and what is made of a trained one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import archc
from archc.backends.torch.training import load_task
from archc.backends.weights import read_weights, write_weights
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.metanet.ghn.kind import GhnTraining, restore, state_path, train
from archc.metanet.ghn.likeness import ranges, unlike
from archc.metanet.ghn.model import Ghn, GhnConfig
from archc.metanet.ghn.nets import Data, Net, accuracy, calibrate
from archc.metanet.ghn.training import TrainConfig, Trainer, accuracies, predict
from archc.metanet.store import Stored, load

TINY = {"hidden": 16, "rank": 16, "width": 16, "mix": 8, "rounds": 1, "turns": 2, "grid": 6}

NETS = [
    f"arch n{i}\ninput x: f32[N, 1, 8, 8]\noutput y: f32[N, 10]\ny = x -> {body} -> linear(10)"
    for i, body in enumerate(
        [
            "flatten -> linear(16) -> relu",
            "flatten -> linear(12) -> tanh",
            "avg_pool(2) -> flatten -> linear(16) -> gelu",
            "conv(4, kernel = 3) -> batch_norm -> relu -> avg_pool(2) -> flatten",
        ]
    )
]


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(load_task("digits"))


def made(data: Data, **config: int) -> tuple[Ghn, list[Net], TrainConfig]:
    model = Ghn(GhnConfig(**TINY), ["digits"])
    nets = [Net(f"n{i}", loads(text), model.words) for i, text in enumerate(NETS)]
    return model, nets, TrainConfig(**{"steps": 150, "nets": 2, "lr": 5e-3, "batch": 32, **config})


def test_training_raises_the_accuracy_of_predicted_weights(data: Data) -> None:
    model, nets, config = made(data)
    before = accuracies(model, nets, data, limit=200)
    first = predict(model, nets[0], 0)
    Trainer(model, [(data, nets)], config).run()
    after = accuracies(model, nets, data, limit=200)
    assert np.mean(before) < 0.3
    assert np.mean(after) > 0.5
    assert not torch.allclose(first["linear1.weight"], predict(model, nets[0], 0)["linear1.weight"], atol=1e-2)


def test_an_interrupted_run_ends_with_the_same_bytes(data: Data, tmp_path: Path) -> None:
    model, nets, config = made(data, steps=8)
    Trainer(model, [(data, nets)], config).run()
    other, nets, _ = made(data)
    state = tmp_path / "m.state"
    begun = Trainer(other, [(data, nets)], config, state)
    for _ in range(3):
        begun.step()
    begun.save()
    third, nets, _ = made(data)
    resumed = Trainer(third, [(data, nets)], config, state)
    resumed.resume()
    assert resumed.progress.step == 3
    resumed.run()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, third.state_dict()[name]), name
    assert not torch.equal(model.state_dict()["decoder.index"], other.state_dict()["decoder.index"])


def test_a_state_of_another_run_is_refused(data: Data, tmp_path: Path) -> None:
    model, nets, config = made(data, steps=8)
    Trainer(model, [(data, nets)], config, tmp_path / "s").save()
    with pytest.raises(CompileError) as error:
        Trainer(model, [(data, nets)], TrainConfig(steps=9), tmp_path / "s").resume()
    assert error.value.diagnostics[0].code == "E0821"


def test_a_net_without_a_finite_loss_is_skipped_and_counted(data: Data) -> None:
    model, _, config = made(data, steps=2)
    bad = "arch b\ninput x: f32[N, 1, 8, 8]\noutput y: f32[N, 10]\ny = x -> flatten -> linear(10) -> log"
    trainer = Trainer(model, [(data, [Net("bad", loads(bad), model.words)])], config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = trainer.run()
    assert done.skipped == 2
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_calibrated_statistics_are_those_of_the_data(data: Data) -> None:
    text = "arch b\ninput x: f32[N, 1, 8, 8]\noutput y: f32[N, 10]\ny = x -> batch_norm -> flatten -> linear(10)"
    model = Ghn(GhnConfig(**TINY), ["digits"])
    net = Net("b", loads(text), model.words)
    found = calibrate(net, predict(model, net, 0), data)
    seen = torch.cat([data.batch("train", 128, 1, k)[0][0] for k in range(4)])
    assert float(found["batch_norm.running_mean"]) == pytest.approx(float(seen.mean()), abs=1e-4)
    assert float(found["batch_norm.running_var"]) == pytest.approx(float(seen.var()), rel=0.02)
    assert accuracy(net, predict(model, net, 0), data, limit=100) >= 0


def test_unlike_says_what_differs() -> None:
    nets = [loads(text) for text in NETS]
    seen = ranges(nets)
    assert [unlike(net, seen) for net in nets] == [[], [], [], []]
    large = loads("arch l\ninput x: f32[N, 64]\noutput y: f32[N, 10]\ny = x -> linear(500) -> kan(9) -> linear(10)")
    said = " ".join(unlike(large, seen))
    assert "`kan`" in said
    assert "parameters" in said


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    out = tmp_path_factory.mktemp("ghn") / "tiny.safetensors"
    config = GhnTraining(**TINY, tasks=("digits",), steps=4, pool=4, judged=2, examples=50, nets=2)
    train(config, out, False, lambda line: None)
    assert not state_path(out).exists()
    return load(out, "ghn")


NET = """arch n
input x: f32[N, 1, 8, 8]
output y: f32[N, 10]
y = x -> conv(4, kernel = 3) -> batch_norm -> relu -> flatten -> linear(10)
"""


def test_a_prediction_says_where_it_comes_from(stored: Stored, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    found = archc.predict(archc.loads(NET), "digits", using=stored, out=out)
    weights = read_weights(out)
    told = json.loads(weights.metadata["archc.prediction"])
    assert told["model"] == "tiny"
    assert told["sha256"] == stored.sha256
    assert "calibrated" in told["statistics"]
    assert weights.arrays.keys() == archc.loads(NET).graph.parameters().keys()
    assert found.expected is not None
    assert (found.expected.nets, found.before) == (2, None)
    plain = archc.predict(archc.loads(NET), using=stored)
    assert "as initialised" in plain.provenance["statistics"]
    assert plain.expected is None
    assert (plain.weights.arrays["batch_norm.running_mean"] == 0).all()
    assert (weights.arrays["batch_norm.running_mean"] != 0).any()


def test_finetuning_trains_from_the_prediction(stored: Stored) -> None:
    found = archc.predict(archc.loads(NET), "digits", using=stored, finetune=60, lr=1e-2)
    assert found.before is not None
    assert found.after is not None
    assert found.after > found.before + 0.2


@pytest.mark.parametrize("spoil", ["nan", "missing", "shape", "card"])
def test_a_spoiled_model_is_refused(stored: Stored, spoil: str, tmp_path: Path) -> None:
    arrays = {name: np.array(array) for name, array in stored.arrays.items()}
    metadata = {"archc.metanet": stored.card.model_dump_json()}
    if spoil == "nan":
        arrays["decoder.index"][0, 0] = np.nan
    elif spoil == "missing":
        del arrays["decoder.index"]
    elif spoil == "shape":
        arrays["decoder.index"] = arrays["decoder.index"][:-1]
    else:
        metadata["archc.metanet"] = stored.card.model_copy(update={"config": {"hidden": -1}}).model_dump_json()
    write_weights(tmp_path / "m.safetensors", arrays, metadata)
    with pytest.raises(CompileError) as error:
        archc.predict(archc.loads(NET), using=tmp_path / "m.safetensors")
    assert error.value.diagnostics[0].code == "E0823"
    restore(stored)  # the sound one is taken


def test_mistakes_are_told(stored: Stored) -> None:
    def code(text: str, task: str | None, **more: int) -> str:
        with pytest.raises(CompileError) as error:
            archc.predict(archc.loads(text), task, using=stored, **more)
        return error.value.diagnostics[0].code

    assert code(NET, "wine") == "E0822"
    assert code(NET, None, finetune=3) == "E0825"
    assert code(NET.replace("8, 8", "9, 9"), "digits") == "E0615"
    assert code(NET.replace("linear(10)", "linear(3)").replace("[N, 10]", "[N, 3]"), "digits") == "E0616"


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """Gradients of two processes are added up: the model is that of one process, up to rounding, which Adam's first
    steps make visible where a gradient is next to nothing."""
    options = [f"{k}={v}" for k, v in TINY.items()] + ["tasks=[digits]", "steps=2", "pool=4", "nets=2", "judged=1"]
    arguments = [x for option in options for x in ("--option", option)]
    found = []
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc-per-node=2"])):
        out = tmp_path / f"{name}.safetensors"
        command = [sys.executable, *launcher, "-m", "archc", "metanet", "train", "ghn", "-o", str(out), *arguments]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=500)
        found.append(np.concatenate([a.ravel() for _, a in sorted(load(out).arrays.items())]))
    model = Ghn(GhnConfig(**TINY), ["digits"])
    begun = np.concatenate([t.numpy().ravel() for _, t in sorted(model.state_dict().items())])
    assert np.mean(np.abs(found[0] - begun) > 1e-5) > 0.1
    assert np.mean(np.abs(found[0] - found[1]) > 1e-5) < 0.01
