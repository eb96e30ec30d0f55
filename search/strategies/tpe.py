"""TPE over derivations, through Optuna: the baseline from tuning hyperparameters.

A choice of the space, by its path, is a parameter: one of its alternatives, or a number. Which there are depends on
those before, and Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) takes each by itself. What a choice
can come to is learned from draws. The Optuna study is built anew for every proposal, from what was told.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field

from archc.grammar.choices import Production
from archc.ir.diagnostics import fail
from archc.search.goals import Goals
from archc.search.records import Candidate, Proposal
from archc.search.space import SearchSpace
from archc.search.strategies.base import Base, CommonOptions
from archc.search.strategy import StrategyKind, random

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

LOG_FROM = 20.0
"""A number that varies by so many times is seen on a logarithmic scale."""


class TpeOptions(CommonOptions):
    startup: int = Field(10, ge=1, description="draws before anything is modelled")
    domain: int = Field(64, ge=1, description="draws, not trained, to learn what each choice can come to")
    candidates: int = Field(24, ge=1, description="values of a choice that are weighed (Optuna's n_ei_candidates)")
    seeds: bool = Field(True, description="the user's own nets come first")


class Tpe(Base[TpeOptions]):
    def __init__(self, space: SearchSpace, goals: Goals, seed: int, options: TpeOptions) -> None:
        super().__init__(space, goals, seed, options)
        try:
            import optuna
        except ImportError:
            raise fail(
                "E0740", "strategy `tpe` needs Optuna", label="not installed", help="pip install 'archc[search]'"
            ) from None
        self.optuna = optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def ask(self, number: int) -> Proposal | None:
        if self.exhausted:
            return None
        seed = self.seed_net() if self.options.seeds else None
        if seed is not None or len(self.feasible) < self.options.startup:
            return Proposal(number=number, candidate=seed or self.fresh(number))
        domains = self._domains()
        study = self._study(number, domains)
        made = self.new(number, "tpe", lambda key: self._suggested(key, domains, study), tries=8)
        return Proposal(number=number, candidate=self.fresh(number) if made.hash in self.hashes else made)

    @cached_property
    def _draws(self) -> list[Candidate]:
        return [self.space.draw(f"{self.seed}/domain/{i}") for i in range(self.options.domain)]

    def _domains(self) -> dict[str, BaseDistribution]:
        """What each choice came to so far, as Optuna's distribution."""
        seen: dict[str, set[Production]] = {}
        for candidate in (*self._draws, *(p.candidate for p in self.proposals.values())):
            for path, production in (candidate.trace or {}).items():
                seen.setdefault(path, set()).add(production)
        make = self.optuna.distributions
        found: dict[str, BaseDistribution] = {}
        for path, values in seen.items():
            low, high = min(values), max(values)
            if any(isinstance(v, float) for v in values) and low < high:
                found[path] = make.FloatDistribution(low, high, log=low > 0 and high / low > LOG_FROM)
            elif len(values) > 1:
                found[path] = make.CategoricalDistribution(sorted(values))
        return found

    def _study(self, number: int, domains: Mapping[str, BaseDistribution]) -> Study:
        """What was told, and what is under way."""
        sampler = self.optuna.samplers.TPESampler(
            n_startup_trials=0,
            n_ei_candidates=self.options.candidates,
            multivariate=False,
            seed=int(random(self.seed, number, "tpe").integers(2**31)),
        )
        study = self.optuna.create_study(sampler=sampler, directions=["minimize"] * len(self.goals.objectives))
        losses = {n: self.goals.losses(self.results[n]) for n in self.results}
        worst = [
            max([v for v in column if v < float("inf")], default=0.0) for column in zip(*losses.values(), strict=True)
        ]
        state, trials = self.optuna.trial.TrialState, []
        for n, proposal in self.proposals.items():
            params = {p: v for p, v in (proposal.candidate.trace or {}).items() if p in domains}
            known = {"params": params, "distributions": {p: domains[p] for p in params}}
            if n in losses:
                values = [min(v, w) for v, w in zip(losses[n], worst, strict=True)]
                trials.append(self.optuna.create_trial(state=state.COMPLETE, values=values, **known))
            else:
                trials.append(self.optuna.create_trial(state=state.RUNNING, **known))
        study.add_trials(trials)
        return study

    def _suggested(self, key: str, domains: Mapping[str, BaseDistribution], study: Study) -> Candidate:
        """A draw whose choices, one after the other, take what the estimator suggests, as far as that fits."""
        trial = study.ask()
        made = self.space.redraw({}, key)
        settled: set[str] = set()
        while path := next((p for p in made.trace or {} if p not in settled), None):
            settled.add(path)
            trace = dict(made.trace or {})
            if path not in domains:
                continue
            value = self._value(trial, path, domains[path])
            if value != trace[path]:
                made = self.space.redraw({p: trace[p] for p in settled if p in trace} | {path: value}, key)
        return made

    def _value(self, trial: Any, path: str, domain: BaseDistribution) -> Production:
        if isinstance(domain, self.optuna.distributions.FloatDistribution):
            number: float = trial.suggest_float(path, domain.low, domain.high, log=domain.log)
            return number
        chosen: Production = trial.suggest_categorical(path, domain.choices)
        return chosen


KIND = StrategyKind("tpe", "Optuna's tree-structured Parzen estimator over the choices of the space", TpeOptions, Tpe)
