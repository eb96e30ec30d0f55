"""Jobs in this process, one at a time: for debugging and tests. Limits on memory and time are not kept, and what a job
raises goes through."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from archc.search.executor import Event, Job
from archc.search.records import Point
from archc.search.vault import make, read_result, write_result
from archc.search.work import work_of


class Inline:
    """An executor that works while it is waited for."""

    workers = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make(folder)
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[Event]:
        """Do the next job to its end, however long that takes."""
        if not self._jobs:
            return []
        job, events = self._jobs.popleft(), list[Event]()

        def report(point: Point) -> bool:
            events.append(Event(key=job.key, kind="report", point=point))
            return True

        result = read_result(self.folder, job.key)
        if result is None:
            result = work_of(job).run(job, self.folder, report)
            write_result(self.folder, job.key, result)
        return [*events, Event(key=job.key, kind="done", result=result)]

    def pause(self) -> None:
        """Nothing runs between two calls."""

    def resume(self) -> None:
        """Nothing was stopped."""

    def close(self) -> None:
        self._jobs.clear()
