"""Latency: what is larger takes longer, every repeat is kept, and one that cannot be measured costs no other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import archc
from archc.search.latency import Stopwatch, summarise

NET = """\
arch net(width = {width})

input  x: f32[N, 64]
output y: f32[N, 10]

y = x -> linear(width) -> relu -> linear(10)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    folder = tmp_path_factory.mktemp("latency")
    (folder / "cache").mkdir(mode=0o700)

    def build(width: int) -> Path:
        path = folder / f"{width}.archc"
        if not path.exists():
            (folder / f"{width}.arch").write_text(NET.format(width=width), encoding="utf-8")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ARCHC_CACHE", str(folder / "cache"))
                archc.build(folder / f"{width}.arch", path, threads=1)
        return path

    return build


def test_what_is_larger_takes_longer(compiled: Callable[[int], Path], tmp_path: Path) -> None:
    (tmp_path / "broken.archc").write_bytes(b"no artifact")
    missing = tmp_path / "missing.archc"
    with Stopwatch() as stopwatch:
        small, broken, large, gone = stopwatch.measure(
            [compiled(16), tmp_path / "broken.archc", compiled(8192), missing], batch=8
        )
        assert "E0510" in broken.failure or "E05" in broken.failure
        assert "E0" in gone.failure
        assert small.failure == large.failure == ""
        assert small.median_ms * 4 < large.median_ms
        for found in (small, large):
            assert len(found.repeats) >= 7
            assert found.calls >= 3 * len(found.repeats)
            assert found.low_ms <= found.interval[0] <= found.median_ms <= found.interval[1] <= found.high_ms * 1.001
            assert (found.batch, found.threads, found.cores) == (8, 1, (max(os.sched_getaffinity(0)),))

        child = stopwatch._child  # it is kept, and another takes its place when it has died
        assert child is not None
        stopwatch.measure([compiled(16)])
        assert stopwatch._child is child
        child.process.kill()
        child.process.wait()
        (again,) = stopwatch.measure([compiled(16)])
        assert again.failure == ""
        assert again.median_ms > 0
    assert stopwatch._child is None


def test_what_hangs_is_given_up(compiled: Callable[[int], Path]) -> None:
    with Stopwatch() as stopwatch:
        (found,) = stopwatch.measure([compiled(16)], patience=0.0)
    assert found.failure == "no answer within 0 s"
    assert found.median_ms == 0


def test_a_few_disturbed_repeats_do_not_count() -> None:
    calm = summarise([1.0, 1.01, 0.99] * 5)
    disturbed = summarise([1.0, 1.01, 0.99] * 5 + [30.0])
    assert abs(calm.median_ms - disturbed.median_ms) < 0.01
    assert disturbed.high_ms < 2
    assert summarise([1.0, 1.01, 0.99] * 5 + [30.0] * 15).median_ms > 2  # but for many they do
