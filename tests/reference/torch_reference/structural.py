"""Ops with regions, as in evaluation, one row, token or sample at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_reference.elementwise import softmax
from torch_reference.table import Params, Weights, reference

Region = Callable[..., list[Tensor]]


@reference("moe")
def _moe(p: Params, xs: list[Tensor], w: Weights, regions: Sequence[Region]) -> Tensor:
    (x,), router, experts = xs, regions[0], list(regions[1:])
    shared = experts.pop() if p["shared"] else None
    (logits,) = router(x)
    kept = x.ndim - (logits.ndim - 1)  # how many axes of x an expert sees: the last, or all but the first
    rows, lead = x.flatten(0, logits.ndim - 2), logits.shape[:-1]
    weights = softmax(logits.reshape(len(rows), -1), -1)
    assert rows.ndim == kept + 1
    room = [math.inf] * len(experts)
    if p["capacity"] is not None:
        room = [math.ceil(p["capacity"] * len(rows) * p["top_k"] / len(experts))] * len(experts)
    made = []
    for row, weight in zip(rows.split(1), weights.tolist(), strict=True):
        chosen = sorted(range(len(experts)), key=lambda e, weight=weight: -weight[e])[: p["top_k"]]
        share = sum(weight[e] for e in chosen) if p["normalize"] else 1.0
        parts = [experts[e](row)[0] * 0.0 for e in chosen]
        for i, e in enumerate(chosen):
            if room[e] > 0:
                room[e] -= 1
                parts[i] = experts[e](row)[0] * (weight[e] / share)
        if shared is not None:
            parts += shared(row)
        made.append(torch.stack(parts).sum(0))
    result = torch.cat(made)
    return result.reshape(*lead, *result.shape[1:])


@reference("skip")
def _skip(p: Params, xs: list[Tensor], w: Weights, regions: Sequence[Region]) -> Tensor:
    (x,), (gate, body) = xs, regions
    (g,) = gate(x)
    by_token = x.ndim == 3 and x.shape[1] != 1 and g.shape[:2] == x.shape[:2]
    g = g.reshape(*x.shape[: 1 + by_token], *[1] * (x.ndim - 1 - by_token))
    if p["budget"] is not None:
        kept = max(1, math.floor(p["budget"] * x.shape[1]))
        y = x.clone()
        for n, scores in enumerate(g.flatten(1).tolist()):
            tokens = sorted(sorted(range(len(scores)), key=lambda t, scores=scores: -scores[t])[:kept])
            share = g[n, tokens] if p["mode"] == "soft" else 1
            y[n, tokens] = share * body(x[n : n + 1, tokens])[0][0] + (1 - share) * x[n, tokens]
        return y
    if p["mode"] == "soft":
        return g * body(x)[0] + (1 - g) * x
    if by_token:
        return torch.where(g > p["threshold"], body(x)[0], x)
    open_ = (g > p["threshold"]).flatten().tolist()
    return torch.cat([body(row)[0] if o else row for row, o in zip(x.split(1), open_, strict=True)])


def _confidence(logits: Tensor, kind: str) -> Tensor:
    probabilities = softmax(logits, -1)
    ranked = probabilities.sort(-1, descending=True).values
    if kind == "max_softmax":
        return ranked[:, 0]
    if kind == "margin":
        return ranked[:, 0] - ranked[:, 1]
    entropy = -(probabilities * torch.log(probabilities)).sum(-1)
    return 1 - entropy / math.log(logits.shape[1])


@reference("exit")
def _exit(p: Params, xs: list[Tensor], w: Weights, regions: Sequence[Region]) -> Tensor:
    (x,), (head, rest) = xs, regions
    (logits,) = head(x)
    sure = (_confidence(logits, p["confidence"]) >= p["threshold"]).tolist()
    return torch.cat([logits[i : i + 1] if s else rest(x[i : i + 1])[0] for i, s in enumerate(sure)])


@reference("scan")
def _scan(p: Params, xs: list[Tensor], w: Weights, regions: Sequence[Region]) -> tuple[Tensor, ...]:
    x, *states = xs
    steps = list(x.unbind(p["axis"]))
    made = []
    for step in reversed(steps) if p["reverse"] else steps:
        y, *states = regions[0](step, *states)
        made.append(y)
    return (torch.stack(made[::-1] if p["reverse"] else made, p["axis"]), *states)
