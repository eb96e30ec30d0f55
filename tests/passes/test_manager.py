"""The manager: order, times, dumps, and who is blamed."""

from __future__ import annotations

from pathlib import Path

import pytest

from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError, fail
from archc.ir.graph import Graph
from archc.passes.canonicalise import CANONICALISE
from archc.passes.dce import DCE
from archc.passes.manager import Context, Contract, Pass, PassError, dump_to, run_passes, until_stable
from archc.passes.simplify import SIMPLIFY

SOURCE = "arch net()\ninput x: f32[N, 4]\noutput y: f32[N, 4]\nlet unused = exp(x)\ny = x -> dropout -> relu\n"


def test_passes_run_in_order_and_report_what_they_did(tmp_path: Path) -> None:
    graph = loads(SOURCE)
    report = run_passes(graph, [DCE, CANONICALISE, DCE], dump=dump_to(tmp_path / "dumps"))
    assert [(r.name, r.changed) for r in report] == [("dce", True), ("canonicalise", True), ("dce", False)]
    assert all(r.seconds >= 0 for r in report)
    files = sorted(p.name for p in (tmp_path / "dumps").iterdir())
    assert files == ["00-input.txt", "01-dce.txt", "02-canonicalise.txt"]
    assert "exp" in (tmp_path / "dumps" / "00-input.txt").read_text()
    assert (tmp_path / "dumps" / "02-canonicalise.txt").read_text().count("relu(x)") == 1


def test_a_pass_that_breaks_the_graph_is_named_with_its_predecessors() -> None:
    def forget(graph: Graph, context: Context) -> bool:
        graph.nodes.pop()
        return True

    with pytest.raises(PassError, match=r"what pass `forget` left is not well formed after `dce`: .*use list"):
        run_passes(loads(SOURCE), [DCE, Pass("forget", forget), CANONICALISE])


def test_a_pass_that_raises_is_named() -> None:
    def divide(graph: Graph, context: Context) -> bool:
        return 1 // len(graph.name[:0]) > 0

    with pytest.raises(PassError, match="pass `divide` failed after `dce`: ZeroDivisionError"):
        run_passes(loads(SOURCE), [DCE, Pass("divide", divide)])


@pytest.mark.parametrize("says", [True, False])
def test_a_pass_must_say_truly_whether_it_changed_anything(says: bool) -> None:
    def liar(graph: Graph, context: Context) -> bool:
        if not says:
            DCE.run(graph, context)
        return says

    with pytest.raises(PassError, match=r"`liar` says that it changed (some|no)thing, which is not so"):
        run_passes(loads(SOURCE), [Pass("liar", liar)])


def test_a_refusal_is_a_diagnostic_with_a_note() -> None:
    def refuse(graph: Graph, context: Context) -> bool:
        raise fail("E0400", "this network has no layer to rewrite", graph.nodes[0].span)

    with pytest.raises(CompileError) as caught:
        run_passes(loads(SOURCE), [DCE, Pass("refuse", refuse)])
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.span is not None
    assert diagnostic.notes[-1].message == "in pass `refuse` after `dce`"


def test_blame_reaches_into_a_repeated_pass() -> None:
    liar = Pass("liar", lambda graph, context: True)
    with pytest.raises(PassError, match=r"pass `tidy` failed: PassError: pass `liar` says .* not so after `dce`"):
        run_passes(loads(SOURCE), [until_stable("tidy", [DCE, liar])])


def test_repeating_until_stable() -> None:
    graph = loads("arch net()\ninput x: f32[N, 4]\noutput y: f32[N, 4]\ny = relu(-(-(-(-x))))\n")
    approximate = Pass("nothing", lambda graph, context: False, Contract(eval="approximate"))
    stable = until_stable("tidy", [SIMPLIFY, DCE, approximate])
    assert stable.contract == Contract(eval="approximate", train="exact")
    assert run_passes(graph, [stable])[0].changed
    assert [n.op.name for n in graph.nodes] == ["relu"]
    assert not run_passes(graph, [stable])[0].changed
