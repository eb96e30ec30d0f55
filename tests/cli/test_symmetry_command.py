"""`archc symmetry`: what it tells, and that it fails when the certificate does."""

from __future__ import annotations

from pathlib import Path

import pytest

MOE = """arch small()
input x: f32[N, T, 4]
output y: f32[N, T, 2]
let h = x -> attention(2, head_dim = 2)
y = h -> moe(router = linear(3), experts = copies(3, linear(5) -> relu -> linear(2)), top_k = 2)
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.arch"
    file.write_text(MOE)
    return file


def test_everything_is_told(archc, small):
    ran = archc("symmetry", small)
    assert ran.code == 0
    for words in (
        "5!^3 · 4! · 3! · 2!^5",
        "moe moe (line 5)",
        "`y` is an output of the network (line 5)",
        "inert (no change of them moves the output, as computed): 1: h.attention.k_bias",
        "positive factors: 27 (4 queries and keys, 4 values, 19 layers)",
        "certified",
    ):
        assert words in ran.out, ran.out


def test_json(archc, small):
    ran = archc("symmetry", small, "--json")
    assert ran.code == 0
    told = ran.json
    assert told["order"]["factorials"] == {"5": 3, "4": 1, "3": 1, "2": 5}
    (exchange,) = told["exchanges"]
    assert (exchange["kind"], exchange["op"], exchange["line"], len(exchange["replicas"])) == ("experts", "moe", 5, 3)
    assert {p["line"] for p in told["pinned"]} == {2, 5}
    assert told["inert"] == ["h.attention.k_bias"]
    assert [s["kind"] for s in told["scaling"]] == ["positive", "sign"]
    assert all(s["ok"] for s in (told["certificate"], *told["scaling"]))


def test_a_failing_certificate_exits_with_3(archc, small, tmp_path):
    file = tmp_path / "infinite.arch"
    file.write_text("arch a()\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = (x -> linear(3) -> linear(2)) / 0.0\n")
    ran = archc("symmetry", file, "--json")
    assert ran.code == 3
    assert ran.json["certificate"]["ok"] is False
    assert ran.json["certificate"]["error"] is None, "JSON has no infinity"
