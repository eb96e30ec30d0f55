"""The pages behind `archc explain`: one Markdown file for each diagnostic code, in `ir/errors/`."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.resources.abc import Traversable


def codes() -> list[str]:
    """Every code that has a page, sorted."""
    return sorted(f.name.removesuffix(".md") for f in _folder().iterdir() if f.name.endswith(".md"))


def page(code: str) -> str | None:
    """The page of a code, or None when there is no such code.

    >>> page("E0301").splitlines()[0].startswith("# E0301")
    True
    """
    if not re.fullmatch(r"E[0-9]{4}", code):
        return None
    file = _folder() / f"{code}.md"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _folder() -> Traversable:
    return files("archc.ir") / "errors"
