"""Commands run in this process, as `archc` would run them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from archc.cli.main import INTERNAL, run

WINE = """\
arch wine(hidden = 8)

input  x: f32[N, 13]
output logits: f32[N, 3]

logits = x -> linear(hidden) -> relu -> linear(3)
"""

DIGITS = """\
arch digits(hidden = 12)

input  image: f32[N, 1, 8, 8]
output logits: f32[N, 10]

logits = image -> flatten -> linear(hidden) -> relu -> linear(10)
"""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Archc = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all these tests, apart from the user's."""
    folder = tmp_path_factory.getbasetemp() / "archc-cache"
    folder.mkdir(mode=0o700, exist_ok=True)
    monkeypatch.setenv("ARCHC_CACHE", str(folder))


@pytest.fixture
def archc(capsys: pytest.CaptureFixture[str]) -> Archc:
    def call(*arguments: object, bug: bool = False) -> Ran:
        """An internal error is a failure of the test, unless the test planted the `bug`."""
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        caught = capsys.readouterr()
        assert "Traceback" not in caught.out + caught.err
        assert (code == INTERNAL) == bug, told(caught.err)
        return Ran(code, caught.out, caught.err)

    return call


def told(err: str) -> str:
    """What the report of an internal error says."""
    report = re.search(r"report it with (.*)", err)
    return Path(report[1]).read_text() if report else err


@pytest.fixture
def wine(tmp_path: Path) -> Path:
    file = tmp_path / "wine.arch"
    file.write_text(WINE)
    return file


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    file = tmp_path / "digits.arch"
    file.write_text(DIGITS)
    return file


@pytest.fixture
def wine_artifact(archc: Archc, wine: Path) -> Path:
    out = wine.with_suffix(".archc")
    assert archc("compile", wine, "-o", out, "--threads", 1).code == 0
    return out
