"""Nothing is caught blindly: who catches every exception says on that line, or above it, why."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import archc

PACKAGE = Path(archc.__file__).parent
FILES = sorted({f.resolve() for folder in [PACKAGE, *PACKAGE.iterdir()] for f in folder.resolve().rglob("*.py")})


def blind(source: str) -> list[int]:
    """The lines of handlers that catch everything, and neither raise it again as it is nor say why they do not."""
    rows, found = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        everything = any(kind is None or getattr(kind, "id", "") in ("Exception", "BaseException") for kind in kinds)
        reason = "#" in rows[node.lineno - 1] or rows[node.lineno - 2].strip().startswith("#")
        again = any(isinstance(n, ast.Raise) and n.exc is None for n in node.body)
        if everything and not reason and not again:
            found.append(node.lineno)
    return found


def test_the_sources_are_searched() -> None:
    assert len(FILES) > 150
    assert sum("except Exception" in f.read_text(encoding="utf-8") for f in FILES) > 5


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_no_exception_is_caught_blindly(file: Path) -> None:
    assert blind(file.read_text(encoding="utf-8")) == []


def test_a_blind_handler_would_be_found() -> None:
    """The control."""
    for kind in ("", " Exception", " BaseException as e", " (ValueError, Exception)"):
        assert blind(f"try:\n    f()\nexcept{kind}:\n    pass\n") == [3]
    assert blind("try:\n    f()\nexcept Exception:  # the reason\n    pass\n") == []
    assert blind("try:\n    f()\nexcept BaseException:\n    g()\n    raise\n") == []
    assert blind("try:\n    f()\nexcept ValueError:\n    pass\n") == []
