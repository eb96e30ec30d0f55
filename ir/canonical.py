"""The canonical form of a network and its SHA-256: the identity of an architecture.

Two programs have one hash when they mean the same network: names, spans, layout, the order of statements, spelled-out
defaults and the order of the operands of sums and products do not count; identities and what no output needs are
dropped. Which weights are shared does count. The canonical order of the parameters, under which weights are stored and
found again for an equal network written otherwise, comes with it.

What no output needs and identities are removed first. Operands of commutative chains are sorted by a hash of what they
compute and where it is used (colour refinement, forward and backward); the text that is hashed numbers nodes and
parameters in the order of a walk from the outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archc.ir.clone import clone
from archc.ir.dead import has_dead_code, remove_dead_code
from archc.ir.dims import Dim, Expr, substitute, symbol
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.op import Bound, Call, OpDef
from archc.ir.ops.shape import IDENTITY
from archc.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Canonical:
    """`hash` is hexadecimal SHA-256; `parameters` are in canonical order."""

    hash: str
    parameters: tuple[Parameter, ...]

    def names(self) -> dict[str, str]:
        """Parameter name -> canonical name (`p0`, `p1`, …)."""
        return {p.name: f"p{i}" for i, p in enumerate(self.parameters)}


def canonical(graph: Graph) -> Canonical:
    """The canonical hash and parameter order of a network.

    >>> from archc.ir.graph import Graph
    >>> canonical(Graph("a")).hash == canonical(Graph("b")).hash
    True
    """
    return _Canonicaliser(_needed(graph)).result()


def _needed(graph: Graph) -> Graph:
    """The graph without dead code and identities, which would stand between operands that can be sorted together."""
    if not has_dead_code(graph) and not any(node.op is IDENTITY for node in graph.walk()):
        return graph
    copy = clone(graph)
    for region in copy.graphs():
        for node in region.nodes:
            if node.op is IDENTITY:
                node.output.replace_all_uses(node.inputs[0], region)
    remove_dead_code(copy)
    return copy


class _Canonicaliser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.renamed: dict[str, Dim] = {s: symbol(f"s{i}") for i, s in enumerate(graph.symbols())}
        self.scopes: dict[Graph, dict[str, Dim]] = {}  # of each region, outer symbols included
        self.texts: dict[Node, str] = {}
        self.chains: dict[Node, tuple[Value, ...]] = {}
        self.forward: dict[Value, bytes] = {}
        self.backward: dict[Value, bytes] = {}
        self.roles: dict[Parameter, list[tuple[Node, str]]] = {}
        self._name_region_symbols(graph, self.renamed, 0)
        for node in graph.walk():
            for role, parameter in node.weights.items():
                self.roles.setdefault(parameter, []).append((node, role))
        self.outputs = {v for g in graph.graphs() for v in g.outputs}
        self.colours = {p: self.spec(p) for p in self.roles}

    def _name_region_symbols(self, graph: Graph, scope: dict[str, Dim], depth: int) -> None:
        """Regions have symbols of their own (`Rows`, `Kept`), which may share a name with those of other regions:
        number them by depth, whatever the order of the nodes."""
        self.scopes[graph] = scope
        for node in graph.nodes:
            for region in node.regions:
                own = [s for s in region.symbols() if s not in scope]
                inner = scope | {s: symbol(f"r{depth}_{i}") for i, s in enumerate(own)} if own else scope
                self._name_region_symbols(region, inner, depth + 1)

    def result(self) -> Canonical:
        self.refine()
        if any(len(users) > 1 for users in self.roles.values()):
            for _ in range(2):
                self.colours = {
                    p: _digest(self.spec(p), *sorted(_digest(*self.colour(n.outputs[0]), r.encode()) for n, r in users))
                    for p, users in self.roles.items()
                }
                self.refine()
        writer = _Writer(self)
        writer.graph(self.graph, [])
        return Canonical(hashlib.sha256("\n".join(writer.lines).encode()).hexdigest(), tuple(writer.parameters))

    def colour(self, value: Value) -> tuple[bytes, bytes]:
        return self.forward[value], self.backward[value]

    def refine(self) -> None:
        """Colour every value by what computes it (forward) and by what reads it (backward)."""
        self.forward.clear()
        self.backward.clear()
        inputs = [_digest(b"input", str(i).encode()) for i in range(len(self.graph.inputs))]
        self._forward(self.graph, inputs)
        outputs: dict[Value, list[bytes]] = {}
        for i, value in enumerate(self.graph.outputs):
            outputs.setdefault(value, []).append(_digest(b"output", str(i).encode()))
        self._backward(self.graph, outputs)

    def _forward(self, graph: Graph, inputs: Sequence[bytes]) -> None:
        before, self.renamed = self.renamed, self.scopes[graph]
        for value, colour in zip(graph.inputs, inputs, strict=True):
            self.forward[value] = _digest(colour, self.type(value.type).encode())
        for node in graph.nodes:
            if self.is_link(node):  # its chain is looked at as a whole
                continue
            parts = [self.forward[v] for v in self.operands(node)]
            if node.op.commutative:
                parts.sort()
            parts += [role.encode() + self.colours[p] for role, p in sorted(node.weights.items())]
            for region in node.regions:
                formals = [_digest(b"formal", str(i).encode()) for i in range(len(region.inputs) - node.captures)]
                self._forward(region, [*formals, *(self.forward[v] for v in node.captured)])
                parts += [self.forward[v] for v in region.outputs]
            own = _digest(node.op.name.encode(), self.params(node).encode(), *parts)
            for value in node.outputs:
                self.forward[value] = _digest(own, str(value.index).encode()) if value.index else own
        self.renamed = before

    def _backward(self, graph: Graph, above: dict[Value, list[bytes]]) -> None:
        for node in reversed(graph.nodes):
            if self.is_link(node):
                continue
            own = _digest(self.forward[node.outputs[0]], *[self._close(v, above) for v in node.outputs])
            for position, value in enumerate(self.operands(node)):
                place = b"" if node.op.commutative else str(position).encode()
                above.setdefault(value, []).append(_digest(own, place))
            for i, region in enumerate(node.regions):
                self._backward(region, {v: [_digest(own, f"{i}.{j}".encode())] for j, v in enumerate(region.outputs)})
        for value in graph.inputs:
            self._close(value, above)

    def _close(self, value: Value, above: dict[Value, list[bytes]]) -> bytes:
        colour = self.backward[value] = _digest(*sorted(above.get(value, ())))
        return colour

    def operands(self, node: Node) -> Sequence[Value]:
        """The inputs of a node; of the last of a commutative chain, those of the chain: a, b, c for `(a + b) + c`."""
        if not node.op.commutative:
            return node.inputs
        if node not in self.chains:
            found: list[Value] = []
            stack = list(reversed(node.inputs))
            while stack:
                value = stack.pop()
                inner = value.producer
                if inner is not None and self.is_link(inner):
                    stack += reversed(inner.inputs)
                else:
                    found.append(value)
            self.chains[node] = tuple(found)
        return self.chains[node]

    def is_link(self, node: Node) -> bool:
        """Is the node within a commutative chain: read once, by the same op, without broadcasting?"""
        value = node.outputs[0]
        if not node.op.commutative or value in self.outputs or list(value.uses.values()) != [1]:
            return False
        (reader,) = value.uses
        if reader.op is not node.op or reader.params != node.params or value not in reader.operands:
            return False
        return reader.outputs[0].type == value.type

    def spec(self, parameter: Parameter) -> bytes:
        return f"{parameter.type}{parameter.trainable}".encode()

    def type(self, type_: TensorType) -> str:
        return str(type_.substitute(self.renamed))

    def params(self, node: Node) -> str:
        text = self.texts.get(node)
        if text is None:
            text = self.texts[node] = params_text(node.op, node.call, node.bound, self.renamed)
        return text


def params_text(op: OpDef[Any], call: Call[Any], bound: Bound, renamed: Mapping[str, Dim]) -> str:
    """The parameters of a node in the canonical form: spelled out, symbols renamed."""
    spelled = op.spelled(call, bound) if op.spelled is not None else {}
    written = {
        name: value
        for name, info in type(call.params).model_fields.items()
        if (value := getattr(call.params, name)) != info.default or name not in call.params.added
    }
    return ",".join(f"{k}={_field(v, renamed)!r}" for k, v in {**written, **spelled}.items())


def _field(value: Any, renamed: Mapping[str, Dim]) -> Any:
    if isinstance(value, Expr):
        return substitute(value, renamed)
    if isinstance(value, tuple):
        return tuple(_field(v, renamed) for v in value)
    return value


class _Writer:
    """Writes the text that is hashed: one line a node, in the order of a depth-first walk from the outputs."""

    def __init__(self, colours: _Canonicaliser) -> None:
        self.colours = colours
        self.lines: list[str] = []
        self.parameters: list[Parameter] = []
        self.numbers: dict[Value, str] = {}
        self.weights: dict[Parameter, str] = {}

    def graph(self, graph: Graph, captured: Sequence[str]) -> None:
        before, self.colours.renamed = self.colours.renamed, self.colours.scopes[graph]
        formals = len(graph.inputs) - len(captured)
        for i, value in enumerate(graph.inputs):
            if i < formals:
                self.numbers[value] = f"v{len(self.numbers)}"
                self.lines.append(f"input {self.numbers[value]} {self.colours.type(value.type)}")
            else:
                self.numbers[value] = captured[i - formals]
        for output in graph.outputs:
            self.visit(output)
        self.lines.append("return " + " ".join(self.numbers[v] for v in graph.outputs))
        self.colours.renamed = before

    def visit(self, output: Value) -> None:
        stack = [output]
        while stack:
            value = stack[-1]
            node = value.producer
            if value in self.numbers or node is None:
                stack.pop()
                continue
            operands = self.ordered(node)
            waiting = [v for v in operands if v not in self.numbers]
            if waiting:
                stack += reversed(waiting)
                continue
            stack.pop()
            self.write(node, operands)

    def ordered(self, node: Node) -> Sequence[Value]:
        operands = self.colours.operands(node)
        return sorted(operands, key=self.colours.colour) if node.op.commutative else operands

    def write(self, node: Node, operands: Sequence[Value]) -> None:
        for value in node.outputs:
            self.numbers[value] = f"v{len(self.numbers)}"
        weights = [f"{role}:{self.weight(p)}" for role, p in sorted(node.weights.items())]
        self.lines.append(
            " ".join(
                [*(self.numbers[v] for v in node.outputs), "=", node.op.name, self.colours.params(node)]
                + [self.numbers[v] for v in operands]
                + weights
            )
        )
        captured = [self.numbers[v] for v in node.captured]
        for region in node.regions:
            self.lines.append("region " + " ".join(captured))
            self.graph(region, captured)

    def weight(self, parameter: Parameter) -> str:
        if parameter not in self.weights:
            self.weights[parameter] = f"p{len(self.weights)}"
            self.parameters.append(parameter)
        return f"{self.weights[parameter]} {self.colours.spec(parameter).decode()}"


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\x00".join(parts), digest_size=16).digest()
