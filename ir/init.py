"""Initial values of parameters, drawn from a stream keyed by (seed, parameter name).

Adding or removing a layer changes no other layer's draw. The distributions are PyTorch's defaults unless the program
says `init = "…"`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Init:
    """A distribution: U(-a, a), N(0, a²), N(0, a²) cut at 2a, every element `a` (`constant`), or given `values`."""

    kind: Literal["uniform", "normal", "trunc_normal", "constant", "values"]
    a: float = 0.0
    values: tuple[Any, ...] = ()

    def __str__(self) -> str:
        if self.kind == "constant" and self.a in (0, 1):
            return "ones" if self.a else "zeros"
        return f"{self.kind}({self.a:g})"

    def sample(self, shape: tuple[int, ...], seed: int, name: str) -> NDArray[np.float64]:
        """An array of `shape` (float64), the same for the same seed and name on every machine."""
        import numpy as np

        if self.kind == "constant":
            return np.full(shape, self.a)
        if self.kind == "values":
            return np.asarray(self.values, dtype=np.float64).reshape(shape)
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
        if self.kind == "uniform":
            return np.asarray(rng.uniform(-self.a, self.a, shape))
        draw = np.asarray(rng.standard_normal(shape))  # of rank 0 it would be a scalar, not an array
        if self.kind == "trunc_normal":  # cut at two standard deviations, by redrawing
            while (far := np.abs(draw) > 2).any():
                draw[far] = rng.standard_normal(int(far.sum()))
        return np.asarray(draw * self.a)


ZEROS, ONES = Init("constant", 0.0), Init("constant", 1.0)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight `[out, in, *kernel]`, as PyTorch counts them."""
    field = math.prod(shape[2:])
    return (shape[1] * field if len(shape) > 1 else shape[0]), shape[0] * field


def fan_in_uniform(fan_in: int) -> Init:
    """PyTorch's default for linear and convolution: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return Init("uniform", 1 / math.sqrt(fan_in) if fan_in else 0.0)


_NAMED: dict[str, Callable[[tuple[int, ...]], Init]] = {
    "zeros": lambda s: ZEROS,
    "ones": lambda s: ONES,
    "kaiming_uniform": lambda s: Init("uniform", math.sqrt(6 / max(1, fans(s)[0]))),
    "kaiming_normal": lambda s: Init("normal", math.sqrt(2 / max(1, fans(s)[0]))),
    "xavier_uniform": lambda s: Init("uniform", math.sqrt(6 / max(1, sum(fans(s))))),
    "xavier_normal": lambda s: Init("normal", math.sqrt(2 / max(1, sum(fans(s))))),
}
_WITH_NUMBER: dict[str, Literal["uniform", "normal", "trunc_normal", "constant"]] = {
    "uniform": "uniform",
    "normal": "normal",
    "trunc_normal": "trunc_normal",
    "constant": "constant",
}
INIT_NAMES = (*_NAMED, *(f"{n}(a)" for n in _WITH_NUMBER), "values(a, b, …)")


def parse_init(text: str, shape: tuple[int, ...]) -> Init | None:
    """The initialiser that a program names (`"kaiming_normal"`, `"normal(0.02)"`); None if there is none such.
    Numbers are finite, and widths at least 0.

    `values(…)` gives every number, row by row; as many as `shape` holds.
    """
    if text in _NAMED:
        return _NAMED[text](shape)
    given = re.fullmatch(r"values\(([-+0-9.eE,\s]*)\)", text)
    if given:
        try:
            values = tuple(float(v) for v in given[1].split(",") if v.strip())
        except ValueError:
            return None
        right = len(values) == math.prod(shape) and all(map(math.isfinite, values))
        return Init("values", values=values) if right else None
    match = re.fullmatch(r"(\w+)\(\s*([-+0-9.eE]+)\s*\)", text)
    if match and match[1] in _WITH_NUMBER:
        try:
            kind, a = _WITH_NUMBER[match[1]], float(match[2])
        except ValueError:
            return None
        if not math.isfinite(a) or (a < 0 and kind != "constant"):
            return None
        return Init(kind, a) if a else ZEROS
    return None
