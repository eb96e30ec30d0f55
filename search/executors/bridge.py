"""The process that speaks with a Ray cluster: `python -m archc.search.executors.bridge FOLDER ADDRESS WORKERS THREADS
PATIENCE`, WORKERS 0 for as many as there are CPUs.

Ray lives here, and not in the coordinator: it takes signals, threads and the environment into its hands, prints, and
may not come back for minutes. Lines of JSON come in (run, pause, resume; the end of the input ends everything) and go
out (ready, event, paused, failure).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray

from archc.backends.weights import atomic_file
from archc.ir.diagnostics import CompileError
from archc.search import vault
from archc.search.executor import Event, Job
from archc.search.executors.agent import Agent, Files, machine

POLL = 0.2
"""Seconds that an agent waits for news before it can be told something else."""
NO_ROOM = 120.0
"""Seconds that jobs wait for a node to have room, while none is worked on."""
PATIENT, CLOSING = 60.0, 5.0
_FILE = re.compile(r"(results|weights|artifacts)/[0-9a-f]{8,64}\.(json|safetensors|archc)")


class Failure(Exception):
    """The cluster cannot do the work: a code, and what happened."""


@dataclass
class Slot:
    """A worker: an actor that Ray places where there is room, and what it has been asked. `asked` is `about` until it
    stands somewhere."""

    agent: Any
    asked: Any
    here: bool | None = None
    job: Job | None = None


class Bridge:
    """Agents of a cluster, and the jobs that they do."""

    def __init__(self, folder: Path, workers: int, threads: int, patience: float, say: Any) -> None:
        self.folder, self.threads, self.patience, self.say = folder, threads, patience, say
        self.slots = [self.new_slot() for _ in range(workers)]
        self.jobs: deque[Job] = deque()
        self.losses: Counter[str] = Counter()
        self.worked = time.monotonic()

    def new_slot(self) -> Slot:
        options = {"num_cpus": self.threads, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        agent = ray.remote(Agent).options(**options).remote(self.patience)
        return Slot(agent, agent.about.remote())

    def serve(self, orders: SimpleQueue[dict[str, Any] | None]) -> None:
        """Until the orders end."""
        while True:
            with contextlib.suppress(Empty):
                while (order := orders.get(block=False)) is not None:
                    self.obey(order)
                return
            self.hand_out()
            asked = {slot.asked: slot for slot in self.slots if slot.asked is not None}
            for ready in ray.wait(list(asked), timeout=0.05)[0] if asked else []:
                self.hear(asked[ready], ready)
            if not asked:
                time.sleep(0.01)

    def obey(self, order: dict[str, Any]) -> None:
        match order["do"]:
            case "run":
                self.jobs.append(Job.model_validate(order["job"]))
            case "pause":
                self.tell_those_here("pause")
                self.say(kind="paused")
            case "resume":
                self.tell_those_here("resume")

    def tell_those_here(self, method: str) -> None:
        """Only who computes on this machine disturbs what is measured on it."""
        here = [slot for slot in self.slots if slot.here and slot.job]
        _wait_for([getattr(slot.agent, method).remote() for slot in here], PATIENT)

    def hand_out(self) -> None:
        """Jobs to whoever is free."""
        free = deque(slot for slot in self.slots if slot.here is not None and slot.job is None)
        while self.jobs and free:
            job, slot = self.jobs.popleft(), free.popleft()
            start = None
            if job.start is not None and vault.has_weights(self.folder, job.start):
                start = vault.weights_path(self.folder, job.start).read_bytes()
            slot.agent.submit.remote(job.model_dump_json(), start, self.losses[job.key])
            slot.job, slot.asked = job, slot.agent.wait.remote(POLL)
        if not self.jobs or any(slot.job for slot in self.slots):
            self.worked = time.monotonic()
        elif time.monotonic() - self.worked > NO_ROOM:
            raise Failure("E0735", f"no node has had room for a worker of {self.threads} CPUs for {NO_ROOM:g} s")

    def hear(self, slot: Slot, answer: Any) -> None:
        """Take in what an agent said; or that it is gone with its node, or its process."""
        try:
            said = ray.get(answer)
        except ray.exceptions.RayError as error:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(slot.agent)
            if slot.job is not None:
                words = str(error).strip().splitlines()
                message = f"its node or agent is gone: {words[0] if words else type(error).__name__}"
                self.tell(Event(key=slot.job.key, kind="lost", message=message))
            self.slots[self.slots.index(slot)] = self.new_slot()
            return
        if slot.here is None:
            ours = version("archc")
            if said["archc"] != ours:
                raise Failure("E0735", f"a node has archc {said['archc']}, this is {ours}")
            slot.here, slot.asked = said["machine"] == machine(), None
            return
        events, files, failure = said
        if failure:
            raise Failure("E0735", f"a node cannot go on: {failure}")
        self.keep(files)
        slot.asked = slot.agent.wait.remote(POLL)
        for event in map(Event.model_validate_json, events):
            if event.kind != "report":
                slot.job = slot.asked = None
            self.losses[event.key] += event.kind == "lost"
            self.tell(event)

    def keep(self, files: Files) -> None:
        for name, data in files.items():
            if not _FILE.fullmatch(name):
                raise Failure("E0735", f"a node sent a file that is none of a study's: {name[:80]!r}")
            with atomic_file(self.folder / name) as temporary:
                temporary.write_bytes(data)

    def tell(self, event: Event) -> None:
        self.say(kind="event", event=event.model_dump(mode="json"))

    def close(self) -> None:
        """Let the agents end what they do and tidy up."""
        _wait_for([slot.agent.close.remote() for slot in self.slots], CLOSING)
        for slot in self.slots:
            ray.kill(slot.agent)


def _wait_for(asked: list[Any], seconds: float) -> None:
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=seconds)


def main(folder: Path, address: str, workers: int, threads: int, patience: float) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever Ray prints is no reply

    def say(**words: Any) -> None:
        print(json.dumps(words), file=replies, flush=True)

    orders: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    try:
        ray.init(address=address, namespace="archc", logging_level="ERROR", log_to_driver=False)
    except ray.exceptions.AuthenticationError as error:
        return say(kind="failure", code="E0734", message=str(error).splitlines()[0][:300])
    except Exception as error:  # whatever Ray raises, it is not connected
        return say(kind="failure", code="E0733", message=f"{error}".strip().splitlines()[0][:300])
    cpus = int(ray.cluster_resources().get("CPU", 0))
    count = workers or max(1, cpus // threads)
    say(kind="ready", workers=count)
    bridge = Bridge(folder, count, threads, patience, say)
    try:
        bridge.serve(orders)
    except Failure as failure:
        say(kind="failure", code=failure.args[0], message=failure.args[1])
    except CompileError as error:
        say(kind="failure", code=error.diagnostics[0].code, message=error.diagnostics[0].label)
    finally:
        bridge.close()
        ray.shutdown()


def _listen(orders: SimpleQueue[dict[str, Any] | None]) -> None:
    """Orders, while there are any; and an end, should Ray not let us go."""
    for line in sys.stdin:
        orders.put(json.loads(line))
    orders.put(None)
    time.sleep(3 * CLOSING)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
