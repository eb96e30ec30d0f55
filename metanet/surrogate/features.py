"""What a surrogate sees of a network, read from its graph at tensor level.

Named numbers in groups (sizes, counts of ops, places, widths), and counts of neighbourhoods: the label of an op is its
name, after one round the labels of what feeds it as well, after two those of their feeders (Weisfeiler and Lehman's
refinement, as kernels on architectures use it: Ru et al. 2021, arXiv:2006.07556).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archc.ir.cost import graph_flops
from archc.ir.dims import substitute, symbols
from archc.ir.graph import Graph
from archc.metanet.tensor_graph import POSITION_COLUMNS, TensorGraph, tensor_arrays
from archc.metanet.vocabulary import Vocabulary, vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

GROUPS = ("size", "op", "place", "width")
"""Groups of features; each has a length scale of its own."""

ROUNDS = 2
"""Rounds of refinement; `ROUNDS + 1` sets of labels."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A network as a surrogate sees it: features by name (`group.name`), and counts of labels for each round."""

    features: Mapping[str, float]
    labels: tuple[Mapping[str, int], ...]


def see(graph: Graph, words: Vocabulary | None = None) -> Seen:
    """What there is to see of a network.

    Raises: CompileError (E0810) for an op that `words` has not.

    >>> from archc.grammar.load import loads
    >>> seen = see(loads("arch a  input x: f32[N, 4]  output y: f32[N, 2]  y = x -> linear(8) -> relu -> linear(2)"))
    >>> round(seen.features["size.params"], 2), seen.features["op.linear"], seen.labels[0]["relu"]
    (5.88, 2.0, 1)
    """
    words = words or vocabulary()
    arrays = tensor_arrays(graph, words)
    names = [words.ops[kind] for kind in arrays.op_kind]
    return Seen(_features(graph, arrays, names), tuple(_refined(arrays, names)))


def _features(graph: Graph, arrays: TensorGraph, names: Sequence[str]) -> dict[str, float]:
    import numpy as np

    flops = graph_flops(graph)
    if not isinstance(flops, int):
        known = substitute(flops, dict.fromkeys(symbols(flops), 1))
        assert isinstance(known, int)
        flops = known
    trained = arrays.parameter_size[arrays.parameter_trainable]
    found = {
        "size.params": _log(int(trained.sum())),
        "size.flops": _log(flops),
        "size.ops": _log(len(names)),
        "size.depth": _log(int(arrays.op_depth.max(initial=0))),
        "size.largest": _log(int(trained.max(initial=0))),
        "size.parameters": _log(len(arrays.names)),
    }
    for name, count in Counter(names).items():
        if not name.startswith("%"):
            found[f"op.{name}"] = float(count)
    position = arrays.op_position
    for k, column in enumerate(POSITION_COLUMNS):
        found[f"place.{column}"] = float(position[:, k].mean())
    shape = arrays.op_shape.reshape(len(names), -1, 7)
    fixed = shape[:, :, 0] * (1 - shape[:, :, 2])  # there, and not symbolic
    per_sample = (np.log2(np.maximum(np.exp2(shape[:, :, 1]) - 1, 1)) * fixed).sum(1)
    on_the_way = per_sample[arrays.op_level == 0]
    found |= {
        "width.narrowest": float(on_the_way.min(initial=64.0)),
        "width.widest": float(on_the_way.max(initial=0.0)),
        "width.mean": float(on_the_way.mean()),
        "width.last": float((shape[:, 0, 1] * fixed[:, 0]).mean()),
        "width.concats": float(shape[:, :, 6].max(1).sum()),
    }
    for k, name in enumerate(names):
        if name in ("linear", "conv", "attention", "kan"):
            columns = arrays.weighs[0][arrays.weighs[1] == k]
            if len(columns):
                fan = float(arrays.parameter_init[columns, 6].max())
                key = f"width.fan_in_{name}"
                found[key] = max(found.get(key, 0.0), fan)
    return found


def _refined(arrays: TensorGraph, names: Sequence[str]) -> list[dict[str, int]]:
    """Counts of labels before refinement and after each round."""
    feeders: list[list[tuple[int, int]]] = [[] for _ in names]
    for (source, target), (_, slot, _) in zip(arrays.feeds.T.tolist(), arrays.feeds_attr.tolist(), strict=True):
        feeders[target].append((slot, source))
    labels = list(names)
    rounds = [dict(Counter(labels))]
    for _ in range(ROUNDS):
        told = [sorted(f"{slot}:{labels[source]}" for slot, source in fed) for fed in feeders]
        labels = [_digest(own, *others) for own, others in zip(labels, told, strict=True)]
        rounds.append(dict(Counter(labels)))
    return rounds


def _digest(*parts: str) -> str:
    return hashlib.blake2b("|".join(parts).encode(), digest_size=8).hexdigest()


def _log(value: int) -> float:
    return math.log2(1 + value)


def table(seen: Sequence[Seen], columns: Sequence[str]) -> Doubles:
    """The features of networks in columns, [networks, columns]; counts of ops as logarithms. A feature that has no
    column is left out: `unseen` says how many networks have such."""
    import numpy as np

    place = {name: k for k, name in enumerate(columns)}
    result = np.zeros((len(seen), len(columns)))
    for i, one in enumerate(seen):
        for name, value in one.features.items():
            k = place.get(name)
            if k is not None:
                result[i, k] = math.log2(1 + value) if name.startswith("op.") else value
    return result


def labels_of(seen: Sequence[Seen]) -> list[list[str]]:
    """Every label of some networks, round by round."""
    return [sorted({label for one in seen for label in one.labels[r]}) for r in range(ROUNDS + 1)]


def counts(seen: Sequence[Seen], labels: Sequence[Sequence[str]]) -> list[Doubles]:
    """For each round a table of label counts, [networks, labels], rows of length 1. Labels that are not in `labels`
    count for the length of a row: a network of unseen parts is like no other."""
    import numpy as np

    found = []
    for r, known in enumerate(labels):
        place = {label: k for k, label in enumerate(known)}
        rows = np.zeros((len(seen), len(known)))
        for i, one in enumerate(seen):
            length = math.sqrt(sum(math.sqrt(c) ** 2 for c in one.labels[r].values()))
            for label, count in one.labels[r].items():
                k: Any = place.get(label)
                if k is not None:
                    rows[i, k] = math.sqrt(count) / length
        found.append(rows)
    return found
