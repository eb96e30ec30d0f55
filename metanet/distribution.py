"""The networks that metanetworks learn from and are judged on: splits of one space, and wiring twins.

>>> [name for name, graph in nets("train", 2, seed=0)]
['train-0-0', 'train-0-1']

The space is `metanet/spaces/branches.arch`; a split is a setting of its parameters. `train`, `val` and `test` have one
distribution and no network in common: the canonical hash decides which of the three a network belongs to. A network
that was there before is left out, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Any

from archc.grammar.draw import Drawn, Space, read_space
from archc.ir.canonical import canonical
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.ir.types import TensorType

SPACE = Path(__file__).parent / "spaces" / "branches.arch"

SPLITS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "train": {},
        "val": {},
        "test": {},
        "wide": {"width": 32, "most_params": 60_000},
        "deep": {"depth": 3, "most_params": 60_000},
        "dense": {"dense": True, "most_params": 60_000},
        "norm_free": {"norms": False},
        "unseen": {"unseen": True},
    }
)
"""The parameters of the space, by split."""

SHARES = {"train": range(0, 6), "val": range(6, 8), "test": range(8, 10)}
"""Which tenths of the canonical hashes belong to each of the splits that have one distribution."""

TASKS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "digits": {"channels": 1, "side": 8, "classes": 10},
        "hard_digits": {"channels": 1, "side": 12, "classes": 10},
        "add_digits": {"channels": 3, "side": 12, "classes": 28},
        "tiles": {"channels": 1, "side": 16, "classes": 4},
    }
)
"""The parameters of the space that a task settles."""


@cache
def space(split: str, task: str = "hard_digits") -> Space:
    """The space of a split, for a task.

    Raises: CompileError (E0709) for an unknown split or task.
    """
    for what, name, known in (("split", split, SPLITS), ("task", task, TASKS)):
        if name not in known:
            raise fail("E0709", f"there is no {what} `{name}` of networks", help=f"there are {', '.join(known)}")
    return read_space(SPACE, {**TASKS[task], **SPLITS[split]})


def nets(split: str, count: int, seed: int = 0, task: str = "hard_digits") -> list[tuple[str, Graph]]:
    """The first `count` networks of a split with their names; more networks begin with the same ones.

    Raises: CompileError (E0709) for an unknown split or task.
    """
    return [(f"{split}-{seed}-{index}", drawn.graph) for index, drawn in _first(split, count, seed, task)]


def _first(split: str, count: int, seed: int, task: str) -> list[tuple[int, Drawn]]:
    stream = _stream(split, seed, task)
    while len(stream.found) < count:
        stream.found.append(next(stream.rest))
    return stream.found[:count]


@dataclass
class _Stream:
    found: list[tuple[int, Drawn]]
    rest: Iterator[tuple[int, Drawn]]


@cache
def _stream(split: str, seed: int, task: str) -> _Stream:
    return _Stream([], _distinct(split, seed, task))


def _distinct(split: str, seed: int, task: str) -> Iterator[tuple[int, Drawn]]:
    """Draws without those of other splits and those met before, numbered from 0."""
    drawing = space(split, task)
    known: set[str] = set()
    index = number = 0
    while True:
        drawn = drawing.draw(seed, index)
        index += 1
        identity = canonical(drawn.graph).hash
        if identity not in known and belongs(split, identity):
            known.add(identity)
            yield number, drawn
            number += 1


def belongs(split: str, identity: str) -> bool:
    """Does a network of this canonical hash belong to the split?"""
    return split not in SHARES or int(identity[:12], 16) % 10 in SHARES[split]


# Wiring twins


def twin(drawn: Drawn, split: str = "test", task: str = "hard_digits") -> Graph | None:
    """The same network with the routings of its branches exchanged; None when that changes nothing.

    It has the same ops in the same numbers and parameters of the same names and shapes: weights of the one can be put
    into the other. It is no network of `train` either.
    """
    paths = [path for path in drawn.trace if path.endswith("/Routing")]
    productions = [drawn.trace[path] for path in paths]
    identity = canonical(drawn.graph).hash
    for order in dict.fromkeys(permutations(productions)):
        if list(order) == productions:
            continue
        other = space(split, task).redraw({**drawn.trace, **dict(zip(paths, order, strict=True))})
        hash_ = canonical(other.graph).hash
        if hash_ != identity and not belongs("train", hash_):
            assert _weights(other.graph) == _weights(drawn.graph)
            return other.graph
    return None


def twin_pairs(count: int, seed: int = 0, split: str = "test", task: str = "hard_digits") -> list[tuple[Graph, Graph]]:
    """The first `count` networks of a split that have a wiring twin, each with one."""
    pairs: list[tuple[Graph, Graph]] = []
    index = 0
    while len(pairs) < count:
        drawn = _first(split, index + 1, seed, task)[index][1]
        index += 1
        other = twin(drawn, split, task)
        if other is not None:
            pairs.append((drawn.graph, other))
    return pairs


def _weights(graph: Graph) -> dict[str, TensorType]:
    return {name: parameter.type for name, parameter in graph.parameters().items()}
