"""From a graph to `.arch` text that means the same graph again: `loads(print_graph(g))` is structurally equal to `g`.

The text is flat: one statement for each chain of nodes, every node with its full name. A region is a `fn`. A weight
that is used twice, or that is not what its op would make, is declared by a `share` and given by role.
(`archc fmt`, which keeps comments and definitions, works on source text: see `format.py`.)

What text cannot hold is made to fit, and is no part of the architecture: port names that are no names (`input.1`
becomes `input_1`), and symbols that do not start with a capital letter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from archc.grammar.calls import region_names
from archc.grammar.naming import Names, Scope
from archc.grammar.regions import fresh_name
from archc.grammar.tables import keywords
from archc.grammar.tree import RESERVED as FORBIDDEN
from archc.grammar.tree import STATEMENT_WORDS
from archc.ir.dims import Dim, Expr, substitute, symbol, symbols
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.init import Init
from archc.ir.ops.constants import BUFFER, PARAMETER
from archc.ir.types import TensorType

WIDTH = 110
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
RESERVED = keywords() - (STATEMENT_WORDS - FORBIDDEN)
"""Words that mean something inside an expression; `input` and the like are names there."""
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}


def print_graph(graph: Graph) -> str:
    """The network as the text of a program.

    >>> from archc.grammar.load import loads
    >>> print(print_graph(loads("arch a input x: f32[N, 4] output y: f32[N, 2] y = x -> linear(2)")))
    arch a
    <BLANKLINE>
    input  x: f32[N, 4]
    output y: f32[N, 2]
    <BLANKLINE>
    y = x -> linear(2, name = "linear")
    <BLANKLINE>
    """
    return _Printer(graph).text()


class _Printer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken: set[str] = set(RESERVED)
        self.names: dict[Value, str] = {}
        self.dims: dict[str, Dim] = {}  # symbols of the IR -> what they are called in the text
        self.uses: dict[Parameter, int] = {}
        self.shares: dict[Parameter, str] = {}
        self.counts: dict[str, int] = {}
        for node in graph.walk():
            for parameter in node.weights.values():
                self.uses[parameter] = self.uses.get(parameter, 0) + 1

    def text(self) -> str:
        graph = self.graph
        for value in graph.inputs:
            self.names[value] = self.port(value.name)
        outputs = [self.port(name) for name in graph.output_names]
        for name in sorted(s for v in graph.inputs for s in v.type.symbols):
            if name not in self.dims:
                self.dims[name] = symbol(self.unique(name if _is_symbol(name) else f"D_{_identifier(name)}"))
        inside = {str(dim): dim for dim in self.dims.values() if isinstance(dim, Expr)}
        lines = [f"input  {self.names[v]}: {self.type(v.type)}" for v in graph.inputs]
        lines += [f"output {n}: {self.type(v.type)}" for n, v in zip(outputs, graph.outputs, strict=True)]
        body = self.statements(graph, inside, dict(zip(outputs, graph.outputs, strict=True)))
        shares = [f"share {name} = {self.declaration(p)}" for p, name in self.shares.items()]
        blocks = [[f"arch {_identifier(graph.name, dots=True)}"], lines, shares, body]
        return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"

    # Statements

    def statements(self, graph: Graph, known: Mapping[str, Expr], outputs: Mapping[str, Value]) -> list[str]:
        """The nodes of a graph, chains of them on one line; then what binds the outputs."""
        lines: list[str] = []
        last_of = {v: name for name, v in outputs.items() if list(outputs.values()).count(v) == 1}
        chain: list[str] = []
        for i, node in enumerate(graph.nodes):
            following = graph.nodes[i + 1] if i + 1 < len(graph.nodes) else None
            operands = [self.names.get(v, "") for v in node.operands]
            if chain:
                chain.append(self.call(node, (), known))
            elif len(operands) == 1:
                chain = [operands[0], self.call(node, (), known)]
            else:
                chain = [self.call(node, operands, known)]
            if following is not None and _continues(graph, node, following):
                continue
            if len(node.outputs) == 1 and node.output in last_of and not node.output.uses:
                lines.append(_statement(f"{last_of.pop(node.output)} = ", chain))
            else:
                names = [self.fresh(node.op.name) for _ in node.outputs]
                self.names.update(zip(node.outputs, names, strict=True))
                lines.append(_statement(f"let {', '.join(names)} = ", chain))
            chain = []
        bound = {line.partition(" = ")[0] for line in lines}
        return lines + [f"{name} = {self.names[v]}" for name, v in outputs.items() if name not in bound]

    def call(self, node: Node, operands: Sequence[str], known: Mapping[str, Expr], named: bool = True) -> str:
        """`op(tensors…, arguments…, name = "…")`; the name may be left out where it is the one that the op gets."""
        arguments = list(operands)
        arguments += self.regions(node, known)
        given = self.weights(node)
        hidden = {*region_names(node.op), *(role for role in given if role in type(node.params).model_fields)}
        first = True
        for field, info in type(node.params).model_fields.items():
            value, name = getattr(node.params, field), info.alias or field
            if name in hidden or (not info.is_required() and _same(value, info.default)):
                continue
            text = self.plain(value)
            positional = first and info.is_required() and not node.regions and name not in given
            arguments.append(text if positional and isinstance(value, int | Expr) else f"{name} = {text}")
            first = False
        arguments += [f"{role} = {text}" for role, text in given.items()]
        if named:
            arguments.append(f"name = {_quoted(node.name)}")
        return f"{node.op.name}({', '.join(arguments)})" if arguments else node.op.name

    def regions(self, node: Node, known: Mapping[str, Expr]) -> list[str]:
        """The regions as keyword arguments, in the order of the op's declaration."""
        if not node.regions:
            return []
        names, graphs = node.op.regions, list(node.regions)
        optional = sum(name.endswith("?") for name in names)
        fixed = sum(not name.startswith("*") for name in names) - optional
        starred = len(graphs) - fixed - sum(
            bool(getattr(node.params, n[:-1], False)) for n in names if n.endswith("?")
        )  # fmt: skip
        parts = []
        for name in names:
            if name.endswith("?") and not getattr(node.params, name[:-1], False):
                continue
            if name.startswith("*"):
                bodies = [self.region(node, graphs.pop(0), known, f"{name[1:]}.{i}") for i in range(starred)]
                alike = starred > 1 and len(set(bodies)) == 1  # with names that differ they would not be
                parts.append(
                    f"{name[1:]} = copies({starred}, {bodies[0]})" if alike else f"{name[1:]} = [{', '.join(bodies)}]"
                )
            else:
                word = name.removesuffix("?")
                parts.append(f"{word} = {self.region(node, graphs.pop(0), known, word)}")
        return parts

    def region(self, node: Node, region: Graph, known: Mapping[str, Expr], place: str) -> str:
        """A region as the chain of modules that it is, else as a `fn`. Captures are called by their outer names."""
        if (chain := self.chain(region, node, known, place)) is not None:
            return chain
        formals = region.inputs[: len(region.inputs) - node.captures]
        for inner, outer in zip(region.inputs[len(formals) :], node.captured, strict=True):
            self.names[inner] = self.names[outer]
        inside, before = dict(known), dict(self.dims)
        for formal in formals:
            self.names[formal] = self.fresh("x")
            for axis, dim in enumerate(formal.type.shape):
                for name in sorted(symbols(dim)):
                    if substitute(symbol(name), self.dims) not in inside.values():
                        chosen = fresh_name("Kept" if axis else "Rows", inside)
                        self.dims[name] = inside[chosen] = symbol(chosen)
        lines = self.statements(region, inside, {})
        lines.append("return " + ", ".join(self.names[v] for v in region.outputs))
        self.dims = before
        parameters = ", ".join(self.names[v] for v in formals)
        return f"fn({parameters}) {{\n" + "\n".join(_indented(line) for line in lines) + "\n}"

    def chain(self, region: Graph, node: Node, known: Mapping[str, Expr], place: str) -> str | None:
        """A region that feeds its formal through one node after the other: `linear(64) -> gelu -> linear(16)`."""
        nodes = region.nodes
        formal = region.inputs[0] if region.inputs else None
        if not nodes or len(region.inputs) != 1 or node.captures or region.outputs != [nodes[-1].outputs[0]]:
            return None
        steps = all(_continues(region, a, b) for a, b in pairwise(nodes))
        if not steps or nodes[0].inputs != (formal,) or len(nodes[-1].outputs) != 1:
            return None
        if any(n.regions or _names_sizes(n.params) for n in nodes):  # only a `fn` can name the sizes of its formal
            return None
        named = [n.name for n in nodes] != _usual_names(f"{node.name}.{place}", nodes)
        return " -> ".join(self.call(n, (), known, named) for n in nodes)

    # Weights

    def weights(self, node: Node) -> dict[str, str]:
        """The weights that are not what the op would make by itself, by role."""
        given: dict[str, str] = {}
        for role, parameter in node.weights.items():
            spec = node.bound.weights[role]
            usual = (parameter.type, parameter.init, parameter.trainable) == (spec.type, spec.init, spec.trainable)
            if self.uses[parameter] > 1 or not usual or spec.tied:
                if parameter not in self.shares:
                    self.shares[parameter] = self.fresh("weight")
                given[role] = self.shares[parameter]
            elif parameter.name != f"{node.name}.{role}":
                given[role] = _quoted(parameter.name)
        return given

    def declaration(self, parameter: Parameter) -> str:
        op = PARAMETER if parameter.trainable else BUFFER
        arguments = [self.plain(parameter.shape)]
        if parameter.type.dtype != "f32":
            arguments.append(f"dtype = {_quoted(parameter.type.dtype)}")
        if parameter.init != op.weights["weight"].init:
            arguments.append(f"init = {_quoted(_init(parameter.init))}")
        arguments.append(f"weight = {_quoted(parameter.name)}")
        return f"{op.name}({', '.join(arguments)})"

    # Words

    def type(self, type_: TensorType) -> str:
        return f"{type_.dtype}[{', '.join(self.plain(d) for d in type_.shape)}]"

    def plain(self, value: Any) -> str:
        """A value of a parameter as an expression."""
        if isinstance(value, Expr):
            return str(substitute(value, self.dims))
        if isinstance(value, tuple | list):
            return f"[{', '.join(map(self.plain, value))}]"
        if isinstance(value, bool) or value is None:
            return "none" if value is None else str(value).lower()
        if isinstance(value, str):
            return _quoted(value)
        if isinstance(value, float) and not math.isfinite(value):
            infinite = "1e308 * 10.0"  # a literal has to be finite
            return (
                f"({infinite} - {infinite})" if value != value else f"({infinite})" if value > 0 else f"-({infinite})"
            )
        assert isinstance(value, int | float), f"no text for {value!r}"
        return repr(value)

    def port(self, name: str) -> str:
        return self.unique(name if _NAME.fullmatch(name) and name not in self.taken else _identifier(name))

    def fresh(self, base: str) -> str:
        """A new name: `add_1`, `add_2`, …"""
        while True:
            self.counts[base] = self.counts.get(base, 0) + 1
            name = f"{base}_{self.counts[base]}"
            if name not in self.taken:
                self.taken.add(name)
                return name

    def unique(self, name: str) -> str:
        if name in self.taken:
            return self.fresh(name)
        self.taken.add(name)
        return name


def _continues(graph: Graph, node: Node, following: Node) -> bool:
    """May the next node be written behind this one, `… -> this -> next`?"""
    if len(node.outputs) != 1 or following.inputs != (node.output,) or following.captures:
        return False
    return graph.use_count(node.output) == 1


def _usual_names(path: str, nodes: Sequence[Node]) -> list[str]:
    """What nodes are called that stand one after the other at a path: `linear`, `linear1` … (see `naming.Scope`)."""
    scope = Scope.root(Names()).region(path, path)
    return [scope.node(n.op.name, None, None)[0] for n in nodes]


def _names_sizes(params: Any) -> bool:
    """Does a parameter hold a symbolic size?"""
    values = [getattr(params, name) for name in type(params).model_fields]
    return any(isinstance(v, Expr) for value in values for v in (value if isinstance(value, tuple) else (value,)))


def _statement(left: str, chain: Sequence[str]) -> str:
    text = left + " -> ".join(chain)
    if len(text) <= WIDTH or "\n" in text or len(chain) < 2:
        return text
    return left + "\n    -> ".join(chain)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _same(a: Any, b: Any) -> bool:
    """Equality that tells 1, 1.0 and true apart."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


def _is_symbol(name: str) -> bool:
    return re.fullmatch(r"[A-Z]\w*", name, re.ASCII) is not None


def _identifier(text: str, dots: bool = False) -> str:
    """Some name made of a text.

    >>> _identifier("input.1"), _identifier("let"), _identifier("")
    ('input_1', 'let_', 'x')
    """
    if dots and _NAME.fullmatch(text) and text not in RESERVED:
        return text
    name = re.sub(r"\W", "_", text, flags=re.ASCII) or "x"
    name = f"_{name}" if name[0].isdigit() else name
    return f"{name}_" if name in RESERVED else name


def _quoted(text: str) -> str:
    """A text in quotes; characters that source text must not hold are written as `\\u{…}`."""
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else _coded(c)) for c in text) + '"'


def _coded(character: str) -> str:
    return f"\\u{{{ord(character):x}}}"


def _init(init: Init) -> str:
    if init.kind == "values":
        return f"values({', '.join(map(repr, init.values))})"
    return f"{init.kind}({init.a!r})"
