"""Ops that carry networks: `moe`, `skip`, `exit`, `scan`. What each region is fed, and what it captures.

A region is elaborated into a graph of its own. A tensor from outside that it uses becomes a capture: an operand of the
node, and an input of each of its regions behind the formals. Where only some of the samples (or tokens) reach a region,
it is typed on `Rows` of them (`Kept`, for the tokens within a budget): a symbol of the region, which a `fn` that is the
region may name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from archc.grammar.calls import Argument, missing, written_call, wrong_value
from archc.grammar.modules import OpCall
from archc.grammar.values import (
    POISON,
    Frame,
    Module,
    Place,
    Result,
    Tensor,
    contains_poison,
    describe,
    is_tensor,
    tensors_of,
)
from archc.ir.diagnostics import Span, fail
from archc.ir.dims import Dim, symbol
from archc.ir.graph import Graph, Value, diagnosed
from archc.ir.op import BindError, Call
from archc.ir.ops.structural import moe_by_token, skip_by_token
from archc.ir.types import TensorType

if TYPE_CHECKING:
    from archc.grammar.elaborate import Elaborator


class _Poisoned(Exception):
    """A region's result is poison, so the node is."""


class _Builder:
    """The regions of one node, in the making."""

    def __init__(self, e: Elaborator, call: OpCall, operands: list[Value], at: Place) -> None:
        self.e, self.call, self.operands, self.at = e, call, operands, at
        self.names = at.scope.node(call.op.name, call.bound.name, call.bound.name_span or call.span)
        self.captures: dict[Value, None] = {}
        self.frames: list[Frame] = []
        self.params: Any = call.bound.params

    @property
    def x(self) -> TensorType:
        return self.operands[0].type

    @property
    def graphs(self) -> tuple[Graph, ...]:
        return tuple([f.graph for f in self.frames])

    def module(self, region: str) -> Module:
        argument = self._argument(region)
        return self.e.need_module(argument.value, argument.span)

    def modules(self, region: str) -> list[Module]:
        """A list of modules, such as `copies` makes."""
        argument = self._argument(region)
        found = argument.value if isinstance(argument.value, tuple) else (argument.value,)
        if not found:
            raise wrong_value(self.call.op.name, region, "at least one module", argument)
        return [self.e.need_module(m, argument.span) for m in found]

    def _argument(self, region: str) -> Argument:
        if region not in self.call.bound.regions:
            raise missing(self.call.op.name, [region], self.call.span, written_call(self.call.op))
        return self.call.bound.regions[region]

    def fresh(self, base: str) -> Dim:
        """A symbol for a size that only the region knows."""
        return symbol(fresh_name(base, self.at.frame.symbols))

    def rows(self, *rest: Dim) -> TensorType:
        return TensorType((self.fresh("Rows"), *rest), self.x.dtype)

    def build(self, name: str, module: Module, *types: TensorType) -> Graph:
        """One region: `module` fed with tensors of these types."""
        graph = Graph(name, span=module.span)
        frame = Frame(graph, self.at.frame, self.captures)
        inputs = []
        for i, type_ in enumerate(types):
            inputs.append(Tensor(graph.add_input("x" if i == 0 else f"s{i - 1}", type_, module.span), frame))
            for s in type_.symbols - frame.symbols.keys():
                frame.symbols[s] = frame.visible[s] = symbol(s)
        path, weights = (f"{prefix}.{name}" for prefix in self.names)
        place = Place(frame, self.at.scope.region(path, weights), self.at.trace)
        result = self.e.apply(module, tuple(inputs), place, module.span)
        if contains_poison(result):
            raise _Poisoned
        graph.outputs = [frame.localise(t) for t in tensors_of(result) or () if isinstance(t, Tensor)]
        self.frames.append(frame)
        return graph

    def finish(self) -> Result:
        """Give all regions all captures, and add the node."""
        captured = list(self.captures)
        for frame in self.frames:
            frame.graph.inputs += [frame.capture(value) for value in captured]
        return self.e.emit(
            self.call,
            self.operands,
            self.at,
            names=self.names,
            params=self.params,
            regions=self.graphs,
            captures=captured,
        )


def fresh_name(base: str, taken: Any) -> str:
    """`base`, or `base1`, `base2` … where that is taken.

    >>> fresh_name("Rows", {"Rows", "N"})
    'Rows1'
    """
    count, name = 0, base
    while name in taken:
        count += 1
        name = f"{base}{count}"
    return name


def _moe(b: _Builder) -> None:
    router = b.build("router", b.module("router"), b.x)
    shared = b.call.bound.regions.get("shared")
    has_shared = shared is not None and shared.value is not None
    b.params = b.params.model_copy(update={"shared": has_shared})
    by_token = moe_by_token(Call(b.params, (b.x,), (router,)))
    row = b.rows(*(b.x.shape[-1:] if by_token else b.x.shape[1:]))
    for i, expert in enumerate(b.modules("experts")):
        b.build(f"experts.{i}", expert, row)
    if has_shared:
        b.build("shared", b.module("shared"), row)


def _skip(b: _Builder) -> None:
    gate = b.build("gate", b.module("gate"), b.x)
    by_token = skip_by_token(Call(b.params, (b.x,), (gate,)))
    inner = b.x if by_token else b.rows(*b.x.shape[1:])
    if b.params.budget is not None and by_token:
        inner = TensorType((b.x.shape[0], b.fresh("Kept"), *b.x.shape[2:]), b.x.dtype)
    b.build("body", b.module("body"), inner)


def _exit(b: _Builder) -> None:
    b.build("head", b.module("head"), b.x)
    b.build("rest", b.module("rest"), b.rows(*b.x.shape[1:]))


def _scan(b: _Builder) -> None:
    axis = Call(b.params, (b.x,)).axis(b.params.axis)
    step = TensorType(b.x.shape[:axis] + b.x.shape[axis + 1 :], b.x.dtype)
    b.build("cell", b.module("cell"), step, *[s.type for s in b.operands[1:]])


_BUILD: dict[str, Callable[[_Builder], None]] = {"moe": _moe, "skip": _skip, "exit": _exit, "scan": _scan}


def apply_structural(e: Elaborator, call: OpCall, inputs: tuple[Tensor, ...], at: Place) -> Result:
    """The results of an op with regions."""
    build = _BUILD.get(call.op.name)
    if build is None:
        raise fail("E0218", f"`{call.op.name}` carries networks in a way that programs cannot write", call.span)
    operands = _operands(e, call, inputs, at)
    builder = _Builder(e, call, operands, at)
    try:
        build(builder)
    except _Poisoned:
        return POISON
    except BindError as error:
        raise diagnosed(error, operands, call.span, at.trace, call.bound.places) from None
    return builder.finish()


def _operands(e: Elaborator, call: OpCall, inputs: Sequence[Tensor], at: Place) -> list[Value]:
    if call.op.name != "scan" or "states" not in call.bound.named_operands:
        given = call.operands(inputs)
        return [e.operand(o, given, call.span, at) for o in given]
    given = [*inputs, *call.bound.operands]
    if len(given) != 1:
        raise fail("E0303", "`scan` takes one tensor when `state` is given", call.span, label=f"{len(given)} given")
    xs = e.operand(given[0], given, call.span, at)
    params: Any = call.bound.params
    try:
        walked = Call(params, (xs.type,)).axis(params.axis)
    except BindError as error:
        raise diagnosed(error, [xs], call.span, at.trace, call.bound.places) from None
    batch = next((size for i, size in enumerate(xs.type.shape) if i != walked), 1)
    states = call.bound.named_operands["states"]
    return [xs, *[_state(e, s, xs, batch, call.span, at) for s in _states(states)]]


def _states(value: Any) -> Sequence[Any]:
    """Several states as a list of tensors or shapes; a single one may stand without the list."""
    if is_tensor(value):
        return tensors_of(value) or ()
    return (value,) if value and not any(isinstance(v, tuple) or is_tensor(v) for v in value) else value


def _state(e: Elaborator, value: Any, xs: Value, batch: Dim, span: Span, at: Place) -> Value:
    """A first state: a tensor, or zeros of a shape that is given without the batch axis."""
    if isinstance(value, Tensor):
        return at.frame.localise(value)
    if not isinstance(value, tuple) or not all(isinstance(v, int) or hasattr(v, "terms") for v in value):
        raise fail("E0205", "`state` of `scan` needs tensors, or shapes without the batch axis: `[[dim]]`", span,
                   label=f"found {describe(value)}")  # fmt: skip
    zero = Tensor(e.operand(0.0, [Tensor(xs, at.frame)], span, at), at.frame)
    result = e.join("expand", [zero], span, at, shape=(batch, *value))
    assert isinstance(result, Tensor)
    return result.value
