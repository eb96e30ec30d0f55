"""What a backend is to the rest: a table that says how each op is spelt for its target.

What an op *means* stands in `archc.ir.ops`; a backend only spells it. An op without a lowering is fine as long as it
has a decomposition into ops that have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from archc.ir.op import REGISTRY, OpDef

F = TypeVar("F", bound=Callable[..., Any])


class Lowerings(Generic[F]):
    """Op name -> lowering function. The table itself is the decorator that fills it.

    >>> lowering: Lowerings[Callable[[str], str]] = Lowerings("demo")
    >>> @lowering("relu", "relu6")
    ... def _(x: str) -> str:
    ...     return f"max({x}, 0)"
    >>> lowering["relu"]("y"), "gelu" in lowering, len(lowering)
    ('max(y, 0)', False, 2)
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._functions: dict[str, F] = {}

    def __call__(self, *ops: str) -> Callable[[F], F]:
        """Register the decorated function for `ops`.

        Raises: ValueError when an op has a lowering already.
        """

        def add(function: F) -> F:
            for op in ops:
                if op in self._functions:
                    raise ValueError(f"the {self.backend} backend has a lowering for `{op}` already")
                self._functions[op] = function
            return function

        return add

    def __getitem__(self, op: str) -> F:
        return self._functions[op]

    def __contains__(self, op: object) -> bool:
        return op in self._functions

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def missing(self, ops: Iterable[OpDef[Any]] | None = None) -> list[str]:
        """The ops (all registered ones) that this backend can neither lower nor decompose."""
        wanted = REGISTRY.values() if ops is None else ops
        return sorted(op.name for op in wanted if op.name not in self and op.decompose is None)
