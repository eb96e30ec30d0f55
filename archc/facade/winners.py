"""The front of a search as files: programs, weights, compiled networks, and the command lines that reproduce them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from archc.backends.weights import atomic_file, write_weights
from archc.facade.model import Model, loads
from archc.grammar.format import format_source
from archc.ir.graph import Graph
from archc.search import vault
from archc.search.history import Trial
from archc.search.report.commands import START, beginning, trial_commands, winner_stem
from archc.search.study import Study

_OURS = re.compile(r"\d{5,}(\.start)?\.(arch|archc|safetensors)")


@dataclass(frozen=True)
class Winner:
    """An architecture of the front: its program, with its weights and what was compiled of it where these are kept."""

    number: int
    values: Mapping[str, float]
    origin: str
    text: str
    arch: Path
    weights: Path | None
    artifact: Path | None
    commands: tuple[str, ...]
    """What trains and compiles it again."""

    @cached_property
    def model(self) -> Model:
        return loads(self.text)

    def to_json(self) -> dict[str, Any]:
        files = {"arch": self.arch, "weights": self.weights, "artifact": self.artifact}
        return {
            "number": self.number,
            "values": dict(self.values),
            "origin": self.origin,
            **files,
            "commands": self.commands,
        }

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.4g}" for name, value in self.values.items())
        return f"Winner({self.number}: {values}, {self.origin})"

    def _repr_html_(self) -> str:
        return self.model.draw()


def winner(study: Study, trial: Trial) -> Winner:
    """What is kept of a trial of the front."""
    assert trial.result is not None
    folder, stem = study.folder / vault.WINNERS, winner_stem(trial.number)
    weights, artifact = folder / f"{stem}.safetensors", folder / f"{stem}.archc"
    return Winner(
        trial.number,
        trial.result.values,
        trial.proposal.candidate.origin,
        format_source(trial.proposal.candidate.text),
        folder / f"{stem}.arch",
        weights if weights.exists() else None,
        artifact if artifact.exists() else None,
        tuple(trial_commands(study, trial)),
    )


def keep_winners(study: Study) -> list[Winner]:
    """Write the front to `winners/`, and remove from there what is no longer on it."""
    folder = study.folder / vault.WINNERS
    folder.mkdir(exist_ok=True)
    front = study.front()
    stems = {winner_stem(trial.number) for trial in front}
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name.partition(".")[0] not in stems:
            path.unlink()
    for trial in front:
        _keep(study, trial)
    return [winner(study, trial) for trial in front]


def _keep(study: Study, trial: Trial) -> None:
    result = trial.result
    assert result is not None
    what = winner(study, trial)
    with atomic_file(what.arch) as temporary:
        temporary.write_text(what.text, encoding="utf-8")
    stem = what.arch.with_suffix("")
    if result.weights is not None and vault.has_weights(study.folder, result.weights):
        from archc.search.trial import ORDER, renamed

        trained = vault.load_weights(study.folder, result.weights)
        metadata = {name: text for name, text in trained.metadata.items() if name != ORDER}
        write_weights(stem.with_suffix(".safetensors"), renamed(trained, what.model.graph), metadata)
        _keep_start(study, trial, what.model.graph, stem.with_suffix(START))
    if result.artifact is not None and (source := vault.artifact_path(study.folder, result.artifact)).exists():
        with atomic_file(stem.with_suffix(".archc")) as temporary:
            shutil.copyfile(source, temporary)


def _keep_start(study: Study, trial: Trial, graph: Graph, out: Path) -> None:
    """Write the weights that a training began with, where they are not those that the program draws: inherited ones,
    what the topology asks for, and what was predicted."""
    trial = beginning(study, trial)
    evaluation, candidate, inherits = study.config.evaluation, trial.proposal.candidate, None
    if trial.start is not None and candidate.inherit is not None and vault.has_weights(study.folder, trial.start):
        from archc.search.inherit import inherited
        from archc.search.trial import renamed

        parent = loads(study.trials[candidate.inherit].proposal.candidate.text).graph
        theirs = renamed(vault.load_weights(study.folder, trial.start), parent)
        inherits = inherited(parent, theirs, graph, candidate.origin, evaluation.seed).weights
    if inherits or evaluation.has_own_start:
        from archc.search.trial import fresh

        write_weights(out, fresh(graph, evaluation, inherits).weights())
