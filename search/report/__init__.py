"""The report of a study: one HTML file that loads nothing and opens from the disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any
from xml.sax.saxutils import escape

MOST_PICTURES = 1_500_000
"""Characters of pictures in a page, so that it stays small: those that come first are drawn."""


def page(document: Mapping[str, Any], style: str = "") -> str:
    """The page that tells a document (see `archc.search.report.document`); `style` is what its pictures need."""
    folder = files("archc.search.report")

    def part(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    data = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    parts = {
        "TITLE": escape(document["title"]),
        "STYLE": part("page.css") + style,
        "DATA": data.replace("<", "\\u003c"),
        "SCRIPT": part("page.js"),
    }
    return re.sub("@([A-Z]+)@", lambda mark: parts[mark[1]], part("page.html"))
