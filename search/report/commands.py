"""Command lines that reproduce a study and what it found: every result is text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archc.backends.weights import read_weights
from archc.search.evaluation import Evaluation
from archc.search.history import Trial
from archc.search.study import SPACE, Study, StudyConfig, measured_goals
from archc.search.vault import WINNERS, weights_path

START = ".start.safetensors"
"""How the file of weights ends that a winner's training began with, where these were not drawn by the program."""


def search_command(config: StudyConfig, folder: Path) -> str:
    """`archc search …` for the same study in another folder, from the space that the study keeps."""
    evaluation, space = config.evaluation, config.space
    words: list[object] = ["archc", "search", folder / SPACE / space.name, "--task", evaluation.task]
    words += _repeat("--objective", evaluation.goals.objectives)
    words += _repeat("--require", evaluation.goals.constraints)
    words += ["--strategy", config.strategy, *_pairs("--option", config.options)]
    words += ["--budget", config.budget, "--seed", config.seed]
    words += _changed(evaluation)
    words += _repeat("--from", (folder / SPACE / name for name in space.seeds))
    words += _repeat("--transform", space.transforms)
    words += [*_pairs("--set", space.values), *_pairs("--dim", space.dims)]
    words += ["--deterministic", "--lag", config.lag] if config.lag else []
    words += [] if config.dedupe else ["--no-dedupe"]
    return _line([*words, "--study", f"{folder}-again"])


def _changed(evaluation: Evaluation) -> list[object]:
    """The flags for what differs from the default."""
    flags = {
        "steps": "--steps",
        "threads": "--threads",
        "batch": "--batch",
        "memory_mb": "--memory",
        "seconds": "--time-limit",
        "seed": "--training-seed",
    }
    words: list[object] = []
    for field, flag in flags.items():
        value = getattr(evaluation, field)
        if value != Evaluation.model_fields[field].default:
            words += [flag, value]
    words += _pairs("--recipe", evaluation.recipe)
    words += ["--architecture-aware"] * evaluation.architecture_aware
    if evaluation.warm_start is not None:
        words += ["--warm-start", evaluation.warm_start]
    words += ["--early-stop"] * evaluation.early_stop
    return words


def beginning(study: Study, trial: Trial) -> Trial:
    """The trial that began the training which this one went on with, if it did; else itself."""
    while trial.proposal.continues is not None:
        trial = study.trials[trial.proposal.continues]
    return trial


def trial_commands(study: Study, trial: Trial) -> list[str]:
    """Train an architecture of the front as the search did, and compile it."""
    stem, evaluation, folder = winner_stem(trial.number), study.config.evaluation, study.folder
    program, weights = folder / WINNERS / f"{stem}.arch", f"{stem}.safetensors"
    recipe = {**evaluation.recipe, "steps": evaluation.steps, "keep": "last"}
    train: list[object] = ["archc", "train", program, "--task", evaluation.task, "--seed", evaluation.seed]
    if evaluation.architecture_aware:
        recipe |= {"lr": _rate(folder, trial)}
    train += _pairs("--recipe", recipe)
    if beginning(study, trial).start is not None or evaluation.has_own_start:
        train += ["--weights", folder / WINNERS / f"{stem}{START}"]
    train += ["--device", "cpu", "--threads", evaluation.threads, "-o", weights]
    target = next((goal.target for goal in measured_goals(study.goals) if goal.target is not None), "cpu")
    build = ["archc", "compile", program, "--weights", weights, "--target", target, "-o", f"{stem}.archc"]
    return [_line(train), _line(build)]


def _rate(folder: Path, trial: Trial) -> object:
    """The learning rate that the topology asked for, as the trained weights tell."""
    assert trial.result is not None
    assert trial.result.weights is not None
    metadata = read_weights(weights_path(folder, trial.result.weights)).metadata
    return json.loads(metadata["archc.recipe"])["lr"]


def winner_stem(number: int) -> str:
    """What the files of a trial are called.

    >>> winner_stem(12)
    '00012'
    """
    return f"{number:05}"


def _repeat(flag: str, values: Any) -> list[object]:
    return [word for value in values for word in (flag, value)]


def _pairs(flag: str, values: Mapping[str, object]) -> list[object]:
    return [word for name, value in values.items() for word in (flag, f"{name}={_text(value)}")]


def _text(value: object) -> str:
    """A value as the command line reads it.

    >>> _text(True), _text(None), _text([0.9, 0.99])
    ('true', 'none', '[0.9, 0.99]')
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _line(words: list[object]) -> str:
    return shlex.join(map(str, words))
