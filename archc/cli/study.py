"""`archc study`: look at searches, go on with them, compare and export them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archc.cli import console
from archc.cli.console import note, print_json
from archc.cli.live import live
from archc.cli.options import Json, register
from archc.cli.search import Ray, Workers, carry_out, tell_front
from archc.cli.tables import print_table
from archc.facade.tables import human

if TYPE_CHECKING:
    from archc.search.study import Study

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a study", show_default=False)]
Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="folders of studies", show_default=False)]


def add_commands(app: typer.Typer) -> None:
    study = typer.Typer(
        help="Look at searches, go on with them, compare and export them.", no_args_is_help=True, rich_markup_mode=None
    )
    register(study, status, watch, resume, pareto, report, plot, compare, export, replay, gc, strategies)
    app.add_typer(study, name="study")


def status(folders: Folders, as_json: Json = False) -> None:
    """How far searches have come. Others may be at work on them.

    Example: archc study status runs/*
    """
    from archc.facade.study import Study

    found = [Study.open(folder) for folder in folders]
    if as_json:
        print_json([study.to_json() for study in found])
        return
    for study in found:
        config = study.config
        print(f"{study.folder}: {config.space.name} on {config.evaluation.task}, {config.strategy}, seed {config.seed}")
        print(f"  {study.standing.line()}")
        print(f"  budget {config.budget}; {study.state()}; {study.standing.minutes:.1f} min")
        print("  " + ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in study.times().items()))


def watch(
    folder: Folder,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="between two looks")] = 1.0,
    as_json: Json = False,
) -> None:
    """Follow a search that another process carries out, until it ends. Ctrl-C ends the watching alone.

    Example: archc study watch runs/digits
    """
    from archc.facade.study import Study

    study = Study.open(folder)
    with live(quiet=console.loudness < 0) as show:
        while study.in_use():
            show(study.refresh().standing)
            time.sleep(every)
        show(study.refresh().standing)
    note(f"{folder}: {study.state()}")
    if as_json:
        print_json(study.to_json())


def resume(
    folder: Folder,
    budget: Annotated[
        str | None, typer.Option(metavar="200|20m", help="in all, in the place of the one that it was begun with")
    ] = None,
    workers: Workers = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Go on with a search that was interrupted, or that is to have more budget. Nothing is computed twice.

    Example: archc study resume runs/digits --budget 400
    """
    from archc.search.study import Study

    carry_out(Study.open(folder), workers, ray, as_json, budget)


def pareto(
    folder: Folder,
    commands: Annotated[bool, typer.Option("--commands", help="print what trains and compiles each again")] = False,
    as_json: Json = False,
) -> None:
    """The front: what no other is better than in all objectives.

    Example: archc study pareto runs/digits --commands
    """
    from archc.facade.study import Study

    study = Study.open(folder)
    if not commands or as_json:
        tell_front(study, as_json)
        return
    for winner in study.front:
        print(f"# {winner!r}")
        for command in winner.commands:
            print(command)


def report(
    folder: Folder,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT.html", help="where the page goes")],
    as_json: Json = False,
) -> None:
    """The report: one HTML file that loads nothing, with the front, pictures, progress, ancestry and commands.

    Example: archc study report runs/digits -o digits.html
    """
    from archc.facade.study import Study

    _tell_file(Study.open(folder).report(out), as_json)


def plot(
    folders: Folders,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT.png|.svg", help="where the picture goes")],
    as_json: Json = False,
) -> None:
    """Draw fronts, and progress against budget; several studies beside each other.

    Example: archc study plot runs/evolution runs/random -o fronts.png
    """
    from archc.search.compare import demand_equal, entry_of
    from archc.search.report.plot import demand_suffix
    from archc.search.report.plot import plot as draw

    demand_suffix(out)
    entries = [entry_of(study) for study in _open(folders)]
    demand_equal(entries, ("task", "objectives"))
    draw(entries, out)
    _tell_file(out, as_json)


def compare(
    folders: Folders,
    resamples: Annotated[int, typer.Option(min=100, help="of the bootstrap")] = 2000,
    seed: Annotated[int, typer.Option(help="of the bootstrap")] = 0,
    as_json: Json = False,
) -> None:
    """Strategies at equal budget, and what each gained over random search, with intervals of 95 %.

    Studies of one strategy (other seeds) are taken together. Refuses what cannot be compared: other tasks, goals,
    spaces, budgets, or a search that has not ended.

    Example: archc study compare runs/random-* runs/evolution-*
    """
    from dataclasses import asdict

    from archc.search.compare import RANDOM, entry_of
    from archc.search.compare import compare as run

    entries = [entry_of(study) for study in _open(folders)]
    rows = run(entries, resamples=resamples, seed=seed)
    if as_json:
        print_json({"terms": dict(entries[0].terms), "strategies": [asdict(row) for row in rows]})
        return
    goal = entries[0].goals.objectives[0].key
    print_table(
        ("strategy", "studies", "spent", f"best {goal}", "over random's mean", "over best of random", "hypervolume"),
        [
            (
                r.strategy,
                str(r.studies),
                f"{r.spent:.1f}",
                str(r.best),
                *("–" if i is None else i.percent() for i in (r.over_mean, r.over_best, r.hypervolume)),
            )
            for r in rows
        ],
    )
    if not any(e.strategy == RANDOM for e in entries):
        note("there is no study of strategy `random` among these: what was gained over it cannot be told")
    if any(row.studies == 1 for row in rows):
        note("where a strategy has one study, its interval does not tell how it would have fared with another seed")


def export(
    folder: Folder,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="where the file goes")],
    format: Annotated[str, typer.Option(metavar="csv|parquet|optuna", help="optuna: an SQLite file")] = "csv",
    as_json: Json = False,
) -> None:
    """All trials that have ended, for other programs.

    Example: archc study export runs/digits --format parquet -o trials.parquet
    """
    from archc.facade.study import Study

    _tell_file(Study.open(folder).export(out, format), as_json)


def replay(folder: Folder, as_json: Json = False) -> None:
    """Let the strategy propose again what the log holds, hearing what it heard: exit 3 when it would differ.

    Example: archc study replay runs/digits
    """
    from archc.facade.study import Study

    study = Study.open(folder)
    differences = study.replay()
    if as_json:
        print_json({"trials": len(study.trials), "differences": differences})
    elif not differences:
        print(f"{len(study.trials)} proposals, the same again")
    else:
        print_table(
            ("trial", "in the log", "now"), [(str(n), old[:16], new[:16] or "–") for n, old, new in differences]
        )
    if differences:
        raise typer.Exit(3)


def gc(
    folders: Folders,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would be freed")] = False,
    as_json: Json = False,
) -> None:
    """Remove weights and artifacts that nothing needs any more: all but those of the front and of what goes on.

    Example: archc study gc runs/* --dry-run
    """
    from archc.search.study import Study

    freed = {}
    for folder in folders:
        with Study.open(folder) as study:
            freed[str(folder)] = study.collect(pretend=dry_run)
    if as_json:
        print_json({"freed": freed, "dry_run": dry_run})
        return
    for name, size in freed.items():
        print(f"{name}: {human(size, 'B')} {'would be' if dry_run else ''} freed".replace("  ", " "))


def strategies(as_json: Json = False) -> None:
    """The ways to search, and their options.

    Example: archc study strategies
    """
    from archc.search.strategy import strategies, strategy_kind

    kinds = [strategy_kind(name) for name in strategies()]
    options = {
        kind.name: {name: (field.default, field.description or "") for name, field in kind.options.model_fields.items()}
        for kind in kinds
    }
    if as_json:
        print_json({kind.name: {"doc": kind.doc, "options": options[kind.name]} for kind in kinds})
        return
    for kind in kinds:
        print(f"{kind.name}: {kind.doc}")
        for name, (default, doc) in options[kind.name].items():
            print(f"  {name} = {default}: {doc}")


def _open(folders: list[Path]) -> list[Study]:
    from archc.search.study import Study

    return [Study.open(folder, readonly=True) for folder in folders]


def _tell_file(path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"file": path})
    else:
        print(path)
