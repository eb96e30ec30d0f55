"""Trials for other programs: CSV, Parquet, or a study of Optuna."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from archc.backends.weights import atomic_file
from archc.ir.diagnostics import did_you_mean, fail
from archc.search.goals import Goals
from archc.search.history import Ended, is_whole
from archc.search.report.digest import quantities

Row = dict[str, Any]


def table(trials: Sequence[Ended], front: Sequence[int], goals: Goals) -> list[Row]:
    """A row of plain values for each trial that has ended; `value:NAME` are the objectives and what else is known."""
    keys = quantities(trials, goals)
    return [_row(trial, trial.proposal.number in front, keys) for trial in trials]


def _row(trial: Ended, on_front: bool, keys: Sequence[str]) -> Row:
    proposal, result, candidate = trial.proposal, trial.result, trial.proposal.candidate
    return {
        "number": proposal.number,
        "status": result.status,
        "reason": result.reason,
        **{f"value:{key}": result.values.get(key) for key in keys},
        "front": on_front,
        "fidelity": proposal.fidelity,
        "samples": result.samples,
        "seconds": result.seconds,
        "shares": result.shares,
        "origin": candidate.origin,
        "parents": " ".join(map(str, candidate.parents)),
        "inherit": candidate.inherit,
        "continues": proposal.continues,
        "work": proposal.work,
        "hash": candidate.hash,
        "weights": result.weights,
        "artifact": result.artifact,
        "message": result.message,
        "trace": None if candidate.trace is None else json.dumps(dict(candidate.trace)),
        "text": candidate.text,
    }


def _to_csv(trials: Sequence[Ended], front: Sequence[int], goals: Goals, path: Path, name: str) -> None:
    rows = table(trials, front, goals)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["number"])
        writer.writeheader()
        writer.writerows(rows)


def _to_parquet(trials: Sequence[Ended], front: Sequence[int], goals: Goals, path: Path, name: str) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise _missing("pyarrow", "parquet") from error
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table(trials, front, goals)), path)


def _to_optuna(trials: Sequence[Ended], front: Sequence[int], goals: Goals, path: Path, name: str) -> None:
    """An SQLite file that `optuna.load_study(storage="sqlite:///FILE", study_name=NAME)` opens.

    Parameters are the choices of the space by their paths; what has no choices (a net of the user's) has none. What is
    infeasible failed; what was stopped, or trained on a share of the steps only, is pruned.
    """
    try:
        import optuna
    except ImportError as error:
        raise _missing("optuna", "optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = ["maximize" if o.larger_is_better else "minimize" for o in goals.objectives]
    study = optuna.create_study(storage=f"sqlite:///{path}", study_name=name, directions=directions)
    known = _distributions(trials)
    for trial in trials:
        result, trace = trial.result, trial.proposal.candidate.trace or {}
        row = _row(trial, trial.proposal.number in front, quantities([trial], goals))
        state = optuna.trial.TrialState.COMPLETE
        if not is_whole(trial, goals):
            failed = result.status == "infeasible"
            state = optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.PRUNED
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=dict(trace),
                distributions={choice: known[choice] for choice in trace},
                values=[result.values[o.key] for o in goals.objectives] if state.name == "COMPLETE" else None,
                intermediate_values={p.samples: p.score for p in result.curve} if len(directions) == 1 else {},
                user_attrs={key: value for key, value in row.items() if value not in (None, "")},
            )
        )
    study._storage.remove_session()


def _distributions(trials: Sequence[Ended]) -> Mapping[str, Any]:
    """For each choice the range of what it came to."""
    import optuna

    found: dict[str, list[float]] = {}
    for trial in trials:
        for choice, value in (trial.proposal.candidate.trace or {}).items():
            found.setdefault(choice, []).append(value)
    return {
        choice: optuna.distributions.IntDistribution(min(0, *values), max(values))
        if all(isinstance(v, int) for v in values)
        else optuna.distributions.FloatDistribution(min(values), max(values))
        for choice, values in found.items()
    }


Writer = Callable[[Sequence[Ended], Sequence[int], Goals, Path, str], None]
FORMATS: Mapping[str, tuple[str, Writer]] = {
    "csv": (".csv", _to_csv),
    "parquet": (".parquet", _to_parquet),
    "optuna": (".db", _to_optuna),
}


def demand_format(name: str) -> None:
    """Raises: CompileError (E0747, exit 2) for a format that is none."""
    if name not in FORMATS:
        help = did_you_mean(name, FORMATS) or f"formats: {', '.join(FORMATS)}"
        raise fail("E0747", f"there is no format `{name}`", help=help, exit_code=2)


def export(trials: Sequence[Ended], front: Sequence[int], goals: Goals, path: Path, format: str, name: str) -> None:
    """Write all trials that have ended. Raises: CompileError (E0747) for an unknown format, or a missing package."""
    demand_format(format)
    with atomic_file(path) as temporary:
        FORMATS[format][1](trials, front, goals, temporary, name)


def _missing(package: str, format: str) -> Exception:
    return fail(
        "E0747",
        f"`{format}` needs the package `{package}`",
        label="it is not installed",
        help="install it: `pip install 'archc[search]'`",
        exit_code=4,
    )
