"""Studies beside each other, at equal budget: what a strategy gained over random search.

Two figures: against the *mean* of random architectures, as is usual (Yang et al. 2020, "NAS evaluation is frustratingly
hard"), and against the *best of as many* random ones, which is what random search would have found for the same price.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from archc.ir.diagnostics import Note, fail
from archc.search.goals import Goals
from archc.search.history import Ended, is_whole
from archc.search.pareto import front, hypervolume
from archc.search.study import Study

RANDOM = "random"
Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Entry:
    """One study: `terms` are what must be equal for a comparison to mean anything, by name."""

    name: str
    strategy: str
    seed: int
    terms: Mapping[str, str]
    goals: Goals
    trials: Sequence[Ended]
    whole: int
    complete: bool = True

    def spent(self) -> float:
        """In whole trainings."""
        return sum(t.result.samples for t in self.trials) / self.whole

    def losses(self) -> Numbers:
        """Of what was trained to its end, in that order. Less is better."""
        found = [self.goals.losses(t.result) for t in self.trials if is_whole(t, self.goals)]
        return np.array(found, np.float64).reshape(-1, len(self.goals.objectives))

    def best_so_far(self) -> list[tuple[float, float]]:
        """After each whole training: what was spent, and the least loss of the first objective."""
        spent, best, found = 0.0, float("inf"), []
        for trial in self.trials:
            spent += trial.result.samples / self.whole
            if is_whole(trial, self.goals):
                best = min(best, self.goals.losses(trial.result)[0])
                found.append((spent, best))
        return found


def entry_of(study: Study, name: str = "") -> Entry:
    """A study as it is compared. What differs between machines (workers, limits) is no term."""
    config, evaluation = study.config, study.config.evaluation
    terms = {
        "space": hashlib.sha256("\0".join(config.space.files.values()).encode()).hexdigest()[:16],
        "options of the space": str(config.space.options()),
        "task": evaluation.task,
        "objectives": ", ".join(map(str, evaluation.goals.objectives)),
        "constraints": ", ".join(map(str, evaluation.goals.constraints)),
        "budget": str(config.budget),
        "steps": str(evaluation.steps),
        "recipe": str(dict(sorted(evaluation.recipe.items()))),
        "architecture-aware": str(evaluation.architecture_aware),
        "warm start": str(evaluation.warm_start),
        "batch of latency": str(evaluation.batch),
        "threads": str(evaluation.threads),
    }
    label = name or str(study.folder)
    return Entry(label, config.strategy, config.seed, terms, study.goals, study.ended, config.whole, study.complete)


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies with 95 % confidence by the bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def percent(self) -> str:
        """
        >>> Interval(0.0312, -0.01, 0.06).percent()
        '3.1 % [-1.0, 6.0]'
        """
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Row:
    """What the studies of one strategy came to.

    best         mean of their best values of the first objective
    over_mean    improvement over the mean of random architectures, as a share of it
    over_best    improvement over the best of as many random ones; None where no study is random
    hypervolume  share of the hypervolume that all studies together reach; None with one objective
    """

    strategy: str
    studies: int
    spent: float
    best: Interval
    over_mean: Interval | None
    over_best: Interval | None
    hypervolume: Interval | None


def reference(losses: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Where hypervolume is counted from: the worst of all in each objective, and a tenth of the range beyond it.

    >>> reference([(0.0, 3.0), (1.0, 2.0)])
    (1.1, 3.1)
    """
    columns = list(zip(*losses, strict=True))
    return tuple(max(c) + 0.1 * (max(c) - min(c) or abs(max(c)) or 1.0) for c in columns)


def demand_equal(entries: Sequence[Entry], terms: Sequence[str] | None = None) -> None:
    """Raises: CompileError (E0745) when studies differ in what must be equal (all terms, or these)."""
    first = entries[0]
    notes = [
        Note(f"{name}: `{first.terms.get(name)}` in {first.name}, `{entry.terms.get(name)}` in {entry.name}")
        for entry in entries[1:]
        for name in terms or dict.fromkeys([*first.terms, *entry.terms])
        if entry.terms.get(name) != first.terms.get(name)
    ]
    if notes:
        raise fail("E0745", "these studies differ in more than the way they searched", notes=notes)


def compare(entries: Sequence[Entry], *, resamples: int = 2000, seed: int = 0) -> list[Row]:
    """A row for each strategy, best first.

    Intervals: studies are drawn anew with replacement, and of random ones their architectures, too. So where a
    strategy has one study, its interval tells nothing of how it would have fared with another seed.

    Raises: CompileError (E0745) for studies that differ in task, goals, space or budget, or that found nothing.
    """
    demand_equal(entries)
    losses = {entry.name: entry.losses() for entry in entries}
    for entry in entries:
        if not entry.complete:
            help = f"`archc study resume {entry.name}` goes on with it"
            raise fail("E0745", f"`{entry.name}` cannot be compared: the search has not come to its end", help=help)
        if not len(losses[entry.name]):
            raise fail("E0745", f"`{entry.name}` cannot be compared: nothing in it was trained to its end")
    larger = entries[0].goals.objectives[0].larger_is_better
    dice = np.random.default_rng(seed)
    firsts = {name: values[:, 0] for name, values in losses.items()}
    chance = [firsts[e.name] for e in entries if e.strategy == RANDOM]
    volumes = _volumes(losses)
    rows = []
    for strategy in dict.fromkeys(e.strategy for e in entries):
        members = [e for e in entries if e.strategy == strategy]
        best = np.array([firsts[e.name].min() for e in members])
        draws = np.empty((resamples, 3))
        for i in range(resamples):
            ours = dice.choice(best, len(best)).mean()
            mean, top = _of_random(chance, dice) if chance else (np.nan, np.nan)
            draws[i] = ours, _gain(ours, mean), _gain(ours, top)
        mean, top = (np.mean([c.mean() for c in chance]), np.mean([c.min() for c in chance])) if chance else (0, 0)
        shares = np.array([volumes[e.name] for e in members]) if volumes else None
        sign = -1 if larger else 1
        rows.append(
            Row(
                strategy,
                len(members),
                float(np.mean([e.spent() for e in members])),
                _interval(sign * best.mean(), sign * draws[:, 0]),
                _interval(_gain(best.mean(), mean), draws[:, 1]) if chance else None,
                _interval(_gain(best.mean(), top), draws[:, 2]) if chance else None,
                None
                if shares is None
                else _interval(shares.mean(), dice.choice(shares, (resamples, len(shares))).mean(1)),
            )
        )
    return sorted(rows, key=lambda row: -row.best.value if larger else row.best.value)


def _of_random(chance: Sequence[Numbers], dice: np.random.Generator) -> tuple[float, float]:
    """The mean, and the mean of the bests, of random studies drawn anew, with trials drawn anew."""
    drawn = [dice.choice(chance[i], len(chance[i])) for i in dice.integers(len(chance), size=len(chance))]
    return float(np.mean([d.mean() for d in drawn])), float(np.mean([d.min() for d in drawn]))


def _gain(ours: float, theirs: float) -> float:
    """How much better (less is better), as a share of theirs."""
    return float((theirs - ours) / abs(theirs)) if theirs else 0.0


def _interval(value: float, draws: Numbers) -> Interval:
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(value), float(low), float(high))


def _volumes(losses: Mapping[str, Numbers]) -> dict[str, float] | None:
    """For each study its share of the hypervolume of all; None with one objective."""
    every = np.concatenate(list(losses.values()))
    if every.shape[1] == 1:
        return None
    best = [tuple(every[i]) for i in front(every)]
    corner = reference(best)
    whole = hypervolume(best, corner)
    return {name: hypervolume(values, corner) / whole for name, values in losses.items()}
