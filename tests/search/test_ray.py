"""A Ray cluster of two nodes on this machine, with a token: the same results, whatever happens to a node."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from archc.ir.diagnostics import CompileError
from archc.search.executors import make_executor
from archc.search.executors.inline import Inline
from archc.search.executors.ray import RayCluster
from archc.search.vault import read_result

sys.path.insert(0, str(Path(__file__).parent))
from test_executors import LONG, job, run_all

pytest.importorskip("ray", reason="needs the extra `ray`")


QUIET = (
    "--block",
    "--disable-usage-stats",
    "--object-store-memory=100000000",
    "--min-worker-port=0",
    "--max-worker-port=0",
)


def _kill_family(node: subprocess.Popen[bytes]) -> None:
    if node.poll() is None:
        family = psutil.Process(node.pid).children(recursive=True)
        for process in [*family, node]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        psutil.wait_procs(family, timeout=LONG)


class Cluster:
    """Nodes started by `ray start`; all that they leave is in one folder, home included."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # paths of sockets have to be short
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(32))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.nodes: list[subprocess.Popen[bytes]] = []

    def start(self, cpus: int) -> None:
        """Start a node, the first of which is the head. Ray gives a node 30 s, which a loaded machine may not keep."""
        for attempt in range(5):
            place = [f"--address={self.address}"] if self.nodes else ["--head", f"--port={self.port}"]
            place += [] if self.nodes else ["--include-dashboard=false", f"--temp-dir={self.folder}/t"]
            log = self.folder / f"log{len(self.nodes)}.{attempt}"
            with log.open("wb") as file:
                node = subprocess.Popen(
                    [sys.executable, "-m", "ray.scripts.scripts", "start", f"--num-cpus={cpus}", *place, *QUIET],
                    env={
                        **os.environ,
                        "HOME": str(self.folder),
                        "RAY_AUTH_MODE": "token",
                        "RAY_AUTH_TOKEN_PATH": str(self.token),
                    },
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            end = time.monotonic() + LONG
            while node.poll() is None and time.monotonic() < end:
                if "Ray runtime started" in log.read_text():
                    self.nodes.append(node)
                    return
                time.sleep(0.2)
            _kill_family(node)
        pytest.fail(log.read_text())

    def kill(self, number: int) -> None:
        _kill_family(self.nodes[number])

    def close(self) -> None:
        for number in reversed(range(len(self.nodes))):
            self.kill(number)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.start(1)
        made.start(1)
        yield made
    finally:
        made.close()


@pytest.mark.slow
def test_a_cluster_does_what_one_process_does(tmp_path: Path, cluster: Cluster) -> None:
    (tmp_path / "inline").mkdir()
    (tmp_path / "ray").mkdir()
    jobs = [job(n) for n in range(6)]
    expected, _ = run_all(Inline(tmp_path / "inline"), jobs)
    with RayCluster(tmp_path / "ray", cluster.address, token=cluster.token) as executor:
        assert executor.workers == 2
        found, events = run_all(executor, [*jobs, job(7, faults={"segfault": 1.0})])
        crashed = found.pop(7)
        assert {n: r.values for n, r in found.items()} == {n: r.values for n, r in expected.items()}
        assert (crashed.reason, [e.kind for e in events].count("lost")) == ("crash", 1)
        assert "SIGSEGV" in crashed.message
        for number, result in found.items():
            assert read_result(tmp_path / "ray", jobs[number].key) == result  # it came back, and stands here
        executor.pause()
        executor.resume()


@pytest.mark.slow
def test_a_wrong_token_is_refused(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong").write_text(secrets.token_hex(32))
    (tmp_path / "empty").touch()
    for token in (tmp_path / "wrong", tmp_path / "empty", tmp_path / "missing", None):
        begin = time.monotonic()
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        with pytest.raises(CompileError, match="E0734") as refused:
            RayCluster(tmp_path, cluster.address, token=token)
        assert refused.value.exit_code == 4
        assert time.monotonic() - begin < LONG
    assert not (Path.home() / ".ray" / "auth_token").exists()


@pytest.mark.slow
def test_jobs_of_a_node_that_dies_are_done_by_another(tmp_path: Path, cluster: Cluster) -> None:
    jobs = [job(n, takes=20.0, points=100) for n in range(4)]
    under_way, results, lost = {}, {}, []
    with RayCluster(tmp_path, cluster.address, token=cluster.token) as executor:
        todo = list(jobs)
        told: set[str] = set()
        end = time.monotonic() + 2 * LONG
        while todo or under_way:
            assert time.monotonic() < end
            while todo and len(under_way) < executor.workers:
                under_way[todo[0].key] = todo[0]
                executor.submit(todo.pop(0))
            for event in executor.wait(10.0):
                if event.kind == "report":
                    told.add(event.key)
                    if len(told) == 2 and cluster.nodes[1].poll() is None:  # both nodes are in the middle of one
                        cluster.kill(1)
                elif event.kind == "lost":
                    lost.append(event.message)
                    todo.append(under_way.pop(event.key))
                else:
                    results[under_way.pop(event.key).proposal.number] = event.result
    assert len(lost) == 1
    assert "its node or agent is gone" in lost[0]
    assert {n: r and r.status for n, r in results.items()} == dict.fromkeys(range(4), "finished")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:99999", "256.0.0.1:6379"])
def test_an_unreachable_cluster_is_told_soon(tmp_path: Path, address: str) -> None:
    with pytest.raises(CompileError, match="E0733") as unreachable:
        make_executor("ray", tmp_path, address=address)
    assert unreachable.value.exit_code == 4


def test_what_listens_but_is_no_cluster_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archc.search.executors.ray.CONNECT", 8.0)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(CompileError, match="E0733"):
        make_executor("ray", tmp_path, address=f"127.0.0.1:{listener.getsockname()[1]}")
