"""`archc sample`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SPACE = """\
space small(most = 64)

input  x: f32[N, 13]
output logits: f32[N, 3]

rule Layer = linear(range(8, most, step = 8)) -> choose { relu | tanh }
logits = x -> Layer -> Layer -> linear(3)
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "small.arch"
    path.write_text(SPACE)
    return path


def test_files_and_their_traces(archc, space, tmp_path):
    ran = archc("sample", space, "-n", "3", "--seed", "7", "-o", tmp_path / "drawn")
    assert ran.code == 0
    assert "3 architectures of `small`" in ran.out
    names = [f"small_7_0000{i}" for i in range(3)]
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == [
        f"{n}{s}" for n in names for s in (".arch", ".json")
    ]
    for name in names:
        assert archc("check", tmp_path / "drawn" / f"{name}.arch").code == 0
        trace = json.loads((tmp_path / "drawn" / f"{name}.json").read_text())
        assert set(trace) == {f"Layer{n}{c}" for n in ("", "#1") for c in ("", ":0/range", ":0/choose")}
        assert f"linear({trace['Layer:0/range']}," in (tmp_path / "drawn" / f"{name}.arch").read_text()


def test_a_number_is_one_architecture(archc, space, tmp_path):
    archc("sample", space, "-n", "3", "-o", tmp_path / "drawn")
    text = (tmp_path / "drawn" / "small_0_00002.arch").read_text()
    assert archc("sample", space, "--first", "2").out == text
    assert archc("sample", space, "--first", "1").out != text
    trace = tmp_path / "drawn" / "small_0_00002.json"
    assert archc("sample", space, "--seed", "5", "--trace", trace).out == text
    narrow = archc("sample", space, "-n", "20", "--set", "most=8", "--json").json
    assert {a["trace"]["Layer:0/range"] for a in narrow["architectures"]} == {8}


def test_what_came_before_is_left_out(archc, space, tmp_path):
    every = archc("sample", space, "-n", "12", "--set", "most=16", "--json").json["architectures"]
    once = archc("sample", space, "-n", "12", "--set", "most=16", "--unique", "--json").json["architectures"]
    assert len(every) == 12
    assert [a["hash"] for a in once] == list(dict.fromkeys(a["hash"] for a in every))
    assert len(once) < 12
    ran = archc("sample", space, "-n", "12", "--set", "most=16", "--unique", "-o", tmp_path / "once")
    assert f"{12 - len(once)} of 12 came twice or more and were left out" in ran.out


def test_a_part_of_a_trace_is_kept(archc, space, tmp_path):
    part = tmp_path / "part.json"
    part.write_text('{"Layer:0/range": 24}')
    found = archc("sample", space, "-n", "6", "--trace", part, "--json").json["architectures"]
    assert {a["trace"]["Layer:0/range"] for a in found} == {24}
    assert len({a["trace"]["Layer#1:0/range"] for a in found}) > 1


@pytest.mark.parametrize("text", ["[1]", '{"Layer": "relu"}', '{"Layer": true}', "{"])
def test_what_is_no_trace(archc, space, tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    ran = archc("sample", space, "--trace", path)
    assert (ran.code, "E0708" in ran.err) == (1, True)


def test_mistakes(archc, space, wine, tmp_path):
    assert "E0707" in archc("sample", wine).err
    assert "E0028" in archc("sample", space, "-n", "2").err
    ran = archc("sample", space, "--set", "most=4")
    assert ran.code == 1
    assert "E0705" in ran.err
    assert "E0205: `range` needs its smaller end first" in ran.err
    file = tmp_path / "file"
    file.write_text("")
    assert "E0608" in archc("sample", space, "-o", file / "below").err
