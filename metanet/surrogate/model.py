"""A Gaussian process over architectures.

The covariance of two networks is a sum: a squared exponential over features (a length scale for each group of them),
a linear kernel over all features, and one kernel for each round of labels (the cosine of their counts). Amplitudes,
scales and noise maximise the marginal likelihood, under weak priors. Accuracies are modelled as logits.

Intervals are conformal: residuals of networks that a process fitted to the others has not seen, each in units of its
own standard deviation, say how many of these an interval has to reach (after Papadopoulos 2023, arXiv:2310.15641, with
five folds). Leave-one-out residuals would cost less, but amplitudes and scales have seen every network: their intervals
were too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.metanet.store import Card, Stored, save
from archc.metanet.surrogate.features import GROUPS, ROUNDS, Seen, counts, labels_of, see, table
from archc.metanet.vocabulary import Vocabulary, vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

LOWEST = 8
"""Networks that a fit needs at least."""

CLIP = 0.005
"""Accuracies are kept this far from 0 and 1, where logits are infinite."""

STARTS = 2
"""First guesses that the search for amplitudes and scales begins from."""

FOLDS = 5
"""Parts of the networks that are left out in turn, to see how far predictions are off."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Accuracies between 0 and 1, one for each network: the median, and an interval of the asked coverage. `spread` is
    the standard deviation of the logit before conformal widening, for acquisition functions."""

    mean: Doubles
    low: Doubles
    high: Doubles
    spread: Doubles


@dataclass
class Surrogate:
    """Predicts accuracy from a network's graph.

    >>> from archc.metanet.distribution import nets
    >>> graphs = [graph for _, graph in nets("train", 12)]
    >>> surrogate = Surrogate()
    >>> surrogate.fit(graphs, [0.3 + 0.02 * i for i in range(12)])
    >>> told = surrogate.predict(graphs[:3])
    >>> told.mean.shape, bool((told.low < told.mean).all() and (told.mean < told.high).all())
    ((3,), True)
    """

    words: Vocabulary = field(default_factory=vocabulary)
    seen: list[Seen] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    hyper: list[float] = field(default_factory=list)
    """Logarithms: amplitude of the features, length scale of each group, amplitude of the linear kernel and of each
    round, noise."""
    scores: list[float] = field(default_factory=list)
    """Residuals of left-out networks in standard deviations, in order."""

    # -- learning -----------------------------------------------------------------------------------------------------

    def fit(
        self, graphs: Sequence[Graph | Seen], accuracies: Sequence[float], hyper: Sequence[float] = (), *,
        intervals: bool = True,
    ) -> None:  # fmt: skip
        """Learn from networks and their accuracies (0 … 1), forgetting what was learned before.

        `hyper` are amplitudes, scales and noise of an earlier fit, to be taken as they are. Without `intervals` those
        of predictions are a normal distribution's, and a fit takes a fifth of the time.

        Raises: CompileError E0810 for an op that `words` has not, E0815 for too few networks or accuracies that are
        none.
        """
        self.seen, self.accuracies, self.hyper = [], [], []
        self._take(graphs, accuracies)
        self.hyper = list(hyper) or self._best(range(len(self.seen)), STARTS)
        self._settle(intervals)

    def update(self, graphs: Sequence[Graph | Seen], accuracies: Sequence[float]) -> None:
        """Learn from more networks as results come in. Raises what `fit` raises."""
        self._take(graphs, accuracies)
        self.hyper = self._best(range(len(self.seen)), STARTS, self.hyper)
        self._settle(True)

    def _take(self, graphs: Sequence[Graph | Seen], accuracies: Sequence[float]) -> None:
        wrong = [a for a in accuracies if not 0 <= a <= 1]
        if wrong or len(graphs) != len(accuracies):
            told = f"found {wrong[0]}" if wrong else f"{len(graphs)} networks and {len(accuracies)} accuracies"
            raise fail("E0815", "a surrogate needs an accuracy between 0 and 1 for each network", label=told)
        seen = [g if isinstance(g, Seen) else see(g, self.words) for g in graphs]
        if len(self.seen) + len(seen) < LOWEST:
            raise fail(
                "E0815",
                f"a surrogate needs at least {LOWEST} networks to learn from",
                label=f"found {len(self.seen) + len(seen)}",
                help="train some networks of the space first",
            )
        self.seen += seen
        self.accuracies += [float(a) for a in accuracies]
        self._prepare()

    def _settle(self, intervals: bool) -> None:
        self.scores = []
        if intervals:
            self._calibrate()
        self._condition()

    def predict(self, graphs: Sequence[Graph | Seen], coverage: float = 0.9) -> Prediction:
        """Accuracies and intervals of networks.

        Raises: CompileError E0810 for an op that the vocabulary has not, E0815 before anything was learned.
        """
        import numpy as np

        if not self.seen:
            raise fail("E0815", "this surrogate has learned nothing yet", help="`fit` it first")
        seen = [g if isinstance(g, Seen) else see(g, self.words) for g in graphs]
        x, rounds = self._scaled(seen), counts(seen, self._labels)
        cross = self._kernel(self.hyper, x, self._x, rounds, self._rounds)
        own = self._diagonal(self.hyper, x)
        logit = cross @ self._alpha + self._mean
        variance = np.maximum(own - (cross * (cross @ self._inverse)).sum(1), 1e-9) + math.exp(2 * self.hyper[-1])
        spread = np.sqrt(variance)
        reach = spread * self._factor(coverage)
        return Prediction(_sigmoid(logit), _sigmoid(logit - reach), _sigmoid(logit + reach), spread)

    # -- the process --------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """What does not depend on amplitudes and scales."""
        import numpy as np

        self._columns = sorted({name for one in self.seen for name in one.features})
        raw = table(self.seen, self._columns)
        self._centre, self._width = raw.mean(0), np.maximum(raw.std(0), 1e-3)
        group = np.array([GROUPS.index(name.partition(".")[0]) for name in self._columns])
        self._group = group
        self._per_group = np.maximum(np.bincount(group, minlength=len(GROUPS)), 1)
        self._labels = labels_of(self.seen)
        self._x = self._scaled(self.seen)
        self._rounds = counts(self.seen, self._labels)
        target = np.clip(np.array(self.accuracies), CLIP, 1 - CLIP)
        logit = np.log(target / (1 - target))
        self._mean, self._target = float(logit.mean()), logit - logit.mean()
        self._distances = [_squares(self._x[:, group == g], self._x[:, group == g]) for g in range(len(GROUPS))]
        self._grams = self._products(self._x, self._x, self._rounds, self._rounds)

    def _scaled(self, seen: Sequence[Seen]) -> Doubles:
        import numpy as np

        scaled = np.clip((table(seen, self._columns) - self._centre) / self._width, -6, 6)
        result: Doubles = scaled / np.sqrt(self._per_group[self._group])
        return result

    def _kernel(self, hyper: Sequence[float], x: Doubles, z: Doubles, a: list[Doubles], b: list[Doubles]) -> Doubles:
        distances = [_squares(x[:, self._group == g], z[:, self._group == g]) for g in range(len(GROUPS))]
        return self._covariance(hyper, distances, self._products(x, z, a, b))

    def _products(self, x: Doubles, z: Doubles, a: list[Doubles], b: list[Doubles]) -> list[Doubles]:
        """The linear kernels: of features, and of each round."""
        return [x @ z.T, *(p @ q.T for p, q in zip(a, b, strict=True))]

    @staticmethod
    def _covariance(hyper: Sequence[float], distances: Sequence[Doubles], grams: Sequence[Doubles]) -> Doubles:
        import numpy as np

        scales = hyper[1 : 1 + len(GROUPS)]
        far = sum(d * math.exp(-2 * s) for d, s in zip(distances, scales, strict=True))
        found: Doubles = math.exp(2 * hyper[0]) * np.exp(-0.5 * far)
        for gram, amplitude in zip(grams, hyper[1 + len(GROUPS) : -1], strict=True):
            found = found + math.exp(2 * amplitude) * gram
        return found

    def _diagonal(self, hyper: Sequence[float], x: Doubles) -> Doubles:
        """The variance of each network, before anything is learned. A label that nobody has seen counts: the variance
        of a round is its amplitude, whatever is known of the network's labels."""
        linear, *rounds = (math.exp(2 * a) for a in hyper[1 + len(GROUPS) : -1])
        found: Doubles = math.exp(2 * hyper[0]) + sum(rounds) + linear * (x**2).sum(1)
        return found

    def _loss(self, hyper: Sequence[float], rows: Any) -> float:
        """The negative logarithm of the marginal likelihood of some networks, with weak priors that keep every number
        sensible."""
        import numpy as np

        k = self._noisy(hyper, rows)
        try:
            root = np.linalg.cholesky(k)
        except np.linalg.LinAlgError:
            return 1e10
        half = np.linalg.solve(root, self._target[rows])
        fit = 0.5 * float(half @ half) + float(np.log(np.diag(root)).sum())
        return fit + 0.5 * sum(((h - c) / 1.5) ** 2 for h, c in zip(hyper, _CENTRES, strict=True))

    def _noisy(self, hyper: Sequence[float], rows: Any) -> Doubles:
        """The covariance of some of the learned networks, noise on its diagonal."""
        import numpy as np

        both = np.ix_(rows, rows)
        k = self._covariance(hyper, [d[both] for d in self._distances], [g[both] for g in self._grams])
        k[np.diag_indices_from(k)] += math.exp(2 * hyper[-1]) + 1e-8
        return k

    def _best(self, rows: Any, starts: int, first: Sequence[float] = ()) -> list[float]:
        """Amplitudes, scales and noise for some of the networks."""
        import numpy as np
        from scipy.optimize import minimize

        guesses = [list(g) for g in (first, _CENTRES) if g]
        rng = np.random.Generator(np.random.Philox(len(rows)))
        while len(guesses) < starts:
            guesses.append([c + float(d) for c, d in zip(_CENTRES, rng.normal(0, 0.7, len(_CENTRES)), strict=True)])
        ends = [minimize(self._loss, g, (rows,), "L-BFGS-B", options={"maxiter": 30}) for g in guesses]
        best = min(ends, key=lambda end: float(end.fun))
        return [float(v) for v in best.x]

    def _calibrate(self) -> None:
        """The residuals of networks that were left out, a fifth at a time, in standard deviations."""
        import numpy as np

        count = len(self.seen)
        fold = np.random.Generator(np.random.Philox(count)).permutation(np.arange(count) % FOLDS)
        scores = np.zeros(count)
        for k in range(FOLDS):
            rows, rest = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            hyper = self._best(rows, 1)
            inverse, noise = np.linalg.inv(self._noisy(hyper, rows)), math.exp(2 * hyper[-1])
            cross, own = np.ix_(rest, rows), np.ix_(rest, rest)
            shared = self._covariance(hyper, [d[cross] for d in self._distances], [g[cross] for g in self._grams])
            itself = self._covariance(hyper, [d[own] for d in self._distances], [g[own] for g in self._grams])
            variance = np.maximum(np.diag(itself) - (shared * (shared @ inverse)).sum(1), 1e-9) + noise
            scores[rest] = np.abs(self._target[rest] - shared @ (inverse @ self._target[rows])) / np.sqrt(variance)
        self.scores = [float(v) for v in np.sort(scores)]

    def _condition(self) -> None:
        """What predictions need."""
        import numpy as np

        self._inverse = np.linalg.inv(self._noisy(self.hyper, np.arange(len(self.seen))))
        self._alpha = self._inverse @ self._target

    def _factor(self, coverage: float) -> float:
        """How many standard deviations an interval reaches."""
        if not self.scores:
            return NormalDist().inv_cdf((1 + coverage) / 2)
        count = len(self.scores)
        rank = min(count, math.ceil((count + 1) * coverage))
        return self.scores[rank - 1]

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: Path | str, card: Card) -> str:
        """Write the surrogate with what it has learned from; returns the file's SHA-256."""
        import numpy as np

        features = sorted({name for one in self.seen for name in one.features})
        present = np.array([[name in one.features for name in features] for one in self.seen])
        values = np.array([[one.features.get(name, 0.0) for name in features] for one in self.seen])
        labels = labels_of(self.seen)
        arrays: dict[str, Any] = {
            "features": values,
            "present": present,
            "accuracies": np.array(self.accuracies),
            "hyper": np.array(self.hyper),
            "scores": np.array(self.scores),
        }
        for r, known in enumerate(labels):
            arrays[f"labels.{r}"] = np.array(
                [[one.labels[r].get(label, 0) for label in known] for one in self.seen], np.int32
            )
        words = self.words.to_json() | {"features": features} | {f"labels.{r}": known for r, known in enumerate(labels)}
        return save(path, card.model_copy(update={"vocabulary": words}), arrays)

    @classmethod
    def of(cls, stored: Stored) -> Surrogate:
        """The surrogate of a file. Raises: CompileError (E0802) when something is missing in it."""
        arrays, words = stored.arrays, stored.card.vocabulary
        needed = ["features", "present", "accuracies", "hyper", "scores", *(f"labels.{r}" for r in range(ROUNDS + 1))]
        missing = [name for name in needed if name not in arrays or not (name in words or "." not in name)]
        if missing or len(arrays["hyper"]) != len(_CENTRES):
            raise fail(
                "E0802", f"{stored.path} is no sound surrogate", label=f"without {', '.join(missing) or 'hyper'}"
            )
        features = words["features"]
        found = cls(Vocabulary.from_json(words))
        for i in range(len(arrays["accuracies"])):
            row = zip(features, arrays["features"][i], arrays["present"][i], strict=True)
            own = {name: float(value) for name, value, there in row if there}
            labels = tuple(_counted(words[f"labels.{r}"], arrays[f"labels.{r}"][i]) for r in range(ROUNDS + 1))
            found.seen.append(Seen(own, labels))
        found.accuracies = [float(a) for a in arrays["accuracies"]]
        found._prepare()
        found.hyper = [float(h) for h in arrays["hyper"]]
        found.scores = [float(v) for v in arrays["scores"]]
        found._condition()
        return found


_CENTRES = (-0.5, *([0.5] * len(GROUPS)), *([-1.0] * (ROUNDS + 2)), -1.0)
"""Where a search begins, and the centres of the weak priors."""


def _counted(labels: Sequence[str], row: Any) -> Mapping[str, int]:
    return {label: int(count) for label, count in zip(labels, row, strict=True) if count}


def _squares(a: Doubles, b: Doubles) -> Doubles:
    """Squared distances of all pairs of rows."""
    import numpy as np

    found: Doubles = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * a @ b.T, 0.0)
    return found


def _sigmoid(logit: Doubles) -> Doubles:
    import numpy as np

    found: Doubles = 1 / (1 + np.exp(-logit))
    return found


__all__ = ["LOWEST", "Prediction", "Surrogate"]
