"""The merging benchmark: what is measured of a pair, and the tables."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("merge_bench", FOLDER / "merge.py")
    module = sys.modules["merge_bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))


def test_a_pair_is_measured_and_reported(bench, tmp_path):
    from archc.backends.torch.training import load_task
    from archc.metanet.symmetry import random_weights

    task, rows = load_task("hard_digits?copies=1"), []
    graph = bench.archc.load(bench.NETS / "merge_mlp.arch").graph
    networks = [{n: w.astype(np.float32) for n, w in random_weights(graph, s).items()} for s in (0, 1)]
    pair = bench.Pair("mlp", networks, task, points=3)
    for way in (*bench.ways("mlp"), "line, naive", "line, weights"):
        rows.append({"family": "mlp", "pair": 0, "way": way, **pair(way), "cpu_seconds": 0.0})
    by = {row["way"]: row for row in rows}
    assert by["weights"]["cosine"][1] > by["weights"]["cosine"][0]
    assert by["line, weights"]["line"][1] == by["weights"]["val"]["middle"]
    assert by["line, naive"]["line"][0] == by["ends"]["val"]["a"]
    told = bench.report(rows)
    assert f"| MLP | 1 | {100 * np.mean([by['ends']['test'][k]['accuracy'] for k in 'ab']):.1f} ±" in told
    bench.plot(rows, tmp_path)
    assert (tmp_path / "merging.svg").stat().st_size > 1000


def test_groups_heads_and_experts_have_other_ways(bench):
    assert bench.ways("mlp") == ["ends", "naive", "weights", "activations"]
    assert "activations, flat" in bench.ways("vit")
    assert "weights, experts in place" in bench.ways("moe")


def test_intervals_are_those_of_student(bench):
    assert bench.interval([1.0, 2.0, 3.0], 2) == "2.00 ± 2.48"
