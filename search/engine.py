"""The coordinator: asks the strategy, hands out work, takes in what comes of it, tells the strategy, and logs every
step before the next one depends on it.

In any order of events, on any number of workers, after any crash:
- what the strategy hears stands in the log, in that order, so that a new strategy can hear the same;
- work is known by its address: what has been done, is under way, or was done before a crash is not done again.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha256

from archc.ir.diagnostics import Note, fail
from archc.search import vault
from archc.search.executor import Event as News
from archc.search.executor import Executor, Job
from archc.search.goals import Goals
from archc.search.history import TRAIN, Measured, Trial, bites, curves
from archc.search.latency import Latency, Stopwatch
from archc.search.records import Proposal, Result
from archc.search.store import Entry, Event
from archc.search.study import Budget, Study, StudyConfig, measured_goals, versions
from archc.search.work import SYNTHETIC

MOST_LOST = 8
"""Times that a job may be lost with its worker; executors that know better give it up earlier."""
MOST_CURVES = 100
"""Learning curves that early stopping judges by."""
MEASURE_AFTER = 5.0
"""Seconds that an artifact waits for others to be measured with."""
MOST_WAITING = 64
"""Trials that wait for the result of another, or for a measurement, before more are proposed."""
MOST_IDLE = 200
"""Trials in a row that train nothing, before a search ends: the space is exhausted, or all of it infeasible."""
TICK = 1.0
"""Seconds that news are waited for at a time."""
NOTHING = Measured(artifact="", latency=Latency(failure="no artifact was compiled"))

OnEvent = Callable[[Entry], None]


def run(study: Study, executor: Executor, on_event: OnEvent | None = None, *, budget: Budget | None = None) -> None:
    """Search until the budget is spent; `budget` is in the place of the study's own.

    `on_event` hears of every entry of the log. The executor is closed in any case. KeyboardInterrupt goes through:
    what was logged is whole, and the study can be run again.

    Raises: CompileError: E0727 when the search has ended and nothing is feasible, E0728 when the disk is full, E0731
    for more workers than a deterministic study can have, and what the executor and the strategy raise.
    """
    lag = study.config.lag
    try:
        if lag is not None and executor.workers > lag:
            raise fail(
                "E0731",
                f"this deterministic study can have {lag} workers at most, not {executor.workers}",
                label=f"proposal t sees the results up to t - {lag}: that was fixed when it was begun",
                help=f"run it with `--workers {lag}` or fewer",
            )
        coordinator = Coordinator(study, executor, on_event, budget or study.config.budget)
        coordinator.run()
    finally:
        executor.close()
    demand_feasible(study)


class Coordinator:
    """The state of a running search, beside what the log holds: what is on its way between worker and strategy."""

    def __init__(self, study: Study, executor: Executor, on_event: OnEvent | None, budget: Budget) -> None:
        self.study, self.executor, self.budget = study, executor, budget
        self.history, self.goals = study.history, study.goals
        self._on_event = on_event
        self._strategy = study.strategy()
        self._stopwatch = Stopwatch()
        self._starved = False
        """Whether the strategy has nothing to propose until it hears more."""
        self._begin = time.monotonic()
        self._before = self.history.seconds
        self._queue: deque[Job] = deque()
        self._under_way: dict[str, Job] = {}
        self._unmeasured: dict[int, Result] = {}
        self._measure_by = math.inf
        self._ready: dict[int, Result] = {}
        """Results that the strategy has not heard of."""
        self._followers: dict[int, list[int]] = {}
        """Trial -> those that will share its result."""

    def run(self) -> None:
        terms = {"workers": self.executor.workers, "budget": str(self.budget), "versions": versions()}
        self._log(Event("opened", None, terms))
        try:
            for trial in list(self.history.running.values()):
                self._take_up(trial)
            while self._step():
                pass
        except KeyboardInterrupt:
            self.study.reload()  # the signal may have come between logging something and taking it in
            self.study.record(Event("closed", None, {"why": "interrupted"}))
            raise
        finally:
            self._stopwatch.close()
        self._log(Event("closed", None, {"why": "complete"}))

    def _step(self) -> bool:
        """Do what can be done, then wait for news; whether there is anything to wait for."""
        while self._advance():
            pass
        while self._queue and len(self._under_way) < self.executor.workers:
            job = self._queue.popleft()
            self._under_way[job.key] = job
            self.executor.submit(job)
        if self._unmeasured and (
            not self._under_way or len(self._unmeasured) >= self.executor.workers or time.monotonic() > self._measure_by
        ):
            self._measure()
        elif self._under_way:
            for news in self.executor.wait(TICK):
                self._hear(news)
        else:
            assert not self.history.running, "every trial that has not ended is on its way somewhere"
            return False
        return True

    # Asking and telling

    def _advance(self) -> bool:
        """Tell the strategy one result, or ask it for one proposal; False when it is neither's turn.

        In a deterministic study proposal t is asked for when the results up to t - lag have been told, by number, and
        no others; only where the strategy has nothing to propose before it hears more, it hears the next one. So what
        it hears does not depend on who was faster.
        """
        number, told, lag = len(self.history.trials), len(self.history.told), self.study.config.lag
        if lag is None or self._starved or told <= number - lag:
            result = next(iter(self._ready.values()), None) if lag is None else self._ready.get(told)
            if result is not None:
                self._tell(result)
                return True
        if self._starved or (self._busy() if lag is None else told <= number - lag):
            return False
        self._starved = not (self._affordable() and self._ask(number))
        return True

    def _busy(self) -> bool:
        waiting = len(self.history.running) - len(self._under_way)
        return len(self._under_way) + len(self._queue) >= self.executor.workers or waiting >= MOST_WAITING

    def _affordable(self, cost: float = 1e-6) -> bool:
        """Whether the budget has room for what costs so much of a whole training. It is never exceeded by what was
        expected: trials under way count as if they were trained to their ends."""
        history, budget = self.history, self.budget
        if history.idle >= max(MOST_IDLE, 10 * (budget.evaluations or 0)):
            return False
        if budget.evaluations is not None:
            return history.committed + cost < budget.evaluations + 1e-9
        assert budget.minutes is not None
        trained = len(history.told) - history.shared
        one = sum(history.seconds_of_work.values()) / trained if trained else 0.0
        return self._before + time.monotonic() - self._begin + one < 60 * budget.minutes

    def _ask(self, number: int) -> bool:
        begin = time.perf_counter()
        proposal = self._strategy.ask(number)
        thought = time.perf_counter() - begin
        if proposal is None:
            return False
        assert proposal.number == number, "a proposal has the number that it was asked for"
        start = self._start_of(proposal)
        key = address(proposal, self.study.config, start)
        first = self.history.leaders.get(key)
        if first is None and not self._affordable(self.history.cost(proposal)):
            return False
        work = {"key": key, "start": start, "thought": round(thought, 6)}
        events = [Event("proposed", number, proposal)]
        if proposal.continues is not None:
            events.append(Event("promoted", number, {"continues": proposal.continues}))
        if first is None:
            events.append(Event("leased", number, work))
        else:
            events.append(Event("duplicate", number, work | {"shares": first}))
        self._log(*events)
        self._strategy.proposed(proposal)
        self._take_up(self.history.trials[number])
        return True

    def _tell(self, result: Result) -> None:
        """Log a result, and tell it; what shares it is ready, too."""
        del self._ready[result.number]
        self._log(Event("failed" if result.status == "infeasible" else "finished", result.number, result))
        self._strategy.tell(result)
        self._starved = False
        for number in self._followers.pop(result.number, ()):
            self._ready[number] = shared(result, number)

    # Work

    def _take_up(self, trial: Trial) -> None:
        """See that a trial gets its result: by another's, from the vault, or by work."""
        if trial.shares is not None:
            result = self.history.trials[trial.shares].result
            if result is None:
                self._followers.setdefault(trial.shares, []).append(trial.number)
            else:
                self._ready[trial.number] = shared(result, trial.number)
        elif found := vault.read_result(self.study.folder, trial.key):
            self._arrived(trial.number, found)
        else:
            self._queue.append(self._job(trial))

    def _job(self, trial: Trial) -> Job:
        evaluation, candidate = self.study.config.evaluation, trial.proposal.candidate
        parent = None
        if trial.start is not None and trial.proposal.continues is None:
            assert candidate.inherit is not None
            parent = self.history.trials[candidate.inherit].proposal.candidate.text
        return Job(
            key=trial.key,
            proposal=trial.proposal,
            evaluation=evaluation,
            start=trial.start,
            parent=parent,
            curves=curves(self.history, trial.heard, MOST_CURVES) if evaluation.early_stop else (),
        )

    def _start_of(self, proposal: Proposal) -> str | None:
        """The weights that a training starts from; None where there are none (any more)."""
        before = proposal.candidate.inherit if proposal.continues is None else proposal.continues
        result = None if before is None else self.history.trials[before].result
        if result is None or result.weights is None or not vault.has_weights(self.study.folder, result.weights):
            return None
        return result.weights

    def _hear(self, news: News) -> None:
        job = self._under_way.get(news.key)
        if job is None:
            return
        number = job.proposal.number
        match news.kind:
            case "report":
                assert news.point is not None
                self._log(Event("report", number, news.point))
            case "done":
                assert news.result is not None
                del self._under_way[news.key]
                self._arrived(number, news.result)
            case "lost":
                del self._under_way[news.key]
                trial = self.history.trials[number]
                if trial.lost < MOST_LOST:
                    self._log(Event("retried", number, {"message": news.message}))
                    self._queue.append(job)
                else:
                    message = f"lost {trial.lost + 1} times with its worker; at last: {news.message}"
                    self._arrived(number, Result(number=number, status="infeasible", reason="crash", message=message))

    def _arrived(self, number: int, result: Result) -> None:
        """Work has been done: it is ready to be told, or is to be measured first."""
        result = result.model_copy(update={"number": number})
        trains = self.history.trials[number].proposal.work == TRAIN
        if trains and result.status != "infeasible" and _missing(self.goals, result):
            self._unmeasured[number] = result
            self._measure_by = min(self._measure_by, time.monotonic() + MEASURE_AFTER)
        else:
            self._ready[number] = judged(self.goals, result) if trains else result

    def _measure(self) -> None:
        """Measure the latency of what waits for it, with the workers paused; equal code is measured once."""
        waiting, self._unmeasured, self._measure_by = self._unmeasured, {}, math.inf
        artifacts = {_artifact(result, key) for result in waiting.values() for key in _missing(self.goals, result)}
        wanted = sorted(artifacts - {""} - set(self.history.measured))
        if wanted:
            self._log(*self._time(wanted))
        for number, result in waiting.items():
            values, failure = dict(result.values), ""
            for key in _missing(self.goals, result):
                latency = self.history.measured.get(_artifact(result, key), NOTHING).latency
                values[key], failure = latency.median_ms, latency.failure or failure
            if failure:
                update = {"status": "infeasible", "reason": "crash", "message": f"cannot be measured: {failure}"}
                self._ready[number] = result.model_copy(update=update)
            else:
                self._ready[number] = judged(self.goals, result.model_copy(update={"values": values}))

    def _time(self, artifacts: Sequence[str]) -> list[Event]:
        """The latencies of artifacts, with all workers paused meanwhile."""
        evaluation, begin = self.study.config.evaluation, time.monotonic()
        self.executor.pause()
        try:
            found = self._stopwatch.measure(
                [vault.artifact_path(self.study.folder, a) for a in artifacts],
                batch=evaluation.batch,
                threads=evaluation.threads,
            )
        finally:
            self.executor.resume()
        seconds = (time.monotonic() - begin) / len(artifacts)
        pairs = zip(artifacts, found, strict=True)
        return [Event("measured", None, Measured(artifact=a, latency=one, seconds=seconds)) for a, one in pairs]

    def _log(self, *events: Event) -> None:
        for entry in self.study.record(*events):
            if self._on_event is not None:
                self._on_event(entry)


def address(proposal: Proposal, config: StudyConfig, start: str | None) -> str:
    """The address of the work that a proposal asks for: equal addresses, equal results."""
    evaluation, candidate = config.evaluation, proposal.candidate.hash
    if evaluation.task == SYNTHETIC:
        key = sha256(f"{candidate}/{evaluation.model_dump_json()}/{proposal.fidelity}/{start}".encode()).hexdigest()
    else:
        from archc.search.keys import train_key

        key = train_key(candidate, evaluation, proposal.fidelity, start)
    others: list[object] = []
    if proposal.work != TRAIN:
        others += [proposal.work, proposal.candidate.origin]
    elif start is not None:  # the same weights come to another start by another way
        others.append("continues" if proposal.continues is not None else proposal.candidate.origin)
    if not config.dedupe:
        others.append(proposal.number)
    return sha256(json.dumps([key, *others]).encode()).hexdigest() if others else key


def shared(result: Result, number: int) -> Result:
    """The result of a trial as that of another one which asked for the same work."""
    return result.model_copy(
        update={"number": number, "shares": result.number if result.shares is None else result.shares, "samples": 0}
    )


def judged(goals: Goals, result: Result) -> Result:
    """A result, infeasible where an objective is no number or a constraint is broken."""
    if result.status == "infeasible":
        return result

    def infeasible(reason: str, message: str) -> Result:
        return result.model_copy(update={"status": "infeasible", "reason": reason, "message": message})

    for objective in goals.objectives:
        if not math.isfinite(result.values[objective.key]):
            return infeasible("diverged", f"`{objective.key}` is {result.values[objective.key]}")
    for constraint in goals.constraints:
        if not constraint.holds(result.values):
            return infeasible(
                constraint.name, f"{constraint.key} is {result.values[constraint.key]:g}, needed {constraint}"
            )
    return result


def _missing(goals: Goals, result: Result) -> list[str]:
    """The quantities that are to be measured."""
    return [goal.key for goal in measured_goals(goals) if goal.key not in result.values]


def _artifact(result: Result, quantity: str) -> str:
    """The artifact whose latency is asked for: that of the target, where there are several; empty for none."""
    return str(result.extra.get(f"artifact@{quantity.partition('@')[2]}", result.artifact or ""))


def demand_feasible(study: Study) -> None:
    """Raises: CompileError (E0727) when all trials of a search are infeasible: which constraint bites, and how much."""
    ended = study.ended
    if not ended or any(e.result.status != "infeasible" for e in ended):
        return
    notes = [
        Note(f"`{constraint}`: {broken} of {known} break it, the nearest has {nearest:g}")
        for constraint, (broken, known, nearest) in bites(study.goals, ended).items()
    ]
    for reason, count in study.history.reasons.items():
        first = next(e.result for e in ended if e.result.reason == reason)
        notes.append(Note(f"{reason}: {count} of {len(ended)}, such as trial {first.number}: {first.message}"))
    raise fail(
        "E0727",
        f"none of {len(ended)} candidates is feasible",
        notes=notes,
        help="loosen the constraint that bites most, or search another space",
    )
