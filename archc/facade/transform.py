"""Changing architectures: `archc.transform`, and its dry run.

The passes run on float64 copies of the weights, so that what a contract calls exact is checked to float64's precision;
the weights that are returned are those, rounded once to the parameters' own formats.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc.facade.model import Model, as_model
from archc.facade.sameness import Mode, Sameness, observer, same_function
from archc.facade.weights import Given, resolve
from archc.grammar.printer import print_graph
from archc.ir.clone import clone
from archc.ir.diagnostics import CompileError, fail
from archc.ir.graph import Graph
from archc.passes.manager import KINDS, Context, Contract, Dump, Measured, Pass, dump_to, run_passes
from archc.passes.spec import parse_pass
from archc.passes.transform import Found, Site

if TYPE_CHECKING:
    from archc.passes.kan_symbolic import Edge
    from archc.passes.manager import Observe

SAMPLES, LENGTH = 64, 16
"""Sizes of the sample data that passes fit to where none are given: the batch, and other open dimensions."""


@dataclass(frozen=True, slots=True)
class Step:
    """One pass of a transformation: where it acted, and where it would not."""

    spec: str
    contract: Contract
    changed: bool
    seconds: float
    found: Found = field(default_factory=Found)

    def to_json(self) -> dict[str, Any]:
        return {
            "pass": self.spec,
            "contract": {"eval": self.contract.eval, "train": self.contract.train, "why": self.contract.why},
            "changed": self.changed,
            "seconds": self.seconds,
            "sites": [_site(s) for s in self.found.sites],
            "left_out": [_site(s) for s in self.found.others],
            "refused": [
                {"at": r.anchor.name, "code": r.code, "reason": r.reason, "found": r.found, "help": r.help}
                for r in self.found.refusals
            ],
        }


@dataclass(frozen=True)
class Transformed:
    """A changed network. Unpacks as `new_model, new_weights`.

    model     the new network
    weights   its weights by name; None when the old ones were not known
    before    the network that it was
    steps     what each pass did
    checks    the comparisons of the two functions that were made
    measured  what passes have measured of themselves
    """

    model: Model
    weights: Mapping[str, Any] | None = field(repr=False)
    before: Model = field(repr=False)
    steps: tuple[Step, ...] = ()
    checks: tuple[Sameness, ...] = ()
    measured: tuple[Measured, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        yield self.model
        yield self.weights

    @property
    def contract(self) -> Contract:
        """What all passes together promise."""
        return joined([s.contract for s in self.steps])

    def diff(self) -> str:
        """The change as a unified diff of the two networks' texts."""
        old, new = (m.text().splitlines(keepends=True) for m in (self.before, self.model))
        return "".join(difflib.unified_diff(old, new, f"{self.before.name}.arch", f"{self.model.name}.new.arch"))

    def draw(self, path: Path | str | None = None) -> str:
        """Both networks side by side, what went in one colour and what came in another."""
        from archc.drawing import draw_change

        return draw_change(self.before.graph, self.model.graph, path)

    def to_json(self) -> dict[str, Any]:
        old, new = self.before.cost, self.model.cost
        return {
            "passes": [s.to_json() for s in self.steps],
            "contract": {"eval": self.contract.eval, "train": self.contract.train, "why": self.contract.why},
            "checks": [c.to_json() for c in self.checks],
            "measured": [{"pass": m.transform, "at": m.site, "of": m.of, "value": m.value} for m in self.measured],
            "params": [old.params, new.params],
            "flops": [str(old.flops), str(new.flops)],
            "hash": [self.before.hash, self.model.hash],
        }


def transform(
    model: Model | Path | str,
    *passes: str | Pass,
    weights: Given = None,
    at: Sequence[str] | str = (),
    data: Mapping[str, Any] | Path | str | None = None,
    seed: int = 0,
    check: bool = True,
    allow_reinit: bool = False,
    dump: Path | str | None = None,
) -> Transformed:
    """Change a network by passes (`"glu"`, `"moe(experts = 8, top_k = 2)"`; see `archc passes`), one after the other.

    `at` selects where (see `archc.passes.where`); a spec may say so itself: `"glu at layers 4..8"`. `weights` carry
    over; without them the new network's structure alone is made. `data` are inputs by name, or a numpy file of such:
    passes that fit something fit it to these (else to random ones), and errors are measured on them. With `check`, the
    contract is checked: what is promised to be exact is compared in float64 and float32. `dump` names a folder for a
    listing of the graph after each pass.

    Raises: CompileError E0401–E0406 when a pass cannot be applied, E0407 when weights would be drawn anew and
    `allow_reinit` does not say that they may, or (exit code 3) when a contract does not hold. Nothing is changed then.

    >>> from archc.facade.model import loads
    >>> model = loads('''
    ... arch ffn()
    ... input  x: f32[N, 8]
    ... output y: f32[N, 8]
    ... y = x -> linear(32) -> gelu -> linear(8)
    ... ''')
    >>> new, weights = transform(model, "glu")                                             # doctest: +SKIP
    """
    model = as_model(model)
    chosen = [parse_pass(p, at) if isinstance(p, str) else p for p in passes]
    contract = joined([p.contract for p in chosen])
    if "reinitialised" in (contract.eval, contract.train) and not allow_reinit:
        drawn = [p.name for p in chosen if "reinitialised" in (p.contract.eval, p.contract.train)]
        raise fail(
            "E0407",
            f"`{drawn[0]}` draws weights anew, so what the network has learned is lost there",
            label=contract.why,
            help="allow it: `--allow-reinit`",
        )
    graph, given = clone(model.graph), None
    inputs = None if data is None else read_data(model.graph, data)
    context = Context(seed=seed)
    if weights is not None:
        given = dict(resolve(model.graph, weights, seed).arrays)
        observe = _observer(model.graph, inputs, seed)
        context = Context(_wide(given), seed=seed, wide=True, observe=observe, data=inputs is not None)
    steps = _run(chosen, graph, context, None if dump is None else dump_to(Path(dump)))
    new = Model(graph, print_graph(graph))
    if given is None or context.weights is None:
        return Transformed(new, None, model, steps, (), tuple(context.measured))
    stored = {name: rounded(context.weights[name], p.type.dtype) for name, p in graph.parameters().items()}
    checks = tuple(_checks(model.graph, graph, given, context.weights, stored, contract, inputs, seed)) if check else ()
    for outcome in checks:
        if _kept(contract, outcome.mode) == "exact" and not outcome.ok:
            raise fail(
                "E0407",
                f"the function was to stay as it is in `{outcome.mode}`, and it does not",
                label=f"relative error {outcome.relative:.1e} in {outcome.format}",
                help="nothing was changed; please report this with the program",
                exit_code=3,
            )
    return Transformed(new, stored, model, steps, checks, tuple(context.measured))


def plan(model: Model | Path | str, *passes: str, at: Sequence[str] | str = ()) -> list[Step]:
    """What `transform` would do: the sites of each pass, and the refusals with their reasons. Later passes see what
    earlier ones would leave; where one finds nothing, that is told and the rest goes on.

    Raises: CompileError for specs and selections that cannot be read.
    """
    graph, steps = clone(as_model(model).graph), list[Step]()
    for step in [parse_pass(p, at) for p in passes]:
        try:
            steps += _run([step], graph, Context())
        except CompileError:
            if step.find is None:
                raise
            steps.append(Step(step.spec, step.contract, False, 0.0, step.find(graph)))
    return steps


def symbolic(
    model: Model | Path | str,
    weights: Given = None,
    *,
    data: Mapping[str, Any] | Path | str | None = None,
    seed: int = 0,
    top: int = 3,
    least: float = 0.0,
) -> list[Edge]:
    """Formulas for the learned functions on the edges of `kan` layers, `top` for each with their R², over the range
    that `data` (else random inputs) give an edge; none for edges that weigh less than `least`.

    Raises: CompileError E0408 when data do not fit.
    """
    from archc.passes.kan_symbolic import symbolic as read_off

    model = as_model(model)
    inputs = None if data is None else read_data(model.graph, data)
    wide = _wide(resolve(model.graph, weights, seed).arrays)
    context = Context(wide, seed=seed, wide=True, observe=_observer(model.graph, inputs, seed))
    return read_off(model.graph, context, top=top, least=least)


def _run(passes: Sequence[Pass], graph: Graph, context: Context, dump: Dump | None = None) -> tuple[Step, ...]:
    done = run_passes(graph, passes, context, dump)
    found = iter([found for _, found in context.applied])
    return tuple(
        Step(
            step.spec or step.name,
            step.contract,
            ran.changed,
            ran.seconds,
            Found() if step.find is None else next(found),
        )
        for step, ran in zip(passes, done, strict=True)
    )


def joined(contracts: Sequence[Contract]) -> Contract:
    """The weakest of several contracts.

    >>> joined([Contract(), Contract("approximate", "exact", "fitted")])
    Contract(eval='approximate', train='exact', why='fitted')
    """
    return Contract(
        max((c.eval for c in contracts), key=KINDS.index, default="exact"),
        max((c.train for c in contracts), key=KINDS.index, default="exact"),
        "; ".join(dict.fromkeys(c.why for c in contracts if c.why)),
    )


def read_data(graph: Graph, data: Mapping[str, Any] | Path | str) -> dict[str, Any]:
    """Inputs by name, from memory or an .npz file, checked against the network's inputs.

    Raises: CompileError E0408 when they do not fit, E0022 and the like for files that cannot be read.
    """
    import numpy as np

    from archc.backends.arrays import Unreadable, read_arrays

    if isinstance(data, str | Path):
        try:
            found = read_arrays(data)
        except Unreadable as e:
            raise fail(
                "E0408", f"cannot read data from `{data}`", label=str(e), exit_code=2 if e.missing else 1
            ) from None
        if [*found] == [""] and len(graph.inputs) == 1:
            found = {graph.inputs[0].name: found[""]}
    else:
        found = {name: np.asarray(array) for name, array in data.items()}
    for value in graph.inputs:
        shape = value.type.shape
        if value.name not in found:
            label = f"found {', '.join(found) or 'nothing'}"
            raise fail("E0408", f"the data lack the input `{value.name}`", label=label)
        sizes = found[value.name].shape
        if len(sizes) != len(shape) or any(isinstance(d, int) and d != s for d, s in zip(shape, sizes, strict=True)):
            label = f"needed {value.type}, found {list(sizes)}"
            raise fail("E0408", f"the data for `{value.name}` do not fit", label=label)
    return {v.name: found[v.name] for v in graph.inputs}


def _observer(graph: Graph, inputs: Mapping[str, Any] | None, seed: int) -> Observe:
    """Sees values on the data, or on random inputs; these are drawn when first asked for."""

    def observe(now: Graph, weights: Any, values: Any) -> list[Any]:
        from archc.backends.inputs import random_inputs

        if inputs is not None:
            return observer(inputs)(now, weights, values)
        sizes = {s: SAMPLES if i == 0 else LENGTH for i, s in enumerate(graph.symbols())}
        return observer(random_inputs(graph, seed, sizes, "f64"))(now, weights, values)

    return observe


def _checks(
    old: Graph,
    new: Graph,
    given: Mapping[str, Any],
    wide: Mapping[str, Any],
    stored: Mapping[str, Any],
    contract: Contract,
    inputs: Mapping[str, Any] | None,
    seed: int,
) -> Iterator[Sameness]:
    """In evaluation, float64 and float32; in training, float64, unless weights are drawn anew there."""
    modes: tuple[Mode, ...] = ("eval", "train")
    for mode in modes:
        if _kept(contract, mode) == "reinitialised" and mode == "train":
            continue
        yield same_function(old, new, given, wide, mode=mode, seed=seed, inputs=inputs)
    yield same_function(old, new, given, stored, format="f32", seed=seed, inputs=inputs)


def _kept(contract: Contract, mode: Mode) -> str:
    return contract.eval if mode == "eval" else contract.train


def _wide(weights: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    arrays = {name: np.asarray(w) for name, w in weights.items()}
    return {name: a if a.dtype.kind in "iub" else a.astype(np.float64) for name, a in arrays.items()}


def rounded(array: Any, dtype: str) -> Any:
    """An array in one of the language's dtypes."""
    from archc.backends.weights import numpy_dtype

    return array.astype(numpy_dtype(dtype))


def _site(site: Site) -> dict[str, Any]:
    return {"at": site.anchor.name, "what": site.what, "nodes": [n.name for n in site.nodes]}
