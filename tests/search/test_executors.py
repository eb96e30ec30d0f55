"""Executors: jobs get done, and whatever goes wrong in one is told and costs no other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from archc.ir.diagnostics import CompileError
from archc.search.evaluation import Evaluation
from archc.search.executor import Event, Executor, Job
from archc.search.executors import make_executor
from archc.search.executors.inline import Inline
from archc.search.executors.pool import KILLS, Pool
from archc.search.goals import parse_goals
from archc.search.records import Candidate, Proposal, Result
from archc.search.vault import read_result, result_path

GOALS = parse_goals(["accuracy", "params:min"])
LONG = 300.0  # seconds that a test waits at most, on a machine however loaded


def job(number: int, **how: Any) -> Job:
    """A synthetic job; `how` are fields of the evaluation, or of `Synthetic`."""
    limits = {name: how.pop(name) for name in list(how) if name in Evaluation.model_fields}
    evaluation = Evaluation(task="synthetic", goals=GOALS, recipe=how, **limits)
    candidate = Candidate(text="arch a()", hash=f"{number:064x}")
    return Job(key=f"{number:064x}", proposal=Proposal(number=number, candidate=candidate), evaluation=evaluation)


def run_all(executor: Executor, jobs: list[Job]) -> tuple[dict[int, Result], list[Event]]:
    """Do jobs to their ends, lost ones again; the results by number, and all events."""
    todo, under_way, results, events = list(jobs), dict[str, Job](), dict[int, Result](), list[Event]()
    end = time.monotonic() + LONG
    while todo or under_way:
        while todo and len(under_way) < executor.workers:
            under_way[todo[0].key] = todo[0]
            executor.submit(todo.pop(0))
        for event in executor.wait(10.0):
            events.append(event)
            if event.kind == "lost":
                todo.append(under_way.pop(event.key))
            elif event.kind == "done":
                assert event.result is not None
                results[under_way.pop(event.key).proposal.number] = event.result
        assert time.monotonic() < end, f"still under way: {sorted(under_way)}"
    return results, events


@pytest.fixture
def pool(tmp_path: Path):
    with Pool(tmp_path, 2) as made:
        yield made


def test_a_pool_does_what_one_process_does(tmp_path: Path, pool: Pool) -> None:
    jobs = [job(n) for n in range(6)]
    expected, told = run_all(Inline(tmp_path), jobs)
    for job_ in jobs:
        result_path(tmp_path, job_.key).unlink()
    found, events = run_all(pool, jobs)
    assert {n: r.values for n, r in found.items()} == {n: r.values for n, r in expected.items()}
    assert len({r.values["accuracy"] for r in found.values()}) == 6
    for number in found:
        mine = [e.point for e in events if e.kind == "report" and e.key == jobs[number].key]
        assert mine == [e.point for e in told if e.kind == "report" and e.key == jobs[number].key]
        assert tuple(mine) == found[number].curve
        assert read_result(tmp_path, jobs[number].key) == found[number]


def test_work_whose_result_stands_is_not_done_again(tmp_path: Path, pool: Pool) -> None:
    done = job(1)
    first, _ = run_all(pool, [done])
    written = result_path(tmp_path, done.key).stat().st_mtime_ns
    again, events = run_all(pool, [done])
    assert (again, [e.kind for e in events]) == (first, ["done"])
    assert result_path(tmp_path, done.key).stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("fault", "reason", "said", "lost"),
    [
        ("memory", "memory", "more than 300 MB", 0),
        ("segfault", "crash", "SIGSEGV", 1),
        ("abort", "crash", "SIGABRT", 1),
        ("exit", "crash", "status 3", 1),
        ("exception", "crash", "raises what it was asked to raise", 0),
        ("endless", "time", "longer than 2 s", 0),
        ("kill", "crash", "SIGKILL", KILLS - 1),
    ],
)
def test_what_goes_wrong_is_told_and_costs_no_other(
    tmp_path: Path, fault: str, reason: str, said: str, lost: int
) -> None:
    limits: dict[str, Any] = {"memory_mb": 300} if fault == "memory" else {"seconds": 2.0} if fault == "endless" else {}
    with Pool(tmp_path, 2) as pool:
        results, events = run_all(pool, [job(0, faults={fault: 1.0}, **limits), *(job(n) for n in (1, 2, 3))])
    assert (results[0].status, results[0].reason) == ("infeasible", reason)
    assert said in results[0].message
    assert [r.status for n, r in sorted(results.items()) if n] == ["finished"] * 3
    assert sum(e.kind == "lost" for e in events) == lost
    assert results[0].curve  # what it told before stands
    assert results[0].samples == results[0].curve[-1].samples


def test_a_job_that_hangs_is_ended(tmp_path: Path) -> None:
    with Pool(tmp_path, 1, patience=1.0) as pool:
        results, events = run_all(pool, [job(0, faults={"hang": 1.0}), job(1)])
    assert (results[0].reason, results[1].status) == ("time", "finished")
    assert "no report within 1 s" in results[0].message
    assert [e.kind for e in events].count("lost") == 1


def test_a_fault_that_passes_costs_a_second_try(tmp_path: Path, pool: Pool) -> None:
    (tmp_path / "marks").mkdir()
    results, events = run_all(pool, [job(n, faults={"segfault": 1.0}, once=str(tmp_path / "marks")) for n in range(3)])
    assert {r.status for r in results.values()} == {"finished"}
    assert [e.kind for e in events].count("lost") == 3


def test_a_full_disk_stops_with_a_message_and_keeps_what_was_done(tmp_path: Path) -> None:
    code = f"""
import resource, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_executors import job, run_all
from archc.search.executors.pool import Pool
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 23, 1 << 23))
with Pool(Path(sys.argv[1]), 1) as pool:
    run_all(pool, [job(0), job(1, faults={{"disk": 1.0}}, megabytes=16)])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert "error[E0728]" in done.stderr
    assert read_result(tmp_path, job(0).key) is not None
    assert read_result(tmp_path, job(1).key) is None


def test_what_a_job_leaves_behind_is_ended(pool: Pool) -> None:
    run_all(pool, [job(0, faults={"children": 1.0})])
    assert pool._nursery is not None
    _, alive = psutil.wait_procs(psutil.Process(pool._nursery.process.pid).children(recursive=True), timeout=LONG)
    assert alive == []


def test_a_killed_worker_process_loses_nothing(tmp_path: Path, pool: Pool) -> None:
    for n in range(2):
        pool.submit(job(n, takes=300.0, points=600))
    while not pool.wait(10.0):  # a report: it is in the middle
        pass
    assert pool._nursery is not None
    workers = psutil.Process(pool._nursery.process.pid).children()
    pool._nursery.process.kill()
    events: list[Event] = []
    while len([e for e in events if e.kind == "lost"]) < 2:
        events += pool.wait(10.0)
    _, alive = psutil.wait_procs(workers, timeout=LONG)
    assert alive == []
    results, _ = run_all(pool, [job(n) for n in range(2)])
    assert {r.status for r in results.values()} == {"finished"}


def test_workers_die_with_a_coordinator_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_executors import job
from archc.search.executors.pool import Pool
pool = Pool(Path(sys.argv[1]), 2)
for n in range(2):
    pool.submit(job(n, takes=600.0, points=600))
while len(pool._running) != 2 or not all(r.curve for r in pool._running.values()):
    pool.wait(10.0)
print("under way", flush=True)
pool.wait(600.0)
while True:
    pool.wait(600.0)
"""
    coordinator = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    family: list[psutil.Process] = []
    try:
        assert coordinator.stdout is not None
        assert coordinator.stdout.readline() == "under way\n"
        family = psutil.Process(coordinator.pid).children(recursive=True)
        assert len(family) == 3
    finally:
        coordinator.kill()
        coordinator.communicate()
    _, alive = psutil.wait_procs(family, timeout=LONG)
    for process in alive:
        process.kill()
    assert alive == []


def test_a_pause_stands_still_and_does_not_count(tmp_path: Path) -> None:
    with Pool(tmp_path, 2) as pool:
        for n in range(2):
            pool.submit(job(n, faults={"endless": 1.0}, seconds=4.0))
        while not all(r.curve for r in pool._running.values()):
            pool.wait(10.0)
        pool.pause()
        assert pool._nursery is not None
        workers = psutil.Process(pool._nursery.process.pid).children()
        before = [w.cpu_times().user for w in workers]
        assert {w.status() for w in workers} == {psutil.STATUS_STOPPED}
        assert pool.wait(5.0) == []  # longer than they may take; nothing is told either
        assert [w.cpu_times().user for w in workers] == before
        for _ in range(2):  # and again
            pool.resume()
            pool.pause()
            assert {w.status() for w in workers} == {psutil.STATUS_STOPPED}
        pool.resume()
        results = [e.result for e in pool.wait(LONG)]
        assert [r.reason for r in results if r] in (["time"], ["time"] * 2)


def test_workers_that_cannot_start_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Pool(tmp_path, 1) as pool, pytest.raises(CompileError, match="E0737"):
        run_all(pool, [job(0)])


def test_a_task_that_cannot_be_loaded_stops_the_study(tmp_path: Path, pool: Pool) -> None:
    made = job(0)
    evaluation = made.evaluation.model_copy(update={"task": "npz:missing.npz", "recipe": {}})
    with pytest.raises(CompileError, match="E061"):
        run_all(pool, [made.model_copy(update={"evaluation": evaluation})])
    assert read_result(tmp_path, made.key) is None


def test_unknown_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"E0736[\s\S]*did you mean `pool`"):
        make_executor("pol", tmp_path)
    assert isinstance(make_executor("pool", tmp_path, workers=3), Pool)


def test_jobs_have_cores_of_their_own_where_there_are_enough(tmp_path: Path) -> None:
    here = sorted(os.sched_getaffinity(0))
    if len(here) < 2:
        pytest.skip("needs two cores")
    with Pool(tmp_path, 2, cores=here[:2]) as pool:
        for n in range(2):
            pool.submit(job(n, takes=60.0, points=60))
        while not all(r.curve for r in pool._running.values()):
            pool.wait(10.0)
        bound = {tuple(os.sched_getaffinity(r.process or 0)) for r in pool._running.values()}
    assert bound == {(here[0],), (here[1],)}
    assert Pool(tmp_path, 4, cores=here[:2])._cores(0, 1) == []
