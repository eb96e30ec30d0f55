"""Merging trained networks: `archc.merge`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from archc.facade.model import Model, as_model
from archc.facade.weights import Given, resolve

if TYPE_CHECKING:
    from archc.backends.torch.training import Task
    from archc.backends.weights import Weights
    from archc.metanet.merge.align import Match
    from archc.metanet.merge.average import Path as Line

Metrics = Mapping[str, float]
SAMPLES = 512
"""Training examples that activations and statistics are measured on."""


@dataclass(frozen=True)
class Merged:
    """A merged network.

    weights   its weights, with what they were made of in their metadata; they go wherever trained ones do
    matches   how each network but the first was aligned to the first
    repair    what was done to its statistics, in words
    scores    metrics on validation data by what was measured: A, B, …, naive average, aligned, repaired
    lines     of two networks, metrics along the line between them, by the way of merging
    notes     what the user should know
    """

    weights: Weights = field(repr=False)
    matches: tuple[Match, ...] = field(repr=False)
    alpha: float
    repair: str
    scores: Mapping[str, Metrics]
    lines: Mapping[str, Line] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def barriers(self) -> dict[str, float]:
        """How much more loss the worst point of each line has than lies between its ends."""
        return {name: line.barrier() for name, line in self.lines.items()}

    def plot(self, path: Path | str) -> None:
        """Draw the lines, as .svg or .png.

        Raises: CompileError E0022 for another ending, ValueError when there is no line: without data, or of many
        networks.
        """
        from archc.metanet.merge.picture import draw_paths

        if not self.lines:
            raise ValueError("there is nothing to plot: a line is measured on data, between two networks")
        draw_paths(self.lines, path)

    def to_json(self) -> dict[str, Any]:
        return {
            "alpha": self.alpha,
            "method": self.matches[0].method,
            "repair": self.repair,
            "matches": [
                {
                    "classes": len(m.axes.classes),
                    "exchanges": len(m.axes.exchanges),
                    "by_weights": m.by_weights,
                    "cosine": list(m.product),
                    "error": m.error,
                    "conditioning": m.conditioning,
                }
                for m in self.matches
            ],
            "scores": {name: dict(metrics) for name, metrics in self.scores.items()},
            "barriers": self.barriers(),
            "lines": {
                name: {"alphas": list(line.alphas), "metrics": [dict(m) for m in line.metrics]}
                for name, line in self.lines.items()
            },
            "notes": list(self.notes),
        }


def merge(
    model: Model | Path | str,
    *weights: Given,
    data: str | Task | None = None,
    out: Path | str | None = None,
    alpha: float | None = None,
    method: Literal["weights", "activations"] | None = None,
    repair: bool = True,
    points: int = 11,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Merged:
    """Merge networks of one architecture that were trained apart into one of the same size.

    Each is first brought as near to the first as permutations of its hidden units allow, which does not change what it
    computes (checked in float64); then the weights are averaged: `1 - alpha` of the first, `alpha` of the second; of
    more than two, equally. With `data`, a task as for `archc.train`, units are matched by what they compute
    (`method="activations"`, else by weights), statistics are repaired, and everything is measured on validation data:
    the two networks, their naive average, the aligned one, the repaired one, at `points` points of the line between
    them. The test split is not opened. With `out` the merged weights are written there.

    Raises: CompileError E0840-E0844, E06xx when weights or data do not fit, ValueError for options that do not go
    together. Nothing is written then.

    >>> from archc.facade.model import loads
    >>> net = loads("arch a input x: f32[N, 4] output y: f32[N, 2] y = x -> linear(8) -> relu -> linear(2)")
    >>> from archc.metanet.symmetry import random_weights
    >>> import numpy as np
    >>> a, b = ({n: w.astype(np.float32) for n, w in random_weights(net.graph, s).items()} for s in (0, 1))
    >>> before, after = merge(net, a, b).matches[0].product
    >>> after > before
    True
    """
    from archc.backends.weights import Weights, write_weights
    from archc.metanet.merge.align import METHODS
    from archc.metanet.merge.average import Judge, average, points_between, stored, walk
    from archc.metanet.merge.many import match_many
    from archc.metanet.merge.repair import Repair

    model = as_model(model)
    if len(weights) < 2 or any(w is None for w in weights):
        raise TypeError("merging needs the weights of two networks, or more")
    assert method is None or method in METHODS, f"a method is one of {METHODS}"
    names = [chr(ord("A") + i) for i in range(len(weights))]
    origins = [resolve(model.graph, w) for w in weights]
    networks = [o.arrays for o in origins]
    if alpha is not None and len(networks) > 2:
        raise ValueError(f"`alpha` is the share of the second of two networks, and there are {len(networks)}")
    alpha = 0.5 if alpha is None else alpha
    shares = [1 - alpha, alpha] if len(networks) == 2 else [1 / len(networks)] * len(networks)
    if data is None and method == "activations":
        raise ValueError('activations are measured on data: name a task, `data = "digits"`')
    judge, inputs = None, None
    if data is not None:
        from archc.backends.torch.training import load_task

        judge = Judge(model.graph, load_task(data) if isinstance(data, str) else data)
        inputs = judge.inputs(model.graph, samples)
    method = method or ("weights" if inputs is None else "activations")
    matches = match_many(model.graph, networks, inputs if method == "activations" else None, seed=seed)
    aligned = [networks[0], *(m.weights for m in matches)]
    found, notes, done = average(aligned, shares), _notes(origins, data is not None), "none"
    scores: dict[str, Metrics] = {}
    lines: dict[str, Line] = {}
    if judge is not None and inputs is not None:
        mend = Repair(model.graph, aligned, inputs) if repair else None
        scores = {name: judge(w) for name, w in zip(names, networks, strict=True)}
        scores["naive average"], scores["aligned"] = judge(average(networks, shares)), judge(found)
        if mend is not None:
            repaired = mend(found, shares)
            found, done = dict(repaired.weights), str(repaired)
            scores["aligned, repaired"] = judge(found)
        if len(networks) == 2 and points > 2:
            at, (a, b), nearer = points_between(points), networks, aligned[1]
            lines = {"naive average": walk(judge, a, b, at), "aligned": walk(judge, a, nearer, at)}
            if mend is not None:
                lines["aligned, repaired"] = walk(judge, a, nearer, at, mend)
    metadata = {k: v for k, v in origins[0].metadata.items() if k in ("archc.preprocessing", "archc.task")}
    told = {"networks": len(networks), "shares": shares, "method": method, "repair": done, "seed": seed}
    metadata["archc.merge"] = json.dumps(told, sort_keys=True)
    made = Weights(stored(model.graph, found), metadata)
    merged = Merged(made, tuple(matches), alpha, done, scores, lines, tuple(notes))
    if out is not None:
        write_weights(out, made.arrays, made.metadata)
    return merged


def _notes(origins: Sequence[Any], measured: bool) -> list[str]:
    notes = []
    if not measured:
        notes.append("nothing was measured, and statistics are not repaired: that needs data (`--data TASK`)")
    if len({o.metadata.get("archc.preprocessing") for o in origins}) > 1:
        notes.append("the networks prepare their data differently; the merged one says what the first says")
    return notes
