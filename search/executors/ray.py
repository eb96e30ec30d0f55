"""A Ray cluster: `--ray ADDRESS`. Every worker is an actor that holds a pool of one (`archc.search.executors.agent`),
so limits and faults are those of a pool; with a node that dies its jobs are lost, and tried again on another.

Nodes need not share the study's folder: weights to start from are sent along, what a job writes comes back with its
result. They need archc, in the same version.

A cluster runs whatever it is told to: give it a token. `token` names its file, as do `RAY_AUTH_TOKEN_PATH` and
`RAY_AUTH_TOKEN`; nothing is read from or written to the home folder. Without any of them there is no authentication.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from archc.ir.diagnostics import CompileError, fail
from archc.search.executor import Event, Job
from archc.search.executors.pool import PATIENCE
from archc.search.processes import Companion, Ended, Words, ending
from archc.search.store import full
from archc.search.vault import make

CONNECT = 60.0
"""Seconds until a cluster must have answered."""
_REACH = 5.0
_CLOSING = 20.0
_REFUSED = b"InvalidAuthToken"  # Ray goes on trying; only its log tells why


class RayCluster:
    """The workers of a Ray cluster; `workers` is as many as it has CPUs for, `threads` each, unless it is given.

    Raises: CompileError (exit code 4): E0733 when nothing answers at the address, E0734 when the token is not that of
    the cluster, E0738 when ray is not installed.
    """

    def __init__(
        self,
        folder: Path,
        address: str,
        *,
        token: Path | None = None,
        workers: int | None = None,
        threads: int = 1,
        patience: float = PATIENCE,
    ) -> None:
        if find_spec("ray") is None:
            raise fail("E0738", "Ray is not installed", help="pip install 'archc[ray]'", exit_code=4)
        self.folder, self.address = folder, address
        make(folder)
        credentials = _credentials(token)
        _reach(address)
        self._log: BinaryIO = tempfile.TemporaryFile(prefix="archc-ray-")  # noqa: SIM115  as long as the connection
        self._running: set[str] = set()
        self._events: list[Event] = []
        self._paused = False
        self._bridge: Companion | None = Companion(
            "archc.search.executors.bridge",
            *(folder, address, workers or 0, threads, patience),
            env=credentials | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
            errors=self._log,
        )
        self.workers = self._connect()

    def submit(self, job: Job) -> None:
        self._running.add(job.key)
        self._order(do="run", job=job.model_dump(mode="json"))

    def wait(self, seconds: float) -> list[Event]:
        """News, as soon as there is some.

        Raises: CompileError E0728 when they cannot be written here, E0735 when the cluster cannot go on.
        """
        if not self._events and self._running:
            self._read(seconds)
        events, self._events = self._events, []
        return events

    def pause(self) -> None:
        """Stop the workers that are on this machine."""
        self._paused = False
        self._order(do="pause")
        while not self._paused:
            self._read(1.0)

    def resume(self) -> None:
        self._order(do="resume")

    def close(self) -> None:
        """End all workers, and leave the cluster as it was."""
        if self._bridge is not None:
            self._bridge.end(_CLOSING)
            self._bridge = None
            self._log.close()
        self._running.clear()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self) -> int:
        """The number of workers, once the cluster has answered."""
        assert self._bridge is not None
        end = time.monotonic() + CONNECT
        try:
            while time.monotonic() < end:
                for said in self._bridge.hear(0.5):
                    if said["kind"] == "ready":
                        return int(said["workers"])
                    raise (
                        _refused(self.address, said["message"])
                        if said["code"] == "E0734"
                        else _unreachable(self.address, said["message"])
                    )
                if _REFUSED in self._said():
                    raise _refused(self.address, "it refuses the token")
            raise _unreachable(self.address, f"no answer within {CONNECT:g} s")
        except Ended as ended:
            raise _unreachable(self.address, f"the connection {ending(ended.args[0])}{self._last_words()}") from None
        except CompileError:
            self._bridge.end()
            self._bridge = None
            raise

    def _order(self, **words: object) -> None:
        assert self._bridge is not None, "it is closed"
        try:
            self._bridge.tell(**words)
        except Ended as ended:
            raise self._broken(f"the connection {ending(ended.args[0])}{self._last_words()}") from None

    def _read(self, seconds: float) -> None:
        assert self._bridge is not None, "it is closed"
        try:
            for said in self._bridge.hear(seconds):
                self._hear(said)
        except Ended as ended:
            raise self._broken(f"the connection {ending(ended.args[0])}{self._last_words()}") from None

    def _hear(self, said: Words) -> None:
        match said["kind"]:
            case "paused":
                self._paused = True
            case "event":
                event = Event.model_validate(said["event"])
                if event.kind != "report":
                    self._running.discard(event.key)
                self._events.append(event)
            case "failure":
                raise full(self.folder, said["message"]) if said["code"] == "E0608" else self._broken(said["message"])

    def _broken(self, why: str) -> CompileError:
        return fail(
            "E0735",
            f"the Ray cluster at `{self.address}` cannot go on with the work",
            label=why,
            help="what has finished is kept: resume the study when the cluster is well, or without `--ray`",
            exit_code=4,
        )

    def _said(self) -> bytes:
        end = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), 1 << 16, max(0, end - (1 << 16)))

    def _last_words(self) -> str:
        lines = self._said().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][-300:]}" if lines else ""


def _credentials(token: Path | None) -> dict[str, str]:
    """The environment that says how to authenticate, all of it: Ray must look nowhere else.

    Raises: CompileError E0734 for a file that holds no token.
    """
    if token is None:
        given = {name: os.environ[name] for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)}
        return given | {"RAY_AUTH_MODE": "token"} if given else {"RAY_AUTH_MODE": "disabled"}
    try:
        if not token.read_text(encoding="utf-8").strip():
            raise OSError("it is empty")
    except (OSError, UnicodeDecodeError) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        raise fail(
            "E0734",
            f"`{token}` holds no token",
            label=why,
            help="name the file that the cluster was started with",
            exit_code=4,
        ) from None
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token.resolve()), "RAY_AUTH_TOKEN": ""}


def _reach(address: str) -> None:
    """See that something listens there: Ray would take minutes. Raises: CompileError E0733."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        if address == "auto":
            return
        raise _unreachable(address, "it is no HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str, why: str) -> CompileError:
    return fail(
        "E0733",
        f"there is no Ray cluster at `{address}`",
        label=why,
        help="`ray status --address=…` asks it, `ray start --head` starts one; without `--ray` the search runs here",
        exit_code=4,
    )


def _refused(address: str, why: str) -> CompileError:
    return fail(
        "E0734",
        f"the Ray cluster at `{address}` does not let us in",
        label=why,
        help="name the file of its token in RAY_AUTH_TOKEN_PATH",
        exit_code=4,
    )
