"""Commands that change architectures: transform, passes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archc.cli.console import note, print_json
from archc.cli.options import Dims, File, Json, Seed, Set, Weights, keep, open_model, register
from archc.ir.diagnostics import did_you_mean, fail

if TYPE_CHECKING:
    from archc.facade.sameness import Sameness
    from archc.facade.transform import Step, Transformed

At = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WHERE", help="'blocks.*.ffn', 'layers 4..8', 'op linear', 'params > 1M', 'not …' (repeatable)"
    ),
]


def add_commands(app: typer.Typer) -> None:
    register(app, transform, passes, symbolic)


def transform(
    file: File,
    specs: Annotated[
        list[str],
        typer.Option("--pass", metavar="P", help="'moe(experts = 8, top_k = 2)', 'glu at layers 4..8' (repeatable)"),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="NEW.arch", help="where the program goes (default: stdout)")
    ] = None,
    weights: Annotated[Path | None, typer.Option(metavar="W.safetensors", help="weights, to be carried over")] = None,
    weights_out: Annotated[
        Path | None, typer.Option(metavar="W2.safetensors", help="where the new network's weights go")
    ] = None,
    at: At = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="change nothing: list sites, and refusals with reasons")
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="show the change of the text, and write nothing else to stdout")
    ] = False,
    draw: Annotated[
        Path | None, typer.Option(metavar="C.svg", help="a picture of before and after, .svg or .png")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="X.npz", help="inputs to fit and to measure errors on (default: random)")
    ] = None,
    check: Annotated[bool, typer.Option(help="check the contract: compare the two functions")] = True,
    allow_reinit: Annotated[bool, typer.Option("--allow-reinit", help="weights may be drawn anew")] = False,
    dump: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write a listing of the graph after each pass")
    ] = None,
    seed: Seed = 0,
    settings: Set = None,
    dims: Dims = None,
    as_json: Json = False,
) -> None:
    """Change a network by passes: experts, gates, skipped layers, pruning and more. `archc passes` lists them.

    The result is a program again. Weights carry over, and each pass says how far the function stays what it was.

    Example: archc transform examples/gpt2_small.arch --pass 'moe(experts = 8, top_k = 2) at layers 6..11' -o moe.arch
    """
    from archc.backends.weights import atomic_file, write_weights
    from archc.facade.transform import plan
    from archc.facade.transform import transform as run

    keep(file, weights, data, from_=weights_out)
    keep(weights, data, from_=out)
    keep(file, weights, data, from_=draw)
    if weights_out and not weights:
        raise fail("E0027", "`--weights-out` needs `--weights`: there are none to carry over", exit_code=2)
    model = open_model(file, settings, dims)
    if dry_run:
        steps = plan(model, *specs, at=at or ())
        if as_json:
            print_json({"passes": [s.to_json() for s in steps]})
        else:
            for step in steps:
                _tell_plan(step)
        raise typer.Exit(0 if all(s.found.sites or s.changed for s in steps) else 1)
    options: dict[str, Any] = {"at": at or (), "data": data, "seed": seed, "dump": dump}
    made = run(model, *specs, weights=weights, check=check, allow_reinit=allow_reinit, **options)
    if draw:
        made.draw(draw)
    if weights_out and made.weights is not None:
        write_weights(weights_out, made.weights, _metadata(weights))
    if out:
        with atomic_file(out) as temporary:
            temporary.write_text(made.model.text(), encoding="utf-8")
    if as_json:
        print_json({"file": out, "weights": weights_out, **made.to_json(), "text": None if out else made.model.text()})
        return
    _tell(made)
    if out and weights and not weights_out:
        note("the new network's weights are not kept: `--weights-out` names a file for them")
    if diff:
        print(made.diff(), end="")
    elif not out:
        print(made.model.text(), end="")


def _metadata(weights: Path | None) -> Any:
    """What stood in the old file beside the weights: how data are prepared."""
    from archc.backends.weights import read_weights

    return read_weights(weights).metadata if weights else None


def _tell(made: Transformed) -> None:
    """What happened, on stderr: the program has stdout."""
    for step in made.steps:
        sites = [s.anchor.name for s in step.found.sites]
        where = f" at {_listed(sites)}" if sites else "" if step.changed else ": nothing to do"
        note(f"{step.spec}{where}")
        note(f"  {step.seconds * 1000:.0f} ms", at=1)
        for refusal in step.found.refusals:
            note(f"  not at {refusal.anchor.name}: {refusal.reason}" + (f" ({refusal.found})" if refusal.found else ""))
    for m in made.measured:
        note(f"  {m.transform} at {m.site}: {m.of} {m.value:.3g}")
    old, new = made.before.cost, made.model.cost
    note(f"parameters {old.params:,} -> {new.params:,}")
    contract = made.contract
    note(
        f"contract: {contract.eval} in evaluation, {contract.train} in training"
        + (f" ({contract.why})" if contract.why else "")
    )
    for outcome in made.checks:
        note(f"  {_sameness(outcome)}")
    if made.weights is None:
        note("  not checked: there are no weights to carry over (`--weights`)")


def _sameness(outcome: Sameness) -> str:
    return (
        f"{outcome.mode}, {outcome.format}: relative error {outcome.relative:.1e}{', the same' if outcome.ok else ''}"
    )


def _tell_plan(step: Step) -> None:
    contract = step.contract
    print(
        f"{step.spec}: {contract.eval} in evaluation, {contract.train} in training"
        + (f" ({contract.why})" if contract.why else "")
    )
    for site in step.found.sites:
        what = site.what or _listed([n.name for n in site.nodes], 4)
        print(f"  at {site.anchor.name}" + (f": {what}" if what else ""))
    for refusal in step.found.refusals:
        found = f" ({refusal.found})" if refusal.found else ""
        print(f"  not at {refusal.anchor.name}: {refusal.reason}{found} [{refusal.code}]")
    if step.found.others:
        print(f"  left out by the selection: {_listed([s.anchor.name for s in step.found.others])}")
    if not step.found.sites:
        print("  changes the network" if step.changed else "  nothing to change")


def _listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def passes(
    name: Annotated[str | None, typer.Argument(help="one pass (default: list all)")] = None, as_json: Json = False
) -> None:
    """The passes: what each does, its options, where it applies, and how far it keeps the function.

    Example: archc passes moe
    """
    from archc.cli.tables import print_table
    from archc.passes.catalogue import PASSES, TRANSFORMS, installed
    from archc.passes.page import pass_page

    known = [*TRANSFORMS, *installed(), *PASSES]
    if name is None:
        pages = [pass_page(n) for n in known]
        if as_json:
            print_json([p.to_json() for p in pages])
            return
        rows = [(p.name, p.kind, p.variants[0].eval, p.variants[0].train, p.doc) for p in pages]
        print_table(("pass", "kind", "evaluation", "training", "what it does"), rows, cut=True)
        return
    if name not in known:
        raise fail("E0401", f"there is no pass `{name}`", help=did_you_mean(name, known) or "`archc passes` lists them")
    page = pass_page(name)
    if as_json:
        print_json(page.to_json())
        return
    print(f"{page.call}\n\n{page.doc}\n\napplies to {page.where}")
    if page.options:
        print(f"\n{page.notes}\n")
        print_table(("option", "takes", "default"), [(o.name, o.kind, o.default or "required") for o in page.options])
    print()
    print_table(("variant", "evaluation", "training", ""), [(v.spec, v.eval, v.train, v.why) for v in page.variants])
    if page.paper:
        print(f"\n{page.paper}")


def symbolic(
    file: File,
    weights: Weights = None,
    data: Annotated[Path | None, typer.Option(metavar="X.npz", help="inputs to look at (default: random)")] = None,
    top: Annotated[int, typer.Option(min=1, help="so many formulas for each edge")] = 1,
    least: Annotated[float, typer.Option(min=0, help="leave out edges that weigh less")] = 0.0,
    seed: Seed = 0,
    settings: Set = None,
    dims: Dims = None,
    as_json: Json = False,
) -> None:
    """Read formulas off the edges of a Kolmogorov-Arnold network: the best fits of simple functions, with their R².

    Example: archc symbolic examples/kan.arch --weights kan.safetensors --least 0.05
    """
    from archc.cli.tables import print_table
    from archc.facade.transform import symbolic as read_off
    from archc.passes.kan_symbolic import table

    found = read_off(open_model(file, settings, dims), weights, data=data, seed=seed, top=top, least=least)
    if as_json:
        print_json(table(found))
        return
    rows = [
        (e.layer, f"{e.input} -> {e.output}", f"{e.weight:.3g}", str(f), f"{f.r2:.4f}")
        for e in found
        for f in e.formulas
    ]
    print_table(("layer", "edge", "weight", "formula", "R²"), rows)
    if not found:
        note("there is no `kan` layer with functions on its edges")
