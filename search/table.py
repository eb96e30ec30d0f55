"""A space that is a list: architectures by their choices. For closed spaces that were listed, and for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from archc.grammar.choices import Production
from archc.grammar.load import loads
from archc.ir.canonical import canonical
from archc.search.records import Candidate
from archc.search.strategy import random


class TableSpace:
    """Some candidates, all with traces and different hashes; two are neighbours that differ in one choice.

    Choices may depend on choices: what one of two has only as a consequence of where they differ does not count.

    >>> space = TableSpace.of(TINY, width=[8, 16, 32], act=["relu", "gelu"])
    >>> space.size(), len(space.neighbours(space.draw("0")))
    (6, 3)
    """

    def __init__(self, candidates: Sequence[Candidate], seeds: Sequence[Candidate] = ()) -> None:
        self.candidates = tuple(candidates)
        assert all(c.trace is not None for c in candidates), "a table is looked up by choices"
        self.index = {c.hash: i for i, c in enumerate(candidates)}
        assert len(self.index) == len(candidates), "the candidates of a table differ"
        self._seeds = tuple(seeds)
        self._near: dict[int, list[Candidate]] = {}
        traces = [dict(c.trace or {}) for c in candidates]
        paths = sorted({path for trace in traces for path in trace})
        self._values = {path: sorted({trace[path] for trace in traces if path in trace}) for path in paths}
        self._codes = np.array(
            [[values.index(t[path]) if path in t else -1 for path, values in self._values.items()] for t in traces]
        )

    @staticmethod
    def of(template: str, **choices: Sequence[object]) -> TableSpace:
        """All programs that a text with `<name>` in it comes to; of equal ones the first."""
        found: dict[str, Candidate] = {}
        for numbers in product(*(range(len(values)) for values in choices.values())):
            text = template
            for (name, values), number in zip(choices.items(), numbers, strict=True):
                text = text.replace(f"<{name}>", str(values[number]))
            trace: dict[str, Production] = dict(zip(choices, numbers, strict=True))
            candidate = Candidate(text=text, hash=canonical(loads(text)).hash, trace=trace)
            found.setdefault(candidate.hash, candidate)
        return TableSpace(list(found.values()))

    def draw(self, key: str) -> Candidate:
        return self.candidates[int(random(0, 0, f"table/{key}").integers(len(self.candidates)))]

    def redraw(self, trace: Mapping[str, Production], key: str) -> Candidate:
        """One of those that have most of these choices."""
        found = np.zeros(len(self.candidates), np.int64)
        for at, (path, values) in enumerate(self._values.items()):
            if trace.get(path) in values:
                found += self._codes[:, at] == values.index(trace[path])
        fit = np.flatnonzero(found == found.max()).tolist()
        return self.candidates[fit[int(random(0, 0, f"table/{key}").integers(len(fit)))]]

    def mutate(self, number: int, parent: Candidate, key: str) -> Candidate:
        """A random neighbour; any other where there is none, or where the parent is from elsewhere."""
        near = self.neighbours(parent) or [c for c in self.candidates if c.hash != parent.hash]
        chosen = near[int(random(0, number, f"table/{key}").integers(len(near)))]
        return chosen.model_copy(update={"origin": "mutation/choice", "parents": (number,), "inherit": number})

    def cross(self, numbers: tuple[int, int], parents: tuple[Candidate, Candidate], key: str) -> Candidate:
        """Every choice of one of the two; a mutation of the first where that is one of them, or is not in the table."""
        first, second = (self.index.get(p.hash) for p in parents)
        if first is not None and second is not None:
            dice = random(0, numbers[0], f"table/{key}")
            mixed = np.where(dice.random(self._codes.shape[1]) < 0.5, self._codes[first], self._codes[second])
            for same in np.flatnonzero((self._codes == mixed).all(1)):
                if same not in (first, second):
                    update = {"origin": "crossover", "parents": numbers, "inherit": numbers[0]}
                    return self.candidates[same].model_copy(update=update)
        return self.mutate(numbers[0], parents[0], key)

    def seeds(self) -> tuple[Candidate, ...]:
        return self._seeds

    def neighbours(self, parent: Candidate) -> list[Candidate]:
        at = self.index.get(parent.hash)
        if at is None:
            return []
        if at not in self._near:
            own = self._codes[at]
            differ = ((self._codes != own) & (self._codes >= 0) & (own >= 0)).sum(1)
            self._near[at] = [self.candidates[i] for i in np.flatnonzero(differ == 1)]
        return self._near[at]

    def size(self) -> int | None:
        return len(self.candidates)


TINY = """arch tiny
input image: f32[N, 1, 8, 8]
output logits: f32[N, 10]
logits = image -> flatten -> linear(<width>) -> <act> -> linear(10)
"""
"""Small networks for the digits: a text for `TableSpace.of`."""
