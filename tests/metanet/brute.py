"""The permutations of a network's weights that keep its function, counted by computing alone.

Nothing here knows of axis rules: a network is a function of numbers, and the question is which permutations of them it
does not notice, on fixed random inputs in float64. Two spaces are searched:

entries   any permutation of the numbers inside each parameter: it contains every permutation of axes, also those that
          differ for each place of another axis
axes      any permutation of the positions of each axis of each parameter, the same for all other places, and any
          exchange of layers (nodes of one op with weights of equal shapes) as wholes

The search individualises and refines, as graph isomorphism programs do. Points (numbers, or positions and layers) stand
in ordered cells; weights are drawn so that they depend on cells alone, hence are fixed by whatever keeps the cells.
Then outputs must agree on both sides, and points with different derivatives cannot be exchanged, so cells split. What
is left is tried point by point; a complete permutation is accepted when it keeps the outputs for generic weights. The
order is the product of the orbits along a chain of stabilisers, so it is exact though it may be large.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from archc.backends.torch.module import to_torch
from archc.ir.graph import Graph

KEPT = 1e-9
"""Relative change of outputs under which a permutation counts as kept; others move them by 1e-4 and more."""
SPLIT = 1e-7
"""Relative difference of derivatives from which points are told apart."""
STEPS = 4000
"""Refinements after which a search gives up."""
SAMPLES, DRAWS = 48, 6


class GaveUp(Exception):
    """Too many steps."""


Cells = NDArray[np.int64]


@dataclass
class Space:
    """Points, and each number of the weights as a tuple of points: `entries[i]` are the points of number i, -1 where
    it has fewer than others; `kind[i]` is what it is (numbers of other kinds are never its image)."""

    colours: Cells
    entries: NDArray[np.int64]
    kind: NDArray[np.int64]

    def image(self, permutation: Cells) -> NDArray[np.int64] | None:
        """Where each number goes, or None when a tuple of points goes to none."""
        where = {(k, *e): i for i, (k, e) in enumerate(zip(self.kind.tolist(), self.entries.tolist(), strict=True))}
        extended = np.append(permutation, -1)
        found = [where.get((k, *e)) for k, e in zip(self.kind.tolist(), extended[self.entries].tolist(), strict=True)]
        return None if None in found else np.array(found, dtype=np.int64)


class Function:
    """A network as a function of one vector of weights, on fixed random inputs."""

    def __init__(self, graph: Graph, seed: int) -> None:
        self.module = to_torch(graph).double().eval()
        self.parameters = list(graph.parameters().values())
        self.paths = [".".join(self.module.parameter_paths[p.name]) for p in self.parameters]
        rng = np.random.default_rng([seed, 17])
        self.inputs = []
        for value in graph.inputs:
            shape = [SAMPLES if i == 0 else 5 if not isinstance(d, int) else d for i, d in enumerate(value.type.shape)]
            if value.type.dtype == "i64":
                self.inputs.append(torch.from_numpy(rng.integers(0, 3, shape)))
            else:
                self.inputs.append(torch.from_numpy(rng.normal(0, 1.1, shape)))
        self.sizes = [p.size for p in self.parameters]
        self.middle = np.concatenate([self._each(p, 0) for p in self.parameters])
        self.spread = np.concatenate([self._each(p, 1) for p in self.parameters])
        self.random = torch.Generator().manual_seed(seed)
        self.projection: list[Any] = []

    @staticmethod
    def _each(parameter: Any, which: int) -> NDArray[np.float64]:
        init = parameter.init
        constant = init.kind == "constant"
        middle = float(np.asarray(init.sample((1,), 0, "")).ravel()[0]) if constant else 0.0
        return np.full(parameter.size, (middle, 0.4 if constant else 0.9)[which])

    def outputs(self, vector: Any) -> Any:
        """All outputs as one vector, differentiable by the weights."""
        parts = torch.split(vector, self.sizes)
        weights = {
            path: part.reshape(p.shape) for path, part, p in zip(self.paths, parts, self.parameters, strict=True)
        }
        outputs = torch.func.functional_call(self.module, weights, tuple(self.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.cat([o.double().ravel() for o in outputs])

    def __call__(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        with torch.no_grad():
            found: NDArray[np.float64] = self.outputs(torch.from_numpy(vector)).numpy()
        return found

    def constant(self, seed: int) -> bool:
        """Whether the outputs do not depend on the inputs."""
        rng = np.random.default_rng([seed, 43])
        found = self(self.middle + self.spread * rng.uniform(-1, 1, len(self.middle))).reshape(SAMPLES, -1)
        return not differs(found, np.broadcast_to(found[:1], found.shape))

    def derivative(self, vector: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(outputs, the gradient of a fixed random projection of them)."""
        w = torch.from_numpy(vector).requires_grad_()
        with _differentiable():
            outputs = self.outputs(w)
        if not self.projection:
            self.projection.append(torch.rand(outputs.shape, generator=self.random, dtype=torch.float64) - 0.3)
        if not outputs.requires_grad:
            return outputs.detach().numpy(), np.zeros(len(vector))
        (gradient,) = torch.autograd.grad((outputs * self.projection[0]).sum(), w, allow_unused=True)
        return outputs.detach().numpy(), np.zeros(len(vector)) if gradient is None else gradient.numpy()


def scaling_dimensions(function: Function, alive: NDArray[np.bool_], seed: int) -> int:
    """How many independent exponents there are for which factors on single numbers of the weights keep the function.

    A family `w_e · exp(t · v_e)` keeps it when `Σ_e v_e w_e ∂f/∂w_e = 0` at all weights and inputs: `v` is in the null
    space of these derivatives, stacked for several random draws of the weights.
    """
    rng, rows = np.random.default_rng([seed, 41]), []
    for _ in range(DRAWS):
        w = function.middle + function.spread * rng.uniform(-1, 1, len(function.middle))
        with _differentiable():
            found = torch.autograd.functional.jacobian(function.outputs, torch.from_numpy(w), vectorize=True)
        rows.append(found.numpy()[:, alive] * w[alive])
    matrix = np.concatenate(rows)
    if not matrix.shape[1]:
        return 0
    values = np.linalg.svd(matrix / np.abs(matrix).max(axis=0), compute_uv=False)
    return int(matrix.shape[1] - (values > 1e-9 * values[0]).sum())


@contextmanager
def _differentiable() -> Iterator[None]:
    """Batch norms by their formula: torch has no derivative by running estimates."""

    def formula(
        x: Any, mean: Any, var: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float
    ) -> Any:
        assert not training
        mean, var, weight, bias = (
            None if t is None else t.reshape([-1] + [1] * (x.ndim - 2)) for t in (mean, var, weight, bias)
        )
        result = (x - mean) / torch.sqrt(var + eps)
        result = result if weight is None else result * weight
        return result if bias is None else result + bias

    own = torch.nn.functional.batch_norm
    torch.nn.functional.batch_norm = formula  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.nn.functional.batch_norm = own


def differs(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    return bool(np.abs(a - b).max() > KEPT * np.abs(a).max())


def mixed(*columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [-1, 1] for each row of integers, as good as random."""
    h = np.full(len(columns[0]), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for column in columns:
        h ^= column.astype(np.uint64) + np.uint64(0x632BE59BD9B4E019)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor)
        h ^= h >> np.uint64(31)
    return h.astype(np.float64) / 2.0**63 - 1


class Search:
    """The group of permutations of a space that a function does not notice."""

    def __init__(self, function: Function, space: Space, seed: int) -> None:
        self.f, self.space, self.steps = function, space, 0
        self.bases: list[int] = []
        rng = np.random.default_rng([seed, 23])
        self.generic = [self._weights(rng.uniform(-1, 1, len(space.kind))) for _ in range(2)]
        self.before = [function(w) for w in self.generic]

    def _weights(self, unit: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.f.middle + self.f.spread * unit

    def order(self) -> tuple[int, list[Cells]]:
        """(order, generators)."""
        refined = self.refine(self.space.colours, self.space.colours)
        assert refined is not None
        chain: list[tuple[Cells, int]] = []
        cells = refined[0]
        while (step := self._most_telling(cells)) is not None:
            chain.append((cells, step[0]))
            cells = step[1]
        self.bases = [base for _, base in chain]
        generators: list[Cells] = []
        order = 1
        for depth, (cells, base) in reversed(list(enumerate(chain))):
            orbit = self._orbit(base, generators)
            refused: set[int] = set()
            for other in np.flatnonzero(cells == cells[base]).tolist():
                if other in orbit or other in refused:
                    continue
                found = self.extend(self._apart(cells, base), self._apart(cells, other), depth + 1)
                if found is None:
                    refused |= self._orbit(other, generators)
                else:
                    generators.append(found)
                    orbit = self._orbit(base, generators)
            order *= len(orbit)
        return order, generators

    @staticmethod
    def _orbit(point: int, generators: list[Cells]) -> set[int]:
        orbit, waiting = {point}, [point]
        while waiting:
            p = waiting.pop()
            new = {int(g[p]) for g in generators} - orbit
            orbit |= new
            waiting += new
        return orbit

    def _most_telling(self, cells: Cells) -> tuple[int, Cells] | None:
        """The point that splits most cells when it is told apart, and the cells then; None when all are points."""
        _values, first, counts = np.unique(cells, return_index=True, return_counts=True)
        best: tuple[int, int, int] | None = None
        found = cells
        for point, count in zip(first.tolist(), counts.tolist(), strict=True):
            if count == 1:
                continue
            alone = self._apart(cells, point)
            step = self.refine(alone, alone)
            assert step is not None
            key = (len(np.unique(step[0])), -count, point)
            if best is None or key > best:
                best, found = key, step[0]
        return None if best is None else (best[2], found)

    @staticmethod
    def _apart(cells: Cells, point: int) -> Cells:
        new = cells * 2
        new[point] += 1
        return new

    def extend(self, source: Cells, target: Cells, depth: int) -> Cells | None:
        """A kept permutation that takes cells to cells. The source is that of the chain, whose base points it has."""
        refined = self.refine(source, target)
        if refined is None:
            return None
        source, target = refined
        if depth == len(self.bases):
            permutation = np.empty(len(source), dtype=np.int64)
            permutation[np.argsort(source)] = np.argsort(target)
            return permutation if self.kept(permutation) else None
        base = self.bases[depth]
        for other in np.flatnonzero(target == source[base]).tolist():
            found = self.extend(self._apart(source, base), self._apart(target, other), depth + 1)
            if found is not None:
                return found
        return None

    def kept(self, permutation: Cells) -> bool:
        image = self.space.image(permutation)
        if image is None:
            return False
        for w, before in zip(self.generic, self.before, strict=True):
            moved = np.empty_like(w)
            moved[image] = w
            if differs(before, self.f(moved)):
                return False
        return True

    def refine(self, source: Cells, target: Cells) -> tuple[Cells, Cells] | None:
        """Split cells until derivatives split no more; None when the two sides differ."""
        while True:
            self.steps += 1
            if self.steps > STEPS:
                raise GaveUp
            a = self._signatures(source)
            b = a if target is source else self._signatures(target)
            if a is not b and differs(a[0], b[0]):
                return None
            both = np.concatenate([source, target])
            signatures = np.concatenate([a[1], b[1]])
            cells = _split(both, signatures)
            new_source, new_target = cells[: len(source)], cells[len(source) :]
            if not np.array_equal(np.bincount(new_source, minlength=cells.max() + 1), np.bincount(new_target)):
                return None
            if len(np.unique(new_source)) == len(np.unique(source)):
                return new_source, new_target
            source, target = new_source, (new_source if target is source else new_target)

    def _signatures(self, cells: Cells) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(outputs, a number for each point) for weights that depend on cells alone."""
        space = self.space
        columns = np.append(cells, -1)[space.entries].T
        outputs, gradient = self.f.derivative(self._weights(mixed(space.kind, *columns)))
        found = np.zeros(len(cells) + 1)
        for i in range(len(columns)):
            weight = 2 + mixed(space.kind + 1000 * (i + 1), *columns)
            np.add.at(found, space.entries[:, i], weight * gradient)
        return outputs, found[:-1]


def _split(cells: Cells, signatures: NDArray[np.float64]) -> Cells:
    """Cells numbered anew by (old cell, signature); signatures that hardly differ are one."""
    scale = SPLIT * max(1e-9, float(np.abs(signatures).max()))
    order = np.lexsort((signatures, cells))
    sorted_cells, sorted_signatures = cells[order], signatures[order]
    steps = (np.diff(sorted_cells) != 0) | (np.diff(sorted_signatures) > scale)
    new = np.empty(len(cells), dtype=np.int64)
    new[order] = np.concatenate([[0], np.cumsum(steps)])
    return new


def active(function: Function, seed: int) -> NDArray[np.bool_]:
    """Which numbers of the weights the outputs depend on, for some of several draws of the others."""
    rng, found = np.random.default_rng([seed, 31]), np.zeros(len(function.middle), dtype=bool)
    for _ in range(DRAWS):
        w = function.middle + function.spread * rng.uniform(-1, 1, len(function.middle))
        before = function(w)
        for i in np.flatnonzero(~found):
            other = w.copy()
            other[i] += 0.37
            found[i] = differs(before, function(other))
    return found


def entry_space(graph: Graph, alive: NDArray[np.bool_]) -> Space:
    """Any permutation of the numbers inside each parameter; those that do nothing stay where they are."""
    kind = np.concatenate([np.full(p.size, i) for i, p in enumerate(graph.parameters().values())])
    points = np.arange(len(kind))
    colours = np.where(alive, kind, len(kind) + points)
    return Space(np.unique(colours, return_inverse=True)[1].astype(np.int64), points[:, None], kind)


def axis_space(graph: Graph, alive: NDArray[np.bool_], exchange: bool = True) -> Space:
    """Any permutation of the positions of each axis, and any exchange of equal layers."""
    users: dict[Any, list[tuple[Any, str]]] = {}
    for node in graph.walk():
        for role, p in node.weights.items():
            users.setdefault(p, []).append((node, role))
    colours: list[Any] = []

    def point(colour: Any) -> int:
        colours.append(colour)
        return len(colours) - 1

    layers: dict[Any, int] = {}
    kinds: dict[Any, int] = {}
    entries: list[tuple[int, ...]] = []
    kind: list[int] = []
    start = 0
    for p in graph.parameters().values():
        living = alive[start : start + p.size].any()
        start += p.size
        (node, role), *others = users[p]
        own = not exchange or bool(others) or not living
        spec = (node.op.name, str(node.params), tuple((r, w.shape) for r, w in node.weights.items()))
        key = p.name if own else node.name
        if key not in layers:
            layers[key] = point(("layer", p.name) if own else ("layer", spec))
        what = (p.name,) if own else (spec, role)
        axes = [
            [point(("axis", *what, i, *(() if living else (k,)))) for k in range(size)]
            for i, size in enumerate(p.shape)
        ]
        for index in np.ndindex(*p.shape):
            entries.append((layers[key], *(axes[i][k] for i, k in enumerate(index))))
            kind.append(kinds.setdefault(what, len(kinds)))
    width = max(map(len, entries))
    padded = np.array([e + (-1,) * (width - len(e)) for e in entries], dtype=np.int64)
    names = {c: i for i, c in enumerate(dict.fromkeys(colours))}
    return Space(np.array([names[c] for c in colours], dtype=np.int64), padded, np.array(kind, dtype=np.int64))
