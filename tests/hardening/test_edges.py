"""The edges of what may be fed, through `archc run`: nothing, one step, odd sizes, denormals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archc.facade.model import loads

SEQUENCE = """\
arch sequence

input  x: f32[N, T, 5]
output y: f32[N, T, 7]

y = x -> layer_norm -> linear(9) -> gelu -> linear(7)
"""
IMAGE = """\
arch image

input  x: f32[N, 3, H, 5]
output y: f32[N, 4, H, 5]

y = x -> conv(4, 3, padding = 1) -> relu
"""
DOUBLE = """\
arch double

input  x: f32[N, 13]
output y: f32[N, 13]

y = x + x
"""


@pytest.fixture
def run(tmp_path: Path, archc):
    """The output of `archc run`, and of torch, for an input."""

    def call(artifact: Path, text: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        np.save(tmp_path / "x.npy", x)
        code, _, told = archc("run", artifact, "--input", tmp_path / "x.npy", "-o", tmp_path / "y.npy", "-q")
        assert code == 0, told
        with torch.no_grad():
            wanted: Any = loads(text).to_torch(None, 0).eval()(torch.from_numpy(x))
        return np.load(tmp_path / "y.npy"), wanted.numpy()

    return call


def test_any_size_of_sequence(compiled, run) -> None:
    artifact = compiled(SEQUENCE)
    for batch, steps in ((0, 3), (3, 0), (0, 0), (1, 1), (5, 1), (1, 17), (3, 63), (2, 257)):
        x = np.random.default_rng(0).standard_normal((batch, steps, 5), dtype=np.float32)
        ours, theirs = run(artifact, SEQUENCE, x)
        assert ours.shape == theirs.shape == (batch, steps, 7)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_any_size_of_image(compiled, run) -> None:
    artifact = compiled(IMAGE)
    for batch, height in ((0, 4), (1, 1), (2, 2), (1, 31), (3, 7)):
        x = np.random.default_rng(0).standard_normal((batch, 3, height, 5), dtype=np.float32)
        ours, theirs = run(artifact, IMAGE, x)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_denormal_infinite_and_missing_numbers(compiled, run) -> None:
    tiny = np.float32(2**-149)
    x = np.zeros((3, 13), np.float32)
    x[0] = np.arange(13) * tiny
    x[1, :6] = [np.inf, -np.inf, np.nan, 3e38, -0.0, np.finfo(np.float32).tiny]
    ours, theirs = run(compiled(DOUBLE), DOUBLE, x)
    np.testing.assert_array_equal(ours, theirs)
    assert ours[0, 1] == 2 * tiny > 0, "not flushed to zero"
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(theirs))
    assert np.isnan(ours[1, 2])


def test_a_batch_of_nothing_is_told(compiled, archc, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((0, 13), np.float32))
    code, told, _ = archc("run", compiled(DOUBLE), "--input", tmp_path / "x.npy")
    assert (code, told) == (0, "y: float32[0, 13] (nothing)\n")
    code, told, _ = archc("run", compiled(DOUBLE), "--input", tmp_path / "x.npy", "--json")
    assert code == 0
    assert '"values": []' in told
