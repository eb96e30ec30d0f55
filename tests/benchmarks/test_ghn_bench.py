"""`benchmarks/ghn.py` and `pool.py` in small: resumed after a kill, reported, and their arithmetic can say no."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import ghn
import ghn_report
import pool
from paired import mean_interval, paired
from results import Results

from archc.metanet import distribution


@pytest.fixture(autouse=True)
def own_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts choose another space; whoever comes after finds the usual one."""
    monkeypatch.setattr(distribution, "SPACE", distribution.SPACE)
    distribution.space.cache_clear()
    distribution._stream.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def forget() -> object:
    yield
    distribution.space.cache_clear()
    distribution._stream.cache_clear()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


SMALL = ["--train", "6", "--test", "3", "--other", "2", "--snapshot", "2", "--task", "digits"]


def test_equal_models_differ_by_an_interval_that_holds_zero_and_better_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    nets = rng.uniform(0.2, 0.9, 100)  # some nets are easier than others for everybody
    runs = [np.clip(nets + rng.normal(0, 0.05, (3, 100)), 0, 1).tolist() for _ in range(2)]
    equal = paired(*runs)
    assert equal.low < 0 < equal.high
    better = paired((np.array(runs[0]) + 0.03).tolist(), runs[1])
    assert better.low > 0
    unpaired = mean_interval(runs[0])
    assert equal.high - equal.low < unpaired.high - unpaired.low  # the nets' own differences cancel


def test_one_lucky_seed_of_three_is_not_enough() -> None:
    theirs = np.full((3, 50), 0.5)
    ours = theirs + np.array([[0.3], [0.0], [-0.05]])
    found = paired(ours.tolist(), theirs.tolist())
    assert found.mean > 0.05
    assert found.low < 0


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(ghn.time, "process_time", lambda: next(clock) / 8)  # an eighth of a second a step
    options = [*SMALL, "--minutes", "0.0125", "--view", "context"]  # 6 steps
    ghn.main(["--out", str(tmp_path / "whole"), *options])
    train = ghn.Bench.train
    with monkeypatch.context() as killed:
        killed.setattr(ghn.Bench, "train", lambda self, judged, every: train(self, judged, every, stop=3))
        killed.setattr(ghn.Bench, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ghn.main(["--out", str(tmp_path / "parts"), *options])
    ghn.main(["--out", str(tmp_path / "parts"), *options])
    rows = [Results(tmp_path / f / "context-r3-t8-0.jsonl").rows[-1] for f in ("whole", "parts")]
    assert rows[0]["steps"] == rows[1]["steps"] == 6
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    assert rows[0]["batches"] == 24
    assert {len(v) for v in rows[0]["accuracy"].values()} == {2, 3}
    before = (tmp_path / "parts" / "context-r3-t8-0.jsonl").read_bytes()
    ghn.main(["--out", str(tmp_path / "parts"), *options])  # done before
    assert (tmp_path / "parts" / "context-r3-t8-0.jsonl").read_bytes() == before


def test_the_pool_goes_on_and_the_report_has_every_table(tmp_path: Path) -> None:
    for view in ("graph", "table"):
        ghn.main(["--out", str(tmp_path), "--view", view, *SMALL, "--minutes", "0.004"])
    common = ["--out", str(tmp_path), "--task", "digits", "--steps", "10"]
    for split, start in (("val", "kaiming"), ("train", "kaiming"), ("test", "kaiming")):
        pool.main([*common, "--split", split, "--start", start, "--count", "2", "--lr", "0.01"])
    model = str(tmp_path / "graph-r3-t8-0.safetensors")
    for split in ("val", "test"):
        pool.main([*common, "--split", split, "--start", model, "--count", "2", "--lr", "0.01"])
    whole = (tmp_path / "pool.jsonl").read_bytes()
    (tmp_path / "pool.jsonl").write_bytes(whole + b'{"task": "dig')
    pool.main([*common, "--split", "test", "--count", "2", "--lr", "0.01"])
    assert (tmp_path / "pool.jsonl").read_bytes() == whole  # nothing done again, half a line dropped
    pool.main([*common, "--split", "test", "--count", "2", "--nearest"])
    rows = Results(tmp_path / "pool.jsonl").rows
    predicted = [row for row in rows if row["start"] == model and row["split"] == "test"]
    zero = Results(tmp_path / "graph-r3-t8-0.jsonl").rows[-1]["accuracy"]["test"]
    assert [row["test"][0] for row in predicted] == zero[:2]  # fine-tuning begins where zero-step ends
    page = tmp_path / "page.md"
    page.write_text(f"a\n{ghn_report.BEGIN}\nold\n{ghn_report.END}\nz\n")
    (tmp_path / "pool.jsonl").rename(tmp_path / "rows")
    (tmp_path / "pool").mkdir()
    (tmp_path / "rows").rename(tmp_path / "pool" / "pool.jsonl")
    (tmp_path / "nearest.json").rename(tmp_path / "pool" / "nearest.json")
    monkey = ghn_report.finetuned.__defaults__
    ghn_report.finetuned.__defaults__ = ((0, 10),)
    ghn_report.main(["--runs", str(tmp_path), "--pool", str(tmp_path / "pool"), "--page", str(page)])
    ghn_report.finetuned.__defaults__ = monkey
    text = page.read_text()
    for part in ("GHN", "(1) graph-free table", "(5) nearest of 2", "predicted (GHN)", "norm-free", "Wiring twins"):
        assert part in text
    assert "old" not in text
    assert text.startswith("a\n")
    assert text.endswith("z\n")
    assert json.loads((tmp_path / "pool" / "nearest.json").read_text())["pool"] == 2
