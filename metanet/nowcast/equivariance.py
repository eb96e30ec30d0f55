"""How far a nowcaster is from commuting with the certified group, measured on the change that it predicts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from archc.ir.graph import Graph
from archc.metanet import symmetry
from archc.metanet.nowcast.incidence import Incidence, incidence
from archc.metanet.nowcast.model import Nowcaster, Wiring


def equivariance_error(model: Nowcaster, graph: Graph, seed: int = 0, ahead: float = 8.0) -> float:
    """|model(g · history) - g · model(history)| / |model(history)| for a random element g, in float32.

    The history is random: weights that drift and jitter, each tensor at its own pace.

    >>> from archc.metanet.nowcast.model import Config
    >>> from archc.metanet.nowcast.nets import NETS
    >>> equivariance_error(Nowcaster(Config(hidden=8)), NETS["conv"].graph()) < 1e-5
    True
    """
    found = incidence(graph)
    wiring, history = Wiring(found), random_history(found, model.config.window, seed)
    axes = symmetry.group(graph)
    element = symmetry.sample(axes, seed)
    others = {name: np.zeros(p.shape, np.float32) for name, p in graph.parameters().items()}

    def act(flat: Tensor) -> Tensor:
        moved = symmetry.apply(axes, element, others | found.unflatten(flat.numpy()))
        return torch.from_numpy(found.flatten(moved))

    with torch.no_grad():
        before = act(model(history, wiring, [ahead])[0, 0])
        after = model(torch.stack([act(h) for h in history[0]])[None], wiring, [ahead])[0, 0]
    size = float(before.norm())
    assert size > 0, "a change of nothing proves nothing"
    return float((after - before).norm()) / size


def random_history(found: Incidence, window: int, seed: int) -> Tensor:
    """Snapshots f32[1, window, n] of weights that drift and jitter, each tensor at its own pace."""
    make = torch.Generator().manual_seed(seed)
    pace = torch.rand(len(found.names), generator=make)[torch.from_numpy(found.tensor)] * 0.1
    noise = torch.randn(1, window, found.weights, generator=make)
    return torch.randn(1, 1, found.weights, generator=make) + (noise * pace).cumsum(1)
