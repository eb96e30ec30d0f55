"""`archc symmetry`: the permutations and scalings of a network's weights that keep its function, certified."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archc.cli.console import print_json
from archc.cli.options import Dims, File, Json, Seed, Set, open_model, parse_dims, register
from archc.cli.tables import print_table

if TYPE_CHECKING:
    from archc.ir.axes import Axes, PinnedAxis
    from archc.metanet.scaling import ScalingCertificate, Scalings
    from archc.metanet.symmetry import Certificate

MOST = 12
"""Rows of a table that are printed unless all are asked for."""
All = Annotated[bool, typer.Option("--all", help="every class, exchange and pinned axis, not the first of each table")]


def add_commands(app: typer.Typer) -> None:
    register(app, symmetry)


def symmetry(
    file: File, settings: Set = None, dims: Dims = None, seed: Seed = 0, everything: All = False, as_json: Json = False
) -> None:
    """Which weights may be permuted, exchanged or scaled together, why others may not, and a numeric certificate.

    Certificates are computed in float64 on random weights and a random input, which is stated: small sizes for open
    dimensions, smaller images where the weights allow. Exit 3 when one fails. Example: archc symmetry
    examples/vit_s16.arch
    """
    from archc.metanet import scaling
    from archc.metanet.running import trial
    from archc.metanet.symmetry import certify, group

    model = open_model(file, settings, dims)
    axes = group(model.graph)
    given = trial(model.graph, seed, parse_dims(dims))
    certificate = certify(model.graph, seed, axes=axes, given=given)
    found = [scaling.scalings(model.graph, kind) for kind in ("positive", "sign")]
    scales = [scaling.certify(model.graph, f.kind, seed, found=f, given=given) for f in found]
    if as_json:
        print_json(_document(axes, certificate, found, scales) | {"mixing": scaling.mixing_dimensions(model.graph)})
    else:
        _tell(axes, certificate, found, scales, everything)
        _tell_mixing(scaling.mixing_dimensions(model.graph))
    raise typer.Exit(0 if certificate.ok and all(s.ok for s in scales) else 3)


def _document(
    axes: Axes, certificate: Certificate, found: Sequence[Scalings], scales: Sequence[ScalingCertificate]
) -> dict[str, Any]:
    from archc.metanet.symmetry import order

    return {
        "classes": [
            {
                "size": c.size,
                "copies": c.copies,
                "indexed_by": [str(o.size) for o in c.indexed_by],
                "members": [[m.parameter, m.axis] for m in c.members],
            }
            for c in axes.classes
        ],
        "exchanges": [
            {
                "kind": e.kind,
                "replicas": [[p.name for p in replica] for replica in e.replicas],
                "merged_by": e.node.name,
                "op": e.node.op.name,
                **_place(e.node.span),
            }
            for e in axes.exchanges
        ],
        "order": {
            "factorials": {str(n): k for n, k in sorted(order(axes).items(), reverse=True)},
            "log10": certificate.log10_order,
        },
        "inert": list(certificate.inert),
        "pinned": [
            {
                "parameter": p.member.parameter,
                "axis": p.member.axis,
                "size": str(p.size),
                "why": p.pin.reason,
                "op": p.pin.op or None,
                "node": p.pin.node or None,
                **_place(p.pin.span),
            }
            for p in axes.pinned
        ],
        "certificate": _finite(asdict(certificate)),
        "scaling": [
            {
                **_finite(asdict(s)),
                "free": [{"size": x.size, "through": x.through, "parameters": list(x.parameters)} for x in f.free],
            }
            for f, s in zip(found, scales, strict=True)
        ],
    }


def _place(span: Any) -> dict[str, Any]:
    return {"file": span.file, "line": span.line} if span is not None else {"file": None, "line": None}


def _finite(document: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: None stands for both, and `ok` tells."""
    return {
        k: _finite(v) if isinstance(v, dict) else None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in document.items()
    }


def _tell(
    axes: Axes,
    certificate: Certificate,
    found: Sequence[Scalings],
    scales: Sequence[ScalingCertificate],
    everything: bool,
) -> None:
    from archc.metanet.scaling import by_way
    from archc.metanet.symmetry import order_text

    rows = [
        [str(c.size), f"each of {' × '.join(str(o.size) for o in c.indexed_by)}" if c.indexed_by else "", _members(c)]
        for c in axes.classes
    ]
    _table(["size", "for", "axes that move together"], rows, everything)
    exchanged = [
        [str(e.size), e.kind, f"{e.node.op.name} {e.node.name}{_line(e.node.span)}", _names(e)] for e in axes.exchanges
    ]
    _table(["replicas", "of", "merged by", "weights of the first"], exchanged, everything)
    why = [[str(count), reason] for reason, count in _counted(axes.pinned)]
    _table(["pinned", "because"], why, everything)
    if certificate.inert:
        names = list(certificate.inert)
        shown = ", ".join(names if everything else names[:4]) + (" …" if len(names) > 4 and not everything else "")
        print(f"inert (no change of them moves the output, as computed): {len(names)}: {shown}")
    if certificate.idle:
        print(f"not reached by this input, or no decision depends on it: {len(certificate.idle)} conditional weights")
    print(f"order   {order_text(axes)}  (10^{certificate.log10_order:.1f})")
    inputs = ", ".join(f"{n} {list(shape)}" for n, shape in certificate.inputs.items())
    print(
        f"permutations: {certificate.classes} classes, {certificate.exchanges} exchanges, "
        f"{certificate.moved:.1%} of the weights moved; {_verdict(certificate)}"
    )
    for f, s in zip(found, scales, strict=True):
        ways = ", ".join(f"{n} {way}" for way, n in by_way(f))
        print(f"{s.kind} factors: {s.dimensions}{f' ({ways})' if ways else ''}; {_verdict(s)}")
    print(f"computed in float64 on {inputs}; conditioning {certificate.conditioning:.3g}")


def _tell_mixing(count: int) -> None:
    if count:
        print(f"not derived: matrices inside attention heads keep the function too, a group of {count} dimensions")


def _verdict(c: Certificate | ScalingCertificate) -> str:
    told = c.controls
    control = f", smallest of {told.count} controls {told.least:.1e}" if told.count else ""
    if not told.count and told.free + told.unreached:
        control = (
            f", no control told: {told.free} moves of separate parts, {told.unreached} that the input does not reach"
        )
    if not math.isfinite(c.error):
        return "the outputs are not finite: NOT CERTIFIED"
    return f"error {c.error:.1e}{control}: {'certified' if c.ok else 'FAILED'}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], everything: bool) -> None:
    if not rows:
        return
    shown = rows if everything or len(rows) <= MOST else rows[: MOST - 2]
    print_table(head, shown, cut=not everything)
    if len(shown) < len(rows):
        print(f"… and {len(rows) - len(shown)} more (--all)")
    print()


def _members(c: Any) -> str:
    first = ", ".join(f"{m.parameter}[{m.axis}]" for m in c.members[:3])
    return f"{first}{' …' if len(c.members) > 3 else ''} ({len(c.members)} axes)"


def _names(e: Any) -> str:
    names = [p.name for p in e.replicas[0]]
    return (", ".join(names[:2]) + (" …" if len(names) > 2 else "")) or "none: only the axis"


def _line(span: Any) -> str:
    return f" (line {span.line})" if span is not None else ""


def _counted(pinned: Iterable[PinnedAxis]) -> list[tuple[str, int]]:
    """Reasons, with the lines where they come from, and how many axes each pins."""
    counts: dict[str, int] = {}
    lines: dict[str, dict[int, None]] = {}
    for p in pinned:
        counts[p.pin.reason] = counts.get(p.pin.reason, 0) + 1
        if p.pin.span is not None:
            lines.setdefault(p.pin.reason, {})[p.pin.span.line] = None
    told = []
    for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
        where = sorted(lines.get(reason, {}))
        shown = ", ".join(map(str, where[:5])) + (" …" if len(where) > 5 else "")
        told.append((f"{reason} (line{'s' * (len(where) > 1)} {shown})" if where else reason, count))
    return told
