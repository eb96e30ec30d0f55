"""Programs against the same networks written by hand in PyTorch: shapes, outputs, gradients, running estimates."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from twins import TWINS, Twin, tensors_of

from archc.backends.torch.module import ArchModule, to_torch
from archc.grammar.load import loads

each_twin = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)


def pair(twin: Twin) -> tuple[ArchModule, nn.Module, Tensor]:
    """The network made from the program with the hand-written one's weights, that one, and an input; in f64."""
    torch.manual_seed(0)
    by_hand, x = twin.module().double(), twin.inputs()
    graph = loads(twin.program)
    module = to_torch(graph, dtype="f64")
    module.load_state_dict(dict(zip(graph.parameters(), tensors_of(by_hand), strict=True)))
    return module, by_hand, x.double() if x.is_floating_point() else x


def ours(module: ArchModule, twin: Twin) -> list[Tensor]:
    """Gradients of parameters and values of buffers, in the program's order."""
    buffers = dict(module.named_buffers())
    found = []
    for name in loads(twin.program).parameters():
        path = ".".join(module.parameter_paths[name])
        value = buffers[path] if path in buffers else module.get_parameter(path).grad
        assert value is not None, name
        found.append(value)
    return found


@each_twin
def test_the_parameters_have_the_same_shapes(twin: Twin) -> None:
    module, by_hand, _ = pair(twin)
    assert Counter(t.shape for t in module.state_dict().values()) == Counter(t.shape for t in tensors_of(by_hand))


@each_twin
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_outputs_and_gradients_agree(twin: Twin, training: bool) -> None:
    module, by_hand, x = pair(twin)
    results = []
    for net in (module.train(training), by_hand.train(training)):
        torch.manual_seed(1)  # both drop the same elements
        y = net(x)
        (y * torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)).sum().backward()
        results.append(y)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    # running estimates are among them
    torch.testing.assert_close(ours(module, twin), tensors_of(by_hand, gradients=True), rtol=1e-7, atol=1e-9)


def test_a_wrong_weight_is_noticed() -> None:
    """The comparison above can fail: one element of one weight is enough."""
    module, by_hand, x = pair(TWINS[1])
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 1e-3
    assert (module.eval()(x) - by_hand.eval()(x)).abs().max() > 1e-7
