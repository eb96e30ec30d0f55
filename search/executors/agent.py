"""What stands on a node of a Ray cluster: a pool of one worker, in a folder of its own, that is asked over the network.

Nothing here imports ray, and only text and bytes go in and out.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from archc.ir.diagnostics import CompileError
from archc.search import vault
from archc.search.executor import Job
from archc.search.executors.pool import Pool

Files = dict[str, bytes]
"""Files of a vault, by their paths in it."""


def machine() -> str:
    """What tells one machine from another, for as long as it runs."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Agent:
    """Does one job after the other; the methods are those of an executor, with the files that belong to it."""

    def __init__(self, patience: float) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="archc-ray-"))
        self._pool = Pool(self._folder, 1, cores=[], patience=patience)

    def about(self) -> dict[str, str]:
        return {"machine": machine(), "archc": version("archc")}

    def submit(self, job: str, start: bytes | None, losses: int) -> None:
        """Start a job; `start` is the file that its `start` names, `losses` how often it was lost on other nodes."""
        given = Job.model_validate_json(job)
        if given.start is not None and start is not None:
            vault.weights_path(self._folder, given.start).write_bytes(start)
        self._pool.losses[given.key] = losses
        self._pool.submit(given)

    def wait(self, seconds: float) -> tuple[list[str], Files, str]:
        """Events, the files that came with the last one, and why this node cannot go on (or nothing)."""
        try:
            events = self._pool.wait(seconds)
        except CompileError as error:
            found = error.diagnostics[0]
            return [], {}, f"{found.code}: {found.message} ({found.label})"
        ended = any(event.kind != "report" for event in events)
        return [event.model_dump_json() for event in events], self._files() if ended else {}, ""

    def pause(self) -> None:
        self._pool.pause()

    def resume(self) -> None:
        self._pool.resume()

    def close(self) -> None:
        self._pool.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _files(self) -> Files:
        """All that stands in the vault, which is empty then."""
        found = {}
        for kind in (vault.WEIGHTS, vault.ARTIFACTS, vault.RESULTS):  # the result last: with it, the work is done
            for path in (self._folder / kind).glob("[0-9a-f]*"):
                found[f"{kind}/{path.name}"] = path.read_bytes()
                path.unlink()
        return found
