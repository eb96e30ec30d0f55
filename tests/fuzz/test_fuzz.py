"""Damaged and hostile programs: a diagnostic or a graph, never another exception, and soon.

A hundred thousand damaged ones are tried by `benchmarks/fuzz.py`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import mutate
import pytest
from mutate import limited, mutant, outcome

from archc.grammar.load import check, load
from archc.ir.diagnostics import CompileError

CHUNK, CHUNKS = 250, 12


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_damaged_programs(chunk: int, tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    for index in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        result, _ = outcome(mutant(0, index), tmp_path)
        assert not result.startswith("BUG"), f"mutant {index} of {mutant(0, index).origin}: {result}"
        found[result] += 1
    assert len(found) > 10, found  # graphs, and errors of many kinds
    assert found["graph"] > 0


def test_an_exception_that_is_no_diagnostic_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("width")

    monkeypatch.setattr(mutate, "load", broken)
    assert outcome(mutate.Mutant(0, 0, "", b"y = 1"), tmp_path)[0].startswith("BUG: KeyError")


def test_what_takes_too_long_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(*_: object, **__: object) -> None:
        end = time.process_time() + 5
        while time.process_time() < end:
            pass

    monkeypatch.setattr(mutate, "SECONDS", 0.05)
    monkeypatch.setattr(mutate, "load", spin)
    assert "more than" in outcome(mutate.Mutant(0, 0, "", b"y = 1"), tmp_path)[0]


HEAD = "arch a\ninput x: f32[N, 4]\noutput y: f32[N, 4]\n"
DEEP = 1_000_000


def doubling(depth: int) -> str:
    """A template that doubles at each step: 2^depth nodes from a few lines."""
    lines = ["def d0 = relu"] + [f"def d{i} = d{i - 1} -> d{i - 1}" for i in range(1, depth)]
    return HEAD + "\n".join(lines) + f"\ny = x -> d{depth - 1}\n"


HOSTILE = {
    **{f"a million of {unit!r}": (HEAD + "y = x -> f" + unit * DEEP, {"E0005"}) for unit in "(["},
    "a million of '{'": (HEAD + "y = x -> f" + "{" * DEEP, {"E0005", "E0101"}),
    "a million minus signs": (HEAD + "y = " + "-" * DEEP + "x", {"E0005", "E0101"}),
    "a million nots": (HEAD + "y = " + "not " * DEEP + "x", {"E0005"}),
    **{
        f"a million lines of {unit!r} after {word!r}": (
            HEAD + f"y = {word}" + unit * DEEP,
            {"E0101", "E0111", "E0201", "E0331"},
        )
        for word in ("true", "if", "choose", "x ->")
        for unit in ("\n", "#\n")
    },
    "two million names in one": (HEAD + "y = x -> f" + ".a" * DEEP, {"E0201"}),
    "a million digits": (HEAD + "y = x -> linear(" + "1" * DEEP + ")", {"E0107"}),
    "a million digits and a letter": (HEAD + ("y = " + "1" * 50_000 + "_\n") * 20, {"E0107"}),
    "a number beyond all": (HEAD + "y = x -> linear(1e999999999)", {"E0107"}),
    "a million words that are no statement": (HEAD + "y = x\n" + "x\n" * DEEP, {"E0114"}),
    "more tokens than one reads": (HEAD + "y = x" + " -> relu" * 1_500_000, {"E0004"}),
    "numbers that square": (
        HEAD + f"let a0 = {'9' * 99}\n" + "".join(f"let a{i + 1} = a{i} * a{i}\n" for i in range(60)) + "y = x\n",
        {"E0334"},
    ),
    "dimensions that square": (
        "arch a\ninput x: f32[N, M, 4]\noutput y: f32[N, M, 4]\nlet a0 = N + M\n"
        + "".join(f"let a{i + 1} = a{i} * a{i}\n" for i in range(30))
        + "y = x\n",
        {"E0334"},
    ),
    "a list of lists that doubles": (
        HEAD + "let a0 = [1]\n" + "".join(f"let a{i + 1} = [a{i}, a{i}]\n" for i in range(60)) + "y = x\n",
        {"E0009"},
    ),
    "tensors fed together that double": (
        HEAD + "let a0 = (x, x)\n" + "".join(f"let a{i + 1} = (a{i}, a{i})\n" for i in range(60)) + "y = x\n",
        {"E0009"},
    ),
    "an axis too many": (HEAD + f"y = x -> reshape([N, {'1, ' * 5000}4])\n", {"E0316"}),
    "thousands of axes": (f"arch a\ninput x: f32[{'1, ' * 9000}1]\noutput y: f32[1]\ny = x -> mean\n", {"E0316"}),
    "two thousand unknown names": (HEAD + "".join(f"let a{i} = b{i}\n" for i in range(2000)) + "y = x\n", {"E0201"}),
    "a circle of ten thousand": (
        HEAD + "".join(f"def a{i} = a{(i + 1) % 10_000}\n" for i in range(10_000)) + "y = x -> a0\n",
        {"E0203"},
    ),
    "a million wrong escapes": (HEAD + 'y = x -> linear(4, name = "' + "\\q" * DEEP + '")\n', {"E0106"}),
    "a million calls of calls": (HEAD + "y = f" + "(1)" * DEEP, {"E0005"}),
    "a huge repeat": (HEAD + "y = x -> repeat(1000000000000) { relu }\n", {"E0007"}),
    "a huge repeat in a repeat": (HEAD + "y = x -> repeat(90000) { repeat(90000) { relu } }\n", {"E0008"}),
    "many copies": (HEAD + 'y = x -> branch(1000000000, relu, merge = "add")\n', {"E0007"}),
    "a template that doubles": (doubling(60), {"E0008"}),
    "definitions in a circle": (
        HEAD + "def p = q\ndef q = p\ny = x -> p\n",
        {"E0203", "E0204", "E0205", "E0206", "E0207"},
    ),
    "a definition of itself": (HEAD + "def p = relu -> p\ny = x -> p\n", {"E0203", "E0204", "E0205", "E0206", "E0207"}),
    "a huge tensor": (HEAD + "y = x -> linear(99999999999999999999) -> linear(4)\n", set()),
    "a huge power": (
        HEAD + "let n = 9 * 9\ny = x -> linear(n * " + " * ".join(["999999999"] * 200) + ") -> linear(4)\n",
        set(),
    ),
    "a division by zero": (HEAD + "y = x -> linear(4 // 0)\n", set()),
    "a long name": (HEAD + "y = x -> " + "a" * DEEP + "\n", {"E0201"}),
    "a long string": (HEAD + 'y = x -> linear(4, name = "' + "a" * DEEP + '")\n', set()),
    "a long line of arrows": (HEAD + "y = x" + " -> relu" * 10_000 + "\n", set()),
    "a long sum": (HEAD + "y = x" + " + x" * 10_000 + "\n", set()),
    "circles of shares": (HEAD + "share a = b\nshare b = a\ny = x -> a\n", {"E0203"}),
    "a path that leads outside": (HEAD + 'import "../secret.arch" (block)\n' + "y = x -> block\n", {"E0010"}),
    "an absolute path": (HEAD + 'import "/etc/passwd" (block)\n' + "y = x -> block\n", {"E0010"}),
    "a NUL in a path": (HEAD + 'import "a\\0b" (block)\n' + "y = x\n", set()),
    "a NUL": (HEAD + "y = x\0\n", {"E0003"}),
    "text that reads otherwise than it is": (HEAD + "y = x # \u202e relu\n", {"E0003"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts(name: str, tmp_path: Path) -> None:
    text, codes = HOSTILE[name]
    path = tmp_path / "m.arch"
    path.write_text(text, encoding="utf-8")
    begin = time.process_time()
    with limited(60.0):
        found = [d.code for d in check(path) if d.severity == "error"]
        try:
            load(path)
        except CompileError as e:
            found += [d.code for d in e.diagnostics]
    # two readings of the file, each less than a second of a quiet core, which a busy one may take four for; long
    # programs that are right may take the time that their nodes need
    assert time.process_time() - begin < (4.0 if codes else 10.0)
    if codes:
        assert codes & set(found), found


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xfe" + HEAD.encode("utf-16-le"), "E0003"),
        (HEAD.encode() + b"y = x \xc3\x28\n", "E0003"),
        (b"\x00" * 1000, "E0003"),
        (b"", None),
        (b"\xef\xbb\xbf" + HEAD.encode() + b"y = x -> relu\n", ""),
        (HEAD.replace("\n", "\r\n").encode() + b"y = x -> relu\r\n", ""),
        (HEAD.replace("\n", "\r").encode() + b"y = x -> relu\r", ""),
    ],
)
def test_hostile_bytes(data: bytes, code: str | None, tmp_path: Path) -> None:
    path = tmp_path / "m.arch"
    path.write_bytes(data)
    found = [d.code for d in check(path)]
    if code is None:  # whatever it is called, it is an error
        with pytest.raises(CompileError):
            load(path)
    elif code:
        assert found == [code]
    else:
        assert found == []
        assert [n.op.name for n in load(path).nodes] == ["relu"]


@pytest.mark.parametrize("count", [99, 100, 101, 3000])
def test_a_hundred_mistakes_are_told(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the last of them says that there are more."""
    from archc.cli.main import run

    path = tmp_path / "m.arch"
    path.write_text(HEAD + "".join(f"let a{i} = b{i}\n" for i in range(count)) + "y = x\n", encoding="utf-8")
    found = check(path)
    assert len(found) == min(count, 100)
    assert [bool(d.notes) for d in found] == [False] * (len(found) - 1) + [count > 100]
    assert run(["check", str(path)]) == 1
    told = capsys.readouterr().err
    assert told.count("error[E0201]") == len(found)
    assert told.count("there are more mistakes than these") == (count > 100)


def test_messages_fit_a_screen_and_obey_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from archc.cli.main import run

    path = tmp_path / "m.arch"
    for text in (
        HEAD + "y = x -> " + "a" * DEEP,
        HEAD + "y = " + " " * DEEP + "x -> b",
        HEAD + "y = x\0\x1b[2J\u202e",
        HEAD + "y = x -> linear(\x1b]0;title\x07)",
        HEAD + 'y = x -> linear("' + "é" * DEEP + '")',
    ):
        path.write_text(text, encoding="utf-8")
        assert run(["check", str(path)]) == 1
        told = capsys.readouterr().err
        assert max(map(len, told.split("\n"))) < 2500
        assert not set(told) & set("\0\x1b\x07\u202e")
    name = tmp_path / "a\x1b[2J.arch"
    name.write_text("y", encoding="utf-8")
    assert run(["check", str(name)]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_a_huge_file_is_not_read_for_its_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from archc.cli.main import run

    with (tmp_path / "big.arch").open("wb") as file:
        file.truncate(5_000_000_000)
    begin = time.process_time()
    for command in ("check", "fmt", "hash"):
        assert run([command, str(tmp_path / "big.arch")]) == 1
        assert "error[E0002]" in capsys.readouterr().err
    assert time.process_time() - begin < 3


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.arch")
    with (tmp_path / "big.arch").open("wb") as file:
        file.truncate(5_000_000_000)
    (tmp_path / "folder.arch").mkdir()
    (tmp_path / "dangling.arch").symlink_to(tmp_path / "nowhere.arch")
    (tmp_path / "self.arch").symlink_to(tmp_path / "self.arch")
    begin = time.process_time()
    for name, code in (
        ("pipe", "E0001"),
        ("big", "E0002"),
        ("folder", "E0001"),
        ("dangling", "E0001"),
        ("self", "E0001"),
        ("missing", "E0001"),
    ):
        with pytest.raises(CompileError) as caught:
            load(tmp_path / f"{name}.arch")
        assert caught.value.diagnostics[0].code == code, name
        assert [d.code for d in check(tmp_path / f"{name}.arch")] == [code]
    assert time.process_time() - begin < 1


def test_hostile_imports(tmp_path: Path) -> None:
    program = HEAD + 'import "{}.arch" (block)\n' + "y = x -> block\n"
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret.arch").write_text("def block = relu\n")
    (tmp_path / "inner" / "link.arch").symlink_to(tmp_path / "secret.arch")
    (tmp_path / "inner" / "a.arch").write_text('import "b.arch" (block)\n')
    (tmp_path / "inner" / "b.arch").write_text('import "a.arch" (block)\n')
    (tmp_path / "inner" / "me.arch").write_text('import "me.arch" (block)\n')
    os.mkfifo(tmp_path / "inner" / "pipe.arch")
    for name, code in (("link", "E0010"), ("a", "E0011"), ("me", "E0011"), ("pipe", "E0001"), ("../secret", "E0010")):
        main = tmp_path / "inner" / "main.arch"
        main.write_text(program.format(name))
        with pytest.raises(CompileError) as caught:
            load(main)
        assert code in [d.code for d in caught.value.diagnostics], name
