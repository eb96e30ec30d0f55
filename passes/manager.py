"""Passes and what runs them.

A pass is a record: a name, a function that rewrites a graph in place and returns whether it changed anything, and the
contract that it keeps. The manager verifies the graph after each pass, times it, can dump it, and names the pass and
its predecessors when one fails. A pipeline is a list of passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from archc.ir.diagnostics import CompileError, Note
from archc.ir.graph import Graph
from archc.ir.verify import verify
from archc.passes.listing import listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Weights = dict[str, "NDArray[np.generic]"]
"""Arrays by parameter name."""


@dataclass(slots=True)
class Context:
    """What a pass may look at, and change, besides the graph.

    weights   values of the graph's parameters; a pass that changes parameters keeps them in step. None: not known
    training  whether the network is to be trained; if not, what matters in training only may go
    """

    weights: Weights | None = None
    training: bool = False


Kept = Literal["exact", "approximate", "reinitialised"]


@dataclass(frozen=True, slots=True)
class Contract:
    """How the new network relates to the old one, in evaluation and in training: its function is kept up to rounding
    (`exact`), nearly (`approximate`), or some weights are drawn anew (`reinitialised`)."""

    eval: Kept = "exact"
    train: Kept = "exact"


@dataclass(frozen=True, slots=True)
class Pass:
    """One rewriting idea. `run` returns whether it changed the graph or the weights."""

    name: str
    run: Callable[[Graph, Context], bool]
    contract: Contract = Contract()


@dataclass(frozen=True, slots=True)
class Ran:
    """One pass that was run."""

    name: str
    changed: bool
    seconds: float


class PassError(AssertionError):
    """A pass failed, or broke the graph: our mistake. The message names it and the passes before it."""


Dump = Callable[[int, str, Graph], None]
"""(position, pass name, graph) after each pass that changed something; position 0 is what came in."""


def run_passes(
    graph: Graph, passes: Sequence[Pass], context: Context | None = None, dump: Dump | None = None
) -> list[Ran]:
    """Run passes in order on a graph, in place.

    Raises: CompileError when a pass cannot apply, with a note that names it; PassError when one is faulty.

    >>> run_passes(Graph("empty"), [Pass("nothing", lambda graph, context: False)])[0].changed
    False
    """
    context = Context() if context is None else context
    _checked(graph, "what came in", [])
    if dump is not None:
        dump(0, "input", graph)
    done: list[Ran] = []
    for position, step in enumerate(passes, start=1):
        done.append(_run(step, graph, context, done))
        if done[-1].changed and dump is not None:
            dump(position, step.name, graph)
    return done


def _run(step: Pass, graph: Graph, context: Context, done: Sequence[Ran]) -> Ran:
    """Run one pass and check what it leaves and says; blame it, and name those before it, when something is wrong."""
    before = _state(graph, context)
    start = time.perf_counter()
    try:
        changed = step.run(graph, context)
    except CompileError as e:
        note = Note(f"in pass `{step.name}`{_after(done)}")
        noted = (replace(d, notes=(*d.notes, note)) for d in e.diagnostics)
        raise CompileError(*noted, exit_code=e.exit_code) from None
    except Exception as e:  # whatever it is, it is a mistake of ours: say of which pass
        raise PassError(f"pass `{step.name}` failed{_after(done)}: {type(e).__name__}: {e}") from e
    seconds = time.perf_counter() - start
    really = _state(graph, context) != before
    if really:
        _checked(graph, f"what pass `{step.name}` left", done)
    if changed != really:
        said = "it changed something" if changed else "it changed nothing"
        raise PassError(f"pass `{step.name}` says that {said}, which is not so{_after(done)}")
    return Ran(step.name, changed, seconds)


def until_stable(name: str, passes: Sequence[Pass], limit: int = 10) -> Pass:
    """A pass that repeats others until none of them changes anything, at most `limit` times."""

    def run(graph: Graph, context: Context) -> bool:
        done: list[Ran] = []
        for _ in range(limit):
            turn = []
            for step in passes:
                turn.append(_run(step, graph, context, done))
                done.append(turn[-1])
            if not any(ran.changed for ran in turn):
                break
        return any(ran.changed for ran in done)

    kinds: Sequence[Kept] = ("exact", "approximate", "reinitialised")
    in_eval, in_training = [p.contract.eval for p in passes], [p.contract.train for p in passes]
    return Pass(name, run, Contract(max(in_eval, key=kinds.index), max(in_training, key=kinds.index)))


def dump_to(folder: Path) -> Dump:
    """A dump that writes `00-input.txt`, `01-NAME.txt`, … into a folder."""
    folder.mkdir(parents=True, exist_ok=True)

    def dump(position: int, name: str, graph: Graph) -> None:
        (folder / f"{position:02d}-{name}.txt").write_text(listing(graph) + "\n", encoding="utf-8")

    return dump


def _after(done: Sequence[Ran]) -> str:
    return f" after {', '.join(f'`{r.name}`' for r in done)}" if done else ""


def _checked(graph: Graph, what: str, done: Sequence[Ran]) -> None:
    try:
        verify(graph)
    except AssertionError as e:
        raise PassError(f"{what} is not well formed{_after(done)}: {e}") from e


def _state(graph: Graph, context: Context) -> list[Any]:
    """What a pass can change, for comparison. It holds the objects themselves, which compare by identity."""
    nodes = [(n, n.op, n.params, n.inputs, tuple(n.weights.items()), n.regions, n.name) for n in graph.walk()]
    ports = [(tuple(g.inputs), tuple(g.outputs)) for g in graph.graphs()]
    weights = sorted((name, id(array)) for name, array in (context.weights or {}).items())
    return [nodes, ports, weights]
