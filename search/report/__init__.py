"""The report of a study: one HTML file that loads nothing and opens from the disk."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any
from xml.sax.saxutils import escape

from archc.search.report import digest
from archc.search.report.commands import search_command, trial_commands
from archc.search.report.status import standing
from archc.search.study import Study

Draw = Callable[[str], str]
"""The picture of a program as SVG."""
MOST_PICTURES = 1_500_000
"""Characters of pictures in a page, so that it stays small: those that come first are drawn."""


def page(document: Mapping[str, Any], style: str = "") -> str:
    """The page that tells a document (see `archc.search.report.document`); `style` is what its pictures need."""
    folder = files("archc.search.report")

    def part(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    data = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    parts = {
        "TITLE": escape(document["title"]),
        "STYLE": part("page.css") + style,
        "DATA": data.replace("<", "\\u003c"),
        "SCRIPT": part("page.js"),
    }
    return re.sub("@([A-Z]+)@", lambda mark: parts[mark[1]], part("page.html"))


def document(study: Study, draw: Draw) -> dict[str, Any]:
    """What the page tells, as plain data."""
    config, goals, trials = study.config, study.goals, study.ended
    front = [trial.number for trial in study.front()]
    rows = digest.rows(trials, front, goals, config.whole)
    texts: dict[str, int] = {}
    for row, trial in zip(rows, trials, strict=True):
        row["text"] = texts.setdefault(trial.proposal.candidate.text, len(texts))
    again: dict[str, list[str]] = {"study": [search_command(config, study.folder)]}
    again |= {str(t.number): trial_commands(study, t) for t in study.front()}
    return {
        "title": f"{config.space.name.removesuffix('.arch')} on {config.evaluation.task}",
        "subtitle": _subtitle(study),
        "tiles": _tiles(study),
        "objectives": [{"key": o.key, "larger": o.larger_is_better} for o in goals.objectives],
        "quantities": digest.quantities(trials, goals),
        "trials": rows,
        "front": front,
        "texts": list(texts),
        "pictures": _pictures(study, front, draw),
        "progress": digest.progress(trials, front, goals, config.whole),
        "spent": study.history.spent,
        "origins": digest.origins(trials, front, goals),
        "reasons": digest.reasons(trials),
        "savings": digest.savings(trials, config.whole),
        "again": again,
        "setup": _setup(study),
        "space": config.space.files[config.space.name],
    }


def _subtitle(study: Study) -> str:
    config, closed = study.config, study.history.closed
    state = {"complete": "complete", "": "not at its end"}.get(closed, closed)
    today = time.strftime("%Y-%m-%d", time.localtime(study.trials[0].proposed)) if study.trials else ""
    return f"search by {config.strategy}, seed {config.seed}, {today}: {state}"


def _tiles(study: Study) -> list[tuple[str, str]]:
    now, goal = standing(study.config, study.history), study.goals.objectives[0]
    tiles = [(f"{now.trials}", "architectures proposed"), (f"{now.spent:.0f}", "whole trainings spent")]
    if now.front:
        tiles.append((f"{now.front[0]['values'][goal.key]:.4g}", f"best {goal.key}"))
    tiles += [
        (f"{len(now.front)}", "on the front"),
        (f"{now.infeasible}", "infeasible"),
        (f"{now.stopped}", "stopped early"),
        (f"{now.shared}", "known already"),
        (f"{now.minutes:.1f} min", f"{now.evaluations_per_minute:.0f} evaluations/min"),
    ]
    return tiles


def _pictures(study: Study, front: list[int], draw: Draw) -> dict[str, str]:
    """Pictures by hash: of the front and what it was made of, then of the others, best first, while there is room."""
    goals, ended = study.goals, study.ended
    others = sorted(ended, key=lambda e: (goals.losses(e.result), e.proposal.number))
    found: dict[str, str] = {}
    size = 0
    for number in dict.fromkeys([*digest.ancestors(ended, front), *(e.proposal.number for e in others)]):
        candidate = study.trials[number].proposal.candidate
        if size > MOST_PICTURES:
            break
        if candidate.hash not in found:
            found[candidate.hash] = draw(candidate.text)
            size += len(found[candidate.hash])
    return found


def _setup(study: Study) -> list[tuple[str, str]]:
    """How it was run, in words."""
    config, evaluation, history = study.config, study.config.evaluation, study.history
    limits = f"{evaluation.memory_mb} MB, {evaluation.seconds:g} s, {evaluation.threads} threads"
    told = {
        "space": f"{config.space.name}, SHA-256 {config.space.sha256[:16]}…",
        "task": evaluation.task,
        "objectives": ", ".join(map(str, evaluation.goals.objectives)),
        "constraints": ", ".join(map(str, evaluation.goals.constraints)) or "none",
        "strategy": f"{config.strategy} {_named(config.options)}".strip(),
        "budget": f"{config.budget}" + (" whole trainings" if config.budget.evaluations else ""),
        "seed": f"{config.seed} (of trainings: {evaluation.seed})",
        "whole training": f"{evaluation.steps} steps, {config.whole:,} samples {_named(evaluation.recipe)}".strip(),
        "limits of a training": limits,
        "initialisation and rate": "by topology" if evaluation.architecture_aware else "the same for all",
        "warm start": evaluation.warm_start or "none",
        "early stopping": "by learning curves" if evaluation.early_stop else "none",
        "equal work": "done once" if config.dedupe else "done each time",
        "order of results": "as they come" if config.lag is None else f"deterministic, lag {config.lag}",
        "time": _named({k: f"{v:.1f} s" for k, v in {**history.seconds_of_work, **history.overheads}.items()}),
        "versions": _named(config.versions),
    }
    return list(told.items())


def _named(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
