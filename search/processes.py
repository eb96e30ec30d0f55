"""Processes: spoken to in lines of JSON, ended in whole groups, and with who started them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import IO, Any

Words = dict[str, Any]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Ended(Exception):
    """A companion has ended; `args[0]` is its exit code, or minus the signal."""


class Companion:
    """A Python process that runs a module of archc, is told lines of JSON and answers in such.

    It heads a group of its own: Ctrl-C is for us alone, who end it.
    """

    def __init__(
        self, module: str, *arguments: object, env: Mapping[str, str] | None = None, errors: IO[bytes] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | dict(env or {}),
            process_group=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out, self._rest = self.process.stdin, self.process.stdout, b""

    def tell(self, **words: Any) -> None:
        """Raises: Ended."""
        try:
            self._in.write(json.dumps(words).encode() + b"\n")
            self._in.flush()
        except BrokenPipeError:
            raise Ended(self.end()) from None

    def hear(self, seconds: float) -> list[Words]:
        """What it says, as soon as it says something; nothing after so many seconds. Raises: Ended."""
        end = time.monotonic() + seconds
        lines: list[bytes] = []
        while not lines:
            left = max(0.0, end - time.monotonic())
            if select.select([self._out], [], [], min(left, 1.0))[0]:
                data = os.read(self._out.fileno(), 1 << 16)
                if not data:
                    raise Ended(self.end())
                *lines, self._rest = (self._rest + data).split(b"\n")
            elif self.process.poll() is not None:  # somebody whom it started still holds the pipe
                raise Ended(self.end())
            elif not left:
                break
        return [json.loads(line) for line in lines]

    def end(self, grace: float = 0.0) -> int:
        """End it, how it ended: by closing what it reads, and by force when that does not do within `grace` seconds."""
        with contextlib.suppress(OSError):
            self._in.close()
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
        status = self.process.wait()
        self._out.close()
        return status


def die_with(parent: int) -> None:
    """Have this process killed when its parent (a thread of it) ends, which it may have done already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """From here on, whoever among our descendants loses its parent becomes our child."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_group(head: int) -> None:
    """Kill a process and all of its group."""
    for kill in (os.killpg, os.kill):  # the latter where it had not yet made its group
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(head, signal.SIGKILL)


def ending(status: int) -> str:
    """How a process ended.

    >>> ending(-11), ending(3)
    ('killed by SIGSEGV', 'ended with status 3')
    """
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
