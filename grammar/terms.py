"""The hash of a derived architecture, without its graph.

A network is written as a term. A chain of ops is the sequence of their labels. Where a tensor forks and its branches
meet again, the meeting op and the sequences of the branches make one label of a longer sequence: sorted, and sums of
sums taken together, where the order of operands does not count. Identities leave nothing. So equal networks have equal
terms however their rules were nested, and a copy of a part costs no more than looking up its term.

This works while branches that fork meet pairwise (a series-parallel network), no weights are shared, and nothing is
left unread. For other networks there is no term, and the hash is that of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from archc.grammar.derive import Derivation
from archc.grammar.probe import KNOWN, OP, PART
from archc.grammar.transfer import Transfer, digest
from archc.ir.ops.shape import IDENTITY

Labels = tuple[bytes, ...]


class NoTerm(Exception):
    """The network is not series-parallel."""


class _Point:
    """A tensor: what was applied to the one before it. `uses` counts readers, branches that meet again as one; a `free`
    one depends on no input."""

    __slots__ = ("before", "free", "labels", "operands", "place", "type", "uses")

    def __init__(self, before: _Point | None, labels: Labels, type_: int = -1, free: bool = False) -> None:
        self.before, self.labels, self.type, self.uses = before, labels, type_, 0
        self.place: int = before.place + 1 if before is not None else 0
        self.free: bool = before.free if before is not None else free
        self.operands: tuple[bytes, list[bytes]] | None = None
        """Of a sum: its op, and the digests of its operands."""


class Terms:
    """Terms of the derivations of one space."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def hash(self, whole: Derivation) -> str:
        """The hash of an architecture: 32 hexadecimal digits.

        Raises: NoTerm.
        """
        root = _Point(None, ())
        inputs = [root]
        if len(whole.inputs) > 1:
            inputs = [_Point(root, (b"input %d" % i,)) for i in range(len(whole.inputs))]
            root.uses = len(inputs)
        walk = _Walk(self)
        results = walk.follow(whole, inputs)
        result = results[0] if len(results) == 1 else walk.meet(b"return", results, False, -1)
        types = [str(self._transfer.types.all[i]).encode() for i in whole.inputs]
        return digest(*types, *walk.to(result, root)).hex()

    def of(self, derivation: Derivation) -> Labels:
        """The labels of a part that makes one tensor from one.

        Raises: NoTerm.
        """
        if derivation.term is None:
            start = _Point(None, (), derivation.inputs[0])
            walk = _Walk(self)
            (result,) = walk.follow(derivation, [start])
            derivation.term = walk.to(result, start)
        labels: Labels = derivation.term
        return labels


class _Walk:
    """One pass along the scripts of a part. `within` are tensors that one branch alone may read."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._within: list[_Point] = []

    def to(self, result: _Point, start: _Point) -> Labels:
        """What leads from the start to the result.

        Raises: NoTerm when something besides is made of what is on the way.
        """
        result.uses += 1
        labels = self._path(start, result)
        if start.uses != 1 or any(p.uses != 1 for p in self._within):
            raise NoTerm
        return labels

    def follow(self, derivation: Derivation, inputs: Sequence[_Point]) -> list[_Point]:
        """The results of a derivation."""
        points = list(inputs)
        for step, made in derivation.log:
            kind = step.kind
            if kind == PART:
                if step.one >= 0 and len(made.results) == 1:
                    labels = made.term
                    if labels is None:
                        labels = self._terms.of(made)
                    point = points[step.one]
                    if labels:
                        point.uses += 1
                        point = _Point(point, labels, made.results[0])
                    points.append(point)
                else:
                    points += self.follow(made, [points[i] for i in step.operands])
            elif kind in (OP, KNOWN):
                if kind == OP and step.atom.op is IDENTITY:
                    points.append(points[step.one])
                    continue
                if made.label is None:
                    raise NoTerm
                if step.one >= 0:
                    before = points[step.one]
                    before.uses += 1
                    point = _Point(before, (made.label,), made.results[0])
                else:
                    commutes = kind == OP and step.atom.op.commutative
                    point = self.meet(made.label, [points[i] for i in step.operands], commutes, made.results[0])
                if len(made.results) == 1:
                    points.append(point)
                else:
                    point.uses = len(made.results)
                    points += [_Point(point, (b"%d" % i,), t) for i, t in enumerate(made.results)]
        return [points[i] for i in derivation.ends]

    def meet(self, label: bytes, operands: Sequence[_Point], commutes: bool, type_: int) -> _Point:
        """What an op makes of several tensors: a label more on what they all come from."""
        fork: _Point | None = None
        attached = 0
        for point in operands:
            point.uses += 1
            if not point.free:
                fork = point if fork is None else _common(fork, point)
                attached += 1
        digests: list[bytes] = []
        for point in operands:
            path = self._path(None if point.free else fork, point)
            sums = point.operands
            if commutes and sums is not None and sums[0] == label and point.before is fork and point.type == type_:
                digests += sums[1]
            else:
                digests.append(digest(*path))
        if commutes:
            digests.sort()
        result = _Point(fork, (digest(b"meet", label, *digests),), type_, free=fork is None)
        if fork is not None:
            fork.uses += 1 - attached
        if commutes:
            result.operands = label, digests
        return result

    def _path(self, start: _Point | None, point: _Point) -> Labels:
        """The labels behind `start`, up to a point. Raises: NoTerm when they are not connected."""
        chunks: list[Labels] = []
        while point is not start:
            self._within.append(point)
            chunks.append(point.labels)
            if point.before is None:
                if start is None:
                    break
                raise NoTerm
            point = point.before
        return chunks[0] if len(chunks) == 1 else tuple([label for chunk in reversed(chunks) for label in chunk])


def _common(a: _Point, b: _Point) -> _Point:
    """The last tensor that both depend on by way of nothing else."""
    while a is not b:
        if a.place < b.place:
            a, b = b, a
        if a.before is None:
            raise NoTerm
        a = a.before
    return a
