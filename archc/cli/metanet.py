"""`archc metanet`: train, evaluate and list metanetworks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from archc.cli.console import note, print_json
from archc.cli.options import Json, parse_pairs, register
from archc.cli.tables import print_table

Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="an option of the kind; `archc metanet list` has them"),
]


def add_commands(app: typer.Typer) -> None:
    metanet = typer.Typer(help="Train, evaluate and list metanetworks.", no_args_is_help=True, rich_markup_mode=None)
    register(metanet, train, eval_, list_)
    app.add_typer(metanet, name="metanet")


def train(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="ghn, gmn, nowcast or surrogate")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="M.safetensors", help="where the metanetwork goes")],
    option: Options = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
    as_json: Json = False,
) -> None:
    """Train a metanetwork. Ctrl-C loses nothing: the same command with --resume goes on.

    Example: archc metanet train ghn -o ghn.safetensors --option tasks=[digits] --option minutes=30
    """
    from archc.backends.torch.training.options import build
    from archc.metanet.kinds import kind as find

    found = find(kind)
    config = build(found.config, parse_pairs(option, "--option"), "E0804", f"`{kind}`")
    card = found.train(config, out, resume, note)
    if as_json:
        print_json(card.model_dump(exclude={"log"}) | {"file": str(out)})
    else:
        _figures(card.figures)


def eval_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a file, or the name of one that comes with archc")],
    option: Options = None,
    as_json: Json = False,
) -> None:
    """Measure a metanetwork on what it has not seen.

    Example: archc metanet eval ghn-digits
    """
    from archc.backends.torch.training.options import build
    from archc.metanet.kinds import kind as find
    from archc.metanet.store import load

    stored = load(model)
    found = find(stored.card.kind)
    given = stored.card.config | parse_pairs(option, "--option")
    config = build(found.config, {k: v for k, v in given.items() if k in found.config.model_fields or k not in
                                  stored.card.config}, "E0804", f"`{found.name}`")  # fmt: skip
    figures = found.evaluate(stored, config, note)
    if as_json:
        print_json(figures)
    else:
        _figures(figures)


def list_(as_json: Json = False) -> None:
    """The metanetworks that come with archc, and the options of each kind.

    Example: archc metanet list
    """
    from archc.metanet.kinds import kind, kinds
    from archc.metanet.store import load, shipped

    models = [(load(path), path) for path in shipped().values()]
    options = {
        name: {field: info.description or "" for field, info in kind(name).config.model_fields.items()}
        for name in kinds()
    }
    if as_json:
        described = [m.card.model_dump(exclude={"log"}) | {"file": str(p), "sha256": m.sha256} for m, p in models]
        print_json({"models": described, "kinds": options})
        return
    rows = [(m.card.name, m.card.kind, ", ".join(m.card.tasks), _size(p), _short(m.card.figures)) for m, p in models]
    print_table(("model", "kind", "tasks", "size", "figures"), rows)
    for name in kinds():
        print()
        print_table((f"{name}: option", "what it is"), sorted(options[name].items()))


def _figures(figures: dict[str, Any]) -> None:
    rows = [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in figures.items()]
    print_table(("figure", "value"), rows, right=1)


def _short(figures: dict[str, Any]) -> str:
    """The first figures, without the spread of each (`task/split/p10`); `--json` has all."""
    told = [f"{k} {v:.3g}" for k, v in figures.items() if isinstance(v, float) and k.count("/") < 2]
    return ", ".join(told[:4]) + " …" * (len(figures) > 4)


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2g} MB"
