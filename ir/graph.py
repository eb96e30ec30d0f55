"""The typed graph: values, nodes, parameters and regions.

A `Graph` is a list of nodes in topological order. A node applies an op to values; its weights are `Parameter` objects
that stand apart from nodes, so sharing is plain. Structural ops carry subgraphs (`Node.regions`). A region is closed: a
value from outside that it uses is a *capture*, an extra input of the node and of each of its regions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archc.ir.diagnostics import Note, Span, fail
from archc.ir.init import Init
from archc.ir.op import BindError, Bound, Call, NoParams, OpDef, Params, bind
from archc.ir.types import TensorType


@dataclass(eq=False, slots=True)
class Parameter:
    """A weight (`trainable`) or a buffer such as a running mean. `name` is its key in weight files."""

    name: str
    type: TensorType
    init: Init
    trainable: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape  # type: ignore[return-value]  # a bound weight has integer sizes

    @property
    def size(self) -> int:
        return self.type.size  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"Parameter({self.name}: {self.type})"


@dataclass(eq=False, slots=True)
class Value:
    """A tensor in the graph: an input, or a result of a node. `uses` counts by user; graph outputs are not in it."""

    name: str
    type: TensorType
    producer: Node | None = None
    index: int = 0
    uses: dict[Node, int] = field(default_factory=dict)
    span: Span | None = None

    @property
    def rank(self) -> int:
        return self.type.rank

    def replace_all_uses(self, new: Value, graph: Graph) -> None:
        """Let every user of this value, and `graph`'s outputs, read `new` instead."""
        for user in tuple(self.uses):
            user.set_inputs(tuple(new if v is self else v for v in user.inputs))
        graph.outputs = [new if v is self else v for v in graph.outputs]

    def __repr__(self) -> str:
        return f"Value({self.name}: {self.type})"


@dataclass(eq=False, slots=True)
class Node:
    """One application of an op.

    name      the scope path (`stage.block1.conv`); a weight's name is `name.role`
    inputs    operands, then captures
    captures  how many of the inputs are captures; each region's inputs end with them
    trace     the uses that led here, innermost first, when the node comes from inside a `def`
    """

    op: OpDef[Any]
    params: Params
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    bound: Bound
    name: str
    weights: dict[str, Parameter] = field(default_factory=dict)
    regions: tuple[Graph, ...] = ()
    captures: int = 0
    span: Span | None = None
    trace: tuple[Span, ...] = ()

    @property
    def operands(self) -> tuple[Value, ...]:
        """The inputs that the op's signature speaks of."""
        return self.inputs[: len(self.inputs) - self.captures]

    @property
    def captured(self) -> tuple[Value, ...]:
        return self.inputs[len(self.inputs) - self.captures :]

    @property
    def output(self) -> Value:
        """The only result."""
        assert len(self.outputs) == 1, f"{self.op.name} has {len(self.outputs)} results"
        return self.outputs[0]

    @property
    def call(self) -> Call[Any]:
        return Call(self.params, tuple(v.type for v in self.operands), self.regions)

    def set_inputs(self, inputs: tuple[Value, ...]) -> None:
        """Replace the inputs and keep the use lists right. Types are not inferred again: see `Graph.verify`."""
        for value in self.inputs:
            if value.uses[self] == 1:
                del value.uses[self]
            else:
                value.uses[self] -= 1
        self.inputs = inputs
        for value in inputs:
            value.uses[self] = value.uses.get(self, 0) + 1

    def __repr__(self) -> str:
        return f"Node({self.name}: {self.op.name})"


@dataclass(eq=False, slots=True)
class Graph:
    """A network, or a region of one. `outputs` and `output_names` run in step; names are empty in a region."""

    name: str
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    output_names: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    span: Span | None = None

    def add_input(self, name: str, type: TensorType, span: Span | None = None) -> Value:
        value = Value(name, type, span=span)
        self.inputs.append(value)
        return value

    def add(
        self,
        op: OpDef[Any],
        inputs: Sequence[Value],
        params: Params | None = None,
        *,
        name: str = "",
        weights: Mapping[str, Parameter] | None = None,
        regions: Sequence[Graph] = (),
        captures: Sequence[Value] = (),
        span: Span | None = None,
        trace: Sequence[Span] = (),
        places: Mapping[str, Span] | None = None,
    ) -> Node:
        """Append a node. Weights that `weights` does not give are made, named `name.role`. `places` are those of the
        call's arguments by parameter, for mistakes.

        Raises: CompileError when the op cannot be applied to these inputs.
        """
        params = NoParams() if params is None else params
        call = Call(params, tuple(v.type for v in inputs), tuple(regions))
        try:
            bound = bind(op, call)
        except BindError as e:
            raise diagnosed(e, inputs, span, trace, places or {}) from None
        node = Node(op, params, (), (), bound, name or op.name, {}, tuple(regions), len(captures), span, tuple(trace))
        given = weights or {}
        for role, spec in bound.weights.items():
            parameter = given.get(role)
            if parameter is None:
                assert not spec.tied, f"`{op.name}` was given no {role} to tie to"
                parameter = Parameter(f"{node.name}.{role}", spec.type, spec.init, spec.trainable)
            elif parameter.type.shape != spec.type.shape:
                raise fail(
                    "E0310",
                    f"`{op.name}` needs a {role} of shape {spec.type}",
                    span,
                    label=f"`{parameter.name}` is {parameter.type}",
                    notes=[Note("used here", place) for place in trace],
                )
            node.weights[role] = parameter
        node.outputs = tuple(
            Value(node.name if i == 0 else f"{node.name}.{i}", t, node, i, span=span)
            for i, t in enumerate(bound.results)
        )
        node.set_inputs((*inputs, *captures))
        self.nodes.append(node)
        return node

    def erase(self, *nodes: Node) -> None:
        """Remove nodes whose results nobody uses."""
        gone = set(nodes)
        for node in nodes:
            assert all(set(v.uses) <= gone for v in node.outputs), f"{node} is still used"
            assert not any(v in self.outputs for v in node.outputs), f"{node} is an output"
            node.set_inputs(())
        self.nodes = [n for n in self.nodes if n not in gone]

    def sort(self) -> None:
        """Put the nodes in topological order; those already in order stay where they are.

        Raises: AssertionError when there is a cycle.
        """
        done: set[Value] = set(self.inputs)
        ordered: list[Node] = []
        placed: set[Node] = set()
        for root in self.nodes:
            stack = [root]
            while stack:
                node = stack[-1]
                if node in placed:
                    stack.pop()
                    continue
                waiting = [v.producer for v in node.inputs if v not in done and v.producer is not None]
                if waiting:
                    assert len(stack) <= len(self.nodes), f"cycle through {node}"
                    stack += waiting
                    continue
                stack.pop()
                placed.add(node)
                ordered.append(node)
                done.update(node.outputs)
        self.nodes = ordered

    def walk(self) -> Iterator[Node]:
        """Every node, those of regions included, in program order: a node's regions come before the node."""
        for node in self.nodes:
            for region in node.regions:
                yield from region.walk()
            yield node

    def graphs(self) -> Iterator[Graph]:
        """This graph and every region in it, outermost first."""
        yield self
        for node in self.nodes:
            for region in node.regions:
                yield from region.graphs()

    def parameters(self) -> dict[str, Parameter]:
        """Every parameter by name, in program order; a shared one once."""
        found: dict[str, Parameter] = {}
        for node in self.walk():
            for parameter in node.weights.values():
                known = found.setdefault(parameter.name, parameter)
                assert known is parameter, f"two parameters are named {parameter.name}"
        return found

    def symbols(self) -> list[str]:
        """The symbolic dimensions of the inputs, in order of appearance."""
        return list(dict.fromkeys(s for v in self.inputs for dim in v.type.shape for s in sorted(_symbols(dim))))

    def use_count(self, value: Value) -> int:
        """How often a value is read, graph outputs included."""
        return sum(value.uses.values()) + sum(v is value for v in self.outputs)


class GraphBuilder:
    """Adds nodes to a graph on behalf of one node: what a decomposition or a pass writes with.

    Names are made from `prefix`, spans come from `origin`; `b(op, x, …, field=…)` validates the fields and returns
    the result (a tuple when there are several).
    """

    def __init__(self, graph: Graph, origin: Node, emit: Callable[[Node], None] | None = None) -> None:
        self.graph, self.origin, self._emit, self._count = graph, origin, emit, 0

    def __call__(
        self, op: OpDef[Any], *inputs: Value, weights: Mapping[str, Parameter] | None = None, **fields: Any
    ) -> Any:
        self._count += 1
        node = self.graph.add(
            op,
            inputs,
            op.params(**fields),
            name=f"{self.origin.name}.{op.name}{self._count}",
            weights=weights,
            span=self.origin.span,
            trace=self.origin.trace,
        )
        if self._emit is not None:
            self._emit(node)
        return node.outputs[0] if len(node.outputs) == 1 else node.outputs


def _symbols(dim: Any) -> Iterable[str]:
    from archc.ir.dims import symbols

    return symbols(dim)


def diagnosed(
    e: BindError, inputs: Sequence[Value], span: Span | None, trace: Sequence[Span], places: Mapping[str, Span]
) -> Exception:
    """A mistake of a call with its place (the argument at fault, or else the call), the places where operands come
    from, and the uses of definitions that led there."""
    blamed = e.blame.span if isinstance(e.blame, Graph) else places.get(e.blame or "")
    place = blamed or span
    origins = {v.span: v for i, v in enumerate(inputs) if i in e.operands and v.span is not None and v.span != span}
    notes = [Note(f"{v.type} comes from here", origin) for origin, v in origins.items()]
    for region in e.regions:
        notes.append(Note(f"`{region.name}` returns {' and '.join(str(v.type) for v in region.outputs)}", region.span))
    if place is not None and span is not None and place not in span:
        notes.append(Note("of this call", span))
    notes += [Note("used here", use) for use in trace]
    return fail(e.code, e.message, place, label=e.label, notes=notes, help=e.help)
