"""The process that a study's workers are forked from: `python -m archc.search.worker FOLDER PATIENCE`.

It imports what jobs need once, starts no thread, and forks a process for each job: a start takes milliseconds, every
job begins in the same state, and whatever it does to its memory ends with it. It watches their resident memory and
their time, and ends them as a group. When its coordinator is gone, so are they.

Lines of JSON come in:       run (job, cores), pause, resume; the end of the input ends everything
and go out (pipe on fd 1):   started, report, failed (of a job), ended, paused
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import json
import mmap
import os
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import psutil

from archc.ir.diagnostics import CompileError
from archc.search.executor import Job
from archc.search.processes import adopt_orphans, die_with, end_group
from archc.search.records import Point
from archc.search.vault import read_result, write_result
from archc.search.work import work_of

TICK = 0.05
"""Seconds between two looks at the memory of a job."""
_TICKS_PER_FAMILY = 10  # what a job started is counted in every so many ticks: finding it takes longer
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOG_BYTES, _LAST_WORDS = 1 << 24, 4096
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TVM_NUM_THREADS")


def main(folder: Path, patience: float) -> None:
    """Serve until the input ends."""
    replies = os.dup(1)  # whatever libraries print is no reply
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to heed
    adopt_orphans()  # what a job left behind becomes ours to end
    Nursery(folder, patience, replies).serve()


@dataclass
class _Child:
    """A job under way. `sign` is shared with it: when it last reported, on the monotonic clock."""

    job: Job
    process: int
    log: BinaryIO
    sign: mmap.mmap
    begin: float = field(default_factory=time.monotonic)
    verdict: str = ""
    ticks: int = 0

    def last_words(self) -> str:
        end = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), _LAST_WORDS, max(0, end - _LAST_WORDS)).decode(errors="replace").strip()


class Nursery:
    """Forks, watches and ends jobs."""

    def __init__(self, folder: Path, patience: float, replies: int) -> None:
        self.folder, self.patience, self.replies = folder, patience, replies
        self.children: dict[int, _Child] = {}
        self.paused_at: float | None = None
        self.waiting: list[dict[str, Any]] = []  # jobs that came during a pause
        self.warmed: set[str] = set()
        self.coordinator = os.getppid()

    def serve(self) -> None:
        woken, wake = os.pipe()
        for end in (woken, wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        rest = b""
        try:
            while os.getppid() == self.coordinator:
                ready, _, _ = select.select([0, woken], [], [], TICK if self.children else 1.0)
                if woken in ready:
                    os.read(woken, 4096)
                if 0 in ready:
                    data = os.read(0, 1 << 20)
                    if not data:
                        return
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self.obey(json.loads(line))
                self.reap()
                self.watch()
        except BrokenPipeError:
            pass  # nobody listens any more: the coordinator has ended
        finally:
            for child in self.children.values():
                end_group(child.process)
            self.end_strays()

    def say(self, key: str, kind: str, **words: Any) -> None:
        _say(self.replies, key=key, kind=kind, **words)

    def obey(self, order: dict[str, Any]) -> None:
        match order["do"]:
            case "run" if self.paused_at is not None:
                self.waiting.append(order)
            case "run":
                self.run(Job.model_validate(order["job"]), order["cores"])
            case "pause":
                self.pause()
            case "resume":
                self.resume()

    def run(self, job: Job, cores: Sequence[int]) -> None:
        """Fork a process for a job."""
        try:
            self.warm(job)
        except Exception as error:  # it would be the same with every job
            account = _account(error)
            self.say(job.key, "failed", **account | {"what": "disk" if account["what"] == "disk" else "setup"})
            self.say(job.key, "ended", status=1, verdict="", words="", seconds=0.0)
            return
        log = tempfile.TemporaryFile(prefix="archc-worker-", buffering=0)  # noqa: SIM115  has no name: nothing is left
        os.set_inheritable(log.fileno(), False)
        sign = mmap.mmap(-1, 8)
        sign[:] = struct.pack("d", time.monotonic())
        parent, process = os.getpid(), os.fork()
        if process == 0:
            die_with(parent)
            _work(job, self.folder, cores, log.fileno(), sign, self.replies)
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(process, process)  # as the child does: whoever comes first
        self.children[process] = _Child(job, process, log, sign)
        self.say(job.key, "started", process=process)

    def warm(self, job: Job) -> None:
        """Load what jobs of this kind share, once."""
        address = job.proposal.work + job.evaluation.model_dump_json()
        if address in self.warmed:
            return
        kind = work_of(job)
        if kind.warm is not None:
            kind.warm(job)
        self.warmed.add(address)
        gc.collect()
        gc.freeze()  # what children do not write to, they share

    def pause(self) -> None:
        """Stop everything; say so when it stands still."""
        self.paused_at = self.paused_at or time.monotonic()
        for process in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGSTOP)
        for process in self.children:  # until it stands still, or has ended
            os.waitid(os.P_PID, process, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self.say("", "paused")

    def resume(self) -> None:
        if self.paused_at is None:
            return
        stood, self.paused_at = time.monotonic() - self.paused_at, None
        for process, child in self.children.items():
            child.begin += stood
            child.sign[:] = struct.pack("d", time.monotonic())
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGCONT)
        waiting, self.waiting = self.waiting, []
        for order in waiting:
            self.obey(order)

    def watch(self) -> None:
        """End what takes too much memory or time."""
        if self.paused_at is not None:
            return
        now = time.monotonic()
        for child in self.children.values():
            if child.verdict:
                continue
            limits = child.job.evaluation
            child.ticks += 1
            if os.fstat(child.log.fileno()).st_size > _LOG_BYTES:
                os.ftruncate(child.log.fileno(), 0)
            taken = _resident(child.process, family=child.ticks % _TICKS_PER_FAMILY == 1)
            if taken > limits.memory_mb << 20:
                child.verdict = "memory"
            elif now - child.begin > limits.seconds:
                child.verdict = "time"
            elif now - struct.unpack("d", child.sign[:])[0] > self.patience:
                child.verdict = "hang"
            if child.verdict:
                end_group(child.process)

    def reap(self) -> None:
        """Say which jobs have ended, and how."""
        while (ended := _ended()) is not None:
            end_group(ended)  # what it started and left; its number is still taken, so nobody else is hit
            status = os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1])
            child = self.children.pop(ended, None)
            if child is None:
                continue
            self.end_strays()
            seconds = time.monotonic() - child.begin
            self.say(
                child.job.key, "ended", status=status, verdict=child.verdict, words=child.last_words(), seconds=seconds
            )
            child.log.close()
            child.sign.close()

    def end_strays(self) -> None:
        """What escaped its job's group, and lost its parent, is our child now."""
        me = os.getpid()
        text = Path(f"/proc/{me}/task/{me}/children").read_text()
        for process in map(int, text.split()):
            if process not in self.children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def _work(job: Job, folder: Path, cores: Sequence[int], log: int, sign: mmap.mmap, replies: int) -> NoReturn:
    """A job in its own process; never returns."""
    status = 1
    try:
        _settle(job, cores, log)

        def report(point: Point) -> bool:
            sign[:] = struct.pack("d", time.monotonic())
            _say(replies, key=job.key, kind="report", point=point.model_dump())
            return True

        begin = time.monotonic()
        if read_result(folder, job.key) is None:
            result = work_of(job).run(job, folder, report)
            if not result.seconds:
                result = result.model_copy(update={"seconds": time.monotonic() - begin})
            write_result(folder, job.key, result)
        status = 0
    except BaseException as error:  # SystemExit too: a process that was forked must not go on as its parent
        traceback.print_exc()
        _say(replies, key=job.key, kind="failed", **_account(error))
    finally:
        os._exit(status)


def _settle(job: Job, cores: Sequence[int], log: int) -> None:
    """Make this process the head of its own group, on its own cores, that talks to its log."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is told, not kept
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable(2)
    if cores:
        os.sched_setaffinity(0, cores)
    threads = job.evaluation.threads
    os.environ |= {name: str(threads) for name in THREADS}
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def _account(error: BaseException) -> dict[str, str]:
    """What went wrong, for the coordinator: the disk is full, the candidate is no good, or else."""
    cause: BaseException | None = error
    what = "invalid" if isinstance(error, CompileError) else "error"
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            what = "disk"
        cause = cause.__cause__ or cause.__context__
    if not isinstance(error, CompileError):
        return {"what": what, "code": "", "message": f"{type(error).__name__}: {error}"}
    found = error.diagnostics[0]
    return {"what": what, "code": found.code, "message": found.message + (f" ({found.label})" if found.label else "")}


def _say(replies: int, **words: Any) -> None:
    """One write below the size that pipes keep whole: processes that share it never mix their lines. Words that are too
    long lose their beginning."""
    while len(line := json.dumps(words).encode() + b"\n") > select.PIPE_BUF:
        longest = max((name for name in words if isinstance(words[name], str)), key=lambda name: len(words[name]))
        words[longest] = words[longest][len(words[longest]) // 4 + 1 :]
    os.write(replies, line)


def _ended() -> int | None:
    """A child that has ended and was not waited for."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found else None


def _resident(process: int, family: bool) -> int:
    """Bytes of memory that a process takes, with those of what it started."""
    total = 0
    try:
        head = psutil.Process(process)
        for one in [head, *head.children(recursive=True)] if family else [head]:
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
    except psutil.Error:
        pass  # it has ended
    return total


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
