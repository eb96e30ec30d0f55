"""The spaces in examples/spaces: what is drawn from them is sound, fits their tasks, and is of a size for two cores."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import archc
from archc.backends.inputs import random_inputs
from archc.backends.torch.module import to_torch
from archc.grammar.draw import Drawn, read_space
from archc.grammar.enumerate import count
from archc.grammar.load import check, loads
from archc.grammar.misfits import misfits
from archc.ir.canonical import canonical
from archc.ir.cost import cost
from archc.ir.dims import substitute

ROOT = Path(archc.__file__).parents[1]
SPACES = ROOT / "examples" / "spaces"
SMALL = ("cells", "transformer", "choices", "darts", "digits_net", "closed", "sequences")
TASKS = {"hard_digits": {}, "add_digits": {"channels": 3, "classes": 28}, "tiles": {"side": 16, "classes": 4}}


def is_sound(drawn: Drawn, run: bool) -> None:
    again = loads(drawn.text)
    assert canonical(again).hash == canonical(drawn.graph).hash
    assert cost(drawn.graph).params <= 500_000
    flops = substitute(cost(drawn.graph).flops, {"N": 1})
    assert isinstance(flops, int)
    assert flops <= 50_000_000
    if run:
        import torch

        inputs = random_inputs(drawn.graph, 0, {"N": 2}, "f32")
        with torch.no_grad():
            result = to_torch(drawn.graph)(*(torch.from_numpy(np.asarray(a)) for a in inputs.values()))
        assert tuple(result.shape) == (2, drawn.graph.outputs[0].type.shape[1])
        assert torch.isfinite(result).all()


@pytest.mark.parametrize("name", SMALL)
def test_draws_are_sound_and_differ(name: str):
    space = read_space(SPACES / f"{name}.arch")
    drawn = [space.draw(1, i) for i in range(8)]
    for i, one in enumerate(drawn):
        is_sound(one, run=i < 2)
    assert len({canonical(d.graph).hash for d in drawn}) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_hundred_draws_are_sound(name: str):
    space = read_space(SPACES / f"{name}.arch")
    for i in range(100):
        is_sound(space.draw(2, i), run=True)


@pytest.mark.parametrize("name", ["cells", "transformer", "choices", "darts", "closed", "digits_net"])
def test_spaces_fit_their_tasks(name: str):
    for values in TASKS.values():
        graph = read_space(SPACES / f"{name}.arch", {"side": 12} | values).draw(0, 0).graph
        channels, side = values.get("channels", 1), values.get("side", 12)
        assert str(graph.inputs[0].type) == f"f32[N, {channels}, {side}, {side}]"
        assert str(graph.outputs[0].type) == f"f32[N, {values.get('classes', 10)}]"


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.arch")), ids=lambda p: p.stem)
def test_spaces_are_in_order(path: Path):
    """No mistakes and no warnings, but for grammars that are endless on purpose and say so."""
    text = path.read_text()
    codes = {d.code for d in check(path)}
    assert codes <= ({"E0704"} if "for ever" in text else set())
    assert text.startswith("#")
    assert path.stem in ("closed", "digits_net") or re.search(r"arXiv:\d{4}\.\d{5}", text)


def test_every_alternative_fits_somewhere():
    for name in ("darts", "choices"):
        assert not misfits(read_space(SPACES / f"{name}.arch"), draws=12)


def test_their_sizes():
    exact = {"closed": 4**5, "darts": 8**6, "choices": 3_240_000_000, "transformer": 49_068_470_096_640}
    for name, size in exact.items():
        assert count(read_space(SPACES / f"{name}.arch")).exact == size
    assert str(count(read_space(SPACES / "digits_net.arch"))) == "endless"
    assert "about 10^" in str(count(read_space(SPACES / "einspace.arch")))


def test_the_seeds_of_einspace_are_derivations_of_its_grammar():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from einspace_seeds import SEEDS, body, choices
    finally:
        sys.path.pop(0)
    space = read_space(SPACES / "einspace.arch")
    for name in ("transformer", "wrn16_4"):
        trace = choices(SEEDS[name])
        drawn = space.redraw(trace)
        assert drawn.trace == trace
        assert body(drawn.graph) == body(archc.load(ROOT / "examples" / "einspace" / f"{name}.arch").graph)
    fewer = space.redraw(choices(SEEDS["transformer"]) | {"Network:0/Sequential:0/Module#1:3/Computation": 3})
    assert body(fewer.graph) != body(drawn.graph)  # the control
