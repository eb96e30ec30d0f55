"""The command line."""

from __future__ import annotations

from archc.cli.main import main

__all__ = ["main"]
