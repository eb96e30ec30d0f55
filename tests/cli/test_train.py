"""archc train: what it writes, and that Ctrl-C loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import archc as library
from archc.backends.weights import read_weights
from archc.facade.train import checkpoint_path

FAST = ("--epochs", 2, "--threads", 1, "--quiet")


def test_train_writes_weights_scores_and_pictures(archc, digits, tmp_path):
    out, report = tmp_path / "w.safetensors", tmp_path / "report"
    ran = archc("train", digits, "--task", "digits", "-o", out, "--report", report, *FAST)
    assert ran.code == 0
    assert not ran.err
    assert ran.out.startswith("test (300 examples): loss")
    assert sorted(p.name for p in report.iterdir()) == ["confusion.png", "curve.png", "gallery.png", "result.json"]
    assert not checkpoint_path(out).exists()
    artifact = library.compile(digits, weights=out, threads=1)
    assert artifact.manifest.preprocessing.labels == tuple("0123456789")


def test_training_goes_on_from_the_weights_of_a_transform(archc, tmp_path):
    """Gates are open at first, so the accuracy begins where it was; what they do is told, written and drawn."""
    net, first, gated, carried, out = (tmp_path / n for n in ("n.arch", "w", "g.arch", "c", "out"))
    head = "arch net()\ninput x: f32[N, 13]\noutput y: f32[N, 3]\n"
    net.write_text(head + "y = x -> linear(8) -> residual(linear(8) -> relu) -> linear(3)\n")
    task = ("--task", "wine", "--threads", 1, "--quiet")
    before = archc("train", net, *task, "-o", first, "--epochs", 30, "--json").json["test"]["metrics"]
    spec = ("--pass", "skip(cost = 0.5)", "--weights", first, "-o", gated, "--weights-out", carried)
    assert archc("transform", net, *spec).code == 0
    going = ("train", gated, *task, "--weights", carried, "-o", out, "--report", tmp_path / "report", "--lr")
    ran = archc(*going, 1e-9, "--epochs", 1)
    assert "gates open 1.0000" in ran.out
    assert f"accuracy {before['accuracy']:.4f}" in ran.out
    found = archc(*going, 0.02, "--epochs", 10, "--recipe", "keep=last", "--json").json
    assert found["test"]["stats"]["skip.open"] < 1
    assert [row["stats"]["val"]["skip.open"] for row in found["history"]][-1] < 1
    assert "routing.png" in {p.name for p in (tmp_path / "report").iterdir()}
    assert archc("train", gated, *task, "--weights", first, "-o", out).code == 1


def test_equal_runs_give_equal_files(archc, wine, tmp_path):
    runs = [("--seed", 1), ("--seed", 1), ("--seed", 2), ("--seed", 1, "--lr", 0.1)]
    files = [tmp_path / f"{i}.safetensors" for i in range(len(runs))]
    for flags, out in zip(runs, files, strict=True):
        found = archc("train", wine, "--task", "wine", "-o", out, "--json", *FAST, *flags)
        assert found.json["finished"] is True
        assert found.json["weights"] == str(out)
    one, same, *others = (f.read_bytes() for f in files)
    assert one == same
    assert one not in others


def test_progress_goes_to_stderr(archc, wine, tmp_path):
    options = ["--epochs", 2, "--recipe", "betas=[0.8, 0.95]", "--recipe", "clip=none"]
    ran = archc("train", wine, "--task", "wine", "-o", tmp_path / "w.safetensors", *options, "--json")
    assert "epoch 2:" in ran.err
    recipe = ran.json["recipe"]
    assert (recipe["epochs"], recipe["betas"], recipe["clip"]) == (2, [0.8, 0.95], None)


def test_resume_needs_a_checkpoint(archc, wine, tmp_path):
    ran = archc("train", wine, "--task", "wine", "-o", tmp_path / "w.safetensors", "--resume", *FAST)
    assert ran.code == 2
    assert "E0619" in ran.err


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_interrupt_and_resume(archc, wine, tmp_path):
    """Ctrl-C: 130, a checkpoint; --resume ends with the very weights of a run that nobody interrupted."""
    command = ["train", str(wine), "--task", "wine", "--epochs", "200", "--threads", "1"]
    out = tmp_path / "w.safetensors"
    run = [sys.executable, "-m", "archc", *command, "-o", str(out)]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 5:"):
            break
    process.send_signal(signal.SIGINT)
    said, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not said
    assert "--resume" in told
    assert "Traceback" not in told
    assert checkpoint_path(out).exists()
    assert not out.exists()

    assert archc(*command, "-o", out, "--resume", "--quiet").code == 0
    whole = tmp_path / "whole.safetensors"
    assert archc(*command, "-o", whole, "--quiet").code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert read_weights(out).arrays.keys() == {"linear.weight", "linear.bias", "linear1.weight", "linear1.bias"}


def test_interrupt_before_training(tmp_path: Path, wine):
    """Ctrl-C while torch is still being imported is no traceback either."""
    run = [sys.executable, "-m", "archc", "train", str(wine), "--task", "wine", "-o", str(tmp_path / "w.safetensors")]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(20):  # an import in C may swallow one
        time.sleep(1.0)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told


def test_a_trained_network_is_told_in_a_line_or_two(wine):
    trained = library.train(str(wine), "wine", epochs=2, threads=1)
    assert "epochs=2" in repr(trained)
    assert max(map(len, map(repr, (trained, trained.weights, trained.task)))) < 5000
