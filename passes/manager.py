"""Passes and what runs them.

A pass is a record: a name, a function that rewrites a graph in place and returns whether it changed anything, and the
contract that it keeps. The manager verifies the graph after each pass, times it, can dump it, and names the pass and
its predecessors when one fails. A pipeline is a list of passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from archc.ir.diagnostics import CompileError, Note
from archc.ir.graph import Graph, Parameter, Value
from archc.ir.types import FLOATS, NUMPY_NAMES
from archc.ir.verify import verify
from archc.passes.listing import listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Weights = dict[str, "NDArray[np.generic]"]
"""Arrays by parameter name."""


Observe = Callable[[Graph, Weights, Sequence[Value]], "list[Array]"]
"""(graph, weights, values of it, outside regions) -> what they are on sample data: float64, the batch first."""


@dataclass(slots=True)
class Context:
    """What a pass may look at, and change, besides the graph.

    weights   values of the graph's parameters; a pass that changes parameters keeps them in step. None: not known
    training  whether the network is to be trained; if not, what matters in training only may go
    seed      of whatever a pass draws
    wide      keep floats as float64, whatever the parameter's dtype: how exactness is measured
    observe   runs the network on sample data, for passes that fit something; None: there are no data
    data      are the sample data given ones? If not they are random inputs, which tell little of real ones
    applied   (spec, sites found) of each transform that has run
    measured  what passes have measured of themselves, by site: errors of fits and the like
    """

    weights: Weights | None = None
    training: bool = False
    seed: int = 0
    wide: bool = False
    observe: Observe | None = None
    data: bool = True
    applied: list[tuple[str, Any]] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)

    def value(self, parameter: Parameter) -> Array:
        """The weights of a parameter in float64; a copy."""
        import numpy as np

        assert self.weights is not None, "no weights are known"
        return np.array(self.weights[parameter.name], dtype=np.float64)

    def store(self, parameter: Parameter, value: Any) -> None:
        """Give a parameter its weights, in its dtype. Nothing is done where weights are not known."""
        if self.weights is None:
            return
        import ml_dtypes  # noqa: F401 - tells numpy of bfloat16
        import numpy as np

        dtype = parameter.type.dtype
        array = np.asarray(value).astype("float64" if self.wide and dtype in FLOATS else NUMPY_NAMES[dtype])
        assert array.shape == parameter.shape, f"{parameter} was given an array of shape {array.shape}"
        self.weights[parameter.name] = array


@dataclass(frozen=True, slots=True)
class Measured:
    """Something that a pass has measured at a site: `of`, in words, is `value` (relative error, R², …)."""

    transform: str
    site: str
    of: str
    value: float


Kept = Literal["exact", "approximate", "reinitialised"]
KINDS: tuple[Kept, ...] = ("exact", "approximate", "reinitialised")
"""From the strongest to the weakest."""


@dataclass(frozen=True, slots=True)
class Contract:
    """How the new network relates to the old one, in evaluation and in training: its function is kept up to rounding
    (`exact`), nearly (`approximate`), or some weights are drawn anew (`reinitialised`). `why` says what keeps it from
    being exact."""

    eval: Kept = "exact"
    train: Kept = "exact"
    why: str = ""


@dataclass(frozen=True, slots=True)
class Pass:
    """One rewriting idea. `run` returns whether it changed the graph or the weights.

    spec  how the pass is written with its options, where it has some
    find  of a transform: where it would act and where not (a `Found` of archc.passes.transform)
    """

    name: str
    run: Callable[[Graph, Context], bool]
    contract: Contract = Contract()
    spec: str = ""
    find: Callable[[Graph], Any] | None = None


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

    names = ", ".join(f"`{step.name}`" for step in passes)
    run.__doc__ = f"{names}, in turn until none of them changes anything."
    in_eval, in_training = [p.contract.eval for p in passes], [p.contract.train for p in passes]
    return Pass(name, run, Contract(max(in_eval, key=KINDS.index), max(in_training, key=KINDS.index)))


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
