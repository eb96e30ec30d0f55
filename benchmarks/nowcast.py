"""What nowcasting is worth: steps to the loss that tuned Adam reaches, on networks and tasks that were not seen.

    python benchmarks/nowcast.py --out runs/nowcast --graph rounds2.safetensors --free rounds0.safetensors

Six methods, all Adam without weight decay (betas 0.9 and 0.99, gradients clipped to norm 1, batches of 64, a warm-up
over 5 % of the steps):

    adam      constant rate; ema: the same runs, judged at the exponential average of their weights (decay 0.98)
    cosine    the rate falls as half a cosine
    linear    adam, with jumps by linear extrapolation (least squares over the window)
    free      adam, with jumps by the graph-free model
    graph     adam, with jumps by the model with message passing

Jumps are those of `archc train --nowcast`: every 50 steps, 12 snapshots (120 steps) ahead at most, judged on the next
batch. The rate of each method is tuned on a validation architecture (`val_mixed`, 2 seeds, by the median of the lowest
validation loss) on `hard_digits`, and used on both tasks; then test architectures run from 5 other seeds, the same
initial weights and batches for every method. The test tasks and architectures are not among those that the models have
learnt from. With `--rate R` all methods have the rate R, and the target is what Adam reaches at that: what jumps do at
a rate that is too low.

The target is what tuned Adam reaches: its mean validation loss over the last five evaluations, the median over seeds.
Steps to it are those until the first evaluation (every 20 steps, 300 held-out images) that is no higher. `equivalents`
add what jumps cost: a forward pass is a third of a step, and the forecast's CPU time is divided by that of a step, both
measured on a single run (a population shares the calls that a step consists of).
A run that does not get there counts as all its steps, and how many did is told. Ratios to Adam are paired by network
and seed; intervals are 95 % bootstrap intervals of medians, over networks and, within, seeds.

Every run adds a line to `races.jsonl` as soon as it is done; a script that was killed goes on where it was. `--report`
prints the tables as Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from results import Results, Row

from archc.backends.torch.training import Recipe, Task, load_task
from archc.backends.torch.training.nowcast import horizons
from archc.ir.graph import Graph
from archc.metanet.nowcast.equivariance import equivariance_error
from archc.metanet.nowcast.forecast import Forecaster, forecaster
from archc.metanet.nowcast.kind import model_of
from archc.metanet.nowcast.model import Config, Nowcaster, Wiring
from archc.metanet.nowcast.nets import NETS, of_split
from archc.metanet.nowcast.population import Population
from archc.metanet.store import load

RATES = (2e-3, 5e-3, 1e-2, 2e-2)
METHODS = ("adam", "cosine", "linear", "free", "graph")
JUDGE_EVERY, JUDGED = 20, 300
PERIOD, START, AHEAD = 50, 50, 12
TUNING_TASK = "hard_digits"
TUNING_SEEDS, SEEDS = range(50, 52), range(100, 105)
DECAY = 0.98


@dataclass(frozen=True)
class Race:
    """One method on one network and task at one rate, from several seeds at once."""

    net: str
    task: str
    method: str
    lr: float
    seeds: tuple[int, ...]
    steps: int

    @property
    def key(self) -> str:
        return json.dumps(asdict(self) | {"seeds": list(self.seeds)}, sort_keys=True)


def run(race: Race, models: Mapping[str, str]) -> Row:
    """Losses [evaluations][seeds], at the weights and at their averages, and what jumps did and cost."""
    task = load_task(race.task)
    channels, size, _ = (int(str(s)) for s in task.inputs[0].shape)
    graph = NETS[race.net].graph(size, int(str(task.output.shape[-1])), channels)
    recipe = Recipe.for_task(
        task.defaults,
        lr=race.lr,
        weight_decay=0.0,
        warmup=0.05,
        steps=race.steps,
        epochs=1,
        batch_size=64,
        schedule="cosine" if race.method == "cosine" else "constant",
        ema=None if race.method == "cosine" else DECAY,
    )
    runs = Population(graph, task, recipe, race.seeds)
    ahead = forecaster(graph, models[race.method]) if race.method in models else None
    window: list[torch.Tensor] = []
    losses, averaged, jumps, trained = [], [], [], []
    for step in range(race.steps):
        if ahead is not None and step % ahead.every == 0:
            window = [*window, runs.flat.detach().clone()][-ahead.window :]
            if step % PERIOD == 0 and step >= START and len(window) == ahead.window:
                history = torch.stack(window, 1)
                taken, forwards = runs.jump(ahead.predict(history, horizons(AHEAD)))
                jumps.append({"step": step, "taken": taken.tolist(), "forwards": forwards})
                window = [runs.flat.detach().clone()]
        trained.append(runs.step())
        if (step + 1) % JUDGE_EVERY == 0:
            losses.append(runs.evaluate(runs.flat.detach(), "val", JUDGED)[0].tolist())
            if runs.average is not None:
                averaged.append(runs.evaluate(runs.average, "val", JUDGED)[0].tolist())
    return {
        "losses": losses,
        "averaged": averaged,
        "train": torch.stack(trained).reshape(-1, JUDGE_EVERY, len(race.seeds)).mean(1).tolist(),
        "jumps": jumps,
        "weights": runs.incidence.weights,
        "forecast_steps": 0.0 if ahead is None else forecast_steps(graph, task, recipe, ahead),
    }


def forecast_steps(graph: Graph, task: Task, recipe: Recipe, ahead: Forecaster) -> float:
    """What a forecast costs in steps of a single run: medians of CPU times."""
    single = Population(graph, task, recipe, [0])
    history = torch.randn(1, ahead.window, single.incidence.weights)
    times: dict[str, list[float]] = {"step": [], "forecast": []}
    for _ in range(15):
        for what, action in (("step", single.step), ("forecast", lambda: ahead.predict(history, horizons(AHEAD)))):
            began = time.process_time()
            action()
            times[what].append(time.process_time() - began)
    return float(np.median(times["forecast"]) / np.median(times["step"]))


def races(
    tasks: Sequence[str], steps: int, done: Mapping[str, Row], test_nets: Sequence[str], fixed: float | None
) -> Iterator[Race]:
    """What is to be run, in an order in which rates are tuned before they are used."""
    for method in METHODS if fixed is None else ():
        yield from (Race("val_mixed", TUNING_TASK, method, lr, tuple(TUNING_SEEDS), steps) for lr in RATES)
    chosen = rates(steps, done, fixed)
    for task in tasks:
        for net in test_nets:
            yield from (Race(net, task, "adam", lr, tuple(SEEDS), steps) for lr in {chosen["adam"], chosen["ema"]})
            yield from (Race(net, task, m, chosen[m], tuple(SEEDS), steps) for m in METHODS if m != "adam")


def rates(steps: int, done: Mapping[str, Row], fixed: float | None) -> dict[str, float]:
    """The rate of each method, of `ema` too: that with the lowest median of the lowest validation loss, or the same."""
    if fixed is not None:
        return dict.fromkeys((*METHODS, "ema"), fixed)
    best: dict[str, tuple[float, float]] = {}
    for method in METHODS:
        for lr in RATES:
            row = done.get(Race("val_mixed", TUNING_TASK, method, lr, tuple(TUNING_SEEDS), steps).key)
            if row is None:
                continue
            curves = {method: row["losses"]} | ({"ema": row["averaged"]} if method == "adam" else {})
            for name, curve in curves.items():
                score = float(np.median(np.nanmin(np.asarray(curve, float), axis=0)))
                best[name] = min(best.get(name, (np.inf, lr)), (score, lr))
    return {name: lr for name, (_, lr) in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--graph", default="nowcast-small", metavar="MODEL", help="the model with message passing")
    parser.add_argument("--free", metavar="MODEL", help="the graph-free model (--option rounds=0)")
    parser.add_argument("--tasks", nargs="+", default=["hard_digits", "add_digits"])
    parser.add_argument("--nets", nargs="+", default=[net.name for net in of_split("test")])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, help="one rate for all methods, untuned")
    parser.add_argument("--equivariance", action="store_true", help="print how exactly models commute, and run nothing")
    parser.add_argument("--report", action="store_true", help="print the tables, and run nothing")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "There is a performance drop")
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.equivariance:
        print(equivariance({"graph": given.graph, "free": given.free or given.graph}))
        return
    results = Results(given.out / "races.jsonl")
    done = {row["key"]: row for row in results.rows}
    if given.report:
        print(report(given.tasks, given.nets, given.steps, done, given.rate))
        return
    models = {"linear": "linear", "graph": given.graph, "free": given.free or "linear"}
    assert given.free, "--free names the graph-free model"
    assert all(m in ("linear", "nowcast-small") or Path(m).exists() for m in models.values())
    for race in races(given.tasks, given.steps, done, given.nets, given.rate):
        if race.key in done:
            continue
        began = time.process_time()
        row = {"key": race.key, **run(race, models), "cpu_seconds": 0.0}
        row["cpu_seconds"] = round(time.process_time() - began, 2)
        results.add(row)
        done[race.key] = row
        last = np.median(row["losses"][-1])
        print(f"{race.net} {race.task} {race.method} {race.lr}: {last:.4f}, {row['cpu_seconds']} s", flush=True)


class Placed(Nowcaster):
    """Broken on purpose: a change depends on the place of its weight."""

    def forward(self, history: torch.Tensor, wiring: Wiring, ahead: list[float]) -> torch.Tensor:
        return super().forward(history, wiring, ahead) * (1 + 0.1 * torch.linspace(-1, 1, history.shape[-1]))


def equivariance(models: Mapping[str, str]) -> str:
    """The worst of three group elements for every network, of trained models, of one with random weights all through,
    and of one that is broken."""
    torch.manual_seed(0)
    candidates = {name: model_of(load(source, "nowcast")) for name, source in models.items()}
    candidates |= {"random weights": Nowcaster(Config()), "broken": Placed(Config())}
    for name in ("random weights", "broken"):
        with torch.no_grad():
            for weight in candidates[name].parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    lines = ["| network | " + " | ".join(candidates) + " |", "|---|" + "---|" * len(candidates)]
    for net in NETS.values():
        graph = net.graph()
        worst = [max(equivariance_error(m, graph, seed) for seed in range(3)) for m in candidates.values()]
        lines.append(f"| {net.name} | " + " | ".join(f"{w:.1e}" for w in worst) + " |")
    return "\n".join(lines)


# -- the tables -------------------------------------------------------------------------------------------------------

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reached:
    """Of each seed: steps to the target, the same with what jumps cost, whether it got there; and the last loss."""

    steps: Array
    equivalents: Array
    there: Array
    last: Array


def reached(row: Row, curve: Sequence[Sequence[float]], target: float, steps: int) -> Reached:
    found = np.asarray(curve, float)
    hit = found <= target
    there = hit.any(0)
    at = np.where(there, (hit.argmax(0) + 1) * JUDGE_EVERY, steps).astype(float)
    extra = np.zeros(at.shape)
    for jump in row["jumps"]:
        tried = np.asarray(jump["taken"]) + 2  # one forward pass for where it stands, one for each place tried
        cost = np.minimum(tried, 1 + len(horizons(AHEAD))) / 3 + row["forecast_steps"]
        extra += np.where(jump["step"] < at, cost, 0.0)
    return Reached(at, at + extra, there, found[-5:].mean(0))


def outcomes(
    task: str, net: str, steps: int, done: Mapping[str, Row], chosen: Mapping[str, float]
) -> dict[str, Reached]:
    """Each method on one network, by the target of tuned Adam."""

    def row(method: str, lr: float) -> Row | None:
        return done.get(Race(net, task, method, lr, tuple(SEEDS), steps).key)

    own = row("adam", chosen["adam"])
    if own is None:
        return {}
    target = float(np.median(np.asarray(own["losses"], float)[-5:].mean(0)))
    found = {"adam": reached(own, own["losses"], target, steps)}
    for method in (*METHODS[1:], "ema"):
        if (r := row("adam" if method == "ema" else method, chosen[method])) is not None:
            found[method] = reached(r, r["averaged"] if method == "ema" else r["losses"], target, steps)
            if method in ("linear", "free", "graph"):
                found[f"{method} + ema"] = reached(r, r["averaged"], target, steps)
    return found


def report(
    tasks: Sequence[str], nets: Sequence[str], steps: int, done: Mapping[str, Row], fixed: float | None = None
) -> str:
    lines, chosen = [], rates(steps, done, fixed)
    for task in tasks:
        by_net = {net: found for net in nets if (found := outcomes(task, net, steps, done, chosen))}
        names = list(dict.fromkeys(name for found in by_net.values() for name in found))
        lines += [f"\n**{task}**, medians over {len(by_net)} networks × {len(SEEDS)} seeds; rates: "
                  + ", ".join(f"{m} {lr:g}" for m, lr in chosen.items()) + "\n",
                  "| method | steps to target | equivalents | of Adam's steps (equivalents, paired) | got there |"
                  " last loss, of Adam's |", "|---|---|---|---|---|---|"]  # fmt: skip
        for name in names:
            own = [found[name] for found in by_net.values() if name in found]
            adam = [found["adam"] for found in by_net.values() if name in found]
            ratios = [r.equivalents / a.steps for r, a in zip(own, adam, strict=True)]
            ends = [r.last / a.last for r, a in zip(own, adam, strict=True)]
            there = sum(int(r.there.sum()) for r in own)
            lines.append(
                f"| {name} | {np.median([r.steps for r in own]):.0f} | {np.median([r.equivalents for r in own]):.0f} |"
                f" {interval(ratios)} | {there} of {sum(len(r.there) for r in own)} | {interval(ends)} |"
            )
        lines += ["\n| median steps (equivalents) to target | " + " | ".join(names) + " |",
                  "|---|" + "---|" * len(names)]  # fmt: skip
        for net, found in by_net.items():
            cells = [f"{np.median(found[n].steps):.0f} ({np.median(found[n].equivalents):.0f})" if n in found else ""
                     for n in names]  # fmt: skip
            lines.append(f"| {net} | " + " | ".join(cells) + " |")
        lines += [
            "\n| jumps | kept | whole way | a third | a ninth | forecast, in steps |",
            "|---|---|---|---|---|---|",
        ]
        for method in ("linear", "free", "graph"):
            keys = [Race(net, task, method, chosen.get(method, 0), tuple(SEEDS), steps).key for net in nets]
            rows = [done[key] for key in keys if key in done]
            taken = np.asarray([t for r in rows for j in r["jumps"] for t in j["taken"]])
            if len(taken):
                costs = [r["forecast_steps"] for r in rows]
                shares = [f"{np.mean(taken == k):.0%}" for k in range(len(horizons(AHEAD)))]
                kept = f"{(taken < len(shares)).sum()} of {len(taken)}"
                lines.append(f"| {method} | {kept} | {' | '.join(shares)} | {np.median(costs):.1f} |")
    total = sum(row["cpu_seconds"] for row in done.values())
    lines.append(f"\n{len(done)} races, {total / 60:.1f} CPU minutes.")
    return "\n".join(lines)


def interval(groups: Sequence[Any], resamples: int = 2000) -> str:
    """The median of all values and its 95 % bootstrap interval: groups (networks) resampled, then values in them."""
    rng = np.random.default_rng(0)
    values = [np.asarray(g, float) for g in groups]
    medians = []
    for _ in range(resamples):
        chosen = rng.integers(len(values), size=len(values))
        medians.append(np.median(np.concatenate([rng.choice(values[i], len(values[i])) for i in chosen])))
    low, high = np.quantile(medians, [0.025, 0.975])
    return f"{np.median(np.concatenate(values)):.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
