"""`kill -9` of coordinators and workers: nothing acknowledged is lost, nothing is done twice, nobody is left over, and
the search goes the way that it goes undisturbed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import pytest
import search_crash

from archc.search.executors.pool import Pool
from archc.search.study import Study
from archc.search.vault import result_path


@pytest.mark.timeout(3600)  # on a machine however loaded
def test_twenty_kills_change_nothing() -> None:
    rows = search_crash.kill_many(20, seed=1, real=0, evaluations=60, strategies=("evolution",))
    assert [row["wrong"] for row in rows if row["wrong"]] == []
    kills = [kill for row in rows for kill in row["kills"]]
    assert len(kills) >= 20
    assert len({kill["victim"] for kill in kills}) >= 2
    assert any(kill.get("acknowledged") for kill in kills), "some fell in the middle of a search"


def test_what_would_be_wrong_is_seen(tmp_path: Path) -> None:
    """The control: each of the things that are looked for."""
    from archc.search.engine import run

    folder = tmp_path / "study"
    search_crash.begin(folder, "synthetic", "random", 4)
    with Study.open(folder) as study:
        run(study, Pool(folder, 1))
    watch = search_crash.Watch(folder)
    expected = search_crash.course(watch.look())
    assert (watch.beginnings(), watch.wrong) == (len(watch.files), [])

    key = next(iter(watch.files))
    path = result_path(folder, key)
    shutil.copyfile(path, tmp_path / "again")  # the same bytes, but written again
    os.replace(tmp_path / "again", path)
    with open(folder / "trace", "a", encoding="utf-8") as trace:
        trace.write(f"{key} {path.stat().st_mtime_ns + 1}\n")
    watch.told[99] = "a result"
    watch.look()
    watch.beginnings()
    assert watch.wrong == [
        "lost: the result of trial 99",
        f"again: {key[:8]} was replaced",
        f"again: {key[:8]} was begun after its result stood",
    ]
    other = tmp_path / "other"
    search_crash.begin(other, "synthetic", "random", 4, seed=8)
    with Study.open(other) as study:
        run(study, Pool(other, 1))
        assert search_crash.course(study) != expected
