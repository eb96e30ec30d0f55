"""What an operator is: a frozen record, declared once in `ir/ops/`, from which everything else is derived."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from archc.ir import dims as d
from archc.ir.diagnostics import suggest
from archc.ir.dims import Dim
from archc.ir.init import INIT_NAMES, ONES, ZEROS, Init, parse_init
from archc.ir.signature import Axis, Letter, Product, Rest, Signature, Size, Sum, Tensor, atoms, parse_signature
from archc.ir.types import FLOATS, INTEGERS, MAX_RANK, TensorType

if TYPE_CHECKING:
    from archc.ir.graph import Graph, GraphBuilder, Node, Value


class Params(BaseModel):
    """The parameters of an op, validated where they enter: `conv(64, kernel = 3)`. Lists arrive as tuples.

    `added` names parameters that an op got later: at their default they are no part of a network's hash, so that what
    was written before keeps its own.
    """

    added: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, defer_build=True)


class NoParams(Params):
    """An op without parameters."""


P = TypeVar("P", bound=Params)


class BindError(Exception):
    """An op cannot be applied to these operands; `Graph.add` turns it into a diagnostic with places.

    `blame` is the argument of the call that is at fault, where one is: a parameter by its name, or a region. `operands`
    are the indices of the operands to point at besides, `regions` the regions.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        label: str = "",
        blame: str | Graph | None = None,
        operands: Sequence[int] = (),
        regions: Sequence[Graph] = (),
        help: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.label, self.help = code, message, label, help
        self.blame, self.operands, self.regions = blame, tuple(operands), tuple(regions)


@dataclass(frozen=True, slots=True)
class Call(Generic[P]):
    """One application of an op: parameters, operand types and regions; what rules look at."""

    params: P
    types: tuple[TensorType, ...]
    regions: tuple[Graph, ...] = ()

    @property
    def rank(self) -> int:
        """The rank of the first operand."""
        return self.types[0].rank

    def axis(self, axis: int, operand: int = 0, *, extra: int = 0, blame: str = "axis") -> int:
        """`axis` of an operand counted from 0. `extra=1` allows one position past the last, as `stack` wants it.
        `blame` is the parameter that says which axis.

        Raises: BindError (E0306) when there is no such axis.
        """
        rank = self.types[operand].rank + extra
        if not -rank <= axis < rank:
            raise BindError(
                "E0306",
                f"axis {axis} is out of range",
                label=f"{self.types[operand]} has rank {self.types[operand].rank}",
                blame=blame,
                operands=[operand],
                help=f"axes count from 0, the batch axis included: {-rank} … {rank - 1}",
            )
        return axis % rank

    def axes(self, axes: int | Sequence[int] | None, operand: int = 0, *, blame: str = "axis") -> tuple[int, ...]:
        """Several axes, sorted; None means all."""
        if axes is None:
            return tuple(range(self.types[operand].rank))
        wanted = (axes,) if isinstance(axes, int) else axes
        found = sorted({self.axis(a, operand, blame=blame) for a in wanted})
        if len(found) != len(wanted):
            named = f"[{', '.join(map(str, wanted))}] of {self.types[operand]}"
            raise BindError("E0306", "an axis is named twice", label=named, blame=blame)
        return tuple(found)


def counted(*names: str, extra: int = 0) -> Callable[[Call[Any], Bound], Mapping[str, Any]]:
    """For `OpDef.spelled`: parameters that are axes, counted from 0."""
    return lambda call, bound: {name: call.axis(getattr(call.params, name), extra=extra) for name in names}


InitRule = Callable[[Any, tuple[int, ...], "Dims"], Init]
"""(params, shape, sizes of the letters) -> initial values; a bias finds its layer's fan-in in the sizes."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of an op. `when` names the parameter that must be true for it to exist; `trainable=False` is a buffer.

    `tied` weights are not made by the op but taken from a `share`. `main` is the weight that `init =` speaks of.
    """

    init: InitRule | Init
    when: str | None = None
    trainable: bool = True
    tied: bool = False
    main: bool = False


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A weight of one application: its type, initial values and whether it is trained."""

    type: TensorType
    init: Init
    trainable: bool
    tied: bool


Dims = Mapping[str, Dim | tuple[Dim, ...]]
"""Sizes of axis letters; a `*rest` has a tuple."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A signature applied to operand types: the size of every letter, result types and weights."""

    signature: Signature
    dims: Dims
    results: tuple[TensorType, ...]
    weights: Mapping[str, WeightSpec]

    def size(self, axis: Axis) -> Dim:
        """The size of an axis of the signature (the product over a `*rest`)."""
        return _size(axis, self.dims, self.signature)


Flops = Callable[[Call[Any], Bound], Dim]


@dataclass(frozen=True, slots=True, eq=False)
class OpDef(Generic[P]):
    """An operator.

    line      the signature (see `archc.ir.signature`), or a function of the call where it depends on parameters or rank
    operands  names of the tensor operands: `"mask?"` optional, `"*xs"` variadic (at least one), `"k=q"` taken from `q`
              when absent; read from the line when that is a string
    sizes     sizes of letters that the operands do not tell, such as a convolution's window
    flops     "contraction": 2 · the product of all letters that two tensors share or a result has; a number: per
              element of the first result; or a function
    regions   names of the regions (subgraphs) that the op carries; `region_lines` gives the signature of each in the
              letters of `line`; a name that starts with `*` stands for one or more
    check     raises BindError for what line and sizes cannot say
    spelled   the parameters that one may write in several ways or leave open, spelled out: axes counted from 0, a
              number for each axis, a default that depends on the operands. Calls that agree in these are the same
    decompose emits simpler ops for a node and returns the values that replace its results
    example   an expression for tests and docs, applied to `example_inputs`
    """

    name: str
    doc: str
    line: str | Callable[[Call[P]], str]
    params: type[P] = NoParams  # type: ignore[assignment]
    operands: tuple[str, ...] = ()
    sizes: Callable[[Call[P], Dims], Dims] | None = None
    weights: Mapping[str, Weight] = field(default_factory=dict)
    flops: Literal["contraction"] | int | Flops = 0
    regions: tuple[str, ...] = ()
    region_lines: Callable[[Call[P]], Sequence[str]] | None = None
    check: Callable[[Call[P], Dims], None] | None = None
    spelled: Callable[[Call[P], Bound], Mapping[str, Any]] | None = None
    decompose: Callable[[GraphBuilder, Node], Sequence[Value]] | None = None
    commutative: bool = False
    elementwise: bool = False
    training_only: bool = False
    example: str = ""
    example_inputs: tuple[str, ...] = ("f32[N, 6, 8]",)
    category: str = ""
    paper: str = ""

    @property
    def operand_names(self) -> tuple[str, ...]:
        if self.operands or not isinstance(self.line, str):
            return self.operands
        return tuple(t.name for t in parse_signature(self.line).operands)

    def __repr__(self) -> str:
        return f"OpDef({self.name})"


REGISTRY: dict[str, OpDef[Any]] = {}
"""Every known op by name; filled by importing `archc.ir.ops` and by packages with an `archc.ops` entry point."""


def register(op: OpDef[P]) -> OpDef[P]:
    """Add an op to the registry.

    Raises: ValueError when the name is taken.
    """
    if op.name in REGISTRY:
        raise ValueError(f"op '{op.name}' is already registered")
    REGISTRY[op.name] = op
    return op


def bind(op: OpDef[P], call: Call[P]) -> Bound:
    """Apply the op's signature to operand types.

    Raises: BindError with what was needed and found.
    """
    return _bind(op, call) if call.regions else _bind_cached(op, call)


def bind_afresh(op: OpDef[P], call: Call[P]) -> Bound:
    """`bind`, without remembering what it came to: for who remembers it in another way."""
    return _bind(op, call)


@lru_cache(maxsize=65536)
def _bind_cached(op: OpDef[Any], call: Call[Any]) -> Bound:
    return _bind(op, call)


def _bind(op: OpDef[P], call: Call[P]) -> Bound:
    signature = parse_signature(op.line if isinstance(op.line, str) else op.line(call))
    count = len(signature.operands)
    if count != len(call.types):
        raise BindError("E0303", f"`{op.name}` takes {_count(count, 'tensor')}", label=f"found {len(call.types)}")
    found: dict[str, Dim | tuple[Dim, ...]] = {}
    for name in signature.letters & type(call.params).model_fields.keys():
        value = getattr(call.params, name)
        if type(value) is int:
            found[name] = value
    matcher = _Matcher(op.name, signature, call, found)
    matcher.match()
    if op.sizes is not None:
        for name, size in op.sizes(call, found).items():
            if found.setdefault(name, size) != size:
                raise BindError(
                    "E0301", f"`{op.name}` needs `{name}` to be {_show(size)}", label=f"found {_show(found[name])}"
                )
        matcher.match()
    matcher.finish()
    if op.check is not None:
        op.check(call, found)
    results = tuple(TensorType(_shape(t, found, signature), matcher.dtype(t)) for t in signature.results)
    for result in results:
        if result.rank > MAX_RANK:
            raise BindError("E0316", f"a tensor has at most {MAX_RANK} axes", label=f"`{op.name}` makes {result.rank}")
        for size in result.shape:
            if isinstance(size, int) and size < 0:
                raise BindError(
                    "E0308",
                    f"`{op.name}` leaves nothing of an axis",
                    label=f"the result would be {result}",
                    operands=range(count),
                    help="the window or slice is larger than the (padded) axis",
                )
    return Bound(signature, found, results, _weights(op, call, signature, found, matcher))


def _weights(
    op: OpDef[P], call: Call[P], signature: Signature, found: Dims, matcher: _Matcher
) -> Mapping[str, WeightSpec]:
    specs = {}
    for tensor in signature.weights:
        rule = op.weights[tensor.name]
        if rule.when is not None and not getattr(call.params, rule.when):
            continue
        shape = d.known(_shape(tensor, found, signature))
        if shape is None:
            raise BindError(
                "E0307",
                f"`{op.name}` needs a fixed size for its {tensor.name}",
                label=f"{tensor.name} would have shape {list(map(str, _shape(tensor, found, signature)))}",
                operands=range(len(call.types)),
                help="a weight's axes must be known numbers",
            )
        init = rule.init if isinstance(rule.init, Init) else rule.init(call.params, shape, found)
        override = getattr(call.params, "init", None) if rule.main else None
        if override is not None:
            chosen = parse_init(override, shape)
            if chosen is None:
                named = {name.partition("(")[0]: name for name in INIT_NAMES}
                close = suggest(override.partition("(")[0], named)
                raise BindError(
                    "E0309",
                    f"`init` of `{op.name}` needs an initialiser, for a weight of shape {list(shape)}",
                    label=f'found "{override}"',
                    blame="init",
                    help=f"did you mean `{named[close]}`?" if close else f"there are {', '.join(named.values())}",
                )
            init = chosen
        specs[tensor.name] = WeightSpec(TensorType(shape, matcher.dtype(tensor)), init, rule.trainable, rule.tied)
    return specs


class _Matcher:
    """Solves the letters of a signature for operand shapes, and the shared dtype."""

    def __init__(self, op: str, signature: Signature, call: Call[Any], found: dict[str, Dim | tuple[Dim, ...]]) -> None:
        self.op, self.signature, self.call, self.found = op, signature, call, found
        self.origin: dict[str, int] = {}  # letter -> the operand that told its size
        self.pending: list[tuple[int, Axis, Dim]] = []
        self.shared: str | None = None
        for index, (tensor, type_) in enumerate(zip(signature.operands, call.types, strict=True)):
            self._dtype(index, tensor, type_)
            self._align(index, tensor, type_)

    def match(self) -> None:
        """Solve what can be solved with the letters known so far."""
        progress = True
        while progress and self.pending:
            progress = False
            for item in tuple(self.pending):
                if self._solve(*item):
                    self.pending.remove(item)
                    progress = True

    def finish(self) -> None:
        assert not self.pending, f"signature of {self.op} leaves axes unsolved: {self.pending}"

    def dtype(self, tensor: Tensor) -> str:
        """The dtype of a result or weight."""
        if tensor.dtype and tensor.dtype not in ("float", "any", "int"):
            return tensor.dtype
        return self.shared or getattr(self.call.params, "dtype", None) or "f32"

    def _dtype(self, index: int, tensor: Tensor, type_: TensorType) -> None:
        found, want = type_.dtype, tensor.dtype
        if want == "any":
            return
        if want == "int":
            if found not in INTEGERS:
                self._wrong_dtype(index, tensor, "an integer dtype", found, "i64")
        elif want and want != "float":
            if found != want:
                self._wrong_dtype(index, tensor, f"dtype {want}", found, want)
        else:
            if want == "float" and found not in FLOATS:
                self._wrong_dtype(index, tensor, "a float dtype", found, "f32")
            if self.shared is None:
                self.shared = found
            elif self.shared != found:
                raise BindError(
                    "E0304",
                    f"`{self.op}` needs operands of one dtype",
                    label=f"{self.shared} and {found}",
                    operands=range(len(self.call.types)),
                    help=f'convert one of them: `-> cast("{self.shared}")`',
                )

    def _wrong_dtype(self, index: int, tensor: Tensor, needed: str, found: str, cast: str) -> None:
        raise BindError(
            "E0304",
            f"`{self.op}` needs {needed} for `{tensor.name}`",
            label=f"found {self.call.types[index]}",
            operands=[index],
            help=f'convert it: `-> cast("{cast}")`' if found != cast else None,
        )

    def _align(self, index: int, tensor: Tensor, type_: TensorType) -> None:
        axes, shape = tensor.axes, type_.shape
        rests = [i for i, a in enumerate(axes) if isinstance(a, Rest)]
        least = len(axes) - len(rests)
        if len(shape) < least or (not rests and len(shape) != least):
            needed = f"at least {least}" if rests else str(least)
            raise BindError(
                "E0302",
                f"`{self.op}` needs rank {needed} for `{tensor.name or 'its operand'}`: {_layout(tensor)}",
                label=f"found {type_}, rank {type_.rank}",
                operands=[index],
            )
        if rests:
            assert len(rests) == 1, f"more than one rest in {tensor}"
            at, length = rests[0], len(shape) - least
            rest = axes[at]
            assert isinstance(rest, Rest)
            self._set(index, rest.name, tuple(shape[at : at + length]))
            axes = axes[:at] + axes[at + 1 :]
            shape = shape[:at] + shape[at + length :]
        self.pending += [(index, axis, size) for axis, size in zip(axes, shape, strict=True)]

    def _set(self, index: int, name: str, size: Dim | tuple[Dim, ...]) -> None:
        known = self.found.setdefault(name, size)
        if known is size or known == size:
            self.origin.setdefault(name, index)
            return
        first = self.origin.get(name)
        if first is None:
            raise BindError(
                "E0301",
                f"`{self.op}` needs size {_show(known)} for axis `{name}`",
                label=f"found {_show(size)} in {self.call.types[index]}",
                blame=name,
                operands=[index],
            )
        one, two = self.call.types[first], self.call.types[index]
        raise BindError(
            "E0301",
            f"`{self.op}` needs equal sizes for axis `{name}`: {_show(known)} vs {_show(size)}",
            label=f"{one} vs {two}",
            operands=[first, index],
            help=_off_by_one(one, two, known, size),
        )

    def _solve(self, index: int, axis: Axis, size: Dim) -> bool:
        if isinstance(axis, Letter):
            self._set(index, axis.name, size)
            return True
        if isinstance(axis, Size):
            if axis.value != size:
                raise BindError(
                    "E0301",
                    f"`{self.op}` needs size {axis.value}",
                    label=f"found {size} in {self.call.types[index]}",
                    operands=[index],
                )
            return True
        parts = axis.factors if isinstance(axis, Product) else axis.parts if isinstance(axis, Sum) else ()
        unknown = [p for p in parts if not all(isinstance(a, Size) or a.name in self.found for a in atoms(p))]
        if len(unknown) > 1:
            return False
        known = [_size(p, self.found, self.signature) for p in parts if p not in unknown]
        if isinstance(axis, Sum):
            rest: Dim | None = size - d.total(known)
            joined = d.total(known)
        else:
            joined = d.product(known)
            rest = d.exact_div(size, joined) if joined != 0 else 0
        if unknown and rest is not None:
            return self._solve(index, unknown[0], rest)
        if unknown or joined != size:
            names = [p.name for p in parts if isinstance(p, Letter) and hasattr(self.call.params, p.name)]
            sign = " * " if isinstance(axis, Product) else " + "
            told = f" (`{sign.join(names)}`)" if names else ""
            raise BindError(
                "E0305" if unknown else "E0301",
                f"`{self.op}` needs an axis {'divisible by' if unknown else 'of size'} {_show(joined)}{told}",
                label=f"found {_show(size)} in {self.call.types[index]}",
                blame=next(iter(names or type(self.call.params).model_fields), None),
                operands=[index],
            )
        return True


def _size(axis: Axis, found: Dims, signature: Signature) -> Dim:
    if isinstance(axis, Size):
        return axis.value
    if isinstance(axis, Product):
        return d.product(_size(f, found, signature) for f in axis.factors)
    if isinstance(axis, Sum):
        return d.total(_size(p, found, signature) for p in axis.parts)
    assert axis.name in found, f"axis `{axis.name}` of `{signature}` has no size"
    size = found[axis.name]
    return d.product(size) if isinstance(size, tuple) else size


def _shape(tensor: Tensor, found: Dims, signature: Signature) -> tuple[Dim, ...]:
    shape: list[Dim] = []
    for axis in tensor.axes:
        if isinstance(axis, Rest):
            assert axis.name in found, f"axes `*{axis.name}` of `{signature}` have no sizes"
            sizes = found[axis.name]
            assert isinstance(sizes, tuple)
            shape += sizes
        else:
            shape.append(_size(axis, found, signature))
    return tuple(shape)


def _layout(tensor: Tensor) -> str:
    return "[" + ", ".join(str(a).replace("!", "") for a in tensor.axes) + "]"


def _off_by_one(
    one: TensorType, two: TensorType, known: Dim | tuple[Dim, ...], size: Dim | tuple[Dim, ...]
) -> str | None:
    """Feature maps that differ by one row: the commonest way to lose one is an odd size."""
    if one.rank != two.rank or one.rank < 4 or not isinstance(known, int) or not isinstance(size, int):
        return None
    if abs(known - size) != 1 or one.shape.index(known) < 2:
        return None
    return "pools and strides drop the last row of an odd size: `pad` the smaller one, or `slice` the larger"


def _show(size: Dim | tuple[Dim, ...]) -> str:
    return f"[{', '.join(map(str, size))}]" if isinstance(size, tuple) else str(size)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


__all__ = [
    "ONES",
    "REGISTRY",
    "ZEROS",
    "BindError",
    "Bound",
    "Call",
    "Dims",
    "Init",
    "NoParams",
    "OpDef",
    "Params",
    "Weight",
    "WeightSpec",
    "bind",
    "counted",
    "register",
]
