"""Command lines that reproduce a study and what it found: every result is text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archc.search.evaluation import Evaluation
from archc.search.history import Trial
from archc.search.study import SPACE, StudyConfig
from archc.search.vault import WINNERS, weights_path


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
    words += ["--early-stop"] * evaluation.early_stop
    return words


def trial_commands(config: StudyConfig, folder: Path, trial: Trial, target: str = "cpu") -> list[str]:
    """Train an architecture of the front as the search did, and compile it."""
    stem = winner_stem(trial.number)
    program, weights = folder / WINNERS / f"{stem}.arch", f"{stem}.safetensors"
    evaluation = config.evaluation
    train: list[object] = ["archc", "train", program, "--task", evaluation.task, "--seed", evaluation.seed]
    train += _pairs("--recipe", {"steps": evaluation.steps} | dict(evaluation.recipe))
    if trial.proposal.candidate.inherit is not None and trial.start is not None:
        train += ["--weights", weights_path(folder, trial.start)]
    train += ["--threads", evaluation.threads, "-o", weights]
    build = ["archc", "compile", program, "--weights", weights, "--target", target]
    build += ["--batch", evaluation.batch, "-o", f"{stem}.archc"]
    return [_line(train), _line(build)]


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
