"""Latency before it is measured: a predictor that learns as measurements come in.

It sees what the compiler will see of a network: its graph after the passes that every compilation runs, and of that how
many nodes of which kind there are, their operations and the bytes that they move. A Gaussian process over these
(`archc.metanet.surrogate`, told log-latencies in place of logits) gives a latency and an interval.

What is measured stays the truth. The predictor is for what cannot be measured: candidates that a strategy thinks of,
and which it need not train when the whole interval is beyond a bound (`Sieve`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from archc.grammar.load import loads
from archc.ir.clone import clone
from archc.ir.cost import node_flops
from archc.ir.dims import Dim, substitute, symbols
from archc.ir.graph import Graph, Node
from archc.metanet.surrogate import Surrogate
from archc.metanet.surrogate.features import Seen, see
from archc.metanet.surrogate.model import LOWEST
from archc.passes.manager import Context, run_passes
from archc.passes.pipeline import CLEANUP
from archc.search.goals import Goals
from archc.search.records import Candidate, Result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

GROWTH = 1.25
"""The process's amplitudes and scales are fitted anew when so many times the networks are known."""


@lru_cache(maxsize=8192)
def see_text(text: str) -> Seen:
    """What a surrogate sees of a program's network."""
    return see(loads(text))


@lru_cache(maxsize=8192)
def see_costs(text: str, batch: int = 1) -> Seen:
    """What there is to see of a network that bears on its latency, its open axes being `batch` long.

    >>> seen = see_costs("arch a  input x: f32[N, 4]  output y: f32[N, 2]  y = x -> linear(8) -> relu -> linear(2)")
    >>> [round(seen.features[f"size.{name}"], 2) for name in ("flops", "bytes", "nodes")]
    [6.71, 8.59, 2.0]
    """
    graph = clone(loads(text))
    run_passes(graph, CLEANUP, Context())
    return _seen(graph, batch)


def _seen(graph: Graph, batch: int) -> Seen:
    plain = see(graph)
    features = {name: value for name, value in plain.features.items() if not name.startswith("size.")}
    flops: dict[str, float] = {}
    moved: dict[str, float] = {}
    for node in graph.walk():
        kind = node.op.name
        flops[kind] = flops.get(kind, 0.0) + _at(node_flops(node), batch)
        moved[kind] = moved.get(kind, 0.0) + _moved(node, batch)
    for kind in flops:
        features[f"width.flops_{kind}"] = math.log2(1 + flops[kind])
        features[f"width.bytes_{kind}"] = math.log2(1 + moved[kind])
    features["size.flops"] = math.log2(1 + sum(flops.values()))
    features["size.bytes"] = math.log2(1 + sum(moved.values()))
    features["size.nodes"] = math.log2(1 + len(list(graph.walk())))
    return Seen(features, plain.labels)


def _moved(node: Node, batch: int) -> float:
    """Bytes that a node reads and writes, weights included."""
    types = [*(v.type for v in (*node.inputs, *node.outputs)), *(p.type for p in node.weights.values())]
    return sum(_at(t.bytes, batch) for t in types)


def _at(dim: Dim, batch: int) -> float:
    found = substitute(dim, dict.fromkeys(symbols(dim), batch))
    assert isinstance(found, int)
    return float(found)


class Process:
    """The Gaussian process of `archc.metanet.surrogate`, for any scores.

    Amplitudes, scales and intervals are those of the last fit of which a whole step of `GROWTH` has passed: they cost
    most, and so follow from what was told, not from when somebody asked.
    """

    def __init__(self, scale: Callable[[Doubles], Doubles], intervals: bool = False) -> None:
        """`scale` makes scores of values, around 0 and of a deviation of about 1."""
        self._scale, self._intervals = scale, intervals
        self._surrogate = Surrogate()
        self._fits: dict[int, tuple[list[float], list[float]]] = {}

    def learn(self, seen: Sequence[Seen], values: Doubles) -> Doubles:
        """Learn from `LOWEST` networks or more, in the order in which they came; returns their scores."""
        first = LOWEST
        while math.ceil(first * GROWTH) <= len(seen):
            first = math.ceil(first * GROWTH)
        if first not in self._fits:
            self._surrogate.fit(seen[:first], _shares(self._scale(values[:first])), intervals=self._intervals)
            self._fits[first] = self._surrogate.hyper, self._surrogate.scores
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
        hyper, residuals = self._fit
        self._surrogate.fit(seen, _shares(scores), hyper, intervals=False)
        self._surrogate.scores = residuals

    def predict(self, seen: Sequence[Seen], coverage: float = 0.9) -> tuple[Doubles, Doubles, Doubles]:
        """Mean and standard deviation of the scores without their noise, and how far an interval reaches, noise
        included."""
        import numpy as np

        told = self._surrogate.predict(seen, coverage)
        mean = np.log(told.mean / (1 - told.mean))
        noise = math.exp(2 * self._surrogate.hyper[-1])
        reach = np.log(told.high / (1 - told.high)) - mean
        return mean, np.sqrt(np.maximum(told.spread**2 - noise, 1e-9)), reach


def _shares(scores: Doubles) -> list[float]:
    """What the surrogate takes the logit of."""
    import numpy as np

    found: list[float] = (1 / (1 + np.exp(-scores))).tolist()
    return found


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds that are expected of networks, and intervals; `spread` is the logarithm's standard deviation."""

    mean: Doubles
    low: Doubles
    high: Doubles
    spread: Doubles


class LatencyPredictor:
    """Latencies from networks' graphs, learned from those that were measured.

    >>> text = "arch a  input x: f32[N, 64]  output y: f32[N, 8]  y = x -> linear({}) -> relu -> linear(8)"
    >>> predictor = LatencyPredictor()
    >>> for width in range(8, 80, 8):
    ...     predictor.learn(text.format(width), 0.01 * width)
    >>> told = predictor.predict([text.format(9), text.format(71)])
    >>> bool(told.mean[0] < told.mean[1])
    True
    """

    def __init__(self, batch: int = 1, intervals: bool = True) -> None:
        """Without `intervals` those are a normal distribution's, and learning takes a fifth of the time."""
        self.batch = batch
        self.known: dict[str, float] = {}
        """Milliseconds by program, in the order in which they were learned."""
        self._process = Process(self._scaled, intervals)
        self._fresh = False

    def learn(self, text: str, ms: float) -> None:
        """Take note of a measured latency; the model is fitted when it is asked next."""
        if self.known.get(text) != ms:
            self.known[text], self._fresh = ms, False

    @property
    def ready(self) -> bool:
        """Whether enough networks are known."""
        return len(self.known) >= LOWEST

    def predict(self, texts: Sequence[str], coverage: float = 0.9) -> Latency:
        """What latencies to expect."""
        import numpy as np

        self._fit()
        mean, spread, reach = self._process.predict([see_costs(text, self.batch) for text in texts], coverage)
        logs = self._centre + self._unit * mean
        far = self._unit * reach
        return Latency(np.exp(logs), np.exp(logs - far), np.exp(logs + far), self._unit * spread)

    def _fit(self) -> None:
        import numpy as np

        assert self.ready, "a predictor has to learn first"
        if not self._fresh:
            ms = np.fromiter(self.known.values(), np.float64)
            self._process.learn([see_costs(text, self.batch) for text in self.known], ms)
            self._fresh = True

    def _scaled(self, ms: Doubles) -> Doubles:
        import numpy as np

        logs = np.log(ms)
        self._centre, self._unit = float(logs.mean()), max(float(logs.std()), 1e-3)
        found: Doubles = (logs - self._centre) / self._unit
        return found


class Sieve:
    """Tells candidates that a bound on latency rules out, as far as the predictor's interval can be trusted."""

    COVERAGE = 0.98

    def __init__(self, goals: Goals, batch: int = 1) -> None:
        self.bounds = [c for c in goals.constraints if c.name == "latency_ms" and c.operator in ("<", "<=")]
        self._predictors = {c.key: LatencyPredictor(batch) for c in self.bounds}

    def learn(self, candidate: Candidate, result: Result) -> None:
        """Take note of a measured latency; what a bound ruled out was measured, too."""
        for bound in self.bounds:
            ms = result.values.get(bound.key)
            if ms is not None:
                self._predictors[bound.key].learn(candidate.text, ms)

    def possible(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates whose whole interval is not beyond a bound."""
        kept = list(candidates)
        for bound in self.bounds:
            predictor = self._predictors[bound.key]
            if predictor.ready and kept:
                low = predictor.predict([c.text for c in kept], self.COVERAGE).low
                kept = [c for c, ms in zip(kept, low.tolist(), strict=True) if ms <= bound.bound]
        return kept
