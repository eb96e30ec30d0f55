"""archc merge: the table, the files, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from archc.backends.weights import read_weights, write_weights

FAST = ("--epochs", 4, "--threads", 1, "--quiet")


@pytest.fixture
def pair(archc, digits, tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for seed, file in enumerate(files):
        assert archc("train", digits, "--task", "digits", "-o", file, "--seed", seed, *FAST).code == 0
    return files


def test_a_merge_is_measured_drawn_and_usable(archc, digits, pair, tmp_path):
    out, plot = tmp_path / "c.safetensors", tmp_path / "c.svg"
    ran = archc(
        "merge", *pair, "--arch", digits, "--data", "digits", "-o", out, "--plot", plot, "--points", 3, "--json"
    )
    assert ran.code == 0
    told = ran.json
    assert list(told["scores"]) == ["A", "B", "naive average", "aligned", "aligned, repaired"]
    assert told["scores"]["aligned"]["loss"] < told["scores"]["naive average"]["loss"]
    assert told["matches"][0]["error"] < 1e-12 * told["matches"][0]["conditioning"]
    assert told["lines"]["aligned"]["metrics"][0] == told["scores"]["A"]
    assert plot.read_text().startswith("<?xml")
    merged = read_weights(out)
    assert json.loads(merged.metadata["archc.merge"])["method"] == "activations"
    assert "archc.preprocessing" in merged.metadata
    assert archc("verify", digits, "--weights", out, "--quiet").code == 0


def test_without_data_weights_alone_are_matched(archc, digits, pair, tmp_path):
    out = tmp_path / "c.safetensors"
    ran = archc("merge", *pair, "--arch", digits, "-o", out)
    assert ran.code == 0
    assert "nothing was measured" in ran.err
    assert ran.out == f"weights: {out}\n"
    at_a = tmp_path / "a2.safetensors"
    assert archc("merge", *pair, "--arch", digits, "-o", at_a, "--alpha", 0).code == 0
    a = read_weights(pair[0]).arrays
    assert all(np.array_equal(w, a[n]) for n, w in read_weights(at_a).arrays.items())


def test_three_networks(archc, digits, pair, tmp_path):
    out = tmp_path / "c.safetensors"
    ran = archc("merge", *pair, pair[0], "--arch", digits, "--data", "digits", "-o", out, "--json")
    assert ran.code == 0
    assert list(ran.json["scores"])[:3] == ["A", "B", "C"]
    assert not ran.json["lines"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--plot", "c.svg"), "E0028"),
        (("--method", "magic"), "E0028"),
        (("--method", "activations"), "E0028"),
        (("--data", "nothing"), "E0610"),
        (("--data", "wine"), "E0615"),
        (("--data", "digits", "--plot", "c.txt"), "E0022"),
    ],
)
def test_bad_options(archc, digits, pair, tmp_path, options, code):
    out = tmp_path / "c.safetensors"
    ran = archc("merge", *pair, "--arch", digits, "-o", out, *options)
    assert ran.code
    assert f"error[{code}]" in ran.err
    assert not out.exists()


def test_bad_weights(archc, digits, wine, pair, tmp_path):
    out, broken = tmp_path / "c.safetensors", tmp_path / "broken.safetensors"
    arrays = {n: w.copy() for n, w in read_weights(pair[1]).arrays.items()}
    arrays["linear.weight"][0, :3] = np.nan
    write_weights(broken, arrays)
    for files, arch, code in (
        ((pair[0], broken), digits, "E0840"),
        (pair, wine, "E0605"),
        ((pair[0], tmp_path / "none"), digits, "E0601"),
        (pair[:1], digits, "E0028"),
    ):
        ran = archc("merge", *files, "--arch", arch, "-o", out)
        assert ran.code
        assert f"error[{code}]" in ran.err
        assert not out.exists()
    ran = archc("merge", *pair, "--arch", digits, "-o", pair[0])
    assert "E0029" in ran.err
