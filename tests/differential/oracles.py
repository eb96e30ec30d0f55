"""What must hold of every network, each as a function that says what is wrong, or nothing.

`check` runs them. A mismatch of numbers is excused only when the network decides (a gate, a comparison, a top-k, an
argmax, a rounding) on a margin that is within the noise of its number format: `close_calls` measures the margins.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from margins import close_call
from random_nets import RandomNet

from archc.backends.inputs import random_inputs
from archc.backends.torch.module import TORCH_DTYPES, to_torch
from archc.facade.numerics import Judge, compare, judge
from archc.grammar.format import format_source
from archc.grammar.load import loads
from archc.ir.canonical import canonical
from archc.ir.clone import clone
from archc.ir.decompose import decompose
from archc.ir.dims import known
from archc.ir.equal import structurally_equal
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.types import FLOATS
from archc.ir.verify import verify
from archc.metanet.symmetry import certify, random_weights

Arrays = dict[str, Any]
VACUOUS = 0.05
"""An output whose tolerance is above this share of its largest element has not been checked by anything."""


@dataclass
class Findings:
    """What was wrong with one network: oracle -> words. `excused` are mismatches on too close a decision, `refused`
    what a backend says that it does not support."""

    wrong: dict[str, str] = field(default_factory=dict)
    excused: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    outputs: int = 0
    vacuous: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.wrong


@dataclass(frozen=True)
class Trial:
    """A network with weights and inputs at the declared dtypes, and what torch says of it."""

    net: RandomNet
    weights: Arrays
    inputs: Arrays
    judged: Judge

    @property
    def graph(self) -> Graph:
        return self.net.graph


def trial(net: RandomNet) -> Trial:
    graph = net.graph
    types = {name: p.type.dtype for name, p in graph.parameters().items()}
    weights = {n: w.astype(NUMPY[types[n]]) for n, w in random_weights(graph, net.index).items()}
    inputs = random_inputs(graph, net.index, net.sizes)
    return Trial(net, weights, inputs, judge(graph, weights, inputs))


NUMPY = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "i64": "int64",
    "i32": "int32",
    "i8": "int8",
    "bool": "bool",
}


# -- text ---------------------------------------------------------------------------------------------------------


def round_trip(net: RandomNet) -> str:
    """print ∘ parse is the identity, and printing again gives the same text."""
    from archc.grammar.printer import print_graph

    again = loads(net.text)
    return structurally_equal(net.graph, again) or ("" if print_graph(again) == net.text else "prints otherwise again")


def formatting(net: RandomNet) -> str:
    """The formatter is idempotent and means the same."""
    squeezed = re.sub(r"\n    -> ", " -> ", net.text).replace(", ", " ,")
    for text in (net.text, squeezed):
        formatted = format_source(text)
        if format_source(formatted) != formatted:
            return "formatting twice differs"
        difference = structurally_equal(net.graph, loads(formatted))
        if difference:
            return f"formatted: {difference}"
    return ""


def hashing(net: RandomNet) -> str:
    """Names and the order of statements do not count for the canonical hash; an added layer does."""
    needed, rng = canonical(net.graph).hash, random.Random(net.index)
    scrambled = scramble(net.graph, rng)
    verify(scrambled)
    if canonical(scrambled).hash != needed:
        return "renaming or reordering changes the hash"
    if canonical(loads(format_source(net.text))).hash != needed:
        return "formatting changes the hash"
    changed = clone(net.graph)
    changed.outputs = changed.outputs[::-1]
    types = [v.type for v in changed.outputs]
    if types != types[::-1] and canonical(changed).hash == needed:
        return "swapped outputs keep the hash"
    return ""


def scramble(graph: Graph, rng: random.Random) -> Graph:
    """The same network with other names, in another order of nodes, and operands of sums swapped."""
    copy = clone(graph)
    fresh: dict[Parameter, Parameter] = {}
    for region in copy.graphs():
        _reorder(region, rng)
    for node in copy.walk():
        node.name = f"n{rng.getrandbits(40):x}"
        if node.op.commutative and len(node.inputs) == 2:
            node.set_inputs(node.inputs[::-1])
        for role, p in node.weights.items():
            renamed = fresh.setdefault(p, Parameter(f"w{rng.getrandbits(40):x}", p.type, p.init, p.trainable))
            node.weights[role] = renamed
    from archc.ir.op import bind

    for node in copy.walk():
        node.bound = bind(node.op, node.call)
    return copy


def _reorder(graph: Graph, rng: random.Random) -> None:
    """Any topological order."""
    done, left, ordered = set(graph.inputs), list(graph.nodes), []
    while left:
        ready = [n for n in left if all(v in done for v in n.inputs)]
        node = rng.choice(ready)
        left.remove(node)
        ordered.append(node)
        done.update(node.outputs)
    graph.nodes = ordered


# -- numbers ------------------------------------------------------------------------------------------------------


def types(t: Trial) -> str:
    """What is inferred is what torch makes, for every node outside of regions."""
    exposed = exposed_graph(t.graph)
    module = to_torch(exposed, t.weights).eval()
    with torch.no_grad():
        made = module(*tensors(t.graph, t.inputs))
    found = made if isinstance(made, tuple) else (made,)
    for value, tensor in zip(exposed.outputs, found, strict=True):
        needed = known(value.type.substitute(t.net.sizes).shape)
        if tuple(tensor.shape) != needed or tensor.dtype != TORCH_DTYPES[value.type.dtype]:
            return f"{value.name}: inferred {value.type}, torch made {tensor.dtype}{list(tensor.shape)}"
    return ""


def exposed_graph(graph: Graph) -> Graph:
    values = [v for node in graph.nodes for v in node.outputs]
    names = [f"v{i}" for i in range(len(values))]
    return Graph(graph.name, graph.inputs, values, names, graph.nodes)


def tensors(graph: Graph, inputs: Arrays, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    found = [torch.from_numpy(np.asarray(inputs[v.name], order="C")) for v in graph.inputs]
    return [x.to(dtype) if dtype is not None and x.is_floating_point() else x for x in found]


def in_torch(graph: Graph, t: Trial) -> Arrays:
    """The outputs of a graph with the trial's weights and inputs, at its own dtypes."""
    module = to_torch(graph, {n: t.weights[n] for n in graph.parameters()}).eval()
    with torch.no_grad():
        made = module(*tensors(graph, t.inputs))
    return dict(
        zip(
            graph.output_names,
            (o.detach().numpy() for o in (made if isinstance(made, tuple) else (made,))),
            strict=True,
        )
    )


def against_judge(t: Trial, results: Arrays, found: Findings | None = None) -> str:
    """Shapes, dtypes, places of NaN and infinities, then errors against float64."""
    wrong = []
    for check in compare(t.graph, t.judged, results):
        if found is not None:
            found.outputs += 1
            found.vacuous += check.scale > 0 and check.allowed > VACUOUS * check.scale
        if not check.ok:
            wrong.append(f"{check.name}: {check.reason}")
    return "; ".join(wrong)


def torch_itself(t: Trial) -> str:
    """Torch at the network's own dtype against float64."""
    return against_judge(t, in_torch(t.graph, t))


ROUNDING = 100 * 2.0**-52
"""What is left of values up to about 100 in float64 where all of them cancel, as in the mean of a layer norm."""


def decompositions(t: Trial) -> str:
    """The network made of simpler ops computes the same in float64."""
    simple = clone(t.graph)
    if not decompose(simple, lambda op: op.decompose is None):
        return ""
    verify(simple)
    made = to_torch(simple, {n: t.weights[n] for n in simple.parameters()}).eval().double()
    with torch.no_grad():
        results = made(*tensors(simple, t.inputs, torch.float64))
    for name, value, exact, noise, result in zip(
        t.graph.output_names, t.graph.outputs, t.judged.exact, t.judged.noise,
        results if isinstance(results, tuple) else (results,), strict=True,
    ):  # fmt: skip
        array = result.detach().numpy()
        if array.shape != exact.shape or array.dtype != exact.dtype:
            return f"{name}: {array.dtype}{array.shape} instead of {exact.dtype}{exact.shape}"
        if value.type.dtype not in FLOATS:
            if (array != exact).any():
                return f"{name}: {(array != exact).sum()} elements differ"
            continue
        if (np.isnan(array) != np.isnan(exact)).any():
            return f"{name}: NaN in other places"
        finite = np.isfinite(exact)
        error = float(np.abs(array - exact)[finite].max(initial=0.0))
        scale = float(np.abs(exact)[finite].max(initial=0.0))
        if error > max(1e-10 * scale, noise * 1e-4, ROUNDING):
            return f"{name}: off by {error:.1e} of {scale:.1e}"
    return ""


def symmetry(t: Trial) -> str:
    """The axis classes hold in float64."""
    if not all(np.isfinite(y).all() for y in t.judged.exact if y.dtype.kind == "f"):
        return ""
    certificate = certify(t.graph, t.net.index, sizes=t.net.sizes, controls=0)
    return "" if certificate.ok else f"a group element moves the function by {certificate.error:.1e}"


ON_TEXT: Mapping[str, Callable[[RandomNet], str]] = {
    "verify": lambda net: verify(net.graph) or "",
    "round trip": round_trip,
    "format": formatting,
    "hash": hashing,
}
ON_NUMBERS: Mapping[str, Callable[[Trial], str]] = {
    "types": types,
    "torch": torch_itself,
    "decompose": decompositions,
    "symmetry": symmetry,
}


def check(net: RandomNet, compiled: Callable[[Trial], str] | None = None, found: Findings | None = None) -> Findings:
    """Run every oracle; `compiled` is that of a compiled artifact. An exception is a finding too."""
    found = Findings() if found is None else found
    for name, oracle in ON_TEXT.items():
        _run(found, name, lambda oracle=oracle: oracle(net))  # type: ignore[misc]
    t = _run(found, "judge", lambda: trial(net))
    if not isinstance(t, Trial):
        return found
    for name, on_numbers in ON_NUMBERS.items():
        reason = _run(found, name, lambda on_numbers=on_numbers: on_numbers(t))  # type: ignore[misc]
        _excuse(found, name, reason, t)
    if compiled is not None:
        judge_compiled(found, t, compiled)
    return found


def judge_compiled(found: Findings, t: Trial, compiled: Callable[[Trial], str]) -> None:
    _excuse(found, "tvm", _run(found, "tvm", lambda: compiled(t)), t)


def _run(found: Findings, name: str, oracle: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    try:
        result = oracle()
        if isinstance(result, str) and result:
            found.wrong[name] = result
        return result
    except Exception as e:  # whatever it is, it is the finding
        found.wrong[name] = f"{type(e).__name__}: {e}"[:1500]
        return None
    finally:
        found.seconds[name] = found.seconds.get(name, 0.0) + time.perf_counter() - start


def _excuse(found: Findings, name: str, reason: object, t: Trial) -> None:
    """Move a mismatch of numbers to the excused when a decision was too close."""
    if name in found.wrong and isinstance(reason, str) and reason and "shape" not in reason and "dtype" not in reason:
        cause = close_call(t.graph, t.weights, t.inputs)
        if cause:
            found.excused[name] = f"{found.wrong.pop(name)} ({cause})"


def compile_and_run(trials: Sequence[Trial], folder: Path) -> list[Arrays]:
    """The results of several networks, compiled by TVM as one: their ports and weights are told apart by a prefix."""
    from archc.backends import runtime
    from archc.backends.tvm.compile import compile_graph
    from archc.backends.tvm.targets import parse_target

    joined, weights = union([t.graph for t in trials], [t.weights for t in trials])
    path = folder / f"batch{trials[0].net.index}.archc"
    compile_graph(joined, weights, path, spec=parse_target("cpu"))
    inputs = {f"n{i}_{name}": x for i, t in enumerate(trials) for name, x in t.inputs.items()}
    with runtime.load(path, device="cpu", threads=1) as artifact:
        made = artifact.run(inputs)
    path.unlink()
    return [{name: made[f"n{i}_{name}"] for name in t.graph.output_names} for i, t in enumerate(trials)]


def union(graphs: Sequence[Graph], weights: Sequence[Arrays]) -> tuple[Graph, Arrays]:
    """Networks side by side as one. Symbols are told apart by their number, too."""
    from archc.ir.dims import symbol
    from archc.ir.op import Call, bind

    joined, together = Graph("batch"), {}
    for i, graph in enumerate(graphs):
        part = clone(graph)
        own = sorted({s for g in part.graphs() for v in g.inputs for s in v.type.symbols})
        renamed = {s: symbol(f"{s}_n{i}") for s in own}
        parameters: dict[Parameter, Parameter] = {}
        for g in part.graphs():
            for v in g.inputs:
                v.type = v.type.substitute(renamed)
        for node in part.walk():
            _rename(node, f"n{i}.", renamed, parameters)
        for node in _inner_first(part):
            node.bound = bind(node.op, Call(node.params, tuple(v.type for v in node.operands), node.regions))
            for value, type_ in zip(node.outputs, node.bound.results, strict=True):
                value.type = type_
        for v in part.inputs:
            v.name = f"n{i}_{v.name}"
        joined.inputs += part.inputs
        joined.nodes += part.nodes
        joined.outputs += part.outputs
        joined.output_names += [f"n{i}_{name}" for name in part.output_names]
        together |= {f"n{i}.{name}": w for name, w in weights[i].items()}
    return joined, together


def _inner_first(graph: Graph) -> list[Node]:
    return list(graph.walk())


def _rename(node: Node, prefix: str, renamed: Mapping[str, Any], parameters: dict[Parameter, Parameter]) -> None:
    node.name = prefix + node.name
    for role, p in node.weights.items():
        node.weights[role] = parameters.setdefault(p, Parameter(prefix + p.name, p.type, p.init, p.trainable))
    node.params = node.params.model_copy(
        update={f: _substituted(getattr(node.params, f), renamed) for f in type(node.params).model_fields}
    )


def _substituted(value: Any, renamed: Mapping[str, Any]) -> Any:
    from archc.ir.dims import Expr, substitute

    if isinstance(value, Expr):
        return substitute(value, renamed)
    if isinstance(value, tuple):
        return tuple(_substituted(v, renamed) for v in value)
    return value


def values_of(graph: Graph) -> list[Value]:
    return [v for node in graph.nodes for v in node.outputs]
