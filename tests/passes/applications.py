"""A transform applied to some network at some of its sites, and what must hold of the result whatever the transform.

The network is drawn by (seed, spec, attempt): an example made small, a few random blocks, or a random network over the
registry. Its weights are generic ones in float64. What the contract calls exact is compared in float64, in evaluation
and in training; of the rest the error is kept. The result must print and parse to itself, its weights be complete.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from block_nets import block_net, example_names, small_example
from margins import close_call
from random_nets import random_net

from archc.backends.inputs import random_inputs
from archc.facade.sameness import Reference, observer
from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.clone import clone
from archc.ir.diagnostics import CompileError
from archc.ir.equal import structurally_equal
from archc.ir.graph import Graph
from archc.metanet.symmetry import random_weights
from archc.passes.manager import Context, Pass, run_passes
from archc.passes.spec import parse_transform
from archc.passes.transform import find_sites, settle

SIZES = {"N": 3}


@dataclass
class Application:
    """What was done and found. `wrong` (check -> words) must be empty; `refused` counts reasons of sites that refuse;
    `error` is the largest relative difference by mode."""

    spec: str
    attempt: int
    source: str
    sites: int = 0
    contract: dict[str, str] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    excused: dict[str, str] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    measured: int = 0
    nodes: int = 0


@dataclass(frozen=True)
class Result:
    """The new network with its weights in float64."""

    old: Graph
    new: Graph
    weights: Mapping[str, Any]


def source(seed: int, spec: str, attempt: int) -> tuple[str, Graph]:
    """The network of an attempt: where it comes from, and its graph."""
    rng = random.Random(f"application/{seed}/{spec}/{attempt}")
    kind = rng.random()
    if kind < 0.2:
        name = rng.choice(example_names())
        return f"example {name}", _example(name)
    if kind < 0.9:
        number = rng.randrange(10**6)
        return f"blocks {number}", loads(block_net(number))
    number = rng.randrange(2000)
    try:
        return f"random {number}", random_net(seed, number).graph
    except KeyError:  # an op that the generator cannot place yet
        return f"blocks {number}", loads(block_net(number))


@lru_cache(maxsize=64)
def _example(name: str) -> Graph:
    return loads(small_example(name))


def apply_at_random(seed: int, spec: str, attempt: int) -> tuple[Application, Result | None]:
    """Apply a transform to some of its sites in the network of an attempt; no result where it has none."""
    origin, old = source(seed, spec, attempt)
    done = Application(spec, attempt, origin, nodes=len(list(old.walk())))
    transform, options = parse_transform(spec)
    found = find_sites(transform, old, options)
    done.refused = dict(Counter(plain(r.reason) for r in found.refusals))
    contract = transform.contract(options)
    done.contract = {"eval": contract.eval, "train": contract.train}
    if not found.sites:
        return done, None
    rng = random.Random(f"sites/{seed}/{spec}/{attempt}")
    count = len(found.sites) if rng.random() < 0.5 else rng.randint(1, len(found.sites))
    chosen = {s.anchor.name for s in rng.sample(found.sites, count)}
    done.sites = count

    def run(graph: Graph, context: Context) -> bool:
        sites = [s for s in find_sites(transform, graph, options).sites if s.anchor.name in chosen]
        transform.apply(graph, sites, options, context)
        settle(graph, context)
        return True

    before, inputs = random_weights(old, seed), random_inputs(old, seed, SIZES, "f64")
    context = Context(dict(before), seed=seed, wide=True, observe=observer(inputs))
    new = clone(old)
    try:
        run_passes(new, [Pass(transform.name, run, contract)], context)
    except CompileError as e:
        done.refused[plain(e.diagnostics[0].message)] = 1
        if print_graph(new) != print_graph(old):
            done.wrong["refusal"] = f"{e.diagnostics[0].message}, and yet the graph is changed"
        return done, None
    assert context.weights is not None
    done.measured = len(context.measured)
    result = Result(old, new, context.weights)
    _check_form(done, result)
    for mode in ("eval", "train"):
        _check_function(done, result, before, inputs, mode)
    return done, result


def plain(reason: str) -> str:
    """A reason without the names and numbers of the case."""
    return re.sub(r"\d+", "…", re.sub(r"`[^`]*`", "`…`", reason))


def _check_form(done: Application, result: Result) -> None:
    parameters = result.new.parameters()
    if parameters.keys() != result.weights.keys():
        done.wrong["weights"] = f"{sorted(parameters.keys() ^ result.weights.keys())[:5]} are not both"
    elif any(result.weights[n].shape != p.shape for n, p in parameters.items()):
        done.wrong["weights"] = "of other shapes"
    difference = structurally_equal(result.new, loads(print_graph(result.new)))
    if difference:
        done.wrong["round trip"] = difference


def _check_function(done: Application, result: Result, before: Mapping[str, Any], inputs: Any, mode: Any) -> None:
    reference = Reference(result.old, before, mode=mode, inputs=inputs)
    try:
        reference.outputs  # noqa: B018 - what the old network cannot do, the new one need not
    except ValueError as e:
        if "more than 1" not in str(e):  # torch refuses a batch norm of one number in training
            raise
        return
    found = reference.compare(result.new, result.weights)
    done.error[mode] = found.relative
    if found.ok or done.contract[mode] != "exact":
        return
    reason = "; ".join(o.reason or f"{o.name} is off by {o.relative:.1e}" for o in found.outputs if not o.ok)
    excuse = close_call(result.old, stored(result.old, before), random_inputs(result.old, done.attempt, SIZES))
    (done.excused if excuse else done.wrong)[mode] = f"{reason} ({excuse})" if excuse else reason


def stored(graph: Graph, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights in the dtypes of the graph's parameters."""
    from archc.backends.weights import numpy_dtype

    return {n: np.asarray(weights[n]).astype(numpy_dtype(p.type.dtype)) for n, p in graph.parameters().items()}


def compiled(results: Sequence[tuple[Application, Result]], folder: Any) -> list[str]:
    """What is wrong with compiled networks, each against torch; compiled as one, or each alone when that fails."""
    from oracles import Trial, against_judge, compile_and_run
    from random_nets import RandomNet

    from archc.facade.numerics import judge

    trials = []
    for i, (done, result) in enumerate(results):
        graph = result.new
        weights = stored(graph, result.weights)
        inputs = random_inputs(graph, done.attempt, SIZES)
        net = RandomNet(0, done.attempt * 100 + i, done.spec, graph, "", SIZES)
        trials.append(Trial(net, weights, inputs, judge(graph, weights, inputs)))
    try:
        made = compile_and_run(trials, folder)
    except Exception as e:  # whatever it is, it is the finding
        if len(trials) > 1:
            return [reason for one in results for reason in compiled([one], folder)]
        return [f"{type(e).__name__}: {e}"[:500]]
    wrong = []
    for t, outputs in zip(trials, made, strict=True):
        reason = against_judge(t, outputs)
        wrong.append("" if reason and close_call(t.graph, t.weights, t.inputs) else reason)
    return wrong
