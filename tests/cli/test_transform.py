"""transform, passes, compile --pass, verify --same-function: as commands, on a network of two blocks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import archc as library
from archc.backends.artifact import read_manifest
from archc.backends.weights import read_weights, write_weights
from archc.metanet.symmetry import random_weights

SOURCE = """\
arch two()
input  x: f32[N, 8]
output y: f32[N, 8]
def ffn = linear(16) -> gelu -> linear(8)
def layer = residual(ffn)
y = x -> repeat(2) { layer }
"""


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.arch"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def weights(two: Path, tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    arrays = {n: a.astype(np.float32) for n, a in random_weights(library.load(two).graph, 3).items()}
    write_weights(path, arrays, {"archc.note": "kept"})
    return path


def test_the_program_goes_to_stdout_and_the_story_to_stderr(archc, two):
    ran = archc("transform", two, "--pass", "glu")
    assert ran.code == 0
    assert library.loads(ran.out).name == "two"
    assert ran.out.count("mul(") == 2
    assert "glu at layer.ffn.gelu, layer1.ffn.gelu" in ran.err
    assert "contract: exact in evaluation, exact in training" in ran.err
    assert "not checked" in ran.err


def test_weights_carry_over(archc, two, weights, tmp_path):
    new, moved = tmp_path / "new.arch", tmp_path / "w2.safetensors"
    ran = archc("transform", two, "--pass", "glu at layers 1", "--weights", weights, "--weights-out", moved, "-o", new)
    assert (ran.code, ran.out) == (0, "")
    assert "eval, f64: relative error" in ran.err
    assert "train, f64" in ran.err
    assert "not kept" not in ran.err
    lost = archc("transform", two, "--pass", "glu", "--weights", weights, "-o", tmp_path / "other.arch")
    assert "weights are not kept: `--weights-out`" in lost.err
    found = read_weights(moved)
    assert found.arrays.keys() == library.load(new).graph.parameters().keys()
    assert found.metadata["archc.note"] == "kept"
    same = ("--same-function", two, "--weights", weights)
    assert archc("verify", *same, new, "--new-weights", moved).code == 0
    spoilt = {**found.arrays, "layer1.ffn.up.bias": found.arrays["layer1.ffn.up.bias"] * np.float32(1.001)}
    write_weights(moved, spoilt)
    ran = archc("verify", *same, new, "--new-weights", moved)
    assert ran.code == 3
    assert "DIFFERENT" in ran.out
    assert archc("verify", *same, new, "--new-weights", moved, "--json").json[0]["ok"] is False


def test_a_dry_run_changes_nothing(archc, two, tmp_path):
    before = sorted(tmp_path.iterdir())
    ran = archc(
        "transform", two, "--pass", "glu", "--pass", "glu", "--pass", "cse", "--dry-run", "-o", tmp_path / "o.arch"
    )
    assert ran.code == 1  # the second finds nothing left
    assert "  at layer.ffn.gelu: layer.ffn.linear, layer.ffn.gelu, layer.ffn.linear1" in ran.out
    assert "not at layer.ffn.gelu: it needs a block without a gate" in ran.out
    assert sorted(tmp_path.iterdir()) == before
    first, second, _ = archc(
        "transform", two, "--pass", "glu", "--pass", "glu", "--pass", "cse", "--dry-run", "--json"
    ).json["passes"]
    assert [s["at"] for s in first["sites"]] == ["layer.ffn.gelu", "layer1.ffn.gelu"]
    assert second["refused"][0]["code"] == "E0403"


def test_a_diff_and_a_picture(archc, two, tmp_path):
    ran = archc("transform", two, "--pass", "glu", "--at", "layer1", "--diff", "--draw", tmp_path / "c.svg")
    assert ran.code == 0
    assert ran.out.startswith("--- two.arch\n+++ two.new.arch\n")
    assert "mul(" in "".join(line for line in ran.out.splitlines() if line.startswith("+"))
    picture = (tmp_path / "c.svg").read_text()
    assert "only before" in picture
    assert "s-added" in picture
    assert archc("transform", two, "--pass", "glu", "--draw", tmp_path / "c.gif").code == 2


def test_listings_after_each_pass(archc, two, tmp_path):
    specs = ("--pass", "glu", "--pass", "cse", "--pass", "glu at nowhere")
    ran = archc("transform", two, *specs, "--dump", tmp_path / "dumps")
    assert ran.code == 1
    assert "in pass `glu` after `glu`, `cse`" in ran.err
    assert sorted(p.name for p in (tmp_path / "dumps").iterdir()) == ["00-input.txt", "01-glu.txt"]


def test_nothing_is_lost_when_a_pass_cannot_be_applied(archc, two, weights, tmp_path):
    out, kept = tmp_path / "o.arch", weights.read_bytes()
    out.write_text("old")
    for spec, code in (
        ("glu(kind = reglu)", "E0403"),
        ("glu at nowhere", "E0402"),
        ("glu(kind = 3)", "E0205"),
        ("glu at a-b", "E0404"),
    ):
        ran = archc("transform", two, "--pass", spec, "--weights", weights, "-o", out)
        assert ran.code == 1
        assert f"error[{code}]" in ran.err
        assert "--> --pass" in ran.err or code != "E0205"
    assert out.read_text() == "old"
    assert archc("transform", two, "--pass", "glu", "--weights", weights, "--weights-out", weights).code == 2
    assert archc("transform", two, "--pass", "glu", "--weights-out", weights).code == 2
    assert weights.read_bytes() == kept
    wrong = tmp_path / "wrong.safetensors"
    write_weights(wrong, {"layer.ffn.linear.weight": np.zeros((16, 9), np.float32)})
    ran = archc("transform", two, "--pass", "glu", "--weights", wrong, "-o", out)
    assert (ran.code, out.read_text()) == (1, "old")
    assert "layer.ffn.linear.weight" in ran.err


def test_the_input_may_be_written_over(archc, two):
    assert archc("transform", two, "--pass", "glu", "-o", two).code == 0
    assert two.read_text().count("mul(") == 2


def test_data(archc, two, weights, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 8), np.float32))
    np.savez(tmp_path / "z.npz", z=np.zeros((3, 8), np.float32))
    common = ("transform", two, "--pass", "glu", "--weights", weights, "--data")
    assert archc(*common, tmp_path / "x.npy").code == 0
    ran = archc(*common, tmp_path / "z.npz")
    assert ran.code == 1
    assert "the data lack the input `x`" in ran.err
    assert archc(*common, tmp_path / "none.npz").code == 2


def test_compile_with_transforms(archc, two, weights, tmp_path):
    out = tmp_path / "glu.archc"
    ran = archc(
        "compile",
        two,
        "--weights",
        weights,
        "--pass",
        "glu at layers 1",
        "--pass",
        "fuse_branches",
        "-o",
        out,
        "--json",
    )
    assert ran.code == 0
    made = library.transform(two, "glu at layers 1", weights=weights)
    assert read_manifest(out).ir_hash == made.model.hash
    x = np.random.default_rng(0).standard_normal((3, 8), np.float32)
    np.testing.assert_allclose(
        library.load_artifact(out)(x), library.compile(two, weights=weights)(x), rtol=1e-5, atol=1e-5
    )
    assert archc("verify", out, "--weights", weights).code == 1  # these are the old ones
    write_weights(tmp_path / "w2.safetensors", made.weights)
    assert archc("verify", out, "--weights", tmp_path / "w2.safetensors").code == 0
    assert archc("compile", two, "--pass", "glu", "-o", out).code == 0
    assert archc("verify", out).code == 0


def test_passes_are_listed(archc):
    listed = {p["name"]: p for p in json.loads(archc("passes", "--json").out)}
    assert listed["glu"]["kind"] == "transform"
    assert listed["fold_batch_norm"]["variants"][0]["eval"] == "exact"
    page = archc("passes", "glu").out
    assert page.startswith("glu(")
    assert "arXiv" in page
    ran = archc("passes", "gluu")
    assert ran.code == 1
    assert "did you mean `glu`?" in ran.err


def test_formulas_are_read_off_edges(archc, tmp_path):
    net = tmp_path / "kan.arch"
    net.write_text('arch k()\ninput x: f32[N, 2]\noutput y: f32[N, 1]\ny = x -> kan(1, base = "tanh", noise = 0)\n')
    ran = archc("symbolic", net, "--top", 2, "--json")
    assert [row["formulas"][0]["symbol"] for row in ran.json] == ["tanh", "tanh"]
    assert all(row["formulas"][0]["r2"] > 0.999 > row["formulas"][1]["r2"] - 1 for row in ran.json)
    assert "tanh" in archc("symbolic", net).out
