"""`archc search`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archc.cli import console
from archc.cli.console import note, print_json, report
from archc.cli.live import live
from archc.cli.options import Dims, Json, Set, parse_dims, parse_pairs, parse_values, register
from archc.cli.tables import print_table
from archc.facade.tables import human
from archc.ir.diagnostics import fail

if TYPE_CHECKING:
    from archc.facade.search import Estimate
    from archc.facade.study import Study
    from archc.search import study as studies

Workers = Annotated[int | None, typer.Option(min=1, help="processes on this machine (default: one for each core)")]
Ray = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="a Ray cluster to work on in their place; `auto` finds one")
]


def add_commands(app: typer.Typer) -> None:
    register(app, search)


def search(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="an .arch file that begins with `space`")],
    task: Annotated[str, typer.Option(metavar="TASK", help="as `archc train` takes it")],
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:max|min][@TARGET]",
            help="accuracy, loss, params, flops, activation_bytes, weight_bytes, latency_ms@TARGET, … (repeatable; "
            "default: accuracy:max)",
        ),
    ] = None,
    require: Annotated[
        list[str] | None, typer.Option(metavar="'params < 500k'", help="what a network must keep to (repeatable)")
    ] = None,
    strategy: Annotated[str, typer.Option(metavar="NAME", help="see `archc study strategies`")] = "evolution",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="an option of the strategy (repeatable)")
    ] = None,
    budget: Annotated[str, typer.Option(metavar="200|20m", help="whole trainings, or minutes")] = "100",
    seed: Annotated[int, typer.Option(help="of the search")] = 0,
    study: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a new folder, which holds all that comes of it")
    ] = None,
    workers: Workers = None,
    ray: Ray = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="the same proposals on any number of workers, and after a crash")
    ] = False,
    lag: Annotated[
        int | None,
        typer.Option(min=1, help="deterministic: a proposal knows the results up to so many before it; most workers"),
    ] = None,
    dedupe: Annotated[bool, typer.Option("--dedupe/--no-dedupe", help="compute equal work once")] = True,
    from_: Annotated[
        list[Path] | None, typer.Option("--from", metavar="NET.arch", help="a network to begin with (repeatable)")
    ] = None,
    transform: Annotated[
        list[str] | None,
        typer.Option(metavar="PASS", help="a pass that mutations may apply, weights inherited (repeatable)"),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="of a whole training")] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="of the training, as `archc train` takes it")
    ] = None,
    architecture_aware: Annotated[
        bool, typer.Option("--architecture-aware", help="initialisation and learning rate by topology")
    ] = False,
    warm_start: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="begin trainings with weights that this hypernetwork predicts: a file, or `ghn-small`"
        ),
    ] = None,
    early_stop: Annotated[
        bool, typer.Option("--early-stop", help="end trainings whose learning curve tells that they will not be good")
    ] = False,
    training_seed: Annotated[int | None, typer.Option(help="of initial weights and the order of examples")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="of each training, and of measured latency")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="batch size of measured latency")] = None,
    memory: Annotated[int | None, typer.Option(metavar="MB", min=64, help="what one training may take")] = None,
    time_limit: Annotated[float | None, typer.Option(metavar="SECONDS", help="what one training may take")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="size of the space, time and disk to expect; nothing is kept")
    ] = False,
    settings: Set = None,
    dims: Dims = None,
    as_json: Json = False,
) -> None:
    """Search a space for architectures that are good by all objectives, as measured.

    Ctrl-C loses nothing: `archc study resume DIR` goes on.

    Example: archc search examples/spaces/digits_net.arch --task digits --objective accuracy --objective
    latency_ms:min@cpu --budget 20m --study runs/digits
    """
    from archc.facade import search as facade
    from archc.search.space import lint

    evaluation = {
        "steps": steps,
        "seed": training_seed,
        "threads": threads,
        "batch": batch,
        "memory_mb": memory,
        "seconds": time_limit,
        "recipe": parse_pairs(recipe, "--recipe"),
        "architecture_aware": architecture_aware,
        "warm_start": warm_start,
        "early_stop": early_stop,
    }
    what: dict[str, Any] = {
        "objectives": objective or ["accuracy:max"],
        "constraints": require or [],
        "strategy": strategy,
        "options": parse_pairs(option, "--option"),
        "budget": budget,
        "seed": seed,
        "deterministic": deterministic,
        "lag": lag,
        "dedupe": dedupe,
        "seeds": from_ or [],
        "transforms": transform or [],
        "values": parse_values(settings),
        "dims": parse_dims(dims),
        "evaluation": {name: value for name, value in evaluation.items() if value is not None},
    }
    report(lint(space, parse_values(settings), parse_dims(dims), thorough=dry_run))
    if dry_run:
        tell_estimate(facade.estimate(space, task, workers=workers, **what), as_json)
        return
    if study is None:
        raise fail("E0028", "a search needs a folder", help="name a new one: `--study DIR`", exit_code=2)
    carry_out(facade.begin(space, task, study, workers=workers, **what), workers, ray, as_json)


def carry_out(
    study: studies.Study, workers: int | None, ray: str | None, as_json: bool, budget: str | None = None
) -> None:
    """Search, show how it goes, and tell what was found. Also what `archc study resume` does."""
    from archc.cli.main import Terminated
    from archc.facade.study import go_on

    folder = study.folder
    if study.config.lag is not None:
        note(f"deterministic: {study.config.lag} workers at most")
    for name, (then, now) in study.changed_versions().items():
        note(f"note: the study was begun with {name} {then}, and goes on with {now}")
    try:
        with live(quiet=console.loudness < 0) as show:
            found = go_on(study, workers, ray, budget=budget, show=show)
    except (KeyboardInterrupt, Terminated):
        note(f"\nstopped; nothing is lost. `archc study resume {folder}` goes on.")
        raise
    tell_front(found, as_json)


def tell_front(study: Study, as_json: bool) -> None:
    """The front as a table, and how to have each of it again."""
    front = study.front
    if as_json:
        print_json(study.standing.model_dump() | {"study": study.folder, "winners": [w.to_json() for w in front]})
        return
    keys = [o.key for o in study.goals.objectives]
    more = [k for k in ("params", "flops") if k not in keys and all(k in w.values for w in front)]
    rows = [
        (
            str(w.number),
            *(f"{w.values[k]:.4g}" for k in keys),
            *(human(w.values[k]) for k in more),
            w.origin,
            str(w.arch),
        )
        for w in front
    ]
    print_table(("trial", *keys, *more, "made by", "program"), rows)
    print(f"\n{study.standing.line()}")
    if front:
        print(f"The best of them again (`archc study pareto {study.folder} --commands` has all):")
        for command in front[0].commands:
            print(f"  {command}")
    print(f"The report: archc study report {study.folder} -o report.html")
    sys.stdout.flush()


def tell_estimate(found: Estimate, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
        return
    rows = [
        ("derivations of the space's grammar", found.derivations),
        ("architectures in the space", "too many to list" if found.size is None else f"{found.size:,}"),
        (f"different ones among {found.drawn} draws", str(found.distinct)),
        (f"tried: {found.tried}, infeasible", str(found.infeasible)),
        ("seconds of one training", f"{found.training_seconds:.2f}"),
        ("seconds of measuring it", f"{found.measuring_seconds:.2f}"),
        (f"trainings in the budget, {found.workers} workers", f"{found.trainings:.0f}"),
        ("minutes", f"{found.minutes:.1f}"),
        ("disk", human(found.disk, "B")),
    ]
    print_table(("to expect", ""), rows, right=1)
