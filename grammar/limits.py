"""Limits, checked before the work they bound is done; each has a code and a flag that raises it.

>>> Limits(nodes=10).exceeded("nodes", 12).diagnostics[0].message
'the expanded program would have 12 nodes; the limit is 10'
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from archc.ir.diagnostics import CompileError, Span, fail


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a program may ask for; the defaults are far above any sensible program."""

    file_bytes: int = 16 << 20
    """Size of one source file, in bytes; looked up before the file is read."""
    tokens: int = 2_000_000
    """Words, numbers and signs of one file."""
    nesting: int = 200
    """Brackets, `if`s and prefix operators open at one place, and calls of results of calls."""
    import_depth: int = 32
    """Files that import one another in a chain."""
    repeat: int = 100_000
    """Copies asked for by one `repeat`, `copies` or `branch`."""
    nodes: int = 2_000_000
    """Nodes of the elaborated graph, counted before anything is expanded."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"a limit is a positive number: {field.name} = {getattr(self, field.name)}")

    def exceeded(self, limit: str, found: int, span: Span | None = None, label: str = "") -> CompileError:
        """The error to raise when `found` is above the limit of that name."""
        code, flag, message = _LIMITS[limit]
        allowed = getattr(self, limit)
        message = message.format(found=f"{found:,}".replace(",", "_"), allowed=f"{allowed:,}".replace(",", "_"))
        return fail(code, message, span, label=label, help=f"if this is meant, raise the limit: `{flag} {found}`")


_LIMITS = {  # field: its code, its flag and its message
    "file_bytes": ("E0002", "--max-file-bytes", "the file has {found} bytes; the limit is {allowed}"),
    "tokens": ("E0004", "--max-tokens", "the file has more than {allowed} tokens"),
    "nesting": ("E0005", "--max-nesting", "brackets and operators are nested more than {allowed} deep"),
    "import_depth": ("E0006", "--max-import-depth", "imports follow one another {found} deep; the limit is {allowed}"),
    "repeat": ("E0007", "--max-repeat", "{found} copies are asked for; the limit is {allowed}"),
    "nodes": ("E0008", "--max-nodes", "the expanded program would have {found} nodes; the limit is {allowed}"),
}


def flags() -> dict[str, str]:
    """The command line's flag of every limit, by field name."""
    return {name: flag for name, (_, flag, _) in _LIMITS.items()}


DEFAULT = Limits()
