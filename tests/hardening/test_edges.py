"""The edges of what may be fed, through `archc run`: nothing, one step, odd sizes, denormals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archc.backends.runtime import load
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


ILL = """\
arch ill

input  shifted: f32[N, 64]
input  wide: f32[N, 64]
input  tiny: f32[N, 64]
input  huge: f32[N, 64]
input  image: f32[N, 4, 5, 5]
input  q: f32[N, 2, 8, 4]
output normed: f32[N, 64]
output spread: f32[N]
output average: f32[N]
output shares: f32[N, 64]
output logs: f32[N, 64]
output small: f32[N, 64]
output large: f32[N, 64]
output groups: f32[N, 4, 5, 5]
output attended: f32[N, 2, 8, 4]
normed = shifted -> layer_norm
spread = shifted -> var(1)
average = shifted -> mean(1)
shares = wide -> softmax(axis = 1)
logs = wide -> log_softmax(axis = 1)
small = tiny -> rms_norm
large = huge -> rms_norm
groups = image -> group_norm(2)
attended = scaled_dot_product(q, q, q)
"""
FACTOR = 4
"""Errors of compiled code, in those of torch at the same precision: both round, in other orders."""


def test_ill_conditioned_inputs_cost_no_more_than_in_torch(compiled) -> None:
    """A large mean with a small spread, logits of ±10⁴, 10⁻¹⁵ and 10¹⁵, keys that hardly differ: against torch in f64,
    by the error that torch itself makes in f32, which measures the conditioning."""
    import torch

    from archc.backends.runtime import load

    rng = np.random.default_rng(0)
    draw = rng.standard_normal
    inputs = {
        "shifted": 1e4 + draw((5, 64)),
        "wide": 1e4 * draw((5, 64)),
        "tiny": 1e-15 * draw((5, 64)),
        "huge": 1e15 * draw((5, 64)),
        "image": 1e4 + draw((5, 4, 5, 5)),
        "q": 30 * (1 + 1e-3 * draw((5, 2, 8, 4))),
    }
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    ours = load(compiled(ILL)).run(inputs)
    module = loads(ILL).to_torch(None, 0).eval()
    with torch.no_grad():
        single = module(*map(torch.from_numpy, inputs.values()))
        double = module.double()(*(torch.from_numpy(a).double() for a in inputs.values()))
    bounds = {}
    for (name, found), rough, exact in zip(ours.items(), single, double, strict=True):
        wanted, scale = exact.numpy(), np.abs(exact.numpy()).max()
        assert np.isfinite(found).all() == np.isfinite(wanted).all() == True, name  # noqa: E712
        bounds[name] = FACTOR * np.abs(rough.numpy() - wanted).max() + 8 * np.finfo(np.float32).eps * scale
        assert np.abs(found - wanted).max() <= bounds[name], name
    x = inputs["shifted"]
    naive = np.mean(x * x, 1) - np.mean(x, 1) ** 2
    assert np.abs(naive - double[1].numpy()).max() > bounds["spread"], "the control: E[x²] - E[x]² would be seen"


MIXED = "arch mixed\ninput a: {}[N, 4]\ninput b: {}[N, 4]\noutput y: {}[N, 4]\ny = a {} b\n"


@pytest.mark.parametrize(
    ("a", "b", "sign", "code"),
    [
        ("f32", "f64", "+", "E0304"),
        ("i64", "f32", "*", "E0304"),
        ("i64", "i32", "-", "E0304"),
        ("f16", "bf16", "+", "E0304"),
        ("bool", "bool", "+", "E0304"),
        ("bool", "f32", "*", "E0304"),
    ],
)
def test_dtypes_do_not_mix_in_a_program(a: str, b: str, sign: str, code: str) -> None:
    from archc.grammar.load import check_text

    assert code in [d.code for d in check_text(MIXED.format(a, b, b, sign))]
    if a != "bool":
        assert check_text(MIXED.format(a, a, a, sign)) == ()


def test_a_shape_or_dtype_that_does_not_fit_is_told(compiled, archc, tmp_path: Path) -> None:
    artifact = compiled(DOUBLE)
    for array, code in (
        (np.zeros((2, 13), np.float64), "E0521"),
        (np.zeros((2, 13), np.int32), "E0521"),
        (np.zeros((2, 13), bool), "E0521"),
        (np.zeros((2, 12), np.float32), "E0522"),
        (np.zeros(13, np.float32), "E0522"),
        (np.zeros((2, 13, 1), np.float32), "E0522"),
        (np.zeros((), np.float32), "E0522"),
    ):
        np.save(tmp_path / "x.npy", array)
        ended, _, told = archc("run", artifact, "--input", tmp_path / "x.npy")
        assert (ended, code in told) == (1, True), told


NOTHING = """\
arch nothing

input  x: f32[0, 3]
input  z: f32[0, 4, 6, 6]
input  t: f32[0, 5, 8]
output y: f32[0, 3]
output w: f32[0, 6, 6, 6]
output a: f32[0, 5, 8]
output s: f32[0, 4, 3, 3]

y = x -> linear(3) -> relu
w = z -> conv(6, 3, padding = 1) -> batch_norm -> relu
a = t -> attention(2) -> layer_norm -> linear(16) -> gelu -> linear(8) -> softmax(-1)
s = z -> max_pool(2)
"""


def test_a_declared_size_of_nothing(compiled) -> None:
    """Sizes that are 0 when the network is compiled, not only when it runs."""
    shapes = ((0, 3), (0, 4, 6, 6), (0, 5, 8))
    with load(compiled(NOTHING)) as artifact:
        found = artifact(*(np.zeros(shape, np.float32) for shape in shapes))
    assert [y.shape for y in found] == [(0, 3), (0, 6, 6, 6), (0, 5, 8), (0, 4, 3, 3)]
