"""The closed space, whole: every one of its 1,024 architectures trained on four tasks from two seeds.

    python benchmarks/closed.py --out closed/ [--shard 0/2] [--tasks hard_digits,tiles] [--only 20]

`--shard i/n` does every n-th training of each task: several processes share the work, each with a file of its own. The
tasks come one after the other, so that what is there when time runs out is whole tasks. A script that was killed goes
on where it was. `closed_table.py` gathers the rows into the table that searches are replayed on.

Recipe: AdamW, rate 0.015, cosine, batches of 32, 126 steps; the weights are those of the last step. Validation accuracy
is taken on the way, too. The test split is opened for every one, at its end: it is what a search's choice is judged by,
and no strategy that is replayed on the table sees it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from closed_table import CHECKPOINTS, CHOICES, SEEDS
from results import Results, Row

from archc.grammar.draw import Space, read_space
from archc.grammar.requirements import measure

if TYPE_CHECKING:
    from archc.backends.torch.training import Task

SPACE = Path(__file__).parent.parent / "examples" / "spaces" / "closed.arch"
TASKS = {
    "hard_digits": "hard_digits",
    "add_digits": "add_digits?classes=2&noise=0.05",
    "tiles": "tiles?classes=3&noise=0.05",
    "mult_digits": "mult_digits?classes=3&noise=0.05",
}
"""Tasks, in the order in which they are done. Of the composed ones only few kinds of digits are shown: of all ten, no
network of the space learns anything in so few steps, and nothing could be told apart."""
STEPS = 126
RECIPE: dict[str, Any] = {"lr": 0.015, "batch_size": 32, "keep": "last", "device": "cpu"}


def traces() -> list[tuple[int, ...]]:
    """Every architecture of the space, by its five choices; the place in this list is its number."""
    return list(itertools.product(range(4), repeat=len(CHOICES)))


def space(task: Task) -> Space:
    """The space with the parameters that a task settles."""
    channels, side, _ = task.inputs[0].shape
    return read_space(SPACE, {"channels": channels, "side": side, "classes": task.output.shape[0]})


def work(tasks: list[str], shard: int, shards: int) -> Iterator[tuple[str, int, int]]:
    """Task, seed and number of each training; those of one shard."""
    for task in tasks:
        trainings = [(task, seed, number) for seed in range(SEEDS) for number in range(len(traces()))]
        yield from trainings[shard::shards]


class Bench:
    """Trains networks of the space; the data of the last task are kept."""

    def __init__(self, steps: int = STEPS, **recipe: Any) -> None:
        self.steps, self.recipe = steps, RECIPE | recipe
        self._task = ""

    def _open(self, task: str) -> None:
        from archc.backends.torch.training import load_task
        from archc.search.training import Batches

        if self._task != task:
            data = load_task(TASKS[task])
            self.space, self.batches = space(data), Batches(data)
            self._task = task

    def row(self, task: str, seed: int, number: int) -> Row:
        import torch

        from archc.backends.torch.module import to_torch
        from archc.backends.torch.training import Recipe
        from archc.ir.canonical import canonical
        from archc.search.training import Diverged, Training

        self._open(task)
        began = time.process_time()
        graph = self.space.redraw(dict(zip(CHOICES, traces()[number], strict=True))).graph
        torch.manual_seed(seed)
        module = to_torch(graph, seed=seed)
        training = Training(module, self.batches, Recipe(seed=seed, steps=self.steps, **self.recipe), self.steps)
        curve, failed = [], ""
        final = test = {"accuracy": 0.0, "loss": float("inf")}
        try:
            for share in CHECKPOINTS:
                training.run(round(share * self.steps))
                final = training.judge("val")
                curve.append(final["accuracy"])
            test = training.judge("test")
        except Diverged as error:
            failed = str(error)
        return {
            "task": task,
            "seed": seed,
            "number": number,
            "hash": canonical(graph).hash,
            "curve": curve,
            "val_loss": round(final["loss"], 5),
            "test": test["accuracy"],
            "test_loss": round(test["loss"], 5),
            "failed": failed,
            "seconds": round(time.process_time() - began, 4),
            **measure(graph, ("params", "flops", "activation_bytes")),
        }


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--tasks", default=",".join(TASKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    shard, shards = map(int, options.shard.split("/"))
    results = Results(options.out / f"closed-{shard}-of-{shards}.jsonl")
    done = {(row["task"], row["seed"], row["number"]) for row in results.rows}
    bench = Bench()
    for item in work(options.tasks.split(","), shard, shards):
        if item not in done:
            results.add(bench.row(*item))


if __name__ == "__main__":
    main()
