"""Supernets: which choices become sums, and that a supernet holds the networks that it stands for."""

from __future__ import annotations

import itertools

import pytest
import torch

from archc.backends.torch.module import to_torch
from archc.grammar.draw import Space, read_space
from archc.grammar.load import loads
from archc.ir.canonical import canonical
from archc.ir.diagnostics import CompileError
from archc.search.supernet import relax

SPACE = """
space small()
input  image:  f32[N, 1, 6, 6]
output logits: f32[N, 5]
rule Edge = identity | conv(4, kernel = 3) -> relu | max_pool(3, stride = 1, padding = 1) -> batch_norm | zero
def zero = fn(x) { return 0 * x }
rule Cell = residual(Edge) -> Edge | Edge
rule Head = flatten | mean([2, 3])
rule Twice = one(Edge)
def one(m) = m -> m
logits = image -> conv(4, kernel = choose { 1 | 3 }) -> Cell -> Twice -> Head -> linear(5)
"""


def space() -> Space:
    return read_space(SPACE)


def one_hot(supernet, chosen, dtype=torch.float64):
    """The inputs of a supernet that make it the network of some choices."""
    return [
        torch.tensor([1.0 if n == chosen.get(m.path, m.numbers[0]) else 0.0 for n in m.numbers], dtype=dtype)
        for m in supernet.mixes
    ]


def test_what_is_summed_and_what_is_drawn() -> None:
    supernet = relax(space(), "0")
    assert {m.path: len(m.numbers) for m in supernet.mixes} == {"Cell": 2, "Twice:0/Edge": 4}
    assert supernet.drawn_for["Head"] == "alternatives of different types"
    assert supernet.drawn_for["Cell:0/Edge"] == "inside of another sum"
    assert {"choose", "Head", "Cell:0/Edge", "Cell:1/Edge"} <= supernet.trace.keys()
    deeper = relax(space(), "0", depth=2)
    assert {"Cell", "Cell:0/Edge", "Cell:0/Edge#1", "Cell:1/Edge"} <= {m.path for m in deeper.mixes}


@pytest.mark.parametrize("depth", [1, 2])
def test_with_weights_of_one_and_zero_it_is_the_network_to_the_last_bit(depth: int) -> None:
    supernet = relax(space(), "0", depth=depth)
    whole = to_torch(supernet.graph, seed=1, dtype="f64").eval()
    weights = whole.state_dict()
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first = None
    equal = {m.name: [1.0 / len(m.numbers)] * len(m.numbers) for m in supernet.mixes}
    for chosen in itertools.islice(supernet.ranked(equal), 12):
        graph = supernet.derive(chosen)
        drawn = space().redraw({**supernet.trace, **chosen}).graph
        assert canonical(graph).hash == canonical(drawn).hash
        # the drawn network's own names, and the supernet's weights under them
        names = zip(canonical(drawn).parameters, canonical(graph).parameters, strict=True)
        inherited = {own.name: weights[theirs.name] for own, theirs in names}
        discrete = to_torch(drawn, {n: t.float() for n, t in inherited.items()}, dtype="f64").eval()
        found = whole(x, *one_hot(supernet, chosen))
        torch.testing.assert_close(found, discrete(x), rtol=0, atol=0)
        first = found if first is None else first
    assert not torch.equal(found, first)  # the choices do differ
    half = [torch.full((len(m.numbers),), 1 / len(m.numbers), dtype=torch.float64) for m in supernet.mixes]
    assert not torch.equal(whole(x, *half), first)


def test_a_supernet_is_a_program() -> None:
    supernet = relax(space(), "0")
    again = loads(supernet.text)
    assert canonical(again).hash == canonical(supernet.graph).hash
    assert [v.name for v in again.inputs] == ["image", *(m.name for m in supernet.mixes)]


def test_derivations_come_by_their_weight_and_none_twice() -> None:
    supernet = relax(space(), "0", depth=2)
    weights = {m.name: [0.1 + 0.9 * (k == 1) for k in range(len(m.numbers))] for m in supernet.mixes}
    found = list(supernet.ranked(weights))
    assert found[0]["Cell"] == 1
    assert "Cell:0/Edge" not in found[0], "a choice in a production that is not taken"
    assert len({tuple(sorted(f.items())) for f in found}) == len(found) == (4 * 4 + 4) * 4
    best = [sum(weights[m.name][m.numbers.index(f[m.path])] == 1.0 for m in supernet.mixes if m.path in f)
            for f in found]  # fmt: skip
    assert best[0] == 3
    assert best[-1] == 0


def test_a_space_without_sums_and_one_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = """
    space widths()
    input  x: f32[N, 4]
    output y: f32[N, 2]
    rule Body = linear(4) | linear(8)
    y = x -> Body -> linear(2)
    """
    with pytest.raises(CompileError, match="E0742") as error:
        relax(read_space(widths), "0")
    assert "`Body`: alternatives of different types" in str(error.value)
    monkeypatch.setattr("archc.search.supernet.MOST_NODES", 20)
    with pytest.raises(CompileError, match="E0743"):
        relax(space(), "0")


def test_requirements_are_the_candidates_not_the_supernets() -> None:
    tight = SPACE + "\nrequire params < 300\n"
    supernet = relax(read_space(tight), "0")
    assert sum(p.size for p in supernet.graph.parameters().values()) > 300
