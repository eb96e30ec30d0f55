"""Nets as a hypernetwork reads them: the arrays of the parameter graph and a plan for each weight, ready to batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from archc.ir.graph import Graph
from archc.metanet.ghn.plan import WeightPlan, weight_plans
from archc.metanet.tensor_graph import AXIS_COLUMNS, TensorGraph, tensor_arrays
from archc.metanet.vocabulary import Vocabulary

MAX_SLOT, MAX_RESULT, MAX_MEMBER, MAX_LEVEL = 7, 3, 31, 3
"""Slots, results and regions of one name beyond these count as the last."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A net, or several side by side: op nodes, weights ("uses" are pairs of a weight and an op), edges.

    kind [n]; columns, amounts [a] and starts [n]: the attributes that are not 0, node by node; shape [n, 56];
    origin [n, 80]; position [n, 9]; turn [n]: how the op turns a plane (see `archc.metanet.ghn.turns`); feeds [2, e]
    with flow, slot and result [e, 3]; inside [2, m] with region and member [m, 2]; use_op, use_weight, use_role [u];
    weight_features [p, 64]; `plans` are those of the p weights, and `net` [p] says whose; `node_net` [n].
    """

    kind: Tensor
    columns: Tensor
    amounts: Tensor
    starts: Tensor
    shape: Tensor
    origin: Tensor
    position: Tensor
    turn: Tensor
    feeds: Tensor
    flows: Tensor
    inside: Tensor
    regions: Tensor
    use_op: Tensor
    use_weight: Tensor
    use_role: Tensor
    weight_features: Tensor
    plans: tuple[WeightPlan, ...]
    net: Tensor
    node_net: Tensor
    nets: int = 1


def subject(graph: Graph, words: Vocabulary) -> Subject:
    """Read a graph.

    Raises: CompileError (E0810) for an op, role or attribute that `words` has not, E0820 for weights that nobody
    predicts.
    """
    arrays = tensor_arrays(graph, words)
    plans = {plan.name: plan for plan in weight_plans(graph)}
    rows, columns = np.nonzero(arrays.op_attributes)
    nodes = len(arrays.ops)
    flows = np.minimum(arrays.feeds_attr, [3, MAX_SLOT, MAX_RESULT])
    regions = np.minimum(arrays.inside_attr, [99, MAX_MEMBER])
    return Subject(
        kind=torch.from_numpy(arrays.op_kind),
        columns=torch.from_numpy(columns),
        amounts=torch.from_numpy(arrays.op_attributes[rows, columns]),
        starts=torch.from_numpy(np.searchsorted(rows, np.arange(nodes))),
        shape=torch.from_numpy(arrays.op_shape),
        origin=torch.from_numpy(arrays.op_origin),
        position=torch.from_numpy(arrays.op_position),
        turn=torch.tensor(_turns(arrays, words), dtype=torch.long),
        feeds=torch.from_numpy(arrays.feeds),
        flows=torch.from_numpy(flows),
        inside=torch.from_numpy(arrays.inside),
        regions=torch.from_numpy(regions),
        use_op=torch.from_numpy(arrays.weighs[1]),
        use_weight=torch.from_numpy(arrays.weighs[0]),
        use_role=torch.from_numpy(arrays.weighs_attr[:, 0]),
        weight_features=torch.from_numpy(np.concatenate([arrays.parameter_shape, arrays.parameter_init], 1)),
        plans=tuple(plans[name] for name in arrays.names),
        net=torch.zeros(len(plans), dtype=torch.long),
        node_net=torch.zeros(nodes, dtype=torch.long),
    )


def _turns(arrays: TensorGraph, words: Vocabulary) -> list[int]:
    """The turn of the plane of the last two axes that each op makes, from what the op means: mirrors of `flip`, and
    exchanges by `permute` and `transpose`. Of [N, tokens, channels] these axes are a plane where one of them is a row
    or a column of pixels; where both have inner structure, as those of patches, nothing is turned."""
    found = [0] * len(arrays.ops)
    column = words.places["attributes"]
    width = len(AXIS_COLUMNS)
    for i, kind in enumerate(arrays.op_kind.tolist()):
        op = words.ops[kind]
        if op not in ("flip", "permute", "transpose"):
            continue
        has = {name for name, place in column.items() if arrays.op_attributes[i, place]}
        shape = arrays.op_shape[i].reshape(-1, width)
        rank = int(shape[:, 0].sum())
        if rank < 3:
            continue
        last, other = rank - 1, rank - 2
        if op == "flip":
            found[i] = 2 * (f"axis={other}" in has) + (f"axis={last}" in has)
            continue
        permuted = {f"order[{last}]={other}", f"order[{other}]={last}"} <= has
        transposed = {f"a={last}", f"b={other}"} <= has or {f"a={other}", f"b={last}"} <= has
        pinned, factors = (AXIS_COLUMNS.index(name) for name in ("pinned", "factors"))
        plane = rank > 3 or any(axis[pinned] and axis[factors] == 1.0 for axis in shape[:2])
        found[i] = 4 * (plane and (permuted if op == "permute" else transposed))
    return found


_OFFSETS = {"starts": "columns", "feeds": "kind", "inside": "kind", "use_op": "kind", "use_weight": "weight_features"}
"""Fields that hold places -> the field whose length they are counted in."""


def collate(subjects: Sequence[Subject]) -> Subject:
    """Several nets side by side, as one graph without edges between them."""
    if len(subjects) == 1:
        return subjects[0]
    found: dict[str, Tensor] = {}
    for name in Subject.__dataclass_fields__:
        parts = [getattr(s, name) for s in subjects]
        if name in ("plans", "nets", "net", "node_net"):
            continue
        if counted := _OFFSETS.get(name):
            total, shifted = 0, []
            for part, s in zip(parts, subjects, strict=True):
                shifted.append(part + total)
                total += len(getattr(s, counted))
            parts = shifted
        found[name] = torch.cat(parts, dim=1 if name in ("feeds", "inside") else 0)
    counts = torch.tensor([len(s.plans) for s in subjects])
    nodes = torch.tensor([len(s.kind) for s in subjects])
    each = torch.arange(len(subjects))
    return Subject(
        **found,
        plans=tuple(plan for s in subjects for plan in s.plans),
        net=each.repeat_interleave(counts),
        node_net=each.repeat_interleave(nodes),
        nets=len(subjects),
    )
