"""Operators from other packages, found by their entry point in the group `archc.ops`.

    [project.entry-points."archc.ops"]
    my_ops = "my_package.ops"

The entry point names a module that calls `archc.ir.op.register`, or a function that does so when called. Backends
learn the new ops' lowerings from the same module; an op with a `decompose` needs none.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from archc.ir.diagnostics import Diagnostic
from archc.ir.op import REGISTRY

GROUP = "archc.ops"


@lru_cache(maxsize=1)
def load_plugins() -> tuple[Diagnostic, ...]:
    """Register the ops of every installed plug-in, once; a warning (E0210) for each that cannot be loaded.

    Reading the entry points of all installed packages takes tens of milliseconds, so this is called only when a
    program uses an unknown op name, or to list the ops.
    """
    return tuple(warning for plugin in entry_points(group=GROUP) if (warning := _load(plugin)) is not None)


def _load(plugin: EntryPoint) -> Diagnostic | None:
    before = set(REGISTRY)
    try:
        loaded = plugin.load()
        if callable(loaded):
            loaded()
    except Exception as e:  # anything may go wrong in foreign code; it must not take the compiler down
        for name in REGISTRY.keys() - before:  # all of a plug-in's ops, or none
            del REGISTRY[name]
        package = plugin.dist.name if plugin.dist is not None else plugin.value
        return Diagnostic(
            "E0210",
            f"the operators of `{package}` could not be loaded",
            label=f"entry point `{plugin.name}` = {plugin.value}: {type(e).__name__}: {e}",
            help=f"repair or uninstall `{package}`; the other operators are not affected",
            severity="warning",
        )
    return None
