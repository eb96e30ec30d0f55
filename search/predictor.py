"""Latency before it is measured: a predictor that learns as measurements come in.

It sees what the compiler will see of a network: its graph, cleaned up as every compilation cleans it, and of that how
many nodes of which kind there are, their operations and the bytes that they move.

What is measured stays the truth. The predictor is for what cannot be measured: candidates that a strategy thinks of,
and which it need not train when the whole interval is beyond a bound (`Sieve`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from archc.grammar.load import loads
from archc.ir.clone import clone
from archc.ir.cost import node_flops
from archc.ir.dims import Dim, substitute, symbols
from archc.ir.graph import Graph, Node
from archc.metanet.surrogate.features import Seen, see, table
from archc.metanet.surrogate.model import LOWEST
from archc.passes.manager import Context, run_passes
from archc.passes.pipeline import CLEANUP
from archc.search.goals import Goals
from archc.search.records import Candidate, Result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

TREES = 100
COSTS = ("op.", "width.flops_", "width.bytes_")
"""Features that a latency is a sum of."""


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


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds that are expected of networks, and intervals; `spread` is the logarithm's standard deviation."""

    mean: Doubles
    low: Doubles
    high: Doubles
    spread: Doubles


class LatencyPredictor:
    """Latencies from networks' graphs, learned from those that were measured.

    Half of what it says is a sum: so much for each node of a kind, each operation and each byte of that kind, none of
    it negative. The other half is a random forest's. Intervals reach as far as 90% (or what is asked for) of what was
    learned is off, the forest's trees being asked that have not seen it.

    >>> text = "arch a  input x: f32[N, 64]  output y: f32[N, 8]  y = x -> linear({}) -> relu -> linear(8)"
    >>> predictor = LatencyPredictor()
    >>> for width in range(8, 80, 8):
    ...     predictor.learn(text.format(width), 0.01 * width)
    >>> told = predictor.predict([text.format(9), text.format(71)])
    >>> bool(told.mean[0] < told.mean[1])
    True
    """

    def __init__(self, batch: int = 1) -> None:
        self.batch = batch
        self.known: dict[str, float] = {}
        """Milliseconds by program, in the order in which they were learned."""
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

        if not self._fresh:
            self._fit()
        x = self._table(texts)
        trees = np.array([tree.tree_.predict(x.astype(np.float32))[:, 0] for tree in self._forest.estimators_])
        logs = (self._sum(x) + trees.mean(0)) / 2
        rank = min(len(self._off), math.ceil((len(self._off) + 1) * coverage))
        far = self._off[rank - 1]
        return Latency(np.exp(logs), np.exp(logs - far), np.exp(logs + far), np.maximum(trees.std(0), 1e-3))

    def _fit(self) -> None:
        import numpy as np
        from scipy.optimize import nnls
        from sklearn.ensemble import RandomForestRegressor

        assert self.ready, "a predictor has to learn first"
        ms = np.fromiter(self.known.values(), np.float64)
        names = {name for text in self.known for name in see_costs(text, self.batch).features}
        self._columns = sorted(names)
        self._costs = [k for k, name in enumerate(self._columns) if name.startswith(COSTS)]
        x = self._table(list(self.known))
        self._weights, _ = nnls(self._plain(x) / ms[:, None], np.ones(len(ms)))  # the least relative errors
        made = RandomForestRegressor(TREES, max_features=0.33, oob_score=True, random_state=0, n_jobs=1)
        self._forest = made.fit(x, np.log(ms))
        self._off = np.sort(np.abs(np.log(ms) - (self._sum(x) + made.oob_prediction_) / 2))
        self._fresh = True

    def _table(self, texts: Sequence[str]) -> Doubles:
        return table([see_costs(text, self.batch) for text in texts], self._columns)

    def _plain(self, x: Doubles) -> Doubles:
        """Nodes, operations and bytes by kind, and a 1 for the call itself."""
        import numpy as np

        return np.column_stack([np.exp2(x[:, self._costs]) - 1, np.ones(len(x))])

    def _sum(self, x: Doubles) -> Doubles:
        import numpy as np

        found: Doubles = np.log(self._plain(x) @ self._weights + 1e-6)
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
