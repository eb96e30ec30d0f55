"""Nodes: where a call of an op, with everything that it needs, becomes part of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from archc.grammar.calls import Argument, bundle_of, validate
from archc.grammar.limits import Limits
from archc.grammar.modules import OpCall, Shared, SharedWeight
from archc.grammar.naming import Names
from archc.grammar.values import Place, Result, Tensor, describe, flatten
from archc.ir.diagnostics import Span, fail
from archc.ir.graph import Graph, Parameter, Value
from archc.ir.op import REGISTRY, OpDef, Params, bind
from archc.ir.op import Call as OpApplication
from archc.ir.ops.plugins import load_plugins
from archc.ir.signature import Letter, parse_signature
from archc.ir.types import FLOATS, INTEGERS


def find_op(name: str) -> OpDef[Any] | None:
    """The op of that name: a built-in one, or else one from an installed package."""
    found = REGISTRY.get(name)
    if found is None:
        load_plugins()
        found = REGISTRY.get(name)
    return found


BEYOND = {"f64": inf, "f32": (2 - 2**-24) * 2.0**127, "bf16": (2 - 2**-8) * 2.0**127, "f16": 65520.0, "bool": 2}
"""The first number above each dtype: a float that would round to infinity."""
BEYOND |= {f"i{bits}": 2 ** (bits - 1) for bits in (8, 32, 64)}


def _check_range(constant: Any, span: Span) -> None:
    """Beyond its dtype one tool takes a number for infinite, another refuses it: that is told where it is written."""
    end = BEYOND[constant.dtype]
    for number in flatten((constant.value,)):
        below = number < -end or (number == -end and constant.dtype in FLOATS)
        if (below or number >= end) and abs(number) != inf:
            raise fail("E0205", f"a constant is beyond {constant.dtype}", span, label=f"found {describe(number)}")


class Emitter:
    """Adds nodes to graphs: their names, their weights, the constants among their operands."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.names = Names()
        self.nodes = 0

    def operand(self, value: Any, operands: Sequence[Any], span: Span, at: Place) -> Value:
        """The graph value of an operand; a number becomes a constant, of the dtype of the numbers beside it."""
        if isinstance(value, Tensor):
            return at.frame.localise(value)
        beside = (o.value.type.dtype for o in operands if isinstance(o, Tensor))
        first = next((dtype for dtype in beside if dtype != "bool"), "bool")
        if isinstance(value, bool):
            dtype = "bool"
        elif first in FLOATS or (first in INTEGERS and isinstance(value, int)):
            dtype = first
        else:
            dtype = "f32" if isinstance(value, float) else "i64"
        if not isinstance(value, bool | int | float):
            raise fail("E0331", "a number among tensors needs to be known", span, label=f"found {describe(value)}")
        op = find_op("constant")
        assert op is not None
        self._spend(span)
        name, _ = at.scope.node("constant", None, span)
        params = op.params(value=value, dtype=dtype)
        _check_range(params, span)
        return at.frame.graph.add(op, (), params, name=name, span=span, trace=at.trace).output

    def _spend(self, span: Span) -> None:
        self.nodes += 1
        if self.nodes > self.limits.nodes:
            raise self.limits.exceeded("nodes", self.nodes, span)

    def emit(
        self,
        call: OpCall,
        operands: Sequence[Value],
        at: Place,
        *,
        names: tuple[str, str] | None = None,
        params: Any = None,
        regions: Sequence[Graph] = (),
        captures: Sequence[Value] = (),
    ) -> Result:
        """Add the node of a call to the graph; its results."""
        self._spend(call.span)
        if call.op.name == "constant":
            _check_range(call.bound.params, call.span)
        path, prefix = names or at.scope.node(call.op.name, call.bound.name, call.bound.name_span or call.span)
        given = self._given_weights(call, prefix, at)
        node = at.frame.graph.add(
            call.op,
            operands,
            self._params(call, given) if params is None else params,
            name=path,
            weights=given,
            regions=regions,
            captures=captures,
            span=call.span,
            trace=at.trace,
            places=call.bound.places,
        )
        for role, parameter in node.weights.items():
            if given is None or given.get(role) is None:
                chosen = call.bound.weights.get(role)
                parameter.name = chosen.value if chosen is not None else f"{prefix}.{role}"
                self.names.add_parameter(parameter, call.span)
        for role, argument in call.bound.weights.items():
            if role not in node.weights:
                raise fail("E0205", f"`{call.op.name}` has no {role} here", argument.span, label="given here")
        return bundle_of([Tensor(v, at.frame) for v in node.outputs])  # type: ignore[no-any-return]

    def _given_weights(self, call: OpCall, prefix: str, at: Place) -> Mapping[str, Parameter] | None:
        given: dict[str, Parameter] = {}
        for role, argument in call.bound.weights.items():
            if not isinstance(argument.value, str):
                given[role] = self.shared_weight(argument)
            elif at.scope.tied and argument.value in self.names.parameters:
                given[role] = self.names.parameters[argument.value][0]
        for role, weight in call.op.weights.items():
            if weight.tied and role not in given:
                raise fail("E0206", f"`{call.op.name}` needs a share whose {role} it uses", call.span,
                           help=f"`share table = …`, then `{call.op.name}(table)`")  # fmt: skip
            if at.scope.tied and role not in given:
                known = self.names.parameters.get(f"{prefix}.{role}")
                if known is not None:
                    given[role] = known[0]
        return given or None

    def _params(self, call: OpCall, given: Mapping[str, Parameter] | None) -> Params:
        """The parameters of a call; sizes that only a tied weight tells are read off it: `tied_linear(table)`."""
        if call.bound.params is not None:
            return call.bound.params
        filled = dict(call.bound.unchecked)
        for tensor in parse_signature(call.op.line).weights if isinstance(call.op.line, str) else ():
            shape = given[tensor.name].shape if given and tensor.name in given else ()
            for axis, size in zip(tensor.axes, shape, strict=False):
                if isinstance(axis, Letter) and axis.name in call.op.params.model_fields:
                    filled.setdefault(axis.name, Argument(size, call.span))
        return validate(call.op, filled, call.span)

    def shared_weight(self, argument: Argument) -> Parameter:
        """The parameter that a share, or `share.role`, stands for."""
        value = argument.value
        shared, role = (value.shared, value.role) if isinstance(value, SharedWeight) else (value, "weight")
        assert isinstance(shared, Shared)
        call = shared.module
        chosen = call.bound.weights.get(role) if isinstance(call, OpCall) else None
        if chosen is not None and not isinstance(chosen.value, str):
            return self.shared_weight(chosen)
        name = chosen.value if chosen is not None else f"{shared.paths()[1]}.{role}"
        if name in self.names.parameters:
            return self.names.parameters[name][0]
        if not isinstance(call, OpCall) or call.op.operand_names or call.op.regions or role not in call.op.weights:
            raise fail("E0212", f"`{shared.name}` has no weight `{role}` yet", argument.span,
                       help="apply the share before this use of its weight")  # fmt: skip
        # the weight of `share w = parameter(…)` needs no application to be known
        spec = bind(call.op, OpApplication(call.bound.params, ())).weights[role]
        parameter = Parameter(name, spec.type, spec.init, spec.trainable)
        self.names.add_parameter(parameter, shared.span)
        return parameter
