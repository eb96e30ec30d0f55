"""What the log of a study comes to: its trials, and what was spent. Events are folded in one by one, in the same way
while the search runs, on resume, and in whoever watches."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from archc.search.goals import Goals
from archc.search.latency import Latency
from archc.search.records import Point, Proposal, Record, Result
from archc.search.store import Entry

TRAIN = "train"


class Measured(Record):
    """The latency of an artifact. `seconds` of the coordinator's time it took."""

    artifact: str
    latency: Latency
    seconds: float = 0.0


@dataclass(slots=True)
class Trial:
    """A proposal and what became of it.

    key       address of its work
    start     SHA-256 of the weights that it starts from
    shares    the earlier trial whose work is the same
    heard     how many results the strategy had heard of when it proposed this
    thought   seconds that the strategy thought about it
    reports   points of the learning curve, as far as they are known
    lost      how often it was lost with its worker
    """

    proposal: Proposal
    proposed: float
    heard: int
    key: str = ""
    start: str | None = None
    shares: int | None = None
    thought: float = 0.0
    reports: list[Point] = field(default_factory=list)
    lost: int = 0
    result: Result | None = None
    ended: float | None = None

    @property
    def number(self) -> int:
        return self.proposal.number

    @property
    def state(self) -> Literal["running", "finished", "stopped", "infeasible"]:
        return "running" if self.result is None else self.result.status


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial with its result."""

    proposal: Proposal
    result: Result


@dataclass(slots=True)
class _Session:
    """The time of one coordinator, in seconds since the epoch."""

    begin: float
    end: float


class History:
    """Trials by number, and sums over them. `whole`: samples of a whole training."""

    def __init__(self, whole: int) -> None:
        self.whole = whole
        self.trials: list[Trial] = []
        self.heard: list[Proposal | Result] = []
        """All that the strategy heard, in that order."""
        self.told: list[int] = []
        """Trials that have ended, in that order."""
        self.running: dict[int, Trial] = {}
        self.leaders: dict[str, int] = {}
        """Address of a piece of work -> the first trial that asked for it."""
        self.measured: dict[str, Measured] = {}
        """Artifact -> its latency."""
        self.closed: str = ""
        """Why the last coordinator has ended; empty while one is at work, or when it was killed."""
        self.last = 0
        """The number of the last event."""
        self.samples = 0
        self.idle = 0
        """How many trials, up to the last one, were at no cost."""
        self.shared = 0
        self.seconds_of_work: dict[str, float] = defaultdict(float)
        """Seconds of workers, by kind of work."""
        self.overheads: dict[str, float] = defaultdict(float)
        """Seconds of the coordinator: `thinking` (the strategy's), `measuring`."""
        self._sessions: list[_Session] = []

    def apply(self, entry: Entry) -> Proposal | Result | None:
        """Fold an event in; what the strategy hears by it."""
        self.last = entry.id
        if self._sessions:
            self._sessions[-1].end = entry.time
        match entry.kind:
            case "opened":
                self._sessions.append(_Session(entry.time, entry.time))
                self.closed = ""
            case "closed":
                self.closed = json.loads(entry.data)["why"]
            case "measured":
                found = Measured.model_validate_json(entry.data)
                self.measured[found.artifact] = found
                self.overheads["measuring"] += found.seconds
            case "proposed":
                return self._proposed(Proposal.model_validate_json(entry.data), entry.time)
            case "finished" | "failed":
                return self._told(Result.model_validate_json(entry.data), entry.time)
            case _:
                assert entry.trial is not None
                self._follow(self.trials[entry.trial], entry)
        return None

    def _proposed(self, proposal: Proposal, time: float) -> Proposal:
        assert proposal.number == len(self.trials), "trials are numbered in the order of the log"
        trial = Trial(proposal, time, len(self.told))
        self.trials.append(trial)
        self.running[proposal.number] = trial
        self.heard.append(proposal)
        return proposal

    def _told(self, result: Result, time: float) -> Result:
        trial = self.trials[result.number]
        assert trial.result is None, f"trial {result.number} has ended twice"
        trial.result, trial.ended = result, time
        trial.reports = list(result.curve)
        del self.running[result.number]
        self.heard.append(result)
        self.told.append(result.number)
        self.samples += result.samples
        self.idle = 0 if result.samples else self.idle + 1
        if result.shares is None:
            self.seconds_of_work[trial.proposal.work] += result.seconds
        else:
            self.shared += 1
        return result

    def _follow(self, trial: Trial, entry: Entry) -> None:
        """What comes between a proposal and its end."""
        if entry.kind == "report":
            trial.reports.append(Point.model_validate_json(entry.data))
            return
        data: dict[str, Any] = json.loads(entry.data)
        match entry.kind:
            case "leased" | "duplicate":
                trial.key, trial.start, trial.shares = data["key"], data.get("start"), data.get("shares")
                trial.thought = data["thought"]
                self.overheads["thinking"] += trial.thought
                self.leaders.setdefault(trial.key, trial.number)
            case "retried":
                trial.lost += 1
                trial.reports.clear()

    def cost(self, proposal: Proposal) -> float:
        """What a proposal is expected to cost, in whole trainings: what it trains itself."""
        before = 0.0 if proposal.continues is None else self.trials[proposal.continues].proposal.fidelity
        return proposal.fidelity - before

    @property
    def spent(self) -> float:
        """Training samples, in whole trainings."""
        return self.samples / self.whole

    @property
    def committed(self) -> float:
        """What was spent, and what those under way are expected to cost, in whole trainings."""
        return self.spent + sum(self.cost(t.proposal) for t in self.running.values() if t.shares is None)

    @property
    def ended(self) -> list[Ended]:
        """In the order in which they ended."""
        found = []
        for trial in (self.trials[n] for n in self.told):
            assert trial.result is not None
            found.append(Ended(trial.proposal, trial.result))
        return found

    @property
    def seconds(self) -> float:
        """Wall time of all coordinators."""
        return sum(s.end - s.begin for s in self._sessions)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state, and how many of them share the work of another."""
        states = Counter[str](t.state for t in self.trials)
        return {s: states[s] for s in ("running", "finished", "stopped", "infeasible")} | {"shared": self.shared}

    @property
    def reasons(self) -> dict[str, int]:
        """Why trials are infeasible, the most frequent reason first."""
        return dict(Counter(e.result.reason for e in self.ended if e.result.status == "infeasible").most_common())

    def front(self, goals: Goals) -> list[Trial]:
        """The whole trainings that none dominates, by the first objective. Of equal ones the first counts."""
        from archc.search.pareto import front

        whole = [e for e in self.ended if is_whole(e, goals)]
        if not whole:
            return []
        return [self.trials[whole[i].proposal.number] for i in front([goals.losses(e.result) for e in whole])]


def is_whole(ended: Ended, goals: Goals) -> bool:
    """Whether a trial was trained to its end and has a value for each objective: so it may stand on the front."""
    proposal, result = ended.proposal, ended.result
    done = result.status == "finished" and proposal.fidelity == 1 and proposal.work == TRAIN
    return done and all(o.key in result.values for o in goals.objectives)


def curves(history: History, heard: int, most: int) -> tuple[tuple[Point, ...], ...]:
    """The last learning curves of whole trainings among the first `heard` results."""
    found: list[tuple[Point, ...]] = []
    for number in reversed(history.told[:heard]):
        result: Result | None = history.trials[number].result
        if result is not None and result.status == "finished" and result.shares is None and result.curve:
            found.append(result.curve)
        if len(found) == most:
            break
    return tuple(reversed(found))


def bites(goals: Goals, trials: Sequence[Ended]) -> dict[str, tuple[int, int, float]]:
    """For each constraint: how many candidates break it, of how many whose value is known, and the value that came
    nearest to the bound."""
    found = {}
    for constraint in goals.constraints:
        known = [e.result.values[constraint.key] for e in trials if constraint.key in e.result.values]
        broken = [v for v in known if not constraint.holds({constraint.key: v})]
        if broken:
            nearest = min(broken, key=lambda v: abs(v - constraint.bound))
            found[str(constraint)] = (len(broken), len(known), nearest)
    return found
