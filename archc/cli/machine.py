"""Commands about this machine: doctor, cache."""

from __future__ import annotations

import typer

from archc.cli.console import print_json
from archc.cli.options import Json, register
from archc.facade.tables import human

NEEDED = {"cpu", "cache", "torch", "tvm", "c++ compiler"}
"""What training and compiling for this machine need; the rest is for some commands only."""


def add_commands(app: typer.Typer) -> None:
    register(app, doctor)
    cache = typer.Typer(help="What has been compiled before.", no_args_is_help=True)
    register(cache, ls, clear, verify)
    app.add_typer(cache, name="cache")


def doctor(as_json: Json = False) -> None:
    """Try what works on this machine: torch, tvm, compiling for CUDA, running on it, drawing.

    Exit 4 when training or compiling for the CPU would fail. Example: archc doctor
    """
    from dataclasses import asdict

    from archc.backends.doctor import diagnose

    checks = diagnose()
    if as_json:
        print_json([asdict(c) for c in checks])
    else:
        from archc.cli.tables import print_table

        print_table(("", "", "found"), [("ok" if c.ok else "no", c.name, c.detail) for c in checks])
        for c in checks:
            if not c.ok:
                print(f"\n{c.name} is needed for: {c.needed_for}\n  {c.remedy}")
    raise typer.Exit(4 if any(c.name in NEEDED and not c.ok for c in checks) else 0)


def ls(as_json: Json = False) -> None:
    """What is in the cache, the last used first. Example: archc cache ls"""
    import time
    from dataclasses import asdict

    from archc.backends.cache import Cache

    entries = Cache().entries()
    if as_json:
        print_json([asdict(e) for e in entries])
        return
    from archc.cli.tables import print_table

    rows = [
        (
            e.key[:12],
            e.name or "(damaged)",
            e.target,
            time.strftime("%F %T", time.localtime(e.used)),
            human(e.bytes, "B"),
        )
        for e in entries
    ]
    print_table(("key", "network", "target", "last used", "size"), rows, right=4)
    print(f"\n{len(entries)} artifacts, {human(sum(e.bytes for e in entries), 'B')}, in {Cache().root}")


def clear(as_json: Json = False) -> None:
    """Remove everything from the cache. Example: archc cache clear"""
    from archc.backends.cache import Cache

    freed = Cache().clear()
    if as_json:
        print_json({"freed": freed})
    else:
        print(f"freed {human(freed, 'B')}")


def verify(as_json: Json = False) -> None:
    """Check every byte of the cache; what is damaged is removed, and exit 1 says so. Example: archc cache verify"""
    from dataclasses import asdict

    from archc.backends.cache import Cache

    store = Cache()
    count = len(store.entries())
    damaged = store.verify()
    if as_json:
        print_json({"checked": count, "removed": [asdict(e) for e in damaged]})
    else:
        for e in damaged:
            print(f"removed {e.path}")
        print(f"{count} checked, {len(damaged)} damaged")
    raise typer.Exit(1 if damaged else 0)
