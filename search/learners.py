"""What a surrogate-assisted search believes of candidates: one learner for each objective.

A learner turns what was told into scores, less is better, in units of its own, and gives each candidate a mean and a
standard deviation of its score.

`Read`     what stands in the graph (`params`, `flops`, bytes) is not guessed
`Timed`    latency: the logarithm, by `archc.search.predictor`
`Ranked`   everything else: the logit of the rank among what was told, so that neither the objective's unit nor a few
           outliers count (after Salinas et al. 2020, "A Quantile-based Approach for Hyperparameter Transfer Learning").
           The infeasible ranks last. Learned by a Gaussian process or a random forest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

from archc.grammar.load import loads
from archc.ir.cost import cost
from archc.ir.dims import Dim, substitute, symbols
from archc.metanet.surrogate import Surrogate
from archc.metanet.surrogate.features import Seen, table
from archc.metanet.surrogate.model import LOWEST
from archc.search.goals import Objective
from archc.search.predictor import LatencyPredictor, see_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

Model = Literal["gp", "forest"]

TREES = 60
GROWTH = 1.25
"""The process's amplitudes and scales are fitted anew when so many times the networks are known."""


class Learner(Protocol):
    """Learns one objective from programs and losses (less is better, infinite for the infeasible)."""

    def learn(self, texts: Sequence[str], losses: Doubles) -> Doubles:
        """Learn from all that was told, and return its scores."""

    def predict(self, texts: Sequence[str]) -> tuple[Doubles, Doubles]:
        """Mean and standard deviation of scores."""

    def believe(self, texts: Sequence[str]) -> None:
        """Take what is expected of candidates under way as told, until more is learned."""


@lru_cache(maxsize=8192)
def sizes(text: str) -> Mapping[str, float]:
    """What can be read from a program: of the quantities that candidates are judged by, those that need no training.
    Open axes count as 1."""
    known = cost(loads(text))
    return {
        "params": known.params,
        "weight_bytes": known.weight_bytes,
        "flops": _of_one(known.flops),
        "activation_bytes": _of_one(known.activation_bytes),
    }


READABLE = ("params", "flops", "weight_bytes", "activation_bytes")


def _of_one(dim: Dim) -> float:
    found = substitute(dim, dict.fromkeys(symbols(dim), 1))
    assert isinstance(found, int)
    return float(found)


def learner(objective: Objective, model: Model, batch: int = 1) -> Learner:
    """The learner that fits an objective."""
    if objective.name in READABLE and objective.target is None:
        return Read(objective)
    if objective.name == "latency_ms" and not objective.larger_is_better:
        return Timed(batch)
    return Ranked(model)


class Read:
    """What stands in the graph."""

    def __init__(self, objective: Objective) -> None:
        self.name, self.sign = objective.name, -1.0 if objective.larger_is_better else 1.0

    def learn(self, texts: Sequence[str], losses: Doubles) -> Doubles:
        return self.predict(texts)[0]

    def predict(self, texts: Sequence[str]) -> tuple[Doubles, Doubles]:
        import numpy as np

        found = np.array([self.sign * math.log1p(sizes(text)[self.name]) for text in texts])
        return found, np.zeros(len(found))

    def believe(self, texts: Sequence[str]) -> None:
        pass


class Timed:
    """The logarithm of a latency."""

    def __init__(self, batch: int) -> None:
        self.predictor = LatencyPredictor(batch)

    def learn(self, texts: Sequence[str], losses: Doubles) -> Doubles:
        import numpy as np

        for text, ms in zip(texts, losses.tolist(), strict=True):
            if math.isfinite(ms):
                self.predictor.learn(text, ms)
        return np.log(losses)

    def predict(self, texts: Sequence[str]) -> tuple[Doubles, Doubles]:
        import numpy as np

        told = self.predictor.predict(texts)
        return np.log(told.mean), told.spread

    def believe(self, texts: Sequence[str]) -> None:
        pass  # where latency is measured next changes little of what is known of it


class Ranked:
    """The logit of the rank."""

    def __init__(self, model: Model) -> None:
        self._regression = Process(ranked) if model == "gp" else Forest(ranked)

    def learn(self, texts: Sequence[str], losses: Doubles) -> Doubles:
        return self._regression.learn([see_text(text) for text in texts], losses)

    def predict(self, texts: Sequence[str]) -> tuple[Doubles, Doubles]:
        return self._regression.predict([see_text(text) for text in texts])

    def believe(self, texts: Sequence[str]) -> None:
        self._regression.believe([see_text(text) for text in texts])


def ranked(losses: Doubles) -> Doubles:
    """The logit of the share of others that are better, the half of its own kind counted; equal losses, equal ranks.

    >>> import numpy as np
    >>> ranked(np.array([0.2, 0.1, np.inf, 0.2])).round(2).tolist()
    [0.0, -1.95, 1.95, 0.0]
    """
    import numpy as np

    below = (losses[None, :] < losses[:, None]).sum(1)
    equal = (losses[None, :] == losses[:, None]).sum(1)
    share = (below + 0.5 * equal) / len(losses)
    found: Doubles = np.log(share / (1 - share))
    return found


class Process:
    """The Gaussian process of `archc.metanet.surrogate`, for any scores.

    Amplitudes and scales are those of the last fit of which a whole step of `GROWTH` has passed: they cost
    most, and so follow from what was told, not from when somebody asked.
    """

    def __init__(self, scale: Callable[[Doubles], Doubles]) -> None:
        """`scale` makes scores of values, around 0 and of a deviation of about 1."""
        self._scale = scale
        self._surrogate = Surrogate()
        self._fits: dict[int, list[float]] = {}

    def learn(self, seen: Sequence[Seen], values: Doubles) -> Doubles:
        """Learn from `LOWEST` networks or more, in the order in which they came; returns their scores."""
        first = LOWEST
        while math.ceil(first * GROWTH) <= len(seen):
            first = math.ceil(first * GROWTH)
        if first not in self._fits:
            self._surrogate.fit(seen[:first], _shares(self._scale(values[:first])), intervals=False)
            self._fits[first] = self._surrogate.hyper
        self._fit = self._fits[first]
        self._seen, self._scores = list(seen), self._scale(values)
        self._condition(self._seen, self._scores)
        return self._scores

    def believe(self, seen: Sequence[Seen]) -> None:
        """Take what is expected of these as learned, until more is."""
        import numpy as np

        if seen:
            self._condition([*self._seen, *seen], np.append(self._scores, self.predict(seen)[0]))

    def _condition(self, seen: Sequence[Seen], scores: Doubles) -> None:
        self._surrogate.fit(seen, _shares(scores), self._fit, intervals=False)

    def predict(self, seen: Sequence[Seen]) -> tuple[Doubles, Doubles]:
        """Mean and standard deviation of the scores, without their noise."""
        import numpy as np

        told = self._surrogate.predict(seen)
        noise = math.exp(2 * self._surrogate.hyper[-1])
        return np.log(told.mean / (1 - told.mean)), np.sqrt(np.maximum(told.spread**2 - noise, 1e-9))


def _shares(scores: Doubles) -> list[float]:
    """What the surrogate takes the logit of."""
    import numpy as np

    found: list[float] = (1 / (1 + np.exp(-scores))).tolist()
    return found


class Forest:
    """A random forest on the same features; its trees' deviation stands for what is not known (as in SMAC: Hutter et
    al. 2011, "Sequential Model-Based Optimization for General Algorithm Configuration")."""

    def __init__(self, scale: Callable[[Doubles], Doubles]) -> None:
        self._scale = scale

    def learn(self, seen: Sequence[Seen], values: Doubles) -> Doubles:
        """As that of `Process`, and so are the others."""
        self._seen, self._scores = list(seen), self._scale(values)
        self._fit(self._seen, self._scores)
        return self._scores

    def believe(self, seen: Sequence[Seen]) -> None:
        import numpy as np

        if seen:
            self._fit([*self._seen, *seen], np.append(self._scores, self.predict(seen)[0]))

    def _fit(self, seen: Sequence[Seen], scores: Doubles) -> None:
        from sklearn.ensemble import RandomForestRegressor

        self._columns = sorted({name for one in seen for name in one.features})
        made = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.33, random_state=0, n_jobs=1)
        self._forest = made.fit(table(seen, self._columns), scores)

    def predict(self, seen: Sequence[Seen]) -> tuple[Doubles, Doubles]:
        import numpy as np

        x = table(seen, self._columns).astype(np.float32)
        trees = np.array([tree.tree_.predict(x)[:, 0] for tree in self._forest.estimators_])
        return trees.mean(0), np.maximum(trees.std(0), 1e-3)
