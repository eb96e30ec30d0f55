"""`archc graph`: counts, files that need no unpickling, pictures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from archc.backends.weights import read_weights, write_weights

NET = """\
arch net()

input  x: f32[N, 4]
output y: f32[N, 3]

let h = x -> linear(6) -> relu
y = h + (h -> layer_norm -> linear(6) -> silu) -> linear(3)
"""
ELEMENTS = 4 * 6 + 6 + 12 + 36 + 6 + 18 + 3


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.arch"
    path.write_text(NET)
    return path


@pytest.mark.parametrize("level", ["tensor", "neuron"])
def test_counts(archc, net: Path, level: str) -> None:
    found = archc("graph", net, "--level", level, "--json").json
    assert (found["parameters"], found["elements"]) == (8, ELEMENTS)
    assert found["nodes"] == sum(found["nodes_by_kind"].values())
    assert found["edges"] == sum(found["edges_by_type"].values())
    assert f"8 parameters of {ELEMENTS} elements" in archc("graph", net, "--level", level).out


def test_a_file_holds_arrays_and_says_what_they_are(archc, net: Path, tmp_path: Path) -> None:
    import torch

    out, plain = tmp_path / "g.safetensors", tmp_path / "g.pt"
    archc("graph", net, "--level", "neuron", "-o", out)
    archc("graph", net, "--level", "neuron", "-o", plain)
    stored = read_weights(out)
    layout = json.loads(stored.metadata["archc.graph"])
    assert layout["level"] == "neuron"
    assert layout["names"][0] == "h.linear.weight"
    assert stored.arrays["offsets"][-1] == ELEMENTS
    tensors = torch.load(plain, weights_only=True)  # plain data: nothing is unpickled that could run
    assert json.loads(tensors.pop("layout")) == layout
    assert all(np.array_equal(tensors[name].numpy(), array) for name, array in stored.arrays.items())


@pytest.mark.parametrize(
    ("level", "suffix"), [("tensor", "svg"), ("neuron", "svg"), ("tensor", "html"), ("neuron", "png")]
)
def test_pictures(archc, net: Path, tmp_path: Path, level: str, suffix: str) -> None:
    out = tmp_path / f"g.{suffix}"
    assert archc("graph", net, "--level", level, "-o", out).code == 0
    data = out.read_bytes()
    if suffix == "png":
        assert data.startswith(b"\x89PNG")
        return
    text = data.decode()
    assert "layer_norm" in text
    assert text.count("linear.bias") >= (0 if level == "tensor" else 15)


def test_weights_give_their_values(archc, net: Path, tmp_path: Path) -> None:
    from archc.facade.model import load

    weights = {n: np.full(p.shape, 0.25, np.float32) for n, p in load(net).graph.parameters().items()}
    write_weights(tmp_path / "w.safetensors", weights)
    out = tmp_path / "g.safetensors"
    archc("graph", net, "--level", "neuron", "--weights", tmp_path / "w.safetensors", "-o", out)
    stored = read_weights(out).arrays
    assert (stored["edge_attr"][stored["edge_mark"] == 0, 0] == 0.25).all()
    weights["linear.weight"] = np.full_like(weights["linear.weight"], np.nan)
    write_weights(tmp_path / "nan.safetensors", weights)
    ran = archc("graph", net, "--level", "neuron", "--weights", tmp_path / "nan.safetensors", "-o", tmp_path / "x.pt")
    assert ran.code == 1
    assert "E0812" in ran.err
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["--level", "layer"], "E0814", 2),
        (["-o", "g.pdf"], "E0022", 2),
        (["--level", "neuron", "--max-edges", "50"], "E0811", 1),
    ],
)
def test_what_is_refused(archc, net: Path, arguments: list[str], code: str, exit_code: int) -> None:
    ran = archc("graph", net, *arguments)
    assert (ran.code, code in ran.err) == (exit_code, True)


def test_a_picture_of_too_many_edges_is_refused(archc, tmp_path: Path) -> None:
    path = tmp_path / "wide.arch"
    path.write_text("arch wide()\ninput x: f32[N, 64]\noutput y: f32[N, 64]\ny = x -> linear(64)\n")
    ran = archc("graph", path, "--level", "neuron", "-o", tmp_path / "wide.svg")
    assert (ran.code, "E0813" in ran.err, (tmp_path / "wide.svg").exists()) == (1, True, False)
