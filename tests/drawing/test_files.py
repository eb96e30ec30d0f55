"""The files: sound, self-contained, the same every time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from archc.drawing import SUFFIXES, draw
from archc.drawing.layout import Placed, place
from archc.drawing.paint import LIGHT
from archc.drawing.picture import compose, opened
from archc.grammar.load import load, loads
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    'arch a\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = x -> linear(2, name = "</script><b a=\\"1\\">&]]>@DATA@")'
)


def example(name: str) -> Graph:
    return load(EXAMPLES / f"{name}.arch")


@pytest.mark.parametrize("name", ["densenet121", "lstm", "moe_lm", "resnet50", "tagger", "unet"])
@pytest.mark.parametrize("collapse", ["auto", "none"])
def test_boxes_lie_in_their_clusters_and_apart(name: str, collapse: str) -> None:
    picture = compose(example(name))
    chosen = opened(picture, collapse)  # type: ignore[arg-type]
    clusters = [place(picture.root, lambda c: c.id in chosen)]
    while clusters:
        placed = clusters.pop()
        assert _apart(placed)
        clusters += [child for child, _, _ in placed.children if child.open]


def _apart(placed: Placed) -> bool:
    boxes = [(x, y, x + c.width, y + c.height) for c, x, y in placed.children]
    inside = all(a >= -1 and b >= -1 and c <= placed.width + 1 and d <= placed.height + 1 for a, b, c, d in boxes)
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    return inside and not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in pairs)


def test_the_check_above_can_fail() -> None:
    picture = compose(example("resnet18"))
    placed = place(picture.root, lambda _: False)
    (first, x, y), (second, _, _) = placed.children[:2]
    placed.children[:2] = [(first, x, y), (second, x, y)]
    assert not _apart(placed)


@pytest.mark.parametrize("name", ["resnet18", "mixtral_like", "tagger"])
def test_an_svg_is_well_formed_and_says_every_op_shown(name: str) -> None:
    graph = example(name)
    svg = draw(graph)
    root = ElementTree.fromstring(svg)
    width, height = (float(root.attrib[k]) for k in ("width", "height"))
    texts = list(root.iter(f"{SVG}text"))
    assert all(0 <= float(t.attrib["x"]) <= width and 0 <= float(t.attrib["y"]) <= height for t in texts)
    assert {graph.name, *(v.name for v in graph.inputs), *graph.output_names} <= {t.text for t in texts}
    assert len(svg) < 60_000
    assert not re.search(r"\b(href|src|url|import|script)\b", svg)


def test_names_cannot_break_out() -> None:
    assert any("</script>" in (t.text or "") for t in ElementTree.fromstring(draw(loads(HOSTILE))).iter(f"{SVG}title"))


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    names = ["net" + suffix for suffix in SUFFIXES]
    program = (
        "import sys, archc.drawing as d, archc.grammar.load as g\n"
        "for out in sys.argv[2:]: d.draw(g.load(sys.argv[1]), out)"
    )
    (tmp_path / "again").mkdir()
    again = [str(tmp_path / "again" / n) for n in names]
    command = [sys.executable, "-c", program, str(EXAMPLES / "mixtral_like.arch"), *again]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": "1"})
    for name in names:
        draw(example("mixtral_like"), tmp_path / name)
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert draw(example("gpt2_small")) != draw(example("mixtral_like"))


def test_a_png_is_one_of_the_sheet_s_size(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "net.png"
    svg = ElementTree.fromstring(draw(example("gpt2_small"), path))
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert abs(image.width - 2 * float(svg.attrib["width"])) <= 2
        colours = {c for _, c in image.convert("RGB").getcolors(1 << 20) or ()}
    assert tuple(bytes.fromhex(LIGHT["attention"][1:])) in colours
    assert tuple(bytes.fromhex(LIGHT["pool"][1:])) not in colours


def test_dot_names_what_is_shown_and_lays_out(tmp_path: Path) -> None:
    import pygraphviz

    path = tmp_path / "net.dot"
    draw(example("mixtral_like"), path)
    graph = pygraphviz.AGraph(string=path.read_text(encoding="utf-8"))
    labels = {n.attr["label"] for n in graph.nodes()}
    assert "rms norm\\nattention 6 heads, 2 kv, rope, causal" in labels
    assert all(graph.in_degree(n) + graph.out_degree(n) > 0 for n in graph.nodes())
    assert len([n for n in graph.nodes() if graph.in_degree(n) == 0]) == 1  # the input: what reads is reached


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


def page_of(graph: Graph, tmp_path: Path) -> _Page:
    path = tmp_path / "net.html"
    draw(graph, path)
    text = path.read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    page = _Page()
    page.feed(text)
    return page


def test_a_page_loads_nothing_and_holds_every_module(tmp_path: Path) -> None:
    graph = example("moe_lm")
    page = page_of(graph, tmp_path)
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.tags)
    assert any("default-src 'none'" in (a.get("content") or "") for t, a in page.tags if t == "meta")
    data = json.loads(page.scripts[0])
    picture = compose(graph)
    assert data["blocks"].keys() == {b.id for b in picture.root.blocks()}
    for cluster in picture.root.clusters():
        for plan in data["blocks"][cluster.id]["plans"]:
            assert [c[0] for c in plan["children"]] == [c.id for c in cluster.children]
            assert len(plan["edges"]) == len(cluster.edges) or plan["compact"]
    moe = example("moe_lm").nodes[5]
    tips = json.dumps(data, ensure_ascii=False)
    assert "kv_heads = 2" in tips
    assert "moe_lm.arch:" in tips
    assert "FLOPs" in tips
    assert moe.name.rpartition(".")[0] in tips


def test_the_page_opens_first_what_the_picture_shows(tmp_path: Path) -> None:
    graph = example("resnet50")
    data = json.loads(page_of(graph, tmp_path).scripts[0])
    assert set(data["open"]) == opened(compose(graph))
    whole = place(compose(graph).root, lambda c: c.id in data["open"])
    sizes = [(round(whole.width, 2), round(whole.height, 2))]
    assert sizes[0] in [(p["w"], p["h"]) for p in data["blocks"][data["root"]]["plans"]]


def test_a_page_survives_hostile_names(tmp_path: Path) -> None:
    page = page_of(loads(HOSTILE), tmp_path)
    assert [t for t, _ in page.tags].count("script") == 2
    assert "</script><b" in json.dumps(json.loads(page.scripts[0]))


@pytest.mark.parametrize("name", ["net.pdf", "net", "net.SVGG"])
def test_an_unknown_format_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(CompileError) as raised:
        draw(example("kan"), tmp_path / name)
    assert [d.code for d in raised.value.diagnostics] == ["E0022"]
    assert raised.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as raised:
        draw(example("kan"), tmp_path / "missing" / "net.svg")
    assert [d.code for d in raised.value.diagnostics] == ["E0608"]


def test_without_pygraphviz_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(CompileError) as raised:
        draw(example("kan"))
    (told,) = raised.value.diagnostics
    assert (told.code, raised.value.exit_code) == ("E0023", 4)
    assert "pip install" in (told.help or "")
