"""Processes: that they end with who started them, in whole groups; and how they ended, in words."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


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
