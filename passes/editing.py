"""Writing new nodes in place of old ones: names that are free, spans that stay, copies that are typed anew, regions.

A transform takes an `Editor` for a site, adds what it needs, lets the uses of the old result read the new one
(`Value.replace_all_uses`), and leaves the rest to `archc.passes.transform.settle`: order, dead nodes, weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from archc.grammar.regions import fresh_name
from archc.ir.dims import Dim, Expr, substitute, symbol
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.op import OpDef, Params
from archc.ir.types import TensorType

Weigh = Callable[[Parameter, str, str], Parameter]
"""(old parameter, new node's name, role) -> the parameter of a copied node."""


def keep(parameter: Parameter, node: str, role: str) -> Parameter:
    """The copy uses the old node's weights: for nodes that move."""
    return parameter


def renewed(copies: dict[Parameter, Parameter]) -> Weigh:
    """The copy has weights of its own, named after it; `copies` is filled with old -> new. What the old nodes share,
    the new ones share, too."""

    def weigh(parameter: Parameter, node: str, role: str) -> Parameter:
        if parameter not in copies:
            name = f"{node}.{role}"
            copies[parameter] = Parameter(name, parameter.type, parameter.init, parameter.trainable)
        return copies[parameter]

    return weigh


class Editor:
    """Adds nodes to `graph`, a region of `root` or `root` itself, on behalf of `origin`.

    New nodes are called `prefix.NAME` (by default beside `origin`: in its scope), with a number where that is taken.
    """

    def __init__(
        self, root: Graph, graph: Graph, origin: Node, prefix: str | None = None, taken: set[str] | None = None
    ) -> None:
        self.root, self.graph, self.origin = root, graph, origin
        self.prefix = scope_of(origin.name) if prefix is None else prefix
        self._taken = {n.name for n in root.walk()} | set(root.parameters()) if taken is None else taken

    def inside(self, graph: Graph, prefix: str) -> Editor:
        """An editor of another graph, a region in the making say, that shares the names taken."""
        return Editor(self.root, graph, self.origin, prefix, self._taken)

    def beside(self, graph: Graph, origin: Node) -> Editor:
        """An editor for another site that shares the names taken: for many sites, as a new one looks at all names."""
        return Editor(self.root, graph, origin, taken=self._taken)

    def name(self, base: str) -> str:
        """A free name in the editor's scope."""
        full = f"{self.prefix}.{base}" if self.prefix else base
        return self.free(full)

    def free(self, full: str) -> str:
        """`full`, or `full1`, `full2` … (`_1` behind a digit) where that is taken; it is taken from now on."""
        name, count = full, 0
        while name in self._taken:
            count += 1
            name = f"{full}_{count}" if full[-1:].isdigit() else f"{full}{count}"
        self._taken.add(name)
        return name

    def node(
        self,
        op: OpDef[Any],
        *inputs: Value,
        name: str | None = None,
        full_name: str | None = None,
        weights: Mapping[str, Parameter] | None = None,
        regions: Sequence[Graph] = (),
        captures: Sequence[Value] = (),
        params: Params | None = None,
        **fields: Any,
    ) -> Node:
        """Add a node: `op` with `fields` (or `params`), called `prefix.name` (or exactly `full_name`: an old node's own
        name, which goes on to the new one)."""
        return self.graph.add(
            op,
            inputs,
            op.params(**fields) if params is None else params,
            name=self.name(name or op.name) if full_name is None else full_name,
            weights=weights,
            regions=regions,
            captures=captures,
            span=self.origin.span,
            trace=self.origin.trace,
        )

    def __call__(self, op: OpDef[Any], *inputs: Value, **arguments: Any) -> Value:
        """`node`, for its only result."""
        return self.node(op, *inputs, **arguments).output

    def copy(
        self,
        nodes: Iterable[Node],
        values: dict[Value, Value],
        *,
        rename: Callable[[str], str] | None = None,
        weigh: Weigh = keep,
        sizes: Mapping[str, Dim] | None = None,
    ) -> None:
        """Write nodes (in topological order) again, on the values that `values` maps theirs to; it is extended with
        their results. Types are inferred anew, so the copy of a network for `[N, T, C]` may work on `[Rows, C]`.

        `rename` gives a copy its name, by default the old one (for nodes that move). `sizes` replaces symbols in
        parameters and regions, say `{"N": Rows}`.

        Raises: CompileError E03xx when an op cannot be applied to the new types.
        """
        sizes = sizes or {}
        for old in nodes:
            name = old.name if rename is None else self.free(rename(old.name))
            new = self.graph.add(
                old.op,
                [values[v] for v in old.operands],
                resized(old.params, sizes),
                name=name,
                weights={role: weigh(p, name, role) for role, p in old.weights.items()},
                regions=[self._copy_region(r, rename, weigh, sizes) for r in old.regions],
                captures=[values[v] for v in old.captured],
                span=old.span,
                trace=old.trace,
            )
            values.update(zip(old.outputs, new.outputs, strict=True))

    def _copy_region(
        self, region: Graph, rename: Callable[[str], str] | None, weigh: Weigh, sizes: Mapping[str, Dim]
    ) -> Graph:
        new = Graph(region.name, span=region.span)
        values = {v: new.add_input(v.name, resized_type(v.type, sizes), v.span) for v in region.inputs}
        self.inside(new, self.prefix).copy(region.nodes, values, rename=rename, weigh=weigh, sizes=sizes)
        new.outputs = [values[v] for v in region.outputs]
        return new

    def region(
        self, name: str, formals: Sequence[TensorType], captures: Sequence[Value] = ()
    ) -> tuple[Graph, list[Value]]:
        """An empty region and its inputs: formals, then captures. Fill it through `inside`, and set its outputs."""
        graph = Graph(name, span=self.origin.span)
        inputs = [graph.add_input("x" if i == 0 else f"s{i - 1}", t, self.origin.span) for i, t in enumerate(formals)]
        inputs += [graph.add_input(v.name, v.type, v.span) for v in captures]
        return graph, inputs

    def symbol(self, base: str = "Rows") -> Dim:
        """A symbol that the network does not use: the number of rows that reach a region."""
        taken = {s for g in self.root.graphs() for v in g.inputs for s in v.type.symbols}
        return symbol(fresh_name(base, taken))


def scope_of(name: str) -> str:
    """The scope that a node stands in: its name without the last part.

    >>> scope_of("blocks.ffn.linear"), scope_of("linear")
    ('blocks.ffn', '')
    """
    return name.rpartition(".")[0]


def common_scope(names: Iterable[str]) -> str:
    """The scope in which all these stand.

    >>> common_scope(["a.b.linear", "a.b.act.gelu"])
    'a.b'
    """
    paths = [scope_of(name).split(".") for name in names]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def resized(params: Params, sizes: Mapping[str, Dim]) -> Params:
    """Parameters with symbols replaced: `reshape([N, 64])` becomes `reshape([Rows, 64])`."""
    if not sizes:
        return params
    changed = {
        name: new for name in type(params).model_fields if (new := _resized(getattr(params, name), sizes)) is not None
    }
    return params.model_copy(update=changed) if changed else params


def resized_type(type_: TensorType, sizes: Mapping[str, Dim]) -> TensorType:
    return TensorType(tuple(substitute(d, sizes) for d in type_.shape), type_.dtype) if sizes else type_


def _resized(value: Any, sizes: Mapping[str, Dim]) -> Any:
    """The value with symbols replaced, or None where there is none."""
    if isinstance(value, Expr):
        return substitute(value, sizes)
    if isinstance(value, tuple) and any(isinstance(v, Expr) for v in value):
        return tuple(substitute(v, sizes) if isinstance(v, Expr) else v for v in value)
    return None
