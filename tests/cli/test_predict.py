"""`archc predict`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archc.backends.weights import read_weights
from archc.metanet.ghn.kind import GhnTraining, train

NET = """arch n
input x: f32[N, 1, 8, 8]
output y: f32[N, 10]
y = x -> conv(4, kernel = 3) -> batch_norm -> relu -> flatten -> linear(10)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ghn") / "tiny.safetensors"
    tiny = {"hidden": 16, "rank": 16, "width": 16, "mix": 8, "rounds": 1, "turns": 2}
    config = GhnTraining(**tiny, tasks=("digits",), steps=2, pool=2, judged=2, examples=50, nets=2)
    train(config, out, False, lambda line: None)
    return out


@pytest.fixture
def net(tmp_path: Path) -> Path:
    file = tmp_path / "n.arch"
    file.write_text(NET)
    return file


def test_weights_come_with_what_to_expect_of_them(archc, net, model, tmp_path):
    out = tmp_path / "w.safetensors"
    ran = archc("predict", net, "--task", "digits", "--model", model, "-o", out)
    assert ran.code == 0
    assert "statistics of norms: calibrated on 512 training examples of digits" in ran.out
    assert "expected accuracy on digits: 0." in ran.out
    assert "unseen nets" in ran.out
    assert "warning[E0826]" in ran.err  # two nets of training have seen little
    weights = read_weights(out)
    assert json.loads(weights.metadata["archc.prediction"])["task"] == "digits"
    assert "archc.preprocessing" in weights.metadata
    assert archc("verify", net, "--weights", out, "--quiet").code == 0


def test_without_a_task_nothing_is_calibrated_and_it_says_so(archc, net, model, tmp_path):
    ran = archc("predict", net, "--model", model, "-o", tmp_path / "w.safetensors", "--json")
    assert ran.code == 0
    assert ran.json["statistics"].startswith("as initialised")
    assert ran.json["expected"] is None


def test_finetuning_reports_before_and_after(archc, net, model, tmp_path):
    out = tmp_path / "w.safetensors"
    ran = archc("predict", net, "--task", "digits", "--model", model, "-o", out, "--finetune", 30, "--json")
    assert ran.code == 0
    assert ran.json["after"] > ran.json["before"]
    assert json.loads(read_weights(out).metadata["archc.prediction"])["finetuned"] == 30


def test_what_is_refused_writes_nothing(archc, net, model, tmp_path):
    out = tmp_path / "w.safetensors"
    for arguments, code in (
        (("--task", "wine", "--model", model), "E0822"),
        (("--model", "ghn-smal"), "E0801"),
        (("--model", net), "E0602"),
        (("--finetune", 3, "--model", model), "E0825"),
    ):
        ran = archc("predict", net, *arguments, "-o", out)
        assert ran.code == 1, ran.err
        assert code in ran.err
        assert not out.exists()


def test_training_goes_on_after_an_interruption(archc, tmp_path):
    tiny = ["hidden=8", "rank=8", "width=8", "mix=4", "rounds=1", "pool=2", "judged=1", "examples=20", "nets=1"]
    options = [x for o in [*tiny, "tasks=[digits]", "steps=2"] for x in ("--option", o)]
    out = tmp_path / "m.safetensors"
    ran = archc("metanet", "train", "ghn", "-o", out, *options, "--resume", "--json")
    assert ran.code == 0
    assert ran.json["trained"]["steps"] == 2
    assert "digits/test" in ran.json["figures"]
    assert archc("metanet", "eval", out, "--option", "judged=1", "--json").json.keys() == ran.json["figures"].keys()
    assert "E0804" in archc("metanet", "train", "ghn", "-o", out).err
