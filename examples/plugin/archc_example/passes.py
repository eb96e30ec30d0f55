"""The transform `scale_layers`: linear layers are followed by a learned number, born as 1.

`archc transform net.arch --pass 'scale_layers at layers 0..2'`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from archc.ir.graph import Graph
from archc.ir.ops.constants import PARAMETER
from archc.ir.ops.elementwise import MUL
from archc.ir.ops.linear import LINEAR
from archc.passes.blocks import layers
from archc.passes.editing import Editor
from archc.passes.manager import Context, Contract
from archc.passes.transform import Options, Refusal, Site, Transform


class ScaleOptions(Options):
    """per_channel  a number for each output instead of one for all"""

    per_channel: bool = False


def _find(graph: Graph, options: ScaleOptions) -> Iterator[Site | Refusal]:
    for region, node in layers(graph, [LINEAR]):
        yield Site(node, (node,), region)


def _apply(graph: Graph, sites: Sequence[Site], options: ScaleOptions, context: Context) -> None:
    for site in sites:
        e, y = Editor(graph, site.graph, site.anchor), site.anchor.output
        size = y.type.shape[-1] if options.per_channel else 1
        scale = e(PARAMETER, name="scale", shape=(size,), init="ones")
        scaled = e.node(MUL, y, scale, name="scaled")
        y.replace_all_uses(scaled.output, site.graph)
        scaled.set_inputs((y, scale))  # this one goes on reading the layer itself


SCALE_LAYERS = Transform(
    name="scale_layers",
    doc="A linear layer is followed by a learned factor.",
    options=ScaleOptions,
    find=_find,
    apply=_apply,
    contract=lambda options: Contract(),
    where="linear layers",
    variants=("scale_layers", "scale_layers(per_channel = true)"),
    paper="the learned temperature of Touvron et al. 2021, LayerScale, arXiv:2103.17239",
)
