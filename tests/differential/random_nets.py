"""Random networks over the whole registry: typed, small, deterministic by (seed, index), and numerically tame.

A network is grown op by op. Each op of the registry has a recipe in `recipes.py`, which picks operands of fitting types
from what has been made so far (or adds an input), and draws parameters. The `index` names one op that the network must
contain, so any run of `len(REGISTRY)` indices meets every op.

>>> net = random_net(0, 3)
>>> net.index, net.text == random_net(0, 3).text
(3, True)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import archc.ir.ops  # noqa: F401  (fills the registry)
from archc.grammar.printer import print_graph
from archc.ir.diagnostics import CompileError
from archc.ir.dims import Dim, known, substitute, symbol
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.init import Init
from archc.ir.op import REGISTRY, BindError, Call, bind
from archc.ir.types import FLOATS, TensorType

MOST_ELEMENTS = 6000
"""Of one value: networks stay small, so that a thousand of them can be run."""
MOST_INPUTS = 4
WILD = 12.0
"""A value whose magnitude is estimated above this is squashed before something makes it larger."""
LAYERS = (
    "attention",
    "batch_norm",
    "conv",
    "embedding",
    "exit",
    "layer_norm",
    "linear",
    "max_pool",
    "moe",
    "scan",
    "skip",
)
"""What networks are made of: chosen more often than the rest."""
BORDERS = ("concat", "pad", "select", "slice", "split")
"""What often follows them: it is fused with them, and does not have their shape."""
ODD_NAMES = ('say "hi"', "train", "0", "größe", "a b", "tab\there", "x.weight", "None", "back\\slash", "forward")


class Reject(Exception):
    """This recipe cannot be followed here; another one can."""


@dataclass(frozen=True)
class RandomNet:
    """A network, its text, and the sizes of its symbols for a run. `focus` is the op that it was made to contain."""

    seed: int
    index: int
    focus: str
    graph: Graph
    text: str
    sizes: Mapping[str, int]

    @property
    def ops(self) -> frozenset[str]:
        return frozenset(node.op.name for node in self.graph.walk())


@dataclass
class Builder:
    """A graph in the making: the network, or (with `outer`) a region of it."""

    rng: random.Random
    graph: Graph
    sizes: dict[str, int]
    dtype: str = "f32"
    outer: Builder | None = None
    depth: int = 0
    pool: list[Value] = field(default_factory=list)
    magnitude: dict[Value, float] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    parameters: list[Parameter] = field(default_factory=list)
    captures: list[Value] = field(default_factory=list)
    formals: int = 0

    # Growing

    def apply(
        self,
        name: str,
        *operands: Value,
        regions: Sequence[Builder] = (),
        weights: Mapping[str, Parameter] | None = None,
        growth: float | None = None,
        **fields: Any,
    ) -> Value:
        """Add a node; its results join the pool. `growth` is the magnitude of the results.

        Raises: Reject when the op does not take these operands, or makes something empty or large.
        """
        op = REGISTRY[name]
        params = op.params(**fields)
        graphs = tuple(r.graph for r in regions)
        try:
            bound = bind(op, Call(params, tuple(v.type for v in operands), graphs))
        except BindError as e:
            raise Reject(f"{name}: {e.message}") from None
        for type_ in bound.results:
            shape = known(substitute(d, self.every_size()) for d in type_.shape)
            count = 1
            for size in shape or ():
                count *= size
            if shape is None or any(size < 1 for size in shape) or count > MOST_ELEMENTS:
                raise Reject(f"{name}: {type_}")
        given = dict(weights or {})
        node_name = self.name(name)
        for role, spec in bound.weights.items():
            if role in given or spec.tied:
                continue
            alike = [p for p in self.root.parameters if p.type == spec.type and p.trainable == spec.trainable]
            if alike and not self.depth and self.rng.random() < 0.12 and not role.startswith("running"):
                given[role] = self.rng.choice(alike)
            elif spec.trainable and self.rng.random() < 0.03:
                given[role] = Parameter(f"{node_name}.own_{role}", spec.type, Init("normal", 0.3))
        captures = regions[0].outer_captures(regions) if regions else []
        node = self.graph.add(op, operands, params, name=node_name, weights=given, regions=graphs, captures=captures)
        known_already = set(self.root.parameters)
        self.root.parameters += [p for p in node.weights.values() if p not in known_already]
        largest = max((self.magnitude.get(v, 3.0) for v in operands), default=1.0)
        for value in node.outputs:
            self.pool.append(value)
            self.magnitude[value] = largest if growth is None else growth
        return node.outputs[0]

    @property
    def root(self) -> Builder:
        return self if self.outer is None else self.outer.root

    def every_size(self) -> dict[str, int]:
        return self.sizes

    def name(self, op: str) -> str:
        """A fresh node name, in some scope; now and then an odd one."""
        taken = self.root.names
        base = self.rng.choice(ODD_NAMES) if self.rng.random() < 0.02 else op
        scope = self.rng.choice(["", "", "", "stage.", "stage.block1.", "head."])
        name, count = f"{scope}{base}", 0
        while name in taken:
            count += 1
            name = f"{scope}{base}{count}"
        taken.add(name)
        return name

    def add_input(self, type_: TensorType) -> Value:
        """A new input of the network.

        Raises: Reject in a region, or when there are enough inputs.
        """
        if self.outer is not None or len(self.graph.inputs) >= MOST_INPUTS:
            raise Reject("no more inputs")
        value = self.graph.add_input(f"in{len(self.graph.inputs)}", type_)
        self.pool.append(value)
        self.magnitude[value] = 3.0
        return value

    # Picking

    def pick(self, fits: Callable[[Value], bool], make: Callable[[], Value] | None = None) -> Value:
        """A value of the pool that fits, the later ones more likely; or a made one.

        Raises: Reject when there is neither.
        """
        found = [v for v in self.pool if fits(v)]
        if make is not None and (not found or self.rng.random() < 0.05):
            try:
                return make()
            except Reject:
                pass
        if not found:
            raise Reject("nothing fits")
        return found[max(self.rng.randrange(len(found)), self.rng.randrange(len(found)))]

    def any_float(self, rank: int = 0) -> Value:
        """A float value of at least this rank."""
        return self.pick(lambda v: is_float(v) and v.type.rank >= max(rank, 1), self.tokens if rank < 3 else None)

    def tokens(self) -> Value:
        return self.add_input(TensorType((self.batch(), self.length(), self.channels()), self.dtype))

    def images(self, spatial: int = 2) -> Value:
        sizes = tuple(self.rng.choice([4, 5, 6, 7, 8] if spatial < 3 else [3, 4]) for _ in range(spatial))
        return self.add_input(TensorType((self.batch(), self.channels(), *sizes), self.dtype))

    def batch(self) -> Dim:
        return symbol("N") if "N" in self.sizes else self.sizes_fixed[0]

    def length(self) -> Dim:
        return symbol("T") if "T" in self.sizes else self.sizes_fixed[1]

    @property
    def sizes_fixed(self) -> tuple[int, int]:
        rng = random.Random(self.dtype + str(len(self.sizes)))
        return rng.choice([1, 2, 3]), rng.choice([3, 5, 6, 9])

    def channels(self) -> int:
        return self.rng.choice([1, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8, 12, 16, 17])

    def axis(self, value: Value, among: Callable[[Dim], bool] = lambda d: True) -> int:
        """An axis, counted from either end. In a region the rows (axis 0) are not touched: which of them are there is
        not for a body to know."""
        first = 1 if self.outer is not None else 0
        axes = [a for a in range(first, value.type.rank) if among(value.type.shape[a])]
        if not axes:
            raise Reject("no axis")
        axis = self.rng.choice(axes)
        return axis - value.type.rank if self.rng.random() < 0.3 else axis

    # Taming

    def tame(self, value: Value) -> Value:
        """The value, squashed when it may be large."""
        if self.magnitude.get(value, 3.0) <= WILD:
            return value
        if self.rng.random() < 0.5 or not isinstance(value.type.shape[-1] if value.type.rank else None, int):
            return self.apply("tanh", value, growth=1.0)
        return self.apply("rms_norm", value, growth=4.0)

    def positive(self, value: Value) -> Value:
        """Something of the same shape between about 0.05 and WILD."""
        kind = self.rng.randrange(3)
        if kind == 0:
            return self.shifted(self.apply("sigmoid", value, growth=1.0), 0.05)
        if kind == 1:
            return self.shifted(self.apply("abs", self.tame(value)), 0.5)
        return self.shifted(self.apply("softplus", self.tame(value)), 0.1)

    def shifted(self, value: Value, by: float) -> Value:
        return self.apply("add", value, self.scalar(by, value.type.dtype))

    def scalar(self, number: float, dtype: str) -> Value:
        value = number if dtype in FLOATS else round(number)
        return self.apply("constant", value=value, dtype=dtype, growth=abs(number))

    # Regions

    def region(self, name: str, *types: TensorType) -> Builder:
        """A builder of a region whose formals have these types; it uses what it likes and sets its outputs."""
        inner = Builder(self.rng, Graph(name), self.sizes, types[0].dtype, self, self.depth + 1)
        for i, type_ in enumerate(types):
            value = inner.graph.add_input("x" if i == 0 else f"s{i - 1}", type_)
            inner.pool.append(value)
            inner.magnitude[value] = 3.0
        inner.formals = len(types)
        return inner

    def rows(self, base: str) -> Dim:
        """A fresh symbol, of the same run size as a small batch."""
        count, name = 0, base
        while name in self.sizes:
            count += 1
            name = f"{base}{count}"
        self.sizes[name] = 3
        return symbol(name)

    def capture(self, outer: Value) -> Value:
        """An outer value, inside; `outer_captures` lists the outer ones for the node, for all regions alike."""
        assert self.outer is not None
        inner = self.graph.add_input(f"c{len(self.captures)}", outer.type)
        self.captures.append(outer)
        self.magnitude[inner] = self.outer.magnitude.get(outer, 3.0)
        self.pool.append(inner)
        return inner

    @staticmethod
    def outer_captures(regions: Sequence[Builder]) -> list[Value]:
        """All captures of all regions, once each; every region gets an input for every one of them, in this order."""
        wanted = list(dict.fromkeys(v for r in regions for v in r.captures))
        for r in regions:
            inside: dict[Value, Value] = {}
            for outer, inner in zip(r.captures, r.graph.inputs[r.formals :], strict=True):
                if outer in inside:
                    inner.replace_all_uses(inside[outer], r.graph)
                inside.setdefault(outer, inner)
            own = [inside.get(v) or Value(f"c{i}", v.type) for i, v in enumerate(wanted)]
            r.graph.inputs = r.graph.inputs[: r.formals] + own
            r.captures = wanted
        return wanted


def is_float(value: Value) -> bool:
    return value.type.dtype in FLOATS


def random_net(seed: int, index: int) -> RandomNet:
    """The network number `index` of a run: the same on every machine.

    Raises: AssertionError when the op that it should contain could not be placed.
    """
    from recipes import RECIPES

    ops = sorted(REGISTRY)
    focus = ops[index % len(ops)]
    for attempt in range(40):
        rng = random.Random(f"{seed}/{index}/{attempt}")
        builder = _start(rng, f"net{index}")
        if not _grow(builder, focus, RECIPES):
            continue
        graph = builder.graph
        _choose_outputs(builder)
        if any(node.op.name == focus for node in graph.walk()):
            symbols = {s: builder.sizes[s] for s in graph.symbols()}
            return RandomNet(seed, index, focus, graph, print_graph(graph), symbols)
    raise AssertionError(f"no network with `{focus}` for seed {seed}, index {index}")


def _start(rng: random.Random, name: str) -> Builder:
    sizes = {}
    if rng.random() < 0.6:
        sizes["N"] = rng.choice([1, 2, 3, 5])
    if rng.random() < 0.5:
        sizes["T"] = rng.choice([5, 7, 8, 11])
    dtype = "f64" if rng.random() < 0.15 else "f32"
    builder = Builder(rng, Graph(name), sizes, dtype)
    kind = rng.randrange(4)
    if kind == 0:
        builder.images(rng.choice([1, 2, 2, 2, 3]))
    elif kind == 1:
        builder.add_input(TensorType((builder.batch(), builder.channels()), dtype))
    else:
        builder.tokens()
    return builder


def _grow(builder: Builder, focus: str, recipes: Mapping[str, Callable[[Builder], object]]) -> bool:
    rng, names = builder.rng, [*sorted(recipes), *LAYERS * 3]
    goal = rng.randint(2, 9)
    steps, tries, placed, when = 0, 0, False, rng.randrange(goal)
    while steps < goal and tries < 60:
        tries += 1
        want = focus if not placed and steps >= when else rng.choice(names)
        try:
            recipes[want](builder)
        except (Reject, CompileError):
            continue
        steps += 1
        placed |= want == focus
        if want in LAYERS and rng.random() < 0.3:
            _follow(builder, recipes[rng.choice(BORDERS)])
    return placed


def _follow(builder: Builder, recipe: Callable[[Builder], object]) -> None:
    """Apply a recipe to the newest value, if it can be."""
    pool = builder.pool
    builder.pool = pool[-1:]
    with suppress(Reject, CompileError):
        recipe(builder)
    builder.pool = pool + builder.pool[1:]


def _choose_outputs(builder: Builder) -> None:
    """What nothing reads is an output (a few are left dead), and one value in between."""
    graph, rng = builder.graph, builder.rng
    made: list[Value] = [v for node in graph.nodes for v in node.outputs]
    ends = [v for v in made if not v.uses]
    kept = [v for v in ends if rng.random() < 0.9] or ends
    if rng.random() < 0.3:
        kept.append(rng.choice([*made, *graph.inputs]))
    graph.outputs = kept
    graph.output_names = [f"out{i}" for i in range(len(kept))]


def nodes_of(graph: Graph, op: str) -> list[Node]:
    return [node for node in graph.walk() if node.op.name == op]
