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
    logits = logits.reshape(len(rows), -1) / p["temperature"]
    scores = (softmax(logits, -1) if p["score"] == "softmax" else 1 / (1 + torch.exp(-logits))).tolist()
    assert rows.ndim == kept + 1
    chosen = _by_experts(p, scores) if p["routing"] == "expert" else _by_rows(p, scores)
    made = []
    for row, score, (weighed, served) in zip(rows.split(1), scores, chosen, strict=True):
        share = sum(score[e] for e in weighed) if p["normalize"] else 1.0
        parts = [experts[0](row)[0] * 0.0]
        parts += [experts[e](row)[0] * (score[e] / share) for e in served]
        if shared is not None:
            parts += shared(row)
        made.append(torch.stack(parts).sum(0))
    result = torch.cat(made)
    return result.reshape(*lead, *result.shape[1:])


def _room(p: Params, rows: int, experts: int) -> float:
    """How many rows an expert takes."""
    return math.inf if p["capacity"] is None else math.ceil(p["capacity"] * rows * p["top_k"] / experts)


def _by_rows(p: Params, scores: list[list[float]]) -> list[tuple[list[int], list[int]]]:
    """Each row chooses experts: (those among which weights are shared out, those that have room for it)."""
    taken = [0] * len(scores[0])
    found = []
    for score in scores:
        best = sorted(range(len(score)), key=lambda e, score=score: -score[e])[: p["top_k"]]
        served = [e for e in best if taken[e] < _room(p, len(scores), len(score))]
        for e in served:
            taken[e] += 1
        found.append((best, served))
    return found


def _by_experts(p: Params, scores: list[list[float]]) -> list[tuple[list[int], list[int]]]:
    """Each expert chooses rows."""
    count = len(scores[0])
    takes = [
        sorted(range(len(scores)), key=lambda r, e=e: -scores[r][e])[: int(_room(p, len(scores), count))]
        for e in range(count)
    ]
    served = [[e for e in range(count) if r in takes[e]] for r in range(len(scores))]
    return [(experts, experts) for experts in served]


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
