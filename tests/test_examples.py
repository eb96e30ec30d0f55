"""The examples: well-known networks with their published sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from archc.grammar.format import format_source
from archc.grammar.load import load, loads
from archc.grammar.printer import print_graph
from archc.ir.canonical import canonical
from archc.ir.cost import cost
from archc.ir.verify import verify

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(EXAMPLES.glob("*.arch")) + sorted((EXAMPLES / "einspace").glob("*.arch"))

PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "convnext_tiny": 28_589_128,
    "densenet121": 7_978_856,
    "mobilenet_v2": 3_504_872,
    "vit_s16": 22_050_664,
    "gpt2_small": 124_439_808,
}
LIMIT = 150_000_000


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_an_example_is_well_formed_and_formatted(file: Path) -> None:
    graph = load(file)
    verify(graph)
    assert 0 < cost(graph).params <= LIMIT
    text = file.read_text()
    assert format_source(text, file.name) == text, f"run `archc fmt examples/{file.name}`"
    assert text.startswith("#"), "a header says which paper and equation it is"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_an_example_survives_printing(file: Path) -> None:
    graph = load(file)
    again = loads(print_graph(graph))
    assert canonical(again).hash == canonical(graph).hash
    assert list(again.parameters()) == list(graph.parameters())


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert cost(load(EXAMPLES / f"{name}.arch")).params == PUBLISHED[name]


def test_there_are_enough() -> None:
    assert len(sorted(EXAMPLES.glob("*.arch"))) >= 16
    assert cost(load(EXAMPLES / "resnet18.arch", {"classes": 10})).params != PUBLISHED["resnet18"]
