"""Damaged programs: small mutations of the examples, deterministic by (seed, index), and what becomes of them.

Every second mutant is damaged in its tokens (deleted, doubled, swapped, replaced by what other programs hold, numbers
made odd), the others in their bytes, which makes them a file rather than a text.
"""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType

from archc.grammar.format import format_source
from archc.grammar.limits import Limits
from archc.grammar.load import check, load
from archc.ir.diagnostics import CompileError
from archc.ir.verify import verify

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LARGEST = 2048
SECONDS = 5.0
LIMITS = Limits(nodes=5_000, repeat=2_000)
"""Numbers are among what is mutated: what is large, and allowed by default, takes its time."""

TOKEN = re.compile(r'#[^\n]*|"[^"\n]*"|\d+(?:\.\d+)?(?:e[-+]?\d+)?|[A-Za-z_]\w*|->|=>|//|==|!=|<=|>=|\.\.\.|\s+|.')
NUMBERS = ("0", "1", "2", "3", "7", "-1", "1.5", "0.0", "1e308", "1e-320", "4096", "99999", "10000000000000000000000")
WORDS = [
    "arch",
    "space",
    "language",
    "import",
    "input",
    "output",
    "def",
    "share",
    "let",
    "rule",
    "require",
    "if",
    "then",
    "else",
    "choose",
    "range",
    "repeat",
    "as",
    "fn",
    "return",
    "when",
    "and",
    "or",
    "not",
    "true",
    "false",
    "none",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ";",
    ":",
    "=",
    "->",
    "=>",
    "==",
    "!=",
    "<",
    ">",
    "<=",
    ">=",
    "+",
    "-",
    "*",
    "/",
    "//",
    "|",
    ".",
    "*",
    "**",
    "!",
    "~",
    "@",
    "?",
    "\\",
    '"',
    "'",
    "`",
    "#",
]


@dataclass(frozen=True)
class Mutant:
    """The bytes of a damaged program, and the example it was."""

    seed: int
    index: int
    origin: str
    data: bytes


@cache
def corpus() -> tuple[tuple[str, str], ...]:
    """Name and text of every small example."""
    paths = sorted(p for p in EXAMPLES.rglob("*.arch") if p.stat().st_size <= LARGEST)
    assert len(paths) > 10
    return tuple((str(p.relative_to(EXAMPLES)), p.read_text(encoding="utf-8")) for p in paths)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of every example, and those of the language."""
    return tuple(sorted({t for _, text in corpus() for t in TOKEN.findall(text) if not t.isspace()} | set(WORDS)))


def mutant(seed: int, index: int) -> Mutant:
    """The damaged program number `index`: the same on every machine."""
    rng = random.Random(f"{seed}/{index}")
    name, text = rng.choice(corpus())
    if index % 2:
        return Mutant(seed, index, name, _damaged_bytes(text.encode(), rng))
    tokens = TOKEN.findall(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        _damage_tokens(tokens, rng)
    return Mutant(seed, index, name, "".join(tokens).encode("utf-8"))


def _damage_tokens(tokens: list[str], rng: random.Random) -> None:
    if not tokens:
        tokens.append(rng.choice(WORDS))
    at, other = rng.randrange(len(tokens)), rng.randrange(len(tokens))
    kind = rng.randrange(10)
    if kind == 0:
        del tokens[at]
    elif kind == 1:
        tokens.insert(at, tokens[other])
    elif kind == 2:
        tokens[at], tokens[other] = tokens[other], tokens[at]
    elif kind == 3:
        tokens[at] = rng.choice(vocabulary())
    elif kind == 4:
        tokens.insert(at, f" {rng.choice(vocabulary())} ")
    elif kind == 5:
        del tokens[min(at, other) : min(at, other) + rng.randint(1, 12)]
    elif kind == 6:
        piece = tokens[min(at, other) : min(at, other) + rng.randint(1, 40)]
        tokens[at:at] = piece
    elif kind == 7:
        _, text = rng.choice(corpus())
        strange = TOKEN.findall(text)
        start = rng.randrange(len(strange))
        tokens[at:at] = strange[start : start + rng.randint(1, 30)]
    else:  # numbers and names decide most: look for one
        fitting = [i for i, t in enumerate(tokens) if (t[0].isdigit() if kind == 8 else t[0].isalpha())]
        if fitting:
            tokens[rng.choice(fitting)] = rng.choice(NUMBERS if kind == 8 else vocabulary())


def _damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(6)
        if kind == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + bytes([rng.randrange(32, 127)]) + data[at:]
        elif kind == 2:
            data = data[:at] + data[at + rng.randint(1, 30) :]
        elif kind == 3:
            data = data[:at] + data[max(0, at - rng.randint(1, 60)) :]
        elif kind == 4:
            data = data[:at] + rng.choice(["\u202e", "é", "\ufeff", "\r", "\0", "🙂", "\u2028"]).encode() + data[at:]
        else:
            data = data[:at] + rng.choice([b"(", b")", b"{", b"}", b"[", b"-", b"->", b"=", b"|", b"\n"]) + data[at:]
    return data


class TooSlow(BaseException):
    """Raised by the clock; no handler of ours may swallow it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends what takes more of the processor's time; other load on the machine does not count."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(m: Mutant, folder: Path) -> tuple[str, float]:
    """What became of a mutant, and in how many seconds of the processor: "graph", an error's code, or "BUG: …"."""
    path = folder / "m.arch"
    path.write_bytes(m.data)
    start = time.process_time()
    try:
        with limited(SECONDS):
            found = _outcome(path, m.data)
    except TooSlow as e:
        found = f"BUG: {e}"
    except Exception as e:  # whatever is not a diagnostic is the finding
        found = f"BUG: {type(e).__name__}: {e}"
    return found, time.process_time() - start


def _outcome(path: Path, data: bytes) -> str:
    diagnostics = check(path, limits=LIMITS)
    errors = [d for d in diagnostics if d.severity == "error"]
    for d in errors:
        if d.span is not None and not (d.span.line >= 1 and d.span.column >= 1):
            return f"BUG: {d.code} stands at {d.span.line}:{d.span.column}"
    try:
        graph = load(path, limits=LIMITS)
    except CompileError as e:
        str(e)
        return e.diagnostics[0].code
    verify(graph)
    if errors:
        return f"BUG: `check` finds {errors[0].code}, `load` finds nothing"
    again = format_source(data.decode("utf-8"))
    if format_source(again) != again:
        return "BUG: formatting twice differs"
    return "graph"
