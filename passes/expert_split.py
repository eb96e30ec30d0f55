"""Dividing a hidden layer among experts, and fitting a router to the parts.

Channels that are active together belong together (Zhang et al. 2022, MoEfication, arXiv:2110.01786): balanced k-means
over how active each is on sample data, or over the weights that feed it where there are no data. The router is a ridge
regression of how much each part contributes. Its logits are kept small, so that the experts a row runs have equal
gates, and what they sum to is scaled by least squares to what the block gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archc.ir.graph import Graph, Node
from archc.ir.init import Init
from archc.ir.ops.structural import MoeParams
from archc.passes.blocks import is_layer
from archc.passes.expert_blocks import ExpertBlock
from archc.passes.manager import Context, Measured

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Indices = NDArray[np.int64]

ROWS = 4096
"""At most so many rows are fitted to."""

FEATURES = 64
"""Channels are compared by so many random projections of what is known of them."""

SPREAD = 0.1
"""The standard deviation of a fitted router's logits."""


@dataclass(slots=True)
class Division:
    """parts     the channels of each expert
    common    those of the shared expert
    weight    the router's [experts, C] and `bias` [experts], where they are fitted
    factor    what the chosen parts are scaled by, besides their gates
    """

    parts: Sequence[Indices]
    common: Indices
    weight: Array | None = None
    bias: Array | None = None
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Of n rows: the block's input x [n, C] (of images its mean over positions), what its hidden layer gives
    [n, positions, hidden], and what it returns [n, positions, out]."""

    x: Array
    hidden: Array
    y: Array


Samples = Mapping[ExpertBlock, Sample]


def observed(graph: Graph, blocks: Sequence[ExpertBlock], context: Context) -> Samples:
    """What can be seen of blocks outside regions on sample data; nothing where there are none."""
    outside = [b for b in blocks if b.graph is graph]
    if context.observe is None or context.weights is None or not outside:
        return {}
    downs = [_down(b) for b in outside]
    values = [v for b, down in zip(outside, downs, strict=True) for v in (b.x, down.operands[0], down.output)]
    seen = context.observe(graph, context.weights, values)
    return {b: _sample(b, *seen[3 * i : 3 * i + 3]) for i, b in enumerate(outside)}


def _down(block: ExpertBlock) -> Node:
    assert block.down is not None
    return block.down


def _sample(block: ExpertBlock, x: Array, hidden: Array, y: Array) -> Sample:
    if block.by_sample:
        x, hidden, y = x.reshape(*x.shape[:2], -1).mean(-1), _positions(hidden), _positions(y)
    else:
        x, hidden, y = (a.reshape(-1, a.shape[-1]) for a in (x, hidden, y))
        hidden, y = hidden[:, None], y[:, None]
    step = -(-len(x) // ROWS)
    return Sample(x[::step], hidden[::step], y[::step])


def _positions(image: Array) -> Array:
    """[n, C, …] as [n, positions, C]."""
    return image.reshape(*image.shape[:2], -1).swapaxes(1, 2)


def divide(block: ExpertBlock, experts: int, shared: float, samples: Samples, context: Context) -> Division:
    """Share out the hidden channels: the most important ones to the shared expert, equally many to each other one."""
    import numpy as np

    hidden = block.hidden
    width = int(hidden * (1 - shared)) // experts if shared else hidden // experts
    order = np.arange(hidden)
    if context.weights is None:
        cut = hidden - experts * width
        return Division(np.split(order[cut:], experts), order[:cut])
    features = _features(block, samples, context)
    common = np.sort(np.argsort(-_importance(block, samples, context), kind="stable")[: hidden - experts * width])
    rest = np.setdiff1d(order, common)
    label = balanced_clusters(features[rest], experts)
    return Division([rest[label == e] for e in range(experts)], common)


def _matrix(node: Node, context: Context) -> Array:
    """The weight of a layer as [out, in], kernels summed up."""
    weight = context.value(node.weights["weight"])
    total: Array = weight.reshape(*weight.shape[:2], -1).sum(-1)
    return total


def _reach(block: ExpertBlock, context: Context) -> Array:
    """How much of each hidden channel arrives in the result: the norm of the weights that read it."""
    import numpy as np

    weight = context.value(_down(block).weights["weight"])
    return np.asarray(np.sqrt((weight.reshape(*weight.shape[:2], -1) ** 2).sum(axis=(0, 2))))


def _importance(block: ExpertBlock, samples: Samples, context: Context) -> Array:
    import numpy as np

    reach = _reach(block, context)
    if block in samples:
        return np.asarray(np.abs(samples[block].hidden).mean(axis=(0, 1)) * reach)
    fed = context.value(block.ups[0].weights["weight"]).reshape(block.hidden, -1)
    return np.asarray(np.linalg.norm(fed, axis=1) * reach)


def _features(block: ExpertBlock, samples: Samples, context: Context) -> Array:
    """[hidden, FEATURES]: what tells which channels belong together, each of length 1."""
    import numpy as np

    if block in samples and context.data:
        hidden = np.abs(samples[block].hidden)
        known = hidden.reshape(-1, hidden.shape[-1]).T[:, :ROWS]
        known = known - known.mean(axis=1, keepdims=True)
    else:
        known = np.concatenate(
            [context.value(n.weights["weight"]).reshape(block.hidden, -1) for n in block.ups], axis=1
        )
    if known.shape[1] > FEATURES:
        draw = Init("normal", 1.0).sample((known.shape[1], FEATURES), context.seed, f"{block.anchor.name}.features")
        known = known @ draw
    return np.asarray(known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-30))


def balanced_clusters(points: Array, count: int, rounds: int = 8) -> Indices:
    """Labels from 0 to count - 1 for points [n, d], each given equally often: k-means in which the points that a
    centre is nearest to, compared with the others, take the places first. n is a multiple of count.

    >>> import numpy as np
    >>> balanced_clusters(np.array([[0.0], [9.0], [0.1], [9.1]]), 2).tolist()
    [0, 1, 0, 1]
    """
    import numpy as np

    room = len(points) // count
    centres, far = [points[0]], np.full(len(points), np.inf)  # the first, then what is farthest from those before
    for _ in range(count - 1):
        far = np.minimum(far, ((points - centres[-1]) ** 2).sum(axis=1))
        centres.append(points[int(far.argmax())])
    centre, label = np.array(centres), np.zeros(len(points), dtype=np.int64)
    for _ in range(rounds):
        distance = (points**2).sum(1)[:, None] - 2 * points @ centre.T + (centre**2).sum(1)
        before, label = label, _assigned(distance - distance.mean(axis=1, keepdims=True), room)
        if (before == label).all():
            break
        centre = np.array([points[label == e].mean(axis=0) for e in range(count)])
    return label


def _assigned(cost: Array, room: int) -> Indices:
    """Cheapest first, each point to a centre that has room."""
    import numpy as np

    label = np.full(len(cost), -1, dtype=np.int64)
    free = [room] * cost.shape[1]
    left = len(cost)
    for flat in np.argsort(cost, axis=None, kind="stable").tolist():
        point, centre = divmod(flat, cost.shape[1])
        if label[point] < 0 and free[centre]:
            label[point] = centre
            free[centre] -= 1
            left -= 1
            if not left:
                break
    return label


def fit(block: ExpertBlock, division: Division, p: MoeParams, gate: float, samples: Samples, context: Context) -> None:
    """Fit a linear router to the parts, and the factor; `gate` is that of an expert among equals. What is left is
    measured: the norm of the error relative to that of what the block returns."""
    import numpy as np

    if context.weights is None:
        return
    sample = samples.get(block)
    if sample is None:  # a part answers to what its channels are fed with: MoEfication's "parameter centre"
        fed = _matrix(block.ups[0], context)
        centre = np.array([fed[part].mean(axis=0) for part in division.parts])
        centre -= centre.mean(axis=0)
        norm = np.linalg.norm(centre) / np.sqrt(len(centre))
        division.weight, division.bias = SPREAD * centre / max(norm, 1e-30), np.zeros(len(centre))
        return
    strength = np.abs(sample.hidden).mean(axis=1) * _reach(block, context)
    wanted = np.stack([strength[:, part].sum(axis=1) for part in division.parts], axis=1)
    wanted -= wanted.mean(axis=1, keepdims=True)
    mean = sample.x.mean(axis=0)
    x = sample.x - mean
    ridge = 1e-3 * max(float((x**2).sum()) / x.shape[1], 1e-30)
    weight = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ (wanted - wanted.mean(axis=0))).T
    logits = x @ weight.T + wanted.mean(axis=0)
    scale = SPREAD / max(float(logits.std()), 1e-30)
    division.weight, division.bias = scale * weight, scale * (wanted.mean(axis=0) - weight @ mean)
    down = _down(block)
    if not is_layer(down):
        return
    gates = _gates(scale * logits, p) / gate
    matrix = _matrix(down, context)
    offset = context.value(down.weights["bias"]) if "bias" in down.weights else 0.0
    target = sample.y - offset - sample.hidden[:, :, division.common] @ matrix[:, division.common].T
    made = sum(
        gates[:, e, None, None] * (sample.hidden[:, :, part] @ matrix[:, part].T)
        for e, part in enumerate(division.parts)
    )
    made = np.asarray(made)
    power = float((made**2).sum())
    division.factor = float((made * target).sum()) / power if power else 1.0
    error = np.linalg.norm(target - division.factor * made) / max(float(np.linalg.norm(sample.y)), 1e-30)
    context.measured.append(Measured("moe", block.anchor.name, "relative error of the parts that run", float(error)))


def _gates(logits: Array, p: MoeParams) -> Array:
    """What the operator makes of logits [n, experts]."""
    import numpy as np

    logits = logits / p.temperature
    if p.score == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    if p.routing == "token":
        chosen = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) < p.top_k
    else:
        assert p.capacity is not None
        place = np.argsort(np.argsort(-scores, axis=0, kind="stable"), axis=0)
        chosen = place < p.capacity * len(scores) * p.top_k / scores.shape[1]
    gates = scores * chosen
    return np.asarray(gates / np.maximum(gates.sum(axis=1, keepdims=True), 1e-30) if p.normalize else gates)
