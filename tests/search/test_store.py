"""The log of a study: what is appended stays, in order, whole, for one writer and any number of readers."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archc.ir.diagnostics import CompileError
from archc.search.records import Candidate, Point, Proposal, Result
from archc.search.store import LOG, VERSION, Event, Lock, Store

PROPOSAL = Proposal(number=0, candidate=Candidate(text="arch a()", hash="00"))
RESULT = Result(number=0, status="finished", values={"accuracy": 0.5, "loss": float("inf")})


@pytest.fixture
def store(tmp_path: Path):
    Store.create(tmp_path, '{"a": 1}')
    opened = Store.open(tmp_path)
    yield opened
    opened.close()


def code_of(caught: pytest.ExceptionInfo[CompileError]) -> str:
    return caught.value.diagnostics[0].code


def test_what_is_appended_can_be_read_by_another(store: Store, tmp_path: Path) -> None:
    reader = Store.open(tmp_path, readonly=True)
    assert reader.config == '{"a": 1}'
    assert list(reader.entries()) == []
    first = store.append(Event("proposed", 0, PROPOSAL), Event("leased", 0, {"key": "ab"}))
    assert list(reader.entries()) == first
    second = store.append(Event("finished", 0, RESULT))
    assert list(reader.entries(after=first[-1].id)) == second
    kinds = [entry.kind for entry in reader.entries()]
    reader.close()
    assert kinds == ["proposed", "leased", "finished"]


def test_records_come_back_as_they_were(store: Store) -> None:
    store.append(Event("proposed", 0, PROPOSAL), Event("report", 0, Point(samples=3, score=0.1)))
    store.append(Event("finished", 0, RESULT))
    proposed, report, finished = store.entries()
    assert Proposal.model_validate_json(proposed.data) == PROPOSAL
    assert Point.model_validate_json(report.data) == Point(samples=3, score=0.1)
    assert Result.model_validate_json(finished.data) == RESULT


def test_events_are_logged_all_or_none(store: Store) -> None:
    with pytest.raises(TypeError):
        store.append(Event("opened", None, {}), Event("closed", None, {"why": object()}))
    assert list(store.entries()) == []
    store.append(Event("opened", None, {}))
    assert len(list(store.entries())) == 1


def test_a_reader_writes_nothing(store: Store, tmp_path: Path) -> None:
    reader = Store.open(tmp_path, readonly=True)
    with pytest.raises(CompileError) as caught:
        reader.append(Event("opened", None, {}))
    reader.close()
    assert code_of(caught) == "E0728"
    assert list(store.entries()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_log_can_be_read_where_nothing_can_be_written(store: Store, tmp_path: Path) -> None:
    entries = store.append(Event("opened", None, {}))
    store.close()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / LOG).write_bytes((tmp_path / LOG).read_bytes())
    os.chmod(copy / LOG, 0o444)
    os.chmod(copy, 0o555)
    try:
        reader = Store.open(copy, readonly=True)
        assert list(reader.entries()) == entries
        reader.close()
    finally:
        os.chmod(copy, 0o755)


# What is no log of ours


def test_there_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        Store.open(tmp_path)
    assert code_of(caught) == "E0729"
    assert caught.value.exit_code == 2


def test_a_log_is_not_overwritten(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        Store.create(tmp_path, "{}")
    assert code_of(caught) == "E0730"
    assert store.config == '{"a": 1}'
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("readonly", [False, True])
def test_another_version(store: Store, tmp_path: Path, readonly: bool) -> None:
    store.close()
    with sqlite3.connect(tmp_path / LOG) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = (tmp_path / LOG).read_bytes()
    with pytest.raises(CompileError) as caught:
        Store.open(tmp_path, readonly=readonly)
    assert code_of(caught) == "E0725"
    assert f"version {VERSION + 1}" in caught.value.diagnostics[0].label
    assert (tmp_path / LOG).read_bytes() == before


@pytest.mark.parametrize("readonly", [False, True])
def test_the_database_of_another_program(tmp_path: Path, readonly: bool) -> None:
    with sqlite3.connect(tmp_path / LOG) as connection:
        connection.execute("CREATE TABLE event (id INTEGER)")
    with pytest.raises(CompileError) as caught:
        Store.open(tmp_path, readonly=readonly)
    assert code_of(caught) == "E0729"


def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b"no database, " * 1000)
    with pytest.raises(CompileError) as caught:
        Store.open(tmp_path)
    assert code_of(caught) == "E0729"


def test_a_torn_log(store: Store, tmp_path: Path) -> None:
    for _ in range(100):
        store.append(
            Event("proposed", 0, PROPOSAL.model_copy(update={"candidate": Candidate(text="x" * 500, hash="")}))
        )
    store.close()
    os.truncate(tmp_path / LOG, (tmp_path / LOG).stat().st_size // 2)
    with pytest.raises(CompileError) as caught:
        Store.open(tmp_path)
    assert code_of(caught) == "E0729"


# Processes


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


HOLD = """
import sys, time
from pathlib import Path
from archc.search.store import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(1e6)
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    child = python(HOLD, tmp_path)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(CompileError) as caught:
            Lock(tmp_path)
        assert code_of(caught) == "E0726"
        assert f"process {child.pid} on" in caught.value.diagnostics[0].label
    finally:
        child.kill()
        child.wait()
    Lock(tmp_path).release()


def test_one_study_at_a_time_in_a_process(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    with pytest.raises(CompileError) as caught:
        Lock(tmp_path)
    assert code_of(caught) == "E0726"
    lock.release()
    lock.release()
    Lock(tmp_path).release()


def test_a_forked_child_does_not_hold_the_study(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(here, b"!")
        time.sleep(1e6)
    try:
        os.read(there, 1)
        lock.release()
        Lock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


APPEND = """
import sys
from pathlib import Path
from archc.search.store import Event, Store
store = Store.open(Path(sys.argv[1]))
for i in range(10**6):
    store.append(Event("report", i, {"samples": i}), Event("report", i, {"samples": -i}))
    print(i, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """And of two events of one transaction there are both or none."""
    Store.create(tmp_path, "{}")
    known = -1
    for lines in (1, 40, 200):
        child = python(APPEND, tmp_path)
        try:
            assert child.stdout is not None
            for _ in range(lines):
                known = int(child.stdout.readline())
        finally:
            child.kill()
            child.wait()
        store = Store.open(tmp_path)
        entries = list(store.entries())
        store.close()
        assert len(entries) % 2 == 0
        assert max(e.trial for e in entries if e.trial is not None) >= known


FULL = """
import resource, sys
from pathlib import Path
from archc.ir.diagnostics import CompileError
from archc.search.store import Event, Store
store = Store.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
done = 0
try:
    for i in range(10**5):
        store.append(Event("finished", i, {"text": "x" * 1000}))
        done += 1
except CompileError as error:
    print(error.diagnostics[0].code, done)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """Files may grow to 200 kB, then writing fails as it does on a full disk."""
    Store.create(tmp_path, "{}")
    child = python(FULL, tmp_path)
    code, done = child.communicate()[0].split()
    assert code == "E0728"
    assert int(done) > 10
    store = Store.open(tmp_path)
    assert len(list(store.entries())) == int(done)
    store.append(Event("closed", None, {}))  # there is room again
    store.close()
