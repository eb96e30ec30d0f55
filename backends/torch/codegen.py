"""From a graph to the Python source of `forward`.

The source is straight-line and meant to be read: one assignment per node with the result's shape beside it, a comment
where the scope changes, sizes under the names that the program gives them, and a nested function for each region. How
an op is spelt stands in `archc.backends.torch.lowerings`; helpers that are too long for a line in
`archc.backends.torch.runtime`.

A variable takes over the name of the operand that dies with it, as people write PyTorch. That is not only for the
eye: a name that lives on would keep its tensor, and so all activations, alive until `forward` returns.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from torch import nn

from archc.backends.protocol import Lowerings
from archc.backends.torch.runtime import HELPERS
from archc.backends.torch.text import INDENT, ROOM, names_in, number, quoted, remark, statement, tuple_text
from archc.ir import dims as d
from archc.ir.decompose import decompose
from archc.ir.diagnostics import fail
from archc.ir.dims import Dim
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.types import FLOATS, NUMPY_NAMES

lowering: Lowerings[Callable[[TorchNode], str]] = Lowerings("torch")
"""Op name -> a function that spells one node as a Python expression (a tuple where the op has several results)."""

_RESERVED = frozenset({*keyword.kwlist, *keyword.softkwlist, "self", "aux", "device", "p", "torch", "math", "nn", "F"})
_RESERVED |= {"Tensor", "float", "int", "bool", "tuple", "list", "dict", "range", "zip", "len", "max", "min", "sum"}
_RESERVED |= frozenset(NUMPY_NAMES)
_TAKEN = frozenset({*dir(nn.Module()), "compute", "forward_with_aux", "load_weights", "parameter_paths", "source"})
_TAKEN |= frozenset(keyword.kwlist)  # torch.fx writes `self.class`
_LOCAL = re.compile(r"x\d*")  # what variables are called; such a formal may be overwritten when it is dead
_NUMBER_OPERANDS = frozenset({"add", "sub", "mul", "div", "pow", "eq", "ne", "lt", "le", "gt", "ge"})


@dataclass(frozen=True, slots=True)
class Source:
    """The methods of a module, as the body of a class, and the helpers of the runtime that they call."""

    methods: str
    helpers: tuple[str, ...]


class TorchNode:
    """One node as a lowering sees it: `n.x` and `n.weight` are expressions for an operand and a weight.

    An operand or weight that is absent is `None` in the source. `n.p` are the op's parameters.
    """

    def __init__(self, node: Node, scope: _Scope, args: Sequence[str]) -> None:
        self.node, self.args = node, tuple(args)
        self.p: Any = node.params
        self._scope = scope
        named = [re.sub(r"\W.*", "", name.lstrip("*")) for name in node.op.operand_names]
        self._names = dict.fromkeys([*node.op.weights, *named], "None") | dict(zip(named, self.args, strict=False))
        self._names |= {role: scope.writer.parameter(parameter) for role, parameter in node.weights.items()}

    def __getattr__(self, name: str) -> str:
        try:
            return self._names[name]
        except KeyError:
            raise AttributeError(f"`{self.node.op.name}` has neither operand nor weight `{name}`") from None

    @property
    def captures(self) -> tuple[str, ...]:
        """Expressions for the captured values, which every region takes as its last arguments."""
        return self.args[len(self.args) - self.node.captures :]

    def size(self, dim: Dim) -> str:
        """An expression for a dimension."""
        return self._scope.size(dim)

    def sizes(self, dims: Iterable[Dim]) -> str:
        """A tuple expression for a shape."""
        return tuple_text([self._scope.size(dim) for dim in dims])

    def dtype(self, name: str) -> str:
        """An expression for a dtype. A float dtype is read from a weight or input, to follow `module.double()`."""
        return self._scope.writer.dtype(name)

    @property
    def device(self) -> str:
        """An expression for the device that new tensors are made on."""
        return self._scope.writer.device()

    def region(self, index: int, name: str) -> str:
        """Define the nested function of a region before this node; the name it got."""
        return self._scope.region(self.node.regions[index], name)

    @property
    def key(self) -> str:
        """The node's name as a string literal: the key of what it puts into `aux`."""
        return quoted(self.node.name)


def generate(graph: Graph, paths: Mapping[str, Sequence[str]]) -> Source:
    """The methods that compute `graph`; `paths` says under which attributes each parameter is found.

    Raises: CompileError E0901 for an op that cannot be lowered, E0902 for a size that the inputs do not tell.
    """
    return _Writer(graph, paths).source()


def parameter_paths(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The attributes under which a module holds each parameter: the parts of its name.

    A part that would hide an attribute of the module or that is a word of Python's gets an underscore behind it, and so
    does a parameter that has the name of a container.

    >>> parameter_paths(["stem.0.weight", "train.weight", "stem"])
    {'stem.0.weight': ('stem', '0', 'weight'), 'train.weight': ('train_', 'weight'), 'stem': ('stem_',)}
    """
    parts = {name: tuple(name.split(".")) for name in names}
    found: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
    taken: set[tuple[str, ...]] = set()

    def place(path: tuple[str, ...]) -> tuple[str, ...]:
        attribute = path[-1]
        while not attribute or attribute in _TAKEN or (*found[path[:-1]], attribute) in taken:
            attribute += "_"
        taken.add((*found[path[:-1]], attribute))
        return *found[path[:-1]], attribute

    for path in parts.values():
        for i in range(1, len(path)):
            if path[:i] not in found:
                found[path[:i]] = place(path[:i])
    return {name: place(path) for name, path in parts.items()}


class _Writer:
    """Writes one module: what all its functions share."""

    def __init__(self, graph: Graph, paths: Mapping[str, Sequence[str]]) -> None:
        self.graph, self.paths = graph, paths
        self.used = set(_RESERVED) | set(HELPERS)
        self.inputs: Mapping[Value, str] = {}
        self.prologue: dict[str, str] = {}  # what forward binds first: name -> expression
        self.with_aux = any(n.op.name in ("moe", "skip", "exit") for n in graph.walk())
        self.symbols: dict[str, str] = {}
        for name in sorted({s for g in graph.graphs() for v in _values(g) for s in v.type.symbols}):
            self.symbols[name] = self.fresh(name)

    def fresh(self, base: str) -> str:
        """A name that no one else has."""
        base = re.sub(r"\W", "_", base, flags=re.ASCII).strip("_") or "x"
        base = base if base.isidentifier() else f"x{base}"
        name = next(n for n in chain([base], (f"{base}_{i}" for i in count(1))) if n not in self.used)
        self.used.add(name)
        return name

    def formals(self, graph: Graph) -> dict[Value, str]:
        """Names for the inputs of a graph or region, their own where that can be."""
        names: dict[Value, str] = {}
        for value in graph.inputs:
            base = re.sub(r"\W", "_", value.name.rpartition(".")[2], flags=re.ASCII)
            if not _LOCAL.fullmatch(base):
                names[value] = self.fresh(base)
                continue
            names[value] = next(n for n in _locals() if n not in names.values())
        return names

    def source(self) -> Source:
        formals = self.inputs = self.formals(self.graph)
        scope = _Scope(self, formals, frozenset())
        entry = self._entry(scope, formals)
        body = scope.body(self.graph)
        arguments = "".join(f", {name}: Tensor" for name in formals.values())
        names = "".join(f", {name}" for name in formals.values())
        result = (
            "Tensor" if len(self.graph.outputs) == 1 else f"tuple[{', '.join(['Tensor'] * len(self.graph.outputs))}]"
        )
        comment = f'"""{_types(self.graph.inputs)} -> {_types(self.graph.outputs)}"""'
        block = [*(f"{n} = {e}" for n, e in self.prologue.items()), *body]
        for line in reversed(entry):  # checks stay; a size is read only when something needs it
            name = line.partition(" = ")[0]
            if name not in self.symbols.values() or name in names_in("\n".join(block)):
                block.insert(0, line)
        block.insert(0, comment)
        if self.with_aux:
            lines = [
                f"def forward(self{arguments}) -> {result}:",
                f"{INDENT}return self.compute(None{names})",
                "",
                f"def forward_with_aux(self{arguments}) -> tuple[{result}, dict[str, Tensor]]:",
                f'{INDENT}"""The outputs, and what training looks at: `loss/…` scalars, `exit/…` logits, `stat/…`."""',
                f"{INDENT}aux: dict[str, Tensor] = {{}}",
                f"{INDENT}return self.compute(aux{names}), aux",
                "",
                f"def compute(self, aux: dict[str, Tensor] | None{arguments}) -> {result}:",
            ]
        else:
            lines = [f"def forward(self{arguments}) -> {result}:"]
        lines += [INDENT + line if line else line for line in block]
        text = "".join(INDENT + line + "\n" if line else "\n" for line in lines)
        return Source(text, tuple(sorted(names_in(text) & HELPERS.keys())))

    def _entry(self, scope: _Scope, formals: Mapping[Value, str]) -> list[str]:
        """Check the inputs, and read the symbolic sizes from their shapes."""
        lines = []
        for value, name in formals.items():
            sizes = tuple_text([str(s) if isinstance(s, int) else quoted(str(s)) for s in value.type.shape])
            lines.append(f"check_input({quoted(value.name)}, {name}, {quoted(value.type.dtype)}, {sizes})")
        waiting = [(v, axis, dim) for v in formals for axis, dim in enumerate(v.type.shape) if not isinstance(dim, int)]
        progress = True
        while progress:
            progress = False
            for item in tuple(waiting):
                if line := self._read_size(scope, *item):
                    lines.append(line)
                    waiting.remove(item)
                    progress = True
        return lines

    def _read_size(self, scope: _Scope, value: Value, axis: int, dim: Dim) -> str | None:
        """The line that checks a size of an input, or reads a symbol from it; None when it cannot yet."""
        place, here = f"{quoted(value.name)}, {axis}", f"{self.inputs[value]}.shape[{axis}]"
        unknown = d.symbols(dim) - scope.known
        if not unknown:
            return f"check_size({place}, {here}, {scope.size(dim)}, {quoted(str(dim))})"
        solution = solve(dim, unknown)
        if solution is None:
            return None
        symbol, rest, factor = solution
        size = here if rest == 0 else f"{here} - ({scope.size(rest)})"
        scope.known.add(symbol)
        exact = f"exact_quotient({place}, {size}, {factor}, {quoted(str(dim))})"
        return f"{self.symbols[symbol]} = {exact if factor != 1 else size}"

    def parameter(self, parameter: Parameter) -> str:
        """`self.stage.conv.weight`; parts that are no identifiers take `getattr`."""
        text = "self"
        for part in self.paths[parameter.name]:
            plain = part.isidentifier() and not part.startswith("__")  # Python changes `self.__x` in a class
            text = f"{text}.{part}" if plain else f"getattr({text}, {quoted(part)})"
        return text

    def dtype(self, name: str) -> str:
        if name not in FLOATS:
            return f"torch.{NUMPY_NAMES[name]}"
        if name not in self.prologue:
            parameters = (p for p in self.graph.parameters().values() if p.type.dtype == name)
            inputs = (v for v in self.graph.inputs if v.type.dtype == name)
            if parameter := next(parameters, None):
                self.prologue[name] = f"{self.parameter(parameter)}.dtype"
            elif value := next(inputs, None):
                self.prologue[name] = f"{self.inputs[value]}.dtype"
            else:
                return f"torch.{NUMPY_NAMES[name]}"
        return name

    def device(self) -> str:
        if self.graph.inputs:
            self.prologue["device"] = f"{self.inputs[self.graph.inputs[0]]}.device"
        elif parameter := next(iter(self.graph.parameters().values()), None):
            self.prologue["device"] = f"{self.parameter(parameter)}.device"
        else:
            return "None"
        return "device"


class _Scope:
    """Writes the body of one function: `forward`'s, or that of a region."""

    def __init__(self, writer: _Writer, formals: Mapping[Value, str], outer: frozenset[str]) -> None:
        self.writer = writer
        self.known = set(outer)  # symbols that can be read here
        self.names: dict[Value, str] = dict(formals)
        self.made = {name for name in formals.values() if _LOCAL.fullmatch(name)}  # variables that may be overwritten
        self.free: list[str] = []
        self.lines: list[str] = []

    def size(self, dim: Dim) -> str:
        """A dimension as Python, with symbols under their names in the source."""
        unknown = d.symbols(dim) - self.known
        if missing := sorted(unknown):
            raise fail(
                "E0902",
                f"the size {missing[0]} cannot be told from the shapes of the inputs",
                label=f"found {dim}",
                help=f"give one input an axis of size {missing[0]}",
            )
        renamed = d.substitute(dim, {s: d.symbol(self.writer.symbols[s]) for s in d.symbols(dim)})
        return str(renamed)

    def body(self, graph: Graph) -> list[str]:
        last = _last_uses(graph)
        where = ""
        for index, node in enumerate(graph.nodes):
            scope = node.name.rpartition(".")[0]
            if scope != where:
                where = scope
                if scope:
                    self.lines.append(f"# {remark(scope)}")
            self._node(node, index, last, graph)
        results = [self.names[v] for v in graph.outputs]
        self.lines.append(f"return {', '.join(results)}")
        return self.lines

    def _node(self, node: Node, index: int, last: Mapping[Value, int], graph: Graph) -> None:
        if is_number(node, graph):
            self.names[node.output] = number(node.params.value)  # type: ignore[attr-defined]
            return
        args = [self.names[v] for v in node.inputs]
        known = node.op.name in lowering
        expression = lowering[node.op.name](TorchNode(node, self, args)) if known else self._decomposed(node, args)
        dying = [self.names[v] for v in dict.fromkeys(node.inputs) if last.get(v) == index]
        dying = [name for name in dying if name in self.made]
        self.free += dying
        unused = [v for v in node.outputs if v not in last]
        targets = []
        for value in node.outputs:
            name = dying.pop(0) if dying else self._variable()
            if name in self.free:
                self.free.remove(name)
            self.names[value] = name
            targets.append(name)
        self.free += [self.names[v] for v in unused]
        if targets == [expression]:
            return
        comment = ", ".join(f"[{', '.join(map(str, v.type.shape))}]" for v in node.outputs)
        start = f"{', '.join(targets)} = "
        if len(start + expression) > ROOM and (container := self._container(node, expression)):
            self.lines.append(f"p = {container}")
            expression = expression.replace(f"{container}.", "p.")
        self.lines += statement(start, expression, comment)

    def _decomposed(self, node: Node, args: Sequence[str]) -> str:
        """An op of another package that has no lowering becomes a nested function of its parts."""
        parts = Graph(node.name)
        inputs = [parts.add_input(f"x{i}", v.type) for i, v in enumerate(node.inputs)]
        if not node.regions:
            parts.outputs = list(parts.add(node.op, inputs, node.params, name=node.name, weights=node.weights).outputs)
        if node.regions or not decompose(parts, lambda op: op.name in lowering):
            raise fail(
                "E0901",
                f"the torch backend cannot express `{node.op.name}`",
                node.span,
                help=f'register a lowering: `@lowering("{node.op.name}")`',
            )
        return f"{self.region(parts, node.op.name)}({', '.join(args)})"

    def _container(self, node: Node, expression: str) -> str | None:
        """What holds the weights of a node, when a line may be shortened by a name for it."""
        holders = {self.writer.parameter(weight).rpartition(".")[0] for weight in node.weights.values()}
        holder = holders.pop() if len(holders) == 1 else ""
        return holder if "." in holder and expression.count(f"{holder}.") > 1 else None

    def _variable(self) -> str:
        if self.free:
            return self.free[0]
        name = next(n for n in _locals() if n not in self.made)
        self.made.add(name)
        return name

    def region(self, region: Graph, base: str) -> str:
        name, formals = self.writer.fresh(base), self.writer.formals(region)
        inner = _Scope(self.writer, formals, frozenset(self.known))
        sizes: dict[str, str] = {}  # symbols that only the formals of this region tell
        for value, formal in formals.items():
            for axis, dim in enumerate(value.type.shape):
                for symbol in d.symbols(dim) - inner.known:
                    if dim == d.symbol(symbol):
                        sizes[self.writer.symbols[symbol]] = f"{formal}.shape[{axis}]"
                        inner.known.add(symbol)
        body = inner.body(region)
        used = names_in("\n".join(body))
        self.lines.append(f"def {name}({', '.join(formals.values())}):")
        self.lines += [INDENT + f"{n} = {e}" for n, e in sizes.items() if n in used]
        self.lines += [INDENT + line for line in body]
        return name


def solve(dim: Dim, unknown: frozenset[str]) -> tuple[str, Dim, int] | None:
    """`(symbol, rest, factor)` with `dim = factor * symbol + rest`, when `dim` is of this form.

    >>> solve(2 * d.symbol("T") + 1, frozenset("T"))
    ('T', 1, 2)
    >>> solve(d.symbol("T") // 2, frozenset("T")) is None
    True
    """
    if len(unknown) != 1 or isinstance(dim, int):
        return None
    (name,) = unknown
    symbol = d.symbol(name)
    rest = d.substitute(dim, {name: 0})
    factor = d.exact_div(dim - rest, symbol)
    return (name, rest, factor) if isinstance(factor, int) and factor != 0 else None


def is_number(node: Node, graph: Graph) -> bool:
    """Whether a constant can be written as a number where it is used: rank 0, in arithmetic with tensors only."""
    if node.op.name != "constant" or node.output.type.rank or node.output in graph.outputs or not node.output.uses:
        return False
    return all(
        user.op.name in _NUMBER_OPERANDS
        and not user.captures
        and any(v.producer is None or v.producer.op.name != "constant" for v in user.inputs)
        for user in node.output.uses
    )


def _last_uses(graph: Graph) -> dict[Value, int]:
    """Value -> the index of the last node that reads it; what is returned outlives all nodes."""
    last: dict[Value, int] = {}
    for index, node in enumerate(graph.nodes):
        for value in node.inputs:
            last[value] = index
    return last | dict.fromkeys(graph.outputs, len(graph.nodes))


def _values(graph: Graph) -> Iterator[Value]:
    yield from graph.inputs
    for node in graph.nodes:
        yield from node.outputs


def _locals() -> Iterator[str]:
    yield "x"
    yield from (f"x{i}" for i in count(1))


def _types(values: Sequence[Value]) -> str:
    text = ", ".join(f"{v.name}: {v.type}" if v.producer is None else str(v.type) for v in values)
    return remark(text)
