"""The report of a search: what `archc.search.report` tells, with pictures of the architectures."""

from __future__ import annotations

from pathlib import Path

from archc.backends.weights import atomic_file
from archc.drawing import draw
from archc.drawing.svg import style
from archc.grammar.load import loads
from archc.search.report import document, page
from archc.search.study import Study


def write_report(study: Study, path: Path) -> Path:
    """Write the page. Raises: CompileError (E0608)."""
    text = page(document(study, _picture), style(light=True))
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _picture(program: str) -> str:
    """A drawing whose colours are those of the page that it stands in."""
    return draw(loads(program)).replace(f"<style>{style()}</style>", "").replace("\n", "")
