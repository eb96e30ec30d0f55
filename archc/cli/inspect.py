"""Commands that read architectures: check, fmt, show, summary, ops, explain, hash, diff. None needs tvm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archc.cli import options
from archc.cli.console import note, print_json, report
from archc.cli.options import (
    Dims,
    File,
    Files,
    First,
    Json,
    Second,
    Set,
    keep,
    open_model,
    parse_dims,
    parse_values,
    register,
)
from archc.ir.diagnostics import CompileError, Diagnostic, did_you_mean, fail

if TYPE_CHECKING:
    from archc.ir.op import OpDef


def add_commands(app: typer.Typer) -> None:
    register(app, check, fmt, show, summary, ops, explain, hash_, diff)


def check(files: Files, settings: Set = None, dims: Dims = None, as_json: Json = False) -> None:
    """Report what is wrong with .arch files, and nothing else.

    Example: archc check examples/resnet18.arch --set classes=10
    """
    from archc.grammar.load import check as check_file

    values, sizes = parse_values(settings), parse_dims(dims)
    found: list[Diagnostic] = []
    for file in files:
        found += check_file(file, values, sizes, options.limits)
    if as_json or found:
        report(found, as_json)
    missing = any(d.code == "E0001" and d.span is None for d in found)  # an import's has a span: the program is wrong
    raise typer.Exit(2 if missing else int(any(d.severity == "error" for d in found)))


def fmt(
    files: Files,
    check: Annotated[bool, typer.Option("--check", help="change nothing; exit 1 when a file would change")] = False,
    as_json: Json = False,
) -> None:
    """Lay out .arch files the one canonical way; comments stay.

    Example: archc fmt examples/*.arch --check
    """
    from archc.grammar.format import format_source
    from archc.grammar.source import read_source

    changed: list[Path] = []
    problems: list[Diagnostic] = []
    worst = 0
    for file in files:
        try:
            text = read_source(file, options.limits)
            laid_out = format_source(text, str(file), options.limits)
        except CompileError as e:
            problems += e.diagnostics
            worst = max(worst, e.exit_code)
            continue
        if laid_out == text:
            continue
        changed.append(file)
        if not check:
            from archc.backends.weights import atomic_file

            with atomic_file(file) as temporary:
                temporary.write_text(laid_out, encoding="utf-8", newline="\n")
    if as_json:
        print_json({"ok": not worst, "changed": changed, "diagnostics": [d.to_json() for d in problems]})
    else:
        for file in changed:
            print(f"{'would change' if check else 'changed'} {file}")
        report(problems)
    raise typer.Exit(worst or int(check and bool(changed)))


def show(
    file: File,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help=".svg, .png, .dot or .html (default: FILE with .svg, here)")
    ] = None,
    settings: Set = None,
    dims: Dims = None,
    as_json: Json = False,
) -> None:
    """Draw the network: modules collapsed, shapes on edges, repeated blocks once.

    Example: archc show examples/unet.arch -o unet.html
    """
    path = out or Path(f"{file.stem}.svg")
    keep(file, from_=path)
    model = open_model(file, settings, dims)
    model.draw(path)
    if as_json:
        print_json({"file": path})
    else:
        print(path)


def summary(
    file: File,
    settings: Set = None,
    dims: Dims = None,
    depth: Annotated[int | None, typer.Option(min=1, help="group layers by so many parts of their names")] = None,
    as_json: Json = False,
) -> None:
    """A table, layer by layer: shapes, parameters, FLOPs, activation bytes; totals.

    Example: archc summary examples/gpt2_small.arch --depth 1 --dim N=1 --dim T=1024
    """
    from archc.facade.summary import summarise

    result = summarise(open_model(file, settings, dims).graph, depth)
    if as_json:
        print_json(result.to_json())
        return
    print(result)


def ops(
    name: Annotated[str | None, typer.Argument(help="one operator (default: list all)")] = None, as_json: Json = False
) -> None:
    """The operators: signature, parameters, axis rule, paper.

    Example: archc ops conv
    """
    import archc.ir.ops  # noqa: F401  (fills the registry)
    from archc.ir.op import REGISTRY
    from archc.ir.ops.plugins import load_plugins

    load_plugins()
    if name is None:
        listed = sorted(REGISTRY.values(), key=lambda op: (op.category, op.name))
        if as_json:
            print_json([_op_json(op) for op in listed])
            return
        from archc.cli.tables import print_table

        print_table(("op", "family", "what it does"), [(o.name, o.category, o.doc) for o in listed], cut=True)
        return
    op = REGISTRY.get(name)
    if op is None:
        from archc.grammar.unknown import standard_home

        home = standard_home(name)
        help = f'it is a definition: `import "{home}" ({name})`; docs/library.md shows it' if home else None
        help = help or did_you_mean(name, REGISTRY) or "`archc ops` lists all"
        raise fail("E0201", f"there is no operator `{name}`", help=help)
    if as_json:
        print_json(_op_json(op))
        return
    _tell_op(op)


def explain(
    code: Annotated[str, typer.Argument(help="a diagnostic's code, such as E0301")],
    as_json: Json = False,
) -> None:
    """What a diagnostic means, with a program that has the fault and one that has not.

    Example: archc explain E0301
    """
    from archc.ir.explain import codes, page

    text = page(code.upper())
    if text is None:
        raise fail("E0020", f"there is no diagnostic `{code}`", help=did_you_mean(code.upper(), codes()), exit_code=2)
    if as_json:
        print_json({"code": code.upper(), "page": text})
    else:
        print(text.rstrip())


def hash_(file: File, settings: Set = None, dims: Dims = None, as_json: Json = False) -> None:
    """The canonical SHA-256: equal for two programs that mean one architecture.

    Example: archc hash examples/resnet18.arch
    """
    model = open_model(file, settings, dims)
    if as_json:
        print_json({"file": file, "name": model.name, "hash": model.hash})
    else:
        print(model.hash)


def diff(
    a: First,
    b: Second,
    as_json: Json = False,
) -> None:
    """The semantic difference of two architectures; exit 0 when they are the same, 1 when not.

    Example: archc diff examples/resnet18.arch examples/resnet50.arch
    """
    from archc.facade.diff import diff as difference

    found = difference(open_model(a).graph, open_model(b).graph)
    if as_json:
        print_json(found.to_json())
    elif found.same:
        note("the same architecture")
    else:
        signs = {"added": "+", "removed": "-", "changed": "~"}
        for change in found.changes:
            both = " => ".join(s for s in (change.before, change.after) if s)
            print(f"{signs[change.kind]} {change.name}: {both}")
        print(f"parameters {found.params[0]:,} => {found.params[1]:,}; FLOPs {found.flops[0]} => {found.flops[1]}")
    raise typer.Exit(0 if found.same else 1)


def _tell_op(op: OpDef[Any]) -> None:
    from archc.cli.tables import print_table
    from archc.grammar.op_page import op_page

    told = op_page(op)
    print(f"{told.name} ({told.family})\n\n{told.doc}\n\n  {told.call}")
    for line in told.signature:
        print(f"  {line}")
    if told.notes:
        print(f"\n{told.notes}")
    if told.parameters:
        print()
        rows = [(p.name, p.kind, p.default or "required") for p in told.parameters]
        print_table(("parameter", "value", "default"), rows)
    if told.weights:
        print()
        weights = [
            (w.role, w.when, w.shape, w.init + ("" if w.trained else "; kept, not trained")) for w in told.weights
        ]
        print_table(("weight", "when", "in the example", "drawn from"), weights)
    if told.example:
        print("\nexample:")
        for line in told.example:
            print(f"  {line}")
    if told.paper:
        print(f"\nsource: {told.paper}")


def _op_json(op: OpDef[Any]) -> dict[str, Any]:
    from archc.grammar.op_page import op_page

    told = op_page(op)
    return {
        "name": op.name,
        "family": op.category,
        "doc": op.doc,
        "call": told.call,
        "signature": told.signature[-1],
        "operands": list(op.operand_names),
        "notes": told.notes,
        "parameters": [
            {"name": p.name, "type": p.kind, "required": p.default is None, "default": p.default}
            for p in told.parameters
        ],
        "weights": {role: "trained" if w.trainable else "buffer" for role, w in op.weights.items()},
        "regions": list(op.regions),
        "example": op.example,
        "paper": op.paper,
    }
