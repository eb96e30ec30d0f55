"""Ops that carry networks of their own: mixtures of experts, skipped and early-exited parts, recurrences.

What is in a region is typed on *rows* where only some of the samples (or tokens) reach it: `Rows` is a symbol of its
own. A region's inputs are its formals, then what the node captures from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from archc.ir.cost import graph_flops
from archc.ir.dims import Dim, substitute, symbols, total
from archc.ir.graph import Graph
from archc.ir.op import BindError, Bound, Call, Dims, OpDef, Params, counted, register
from archc.ir.signature import Letter
from archc.ir.types import FLOATS, TensorType


def _axes(prefix: str, rank: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(rank)]


def _tensor(name: str, type_: TensorType, axes: Sequence[str]) -> str:
    return f"{name}:{type_.dtype}[{', '.join(axes)}]"


def _named(prefix: str, shape: Sequence[Dim]) -> dict[str, Dim]:
    return {f"{prefix}{i}": size for i, size in enumerate(shape)}


def results(op: str, region: Graph, count: int = 1) -> list[TensorType]:
    """The types that a region returns.

    Raises: BindError (E0315) when they are not `count` tensors.
    """
    found = [v.type for v in region.outputs]
    if len(found) != count:
        raise BindError(
            "E0315",
            f"`{region.name}` of `{op}` needs to return {count} tensor{'s' * (count != 1)}",
            label=f"it returns {len(found)}",
            blame=region,
        )
    return found


def _same(op: str, region: Graph, needed: TensorType, model: Graph | None = None) -> None:
    """Demand that `region` returns a tensor of type `needed`: what `model` returns, where that is given."""
    (found,) = results(op, region)
    if needed != found:
        raise BindError(
            "E0315",
            f"`{region.name}` of `{op}` needs to return {needed}" + (f", as `{model.name}` does" if model else ""),
            label=f"it returns {found}",
            blame=region,
            regions=[model] if model else [],
            operands=[] if model else [0],
        )


def _rows_flops(region: Graph, rows: Dim) -> Dim:
    """The FLOPs of a region when `rows` rows reach it."""
    return substitute(graph_flops(region), dict.fromkeys(symbols(region.inputs[0].type.shape[0]), rows))


# -- mixture of experts -------------------------------------------------------------------------------------------


class MoeParams(Params):
    """Gates are the scores of the `top_k` experts with the largest ones; they sum to 1 when `normalize`.

    score        "softmax" of the logits over all experts, or the "sigmoid" of each
    routing      "token": each row chooses top_k experts; "expert": each expert chooses the rows with the largest
                 scores, ceil(capacity · rows · top_k / experts) of them, so a row may have more experts or none
    temperature  divides the logits
    capacity     at most ceil(capacity · rows · top_k / experts) rows for each expert; later rows lose it. None: no
                 limit
    noise        standard deviation of the noise on logits in training
    balance      weight of the load-balancing loss (none is needed where experts choose), z_loss that of the mean
                 squared log-sum-exp of the logits
    shared       the last region is an expert that sees every row, added to what the others give
    """

    added: ClassVar = frozenset({"score", "routing", "temperature"})

    top_k: PositiveInt
    normalize: bool = True
    capacity: PositiveFloat | None = None
    noise: NonNegativeFloat = 0.0
    balance: NonNegativeFloat = 0.01
    z_loss: NonNegativeFloat = 0.0
    shared: bool = False
    score: Literal["softmax", "sigmoid"] = "softmax"
    routing: Literal["token", "expert"] = "token"
    temperature: PositiveFloat = 1.0


def moe_regions(call: Call[MoeParams]) -> tuple[Graph, tuple[Graph, ...], Graph | None]:
    """(router, experts, shared expert)."""
    router, *experts = call.regions
    shared = experts.pop() if call.params.shared else None
    return router, tuple(experts), shared


def moe_by_token(call: Call[MoeParams]) -> bool:
    """Whether each token is routed on its own (the logits keep all axes of x but the last), or each sample."""
    return results("moe", call.regions[0])[0].rank == call.rank


def _moe_letters(call: Call[MoeParams]) -> tuple[list[str], list[str]]:
    """(axes that count rows, axes that an expert sees) of x."""
    letters, lead = _axes("x", call.rank), call.rank - 1 if moe_by_token(call) else 1
    return letters[:lead], letters[lead:]


def _moe_line(call: Call[MoeParams]) -> str:
    rows, kept = _moe_letters(call)
    _check_moe(call)
    if call.params.routing == "expert":  # a row is compared with the others
        rows = [f"{letter}~" for letter in rows]
    elif call.params.capacity is not None:  # the first rows are served first
        rows = [f"{letter}!" for letter in rows]
    made = results("moe", moe_regions(call)[1][0])[0]
    return f"{_tensor('x', call.types[0], [*rows, *kept])} -> {_tensor('', made, [*rows, *_axes('o', made.rank - 1)])}"


def _check_moe(call: Call[MoeParams]) -> None:
    router, experts, shared = moe_regions(call)
    (x,), (logits,) = call.types, results("moe", router)
    lead = x.shape[:-1] if logits.rank == x.rank else x.shape[:1]
    if x.rank < 2 or logits.dtype not in FLOATS or logits.shape != (*lead, len(experts)):
        raise BindError(
            "E0315",
            f"`router` of `moe` needs to return one logit for each expert, and there "
            f"{'is' if len(experts) == 1 else 'are'} {len(experts)}: [{', '.join(map(str, (*lead, len(experts))))}]",
            label=f"it returns {logits}",
            blame=router,
            operands=[0],
        )
    if call.params.top_k > len(experts):
        raise BindError(
            "E0311",
            f"`top_k` of `moe` needs to be at most {len(experts)}, the number of experts",
            label=f"found top_k = {call.params.top_k}",
            blame="top_k",
        )
    if call.params.routing == "expert" and call.params.capacity is None:
        raise BindError(
            "E0311",
            'experts that choose rows, `routing = "expert"` of `moe`, need a `capacity`: how many they choose',
            label="found no capacity",
            blame="routing",
            help="`capacity = 1.0` gives each row `top_k` experts on average",
        )
    made = results("moe", experts[0])[0]
    for expert in (*experts, *([shared] if shared else [])):
        _same("moe", expert, _rows_as(made, expert), experts[0])


def _rows_as(made: TensorType, region: Graph) -> TensorType:
    """`made` with the rows that `region` is typed on."""
    return TensorType((region.inputs[0].type.shape[0], *made.shape[1:]), made.dtype)


def _moe_sizes(call: Call[MoeParams], dims: Dims) -> Dims:
    return _named("o", results("moe", moe_regions(call)[1][0])[0].shape[1:])


def _moe_lines(call: Call[MoeParams]) -> Sequence[str]:
    router, experts, shared = moe_regions(call)
    rows, kept = _moe_letters(call)
    (x,), (logits,), made = call.types, results("moe", router), results("moe", experts[0])[0]
    of_rows = f"{_tensor('x', x, ['rows', *kept])} -> {_tensor('', made, ['rows', *_axes('o', made.rank - 1)])}"
    routed = f"{_tensor('x', x, [*rows, *kept])} -> {_tensor('', logits, [*rows, 'expert!'])}"
    return [routed, *[of_rows] * (len(experts) + (shared is not None))]


def _moe_flops(call: Call[MoeParams], bound: Bound) -> Dim:
    """Every row goes to top_k experts; balanced, each of E experts sees the same share of them. Experts that choose
    take as many rows as their capacity says."""
    router, experts, shared = moe_regions(call)
    lead, _ = _moe_letters(call)
    rows: Dim = 1
    for letter in lead:
        rows = rows * bound.size(Letter(letter))
    flops = graph_flops(router) + rows * (14 * len(experts) + 3 * call.params.top_k)
    # rows do not meet in an expert, so its cost is linear in them: the mean over experts of the cost of all rows
    served = rows * call.params.top_k
    if call.params.routing == "expert":
        assert call.params.capacity is not None
        share = round(1000 * call.params.capacity)  # a dimension is made of whole numbers
        served = served * share // 1000
    flops = flops + total(_rows_flops(expert, served) for expert in experts) // len(experts)
    return flops + (_rows_flops(shared, rows) if shared is not None else 0)


MOE = register(
    OpDef(
        name="moe",
        doc="A mixture of experts: a router weighs experts for each token (or each sample), and only the top_k run.",
        line=_moe_line,
        params=MoeParams,
        operands=("x",),
        sizes=_moe_sizes,
        flops=_moe_flops,
        regions=("router", "*experts", "shared?"),
        region_lines=_moe_lines,
        example="moe(router = linear(4), experts = copies(4, linear(8)), top_k = 2)",
        category="structural",
        paper="Shazeer et al. 2017, arXiv:1701.06538; balance: Fedus et al. 2021, arXiv:2101.03961; experts that "
        "choose: Zhou et al. 2022, arXiv:2202.09368; sigmoid scores: DeepSeek-AI 2024, arXiv:2412.19437; temperature: "
        "Nie et al. 2021, arXiv:2112.14397",
    )
)


# -- skipping -----------------------------------------------------------------------------------------------------


class SkipParams(Params):
    """What opens a gate, and what keeps it from staying open.

    budget  the share of tokens that the body sees: those with the largest gate, in their order
    cost    weight of the mean gate in the training loss, so that gates learn to close; `target` of it is free
    """

    added: ClassVar = frozenset({"cost", "target"})

    mode: Literal["hard", "soft"] = "hard"
    threshold: float = 0.5
    budget: float | None = Field(default=None, gt=0, le=1)
    cost: NonNegativeFloat = 0.0
    target: float = Field(default=0.0, ge=0, le=1)


def skip_by_token(call: Call[SkipParams]) -> bool:
    """Whether the gate speaks of each token (it returns [N, T] or [N, T, 1]), or of each sample."""
    (x,), (gate,) = call.types, results("skip", call.regions[0])
    return x.rank == 3 and x.shape[1] != 1 and gate.shape in (x.shape[:2], (*x.shape[:2], 1))


def _skip_line(call: Call[SkipParams]) -> str:
    letters = _axes("x", call.rank)
    gate, body = call.regions
    (x,), (g,) = call.types, results("skip", gate)
    by_token = skip_by_token(call)
    if not by_token and (g.shape[:1] != x.shape[:1] or not set(g.shape[1:]) <= {1}):
        raise BindError(
            "E0315",
            "`gate` of `skip` needs to return one number for each sample, [N, 1], or each token, [N, T, 1]",
            label=f"it returns {g} for {x}",
            blame=gate,
            operands=[0],
        )
    if call.params.budget is not None and not by_token:
        raise BindError(
            "E0311",
            "a budget of `skip` is a share of tokens",
            label=f"the gate speaks of each sample: it returns {g}",
            blame=gate,
            operands=[0],
            help="let the gate keep the token axis: `gate = linear(1) -> sigmoid`",
        )
    if call.params.budget is not None and call.params.cost:
        raise BindError(
            "E0311",
            "`skip` takes a `budget` or a `cost`: a budget says how much is computed, a cost lets training find out",
            label=f"found budget = {call.params.budget:g} and cost = {call.params.cost:g}",
            blame="cost",
        )
    _same("skip", body, body.inputs[0].type)
    if call.params.budget is not None:
        letters[1] += "!"  # which tokens are neighbours in the body depends on their order
    return f"{_tensor('x', x, letters)} -> {_tensor('', x, letters)}"


def _skip_lines(call: Call[SkipParams]) -> Sequence[str]:
    letters, (x,) = _axes("x", call.rank), call.types
    (gate,) = results("skip", call.regions[0])
    by_token = skip_by_token(call)
    gates = [a if i < 1 + by_token else "1" for i, a in enumerate([*letters, "1"][: gate.rank])]
    inner = letters.copy()
    if call.params.budget is not None:
        inner[1] = "kept!"
    elif not by_token:
        inner[0] = "rows"
    body = f"{_tensor('x', x, inner)} -> {_tensor('', x, inner)}"
    return [f"{_tensor('x', x, letters)} -> {_tensor('', gate, gates)}", body]


def _skip_flops(call: Call[SkipParams], bound: Bound) -> Dim:
    """At most: every gate open, or as many tokens as the budget allows."""
    gate, body = call.regions
    (x,), inner = call.types, body.inputs[0].type
    rows: dict[str, Dim] = dict.fromkeys(symbols(inner.shape[0]), x.shape[0])
    if call.params.budget is not None:
        share = round(1000 * call.params.budget)  # a dimension is made of whole numbers
        rows |= dict.fromkeys(symbols(inner.shape[1]), x.shape[1] * share // 1000)
    return graph_flops(gate) + substitute(graph_flops(body), rows)


SKIP = register(
    OpDef(
        name="skip",
        doc="Run the body where the gate is open, else pass `x` on. Training mixes `g · body(x) + (1 - g) · x`.",
        line=_skip_line,
        params=SkipParams,
        operands=("x",),
        flops=_skip_flops,
        regions=("gate", "body"),
        region_lines=_skip_lines,
        example="skip(gate = mean(1) -> linear(1) -> sigmoid, body = linear(8))",
        category="structural",
        paper="Wang et al. 2017, SkipNet, arXiv:1711.09485; budget: Raposo et al. 2024, arXiv:2404.02258",
    )
)


# -- early exit ---------------------------------------------------------------------------------------------------


class ExitParams(Params):
    """A sample leaves when the confidence of its logits reaches `threshold`.

    confidence  "max_softmax": the largest probability; "margin": the largest less the second; "entropy": 1 minus the
                entropy in units of its maximum, log(classes)
    """

    threshold: float
    confidence: Literal["max_softmax", "entropy", "margin"] = "max_softmax"


def _exit_line(call: Call[ExitParams]) -> str:
    (x,), (head, rest) = call.types, call.regions
    (made,) = results("exit", head)
    if made.rank != 2 or made.shape[0] != x.shape[0] or made.dtype not in FLOATS:
        raise BindError(
            "E0315",
            "`head` of `exit` needs to return logits for each sample: [N, classes]",
            label=f"it returns {made}",
            blame=head,
            operands=[0],
        )
    (last,) = results("exit", rest)
    if last != _rows_as(made, rest):
        raise BindError(
            "E0315",
            "`head` and `rest` of `exit` need to return the same logits",
            label=f"`head` returns {made}",
            blame=head,
            regions=[rest],
        )
    return f"{_tensor('x', x, _axes('x', x.rank))} -> {_tensor('', made, ['x0', 'classes'])}"


def _exit_lines(call: Call[ExitParams]) -> Sequence[str]:
    letters, (x,) = _axes("x", call.rank), call.types
    (made,) = results("exit", call.regions[0])
    head = f"{_tensor('x', x, letters)} -> {_tensor('', made, ['x0', 'classes'])}"
    rest = f"{_tensor('x', x, ['rows', *letters[1:]])} -> {_tensor('', made, ['rows', 'classes'])}"
    return [head, rest]


def _exit_flops(call: Call[ExitParams], bound: Bound) -> Dim:
    """At most: no sample leaves early."""
    head, rest = call.regions
    return graph_flops(head) + _rows_flops(rest, call.types[0].shape[0])


EXIT = register(
    OpDef(
        name="exit",
        doc="An early exit: `head(x)` for samples of which it is confident, `rest(x)` for the others. Training returns "
        "`rest(x)` and keeps the head's logits for the loss.",
        line=_exit_line,
        params=ExitParams,
        operands=("x",),
        sizes=lambda call, dims: {"classes": results("exit", call.regions[0])[0].shape[1]},
        flops=_exit_flops,
        regions=("head", "rest"),
        region_lines=_exit_lines,
        example="exit(head = linear(3), rest = linear(8) -> relu -> linear(3), threshold = 0.9)",
        example_inputs=("f32[N, 8]",),
        category="structural",
        paper="Teerapittayanon et al. 2016, BranchyNet, arXiv:1709.01686",
    )
)


# -- recurrence ---------------------------------------------------------------------------------------------------


class ScanParams(Params):
    """`axis` of x is walked along, from its end when `reverse`; results keep the order of x."""

    axis: int = 1
    reverse: bool = False


def _scan_axes(call: Call[ScanParams]) -> tuple[list[str], list[list[str]], list[str]]:
    """Letters of one step of x, of each state, and of one step of the result."""
    step = _axes("x", call.rank - 1)
    states = [_axes(f"s{i}_", t.rank) for i, t in enumerate(call.types[1:])]
    return step, states, _axes("y", results("scan", call.regions[0], len(call.types))[0].rank)


def _walked(letters: Sequence[str], axis: int) -> list[str]:
    return [*letters[:axis], "time!", *letters[axis:]]


def _scan_tensors(
    call: Call[ScanParams], made: TensorType, x: Sequence[str], states: Sequence[Sequence[str]], y: Sequence[str]
) -> str:
    kinds = call.types[1:]
    given = [_tensor(f"s{i}", kind, axes) for i, (kind, axes) in enumerate(zip(kinds, states, strict=True))]
    final = [_tensor("", kind, axes) for kind, axes in zip(kinds, states, strict=True)]
    return f"{' '.join([_tensor('x', call.types[0], x), *given])} -> {' '.join([_tensor('', made, y), *final])}"


def _scan_line(call: Call[ScanParams]) -> str:
    (cell,), axis = call.regions, call.axis(call.params.axis)
    made, *carried = results("scan", cell, len(call.types))
    for i, (state, returned) in enumerate(zip(call.types[1:], carried, strict=True), 1):
        if state != returned:
            raise BindError(
                "E0315",
                f"`cell` of `scan` needs to return each state as it came: state {i} as {state}",
                label=f"it returns {returned}",
                blame=cell,
                operands=[i],
            )
    if axis > made.rank:
        raise BindError(
            "E0306",
            f"`scan` cannot stack results along axis {axis}",
            label=f"each of them is {made}",
            blame="axis",
            operands=[0],
        )
    step, states, result = _scan_axes(call)
    return _scan_tensors(call, made, _walked(step, axis), states, _walked(result, axis))


def _scan_lines(call: Call[ScanParams]) -> Sequence[str]:
    step, states, result = _scan_axes(call)
    made = results("scan", call.regions[0], len(call.types))[0]
    return [_scan_tensors(call, made, step, states, result)]


def _scan_sizes(call: Call[ScanParams], dims: Dims) -> Dims:
    return _named("y", results("scan", call.regions[0], len(call.types))[0].shape)


def _scan_flops(call: Call[ScanParams], bound: Bound) -> Dim:
    length = call.types[0].shape[call.axis(call.params.axis)]
    return graph_flops(call.regions[0]) * length


SCAN = register(
    OpDef(
        name="scan",
        doc="A recurrence: `y, state = cell(x_t, state)` for each step along an axis of any length. Returns the y of "
        "all steps, then the final states.",
        line=_scan_line,
        params=ScanParams,
        spelled=counted("axis"),
        operands=("xs", "*states"),
        sizes=_scan_sizes,
        flops=_scan_flops,
        regions=("cell",),
        region_lines=_scan_lines,
        example="scan(fn(x, h) { let new = tanh(x + h) return new, new }, state = [[8]], axis = 1)",
        category="structural",
        paper="Elman 1990, Finding structure in time",
    )
)
