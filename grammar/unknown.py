"""Names that mean nothing where they stand, and what may have been meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from archc.grammar.imports import standard_files
from archc.grammar.scope import close_name
from archc.ir.diagnostics import CompileError, Note, Span, fail
from archc.ir.ops.plugins import load_plugins
from archc.ir.types import DTYPES, ELSEWHERE


def unknown_name(name: str, span: Span, known: Iterable[str], dimension: bool = False) -> CompileError:
    """The error for a name that means nothing here (E0201), in a shape if `dimension`; `known` are those that do."""
    home = standard_home(name)
    help = close_name(name, known)
    if name.rstrip("0123456789") in ("Rows", "Kept"):
        help = f"`{name}` can be named in a `fn` that is a region of `moe`, `skip` or `exit`"
    elif name in ("True", "False", "None"):
        help = f"did you mean `{name.lower()}`?"
    elif help is None and dimension and name[:1].islower():
        help = f"the symbol of a dimension begins with a capital letter: `{name[:1].upper()}{name[1:]}`"
    elif help is None and (name in DTYPES or name in ELSEWHERE):
        help = f'a dtype is a text here: `"{ELSEWHERE.get(name, name)}"`'
    elif home is not None:
        help = f'it is in the standard library: `import "{home}" ({name})`'
    elif help is None and name[:1].isupper():
        help = "a dimension is named in the type of an `input`, or in the signature of the `def`"
    # a package whose ops could not be loaded may be where the name would come from
    notes = [Note(f"{d.message} [{d.code}]: {d.label}") for d in load_plugins()]
    return fail("E0201", f"unknown name `{name}`", span, label="not found here", notes=notes, help=help)


def standard_home(name: str) -> str | None:
    """The file of the standard library that defines `name`.

    >>> standard_home("swiglu_ffn")
    'std/ffn.arch'
    """
    return _homes().get(name)


@cache
def _homes() -> dict[str, str]:
    """The file of every definition of the standard library."""
    return {
        name: path
        for path, text in standard_files().items()
        for name in re.findall(r"^def (\w+)", text, re.MULTILINE | re.ASCII)
    }
