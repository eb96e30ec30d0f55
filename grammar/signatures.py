"""Tensor types as programs write them, and definitions with a signature: `def t: [N, C] => [N, 2 * C] = …`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archc.grammar.scope import MISSING, Definition, Env
from archc.grammar.syntax import Arithmetic, Ref, Rest, Signature, walk
from archc.grammar.syntax import TensorType as TypeSyntax
from archc.grammar.values import POISON, Module, Place, Poison, Result, Tensor, describe, tensors_of
from archc.ir.diagnostics import CompileError, Note, Span, did_you_mean, fail
from archc.ir.dims import Dim, Expr, exact_div
from archc.ir.types import DTYPES, ELSEWHERE, TensorType

if TYPE_CHECKING:
    from archc.grammar.counting import Counter
    from archc.grammar.elaborate import Elaborator


def dtype_of(syntax: TypeSyntax) -> str | None:
    """The dtype that a type names.

    Raises: CompileError (E0337) for one that there is not.
    """
    if syntax.dtype is None:
        return None
    name = syntax.dtype.text
    if name not in DTYPES:
        raise fail(
            "E0337",
            f"unknown dtype `{name}`",
            syntax.dtype.span,
            help=did_you_mean(ELSEWHERE.get(name, name), DTYPES) or f"the dtypes are {', '.join(DTYPES)}",
        )
    return name


def size_of(value: Any, span: Span) -> Dim:
    """A value as the size of an axis.

    Raises: CompileError (E0337) when it is none.
    """
    if isinstance(value, Expr) or (type(value) is int and value >= 0):
        return value
    raise fail(
        "E0337", "a dimension is a whole number of at least 0, or a symbol", span, label=f"found {describe(value)}"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Signed(Module):
    """The body of a `def` with a signature; its dimensions are known once it is applied."""

    definition: Definition
    env: Env

    @property
    def span(self) -> Span:  # type: ignore[override]
        return self.definition.syntax.span

    @property
    def title(self) -> str:
        return self.definition.name

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        signature = self.definition.syntax.signature
        assert signature is not None
        name = self.definition.name
        if len(inputs) != len(signature.inputs):
            needed = f"{len(signature.inputs)} tensor{'s' * (len(signature.inputs) != 1)}"
            raise fail("E0332", f"`{name}` takes {needed}", span, label=f"{len(inputs)} given",
                       notes=[Note("its signature", signature.span)])  # fmt: skip
        env = Env(self.env)
        rests: dict[str, tuple[Dim, ...]] = {}
        late: list[tuple[Any, Dim, TypeSyntax, TensorType]] = []
        for syntax, tensor in zip(signature.inputs, inputs, strict=True) if not says_nothing(signature) else ():
            late += self._match(syntax, tensor.value.type, env, rests, span)
        for pattern, size, syntax, type_ in late:
            self._check(e, pattern, size, syntax, type_, env, at, span)
        module: Any = e.evaluate(self.definition.syntax.body, env, at, wants_module=True)
        if isinstance(module, Poison):
            return module
        result: Result = e.apply(e.need_module(module, self.definition.syntax.body.span), inputs, at, span)
        self._check_results(e, result, signature.outputs, env, rests, at, span)
        return result

    def _match(
        self, syntax: TypeSyntax, type_: TensorType, env: Env, rests: dict[str, tuple[Dim, ...]], span: Span
    ) -> list[tuple[Any, Dim, TypeSyntax, TensorType]]:
        """Bind the plain names among the dimensions; what needs calculation is returned for later."""
        dtype = dtype_of(syntax)
        if dtype is not None and dtype != type_.dtype:
            raise self._mismatch(syntax, type_, span, f"dtype {type_.dtype}")
        plain, shape = _spread(syntax, type_.shape, rests)
        if plain is None:
            raise self._mismatch(syntax, type_, span, f"found {type_}, rank {type_.rank}")
        late = []
        for pattern, size in zip(plain, shape, strict=True):
            if isinstance(pattern, Ref) and pattern.name[:1].isupper() and env.names.get(pattern.name, size) == size:
                env.names[pattern.name] = size
            else:
                late.append((pattern, size, syntax, type_))
        return late

    def _check(
        self,
        e: Elaborator,
        pattern: Any,
        size: Dim,
        syntax: TypeSyntax,
        type_: TensorType,
        env: Env,
        at: Place,
        span: Span,
    ) -> None:
        symbols = [n for n in walk(pattern) if isinstance(n, Ref) and n.name[:1].isupper()]
        unknown = [n for n in symbols if env.look_up(n.name) is MISSING]
        if not unknown:
            found = e.evaluate(pattern, env, at)
            if found is not POISON and found != size:
                raise self._mismatch(syntax, type_, span, f"found {type_}: {size} where {found} is needed")
            return
        if not (isinstance(pattern, Arithmetic) and set(pattern.operators) == {"*"} and len(unknown) == 1):
            raise fail("E0338", "this dimension cannot be found from the input", pattern.span,
                       help="name the whole axis, and calculate from that name")  # fmt: skip
        for factor in pattern.operands:
            if factor is unknown[0]:
                continue
            known = e.evaluate(factor, env, at)
            rest = exact_div(size, size_of(known, factor.span))
            if rest is None:
                raise self._mismatch(syntax, type_, span, f"found {type_}: {size} is not divisible by {known}")
            size = rest
        env.names[unknown[0].name] = size

    def _check_results(
        self,
        e: Elaborator,
        result: Result,
        outputs: Sequence[TypeSyntax],
        env: Env,
        rests: dict[str, tuple[Dim, ...]],
        at: Place,
        span: Span,
    ) -> None:
        found = tensors_of(result) or ()
        if any(t is POISON for t in found):
            return
        if len(found) != len(outputs):
            raise fail("E0332", f"`{self.title}` promises {len(outputs)} results", outputs[0].span,
                       label=f"its body makes {len(found)}")  # fmt: skip
        signature = self.definition.syntax.signature
        for tensor, syntax in zip(found, outputs, strict=True):
            if signature is not None and says_nothing(signature):
                continue
            assert isinstance(tensor, Tensor)
            type_ = tensor.value.type
            dtype = dtype_of(syntax) or type_.dtype
            shape: list[Dim] = []
            for pattern in syntax.dims:
                if isinstance(pattern, Rest):
                    if pattern.name.text not in rests:
                        return  # `*T` that no input names: any shape
                    shape += rests[pattern.name.text]
                else:
                    shape.append(size_of(e.evaluate(pattern, env, at), pattern.span))
            promised = TensorType(tuple(shape), dtype)
            if promised != type_:
                raise fail(
                    "E0339",
                    f"`{self.title}` promises {promised}",
                    self.definition.syntax.body.span,
                    label=f"its body makes {type_}",
                    notes=[Note("the promise", syntax.span), Note("used here", span)],
                )

    def _mismatch(self, syntax: TypeSyntax, type_: TensorType, span: Span, label: str) -> CompileError:
        return fail("E0338", f"`{self.title}` takes another type of tensor", span, label=label,
                    notes=[Note("its signature", syntax.span)])  # fmt: skip

    def count(self, c: Counter) -> int:
        return c.count_signed(self)


def says_nothing(signature: Signature) -> bool:
    """Does a signature hold for tensors of all types, as `[*S] => [*T]` does?"""
    types = (*signature.inputs, *signature.outputs)
    rests = [t.dims[0].name.text for t in types if t.dtype is None and len(t.dims) == 1 and isinstance(t.dims[0], Rest)]
    return len(rests) == len(set(rests)) == len(types)


def _spread(
    syntax: TypeSyntax, shape: tuple[Dim, ...], rests: dict[str, tuple[Dim, ...]]
) -> tuple[list[Any] | None, tuple[Dim, ...]]:
    """The dimensions of a pattern but its `*rest`, and the sizes that they stand for; None when the ranks differ."""
    at = [i for i, d in enumerate(syntax.dims) if isinstance(d, Rest)]
    plain = [d for d in syntax.dims if not isinstance(d, Rest)]
    if not at:
        return (plain if len(plain) == len(shape) else None), shape
    if len(at) > 1:
        raise fail("E0338", "one `*rest` is enough for a shape", syntax.span, label="here are more")
    length = len(shape) - len(plain)
    rest = syntax.dims[at[0]]
    assert isinstance(rest, Rest)
    name = rest.name.text
    if length < 0 or rests.setdefault(name, shape[at[0] : at[0] + length]) != shape[at[0] : at[0] + length]:
        return None, shape
    return plain, shape[: at[0]] + shape[at[0] + length :]
