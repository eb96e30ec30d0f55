"""Spaces to search in: draws by key, mutations that are never silent, crossover, seeds, neighbours, sizes."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

import archc
from archc.grammar.load import loads
from archc.grammar.misfits import misfits
from archc.grammar.mutate import variants
from archc.ir.canonical import canonical
from archc.ir.diagnostics import CompileError
from archc.search.space import KINDS, GrammarSpace, open_space

SPACES = Path(archc.__file__).parents[1] / "examples" / "spaces"
HEAD = "space s\ninput x: f32[N, 4]\noutput y: f32[N, 4]\n"
FEW = "rule Act = 5: relu | 5: relu | gelu\ny = x -> Act -> linear(4)\n"


def space(folder: Path, text: str, **options: object) -> GrammarSpace:
    path = folder / "s.arch"
    path.write_text(HEAD + text)
    found = open_space(path, **options)  # type: ignore[arg-type]
    assert isinstance(found, GrammarSpace)
    return found


@pytest.mark.parametrize("name", ["cells", "transformer", "choices", "darts", "digits_net"])
def test_mutations_are_never_silent(name: str):
    """30 mutations of each space; the hash of what is returned is that of its text."""
    found = open_space(SPACES / f"{name}.arch")
    kinds: Counter[str] = Counter()
    for i in range(6):
        parent = found.draw(f"parent/{i}")
        for j in range(5):
            child = found.mutate(i, parent, f"{i}/{j}")
            kinds[child.origin] += 1
            assert child.hash == canonical(loads(child.text)).hash != parent.hash
            assert (child.parents, child.inherit) == ((i,), i)
    assert len(kinds) >= 3
    assert set(kinds) <= {f"mutation/{kind}" for kind in KINDS}


def test_edits_alone_would_be_silent(tmp_path: Path):
    """The control: without a look at the hash, most edits of this space come to the parent again."""
    few = space(tmp_path, FEW)
    parent = next(c for c in map(few.draw, "abcdefgh") if "relu" in c.text)
    assert parent.trace is not None
    edits = islice(variants(few.space, parent.trace, "k", {"resample": 1, "production": 1}), 60)
    silent = [few.redraw(v.trace, "k").hash == parent.hash for v in edits]
    assert sum(silent) > 15
    assert all(few.mutate(0, parent, str(key)).hash != parent.hash for key in range(20))


def test_where_nothing_differs_it_is_told(tmp_path: Path):
    one = space(tmp_path, "rule Act = relu | relu | conv(4, kernel = 3)\ny = x -> Act -> linear(4)\n")
    with pytest.raises(CompileError, match="E0714"):
        one.mutate(3, one.draw("a"), "k")


def test_candidates_depend_on_their_keys_alone(tmp_path: Path):
    first, second = open_space(SPACES / "cells.arch"), open_space(SPACES / "cells.arch")
    a, b = first.draw("a"), first.draw("b")
    assert second.draw("b") == b != a
    assert second.mutate(1, a, "k") == first.mutate(1, a, "k") != first.mutate(1, a, "l")
    crossed = first.cross((1, 2), (a, b), "k")
    assert second.cross((1, 2), (a, b), "k") == crossed
    assert crossed.origin == "crossover"
    assert crossed.hash not in (a.hash, b.hash)
    assert crossed.parents == (1, 2)
    assert first.redraw(a.trace or {}, "whatever").hash == a.hash


def test_crossover_of_nothing_in_common_is_a_mutation(tmp_path: Path):
    few = space(tmp_path, FEW)
    net = next(c for c in map(few.draw, "abcdefgh") if "gelu" in c.text)
    assert few.cross((4, 5), (net, net), "k").origin.startswith("mutation/")


def test_seeds_are_mutated_by_drawing_stretches_anew(tmp_path: Path):
    """A net whose choices are not known: what is not replaced stays, and what the space requires holds."""
    mine = tmp_path / "mine.arch"
    mine.write_text(
        "arch mine\ninput x: f32[M, 4]\noutput y: f32[M, 4]\n"
        "y = x -> linear(12) -> tanh -> residual(linear(12) -> softmax) -> linear(4)\n"
    )
    rules = "rule Body = Act | Act -> linear(12)\nrule Act = relu | gelu | linear(12)\nlet z = x -> Body\n"
    rules += "y = z -> linear(4)\n"
    found = space(tmp_path, "require params < 700\n" + rules, seeds=[mine])
    (seed,) = found.seeds()
    assert (seed.origin, seed.trace) == ("seed", None)
    children = [found.mutate(0, seed, str(key)) for key in range(15)]
    assert {c.origin for c in children} == {"mutation/graft"}
    assert len({c.hash for c in children}) > 8
    for child in children:
        graph = loads(child.text)
        assert sum(p.size for p in graph.parameters().values()) < 700
        assert str(graph.inputs[0].type) == "f32[M, 4]"
    assert sum("softmax" in c.text for c in children) > 5
    assert any("gelu" in c.text or "relu" in c.text for c in children)
    grandchild = found.mutate(1, children[0], "k")
    assert grandchild.hash != children[0].hash


def test_seeds_may_be_choices(tmp_path: Path):
    plain = space(tmp_path, FEW)
    drawn = plain.draw("a")
    file = tmp_path / "a.json"
    file.write_text(json.dumps(drawn.trace))
    (seed,) = space(tmp_path, FEW, seeds=[file]).seeds()
    assert (seed.hash, seed.trace, seed.origin) == (drawn.hash, drawn.trace, "seed")
    for wrong, code in (({"Act": 7}, "E0716"), ({}, "E0716"), ([], "E0708")):
        file.write_text(json.dumps(wrong))
        with pytest.raises(CompileError, match=code):
            space(tmp_path, FEW, seeds=[file])


def test_seeds_have_the_ports_of_the_space(tmp_path: Path):
    mine = tmp_path / "mine.arch"
    mine.write_text("arch mine\ninput x: f32[N, 5]\noutput y: f32[N, 4]\ny = x -> linear(4)\n")
    with pytest.raises(CompileError, match="E0715"):
        space(tmp_path, FEW, seeds=[mine])


def test_transforms_are_mutations(tmp_path: Path):
    text = "rule Act = relu | gelu\nrequire params < 450\ny = x -> linear(8) -> Act -> linear(16) -> Act -> linear(4)\n"
    found = space(tmp_path, text, transforms=["widen", "glu"], kinds={"transform": 1.0, "resample": 1.0})
    parent = found.draw("a")
    children = [found.mutate(2, parent, str(key)) for key in range(16)]
    origins = Counter(c.origin for c in children)
    assert origins["mutation/resample"]
    assert origins["transform/widen at linear"]
    assert not origins["transform/widen at linear1"]  # too large, then
    for child in children:
        assert child.hash == canonical(loads(child.text)).hash != parent.hash
        assert sum(p.size for p in loads(child.text).parameters().values()) < 450
    with pytest.raises(CompileError, match="E0401"):
        space(tmp_path, text, transforms=["wide"])


def test_sizes_and_neighbours(tmp_path: Path):
    closed = space(
        tmp_path, "rule Act = relu | tanh | gelu\ny = x -> Act -> linear(choose { 2 | 3 }) -> Act -> linear(4)\n"
    )
    assert closed.size() == 18
    centre = closed.draw("a")
    near = closed.neighbours(centre)
    assert len({n.hash for n in near}) == 2 + 1 + 2
    for other in near:
        assert sum(1 for p in centre.trace or {} if (other.trace or {})[p] != (centre.trace or {})[p]) == 1
    assert [n.hash for n in closed.neighbours(centre)] == [n.hash for n in near]
    assert space(tmp_path, "rule A = relu | 0.4: A -> A\ny = x -> A\n").size() is None
    assert space(tmp_path, FEW).size() == 2  # three derivations


def test_a_space_that_holds_nothing(tmp_path: Path):
    with pytest.raises(CompileError, match=r"E0712.*\n.*\n.*2 derivations") as raised:
        space(tmp_path, "rule Body = linear(8) | conv(4, kernel = 3)\ny = x -> Body\n")
    assert {"E0340", "E0302"} <= {n.message.split()[2].rstrip(":") for d in raised.value.diagnostics for n in d.notes}


def test_alternatives_that_fit_nowhere_are_told(tmp_path: Path):
    found = space(tmp_path, "rule Act = relu | 0.001: gelu | conv(4, kernel = 3)\ny = x -> Act -> Act\n")
    (told,) = misfits(found.space)
    assert (told.code, told.severity) == ("E0713", "warning")
    assert told.span is not None
    assert (told.span.line, told.span.column) == (4, 33)  # not the rare `gelu`
