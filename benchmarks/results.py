"""Rows of results in a file, one JSON object a line: what every resumable script here writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Results:
    """The rows of one file. Half a line, of a process that was killed, is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")
            if whole[2]:
                os.truncate(path, len(whole[0]) + len(whole[1]))
            self.rows = [json.loads(line) for line in whole[0].splitlines()]

    def add(self, row: Row) -> None:
        """Write a row: it stands on the disk when this returns."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
