"""Gates on residual blocks: `shortcut + body(x)` becomes `shortcut + α · body(x)`, α a parameter.

With α = 1 the network is what it was, and α can be trained. ReZero starts from 0, where every block is the identity and
gradients reach any depth; the function of a trained network is then gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from archc.ir.graph import Graph
from archc.ir.ops.constants import PARAMETER
from archc.ir.ops.elementwise import MUL
from archc.ir.types import FLOATS
from archc.passes.blocks import Residual, residuals
from archc.passes.editing import Editor
from archc.passes.manager import Context, Contract
from archc.passes.transform import Options, Refusal, Site, Transform


class ReZeroOptions(Options):
    """
    init  what α is at first: with 1 the function is kept, 0 is ReZero's
    per   one α for a block, or one for each of its channels (LayerScale)
    """

    init: float = 1.0
    per: Literal["block", "channel"] = "block"


def _channel_axis(block: Residual) -> int:
    """Axis 1 of an image or a signal, the last of tokens: told apart by the operators of the block."""
    rank = block.out.type.rank
    spatial = rank > 3 or (rank == 3 and any(n.op.category == "convolution" for n in block.body))
    return 1 if spatial else rank - 1


def _find(graph: Graph, options: ReZeroOptions) -> Iterator[Site | Refusal]:
    for block in residuals(graph):
        if block.out.type.dtype not in FLOATS:
            continue
        anchor = block.add
        if options.per == "channel":
            size = block.out.type.shape[_channel_axis(block)]
            if not isinstance(size, int):
                yield Refusal(anchor, "a gate for each channel needs a known number of them", f"there are {size}")
                continue
        yield Site(anchor, (anchor,), block.graph, block)


def _apply(graph: Graph, sites: Sequence[Site], options: ReZeroOptions, context: Context) -> None:
    editor = Editor(graph, graph, sites[0].anchor)
    for site in sites:
        block: Residual = site.found
        e = editor.beside(site.graph, site.anchor)
        shape: tuple[int, ...] = (1,)
        if options.per == "channel":
            axis = _channel_axis(block)
            size = block.out.type.shape[axis]
            assert isinstance(size, int)
            shape = (size, *(1 for _ in range(block.out.type.rank - axis - 1)))
        init = f"constant({options.init!r})"
        alpha = e(PARAMETER, name="alpha", shape=shape, init=init, dtype=block.out.type.dtype)
        gated = e(MUL, block.out, alpha, name="gated")
        site.anchor.set_inputs(tuple(gated if v is block.out else v for v in site.anchor.inputs))


def _contract(options: ReZeroOptions) -> Contract:
    if options.init == 1:
        return Contract()
    return Contract("reinitialised", "reinitialised", f"residual blocks count {options.init:g} times what they did")


REZERO = Transform(
    name="rezero",
    doc="A residual block gets a gate: its body is multiplied by a parameter before it is added.",
    options=ReZeroOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="residual blocks, `x + body(x)`",
    variants=("rezero", "rezero(init = 0)", "rezero(per = channel)"),
    paper="Bachlechner et al. 2020, arXiv:2003.04887; a gate for each channel: Touvron et al. 2021, arXiv:2103.17239",
)
