"""Normalisations."""

from __future__ import annotations

from archc.backends.torch.codegen import TorchNode, lowering


@lowering("batch_norm")
def _(n: TorchNode) -> str:
    # torch's own order: running estimates, then scale and shift
    estimates = f"{n.running_mean}, {n.running_var}, {n.weight}, {n.bias}"
    momentum = getattr(n.p, "momentum", 0.1)
    return f"F.batch_norm({n.x}, {estimates}, self.training, momentum={momentum}, eps={n.p.eps})"


@lowering("layer_norm")
def _(n: TorchNode) -> str:
    return f"F.layer_norm({n.x}, {n.sizes(n.node.output.type.shape[-1:])}, {n.weight}, {n.bias}, {n.p.eps})"


@lowering("norm")
def _(n: TorchNode) -> str:
    return lowering["batch_norm" if n.node.output.type.rank == 4 else "layer_norm"](n)


@lowering("group_norm")
def _(n: TorchNode) -> str:
    # not F.group_norm, which refuses a group of one element although its result (0) is well defined
    return f"torch.group_norm({n.x}, {n.p.groups}, {n.weight}, {n.bias}, {n.p.eps})"


@lowering("instance_norm")
def _(n: TorchNode) -> str:
    # not F.instance_norm, which refuses a channel of one position
    return f"torch.instance_norm({n.x}, {n.weight}, {n.bias}, None, None, True, 0.0, {n.p.eps}, False)"


@lowering("rms_norm")
def _(n: TorchNode) -> str:
    return f"F.rms_norm({n.x}, {n.sizes(n.node.output.type.shape[-1:])}, {n.weight}, {n.p.eps})"
