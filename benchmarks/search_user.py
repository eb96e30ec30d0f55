"""A search as a user does it, command by command: small images, accurate and fast on this machine.

    python benchmarks/search_user.py --out runs/user [--budget 40] [--workers 2]

Searches the space of cells on hard_digits for accuracy and latency, writes the report, takes the architecture where the
front bends, runs its compiled network on the test split (opened once), verifies it, and trains it again by the command
that the study gives. `walk.json` and `walk.txt` hold what came of it. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import archc
from archc.search.pareto import knee

GOALS = ["--objective", "accuracy", "--objective", "latency_ms:min@cpu", "--require", "params < 200k"]
SPACE, TASK = "examples/spaces/cells.arch", "hard_digits"


class Walk:
    """Commands that are run as they stand, and what they said."""

    def __init__(self, out: Path) -> None:
        self.out, self.text = out, ""

    def run(self, command: str) -> str:
        print(f"$ {command}", flush=True)
        words = [sys.executable, "-m", "archc", *shlex.split(command)[1:]]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        self.text += f"$ {command}\n{done.stdout}\n"
        (self.out / "walk.txt").write_text(self.text)
        return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="40")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    walk, study, begin = Walk(given.out), given.out / "digits", time.monotonic()
    if (study / "study.sqlite").exists():
        walk.run(f"archc study resume {study} --budget {given.budget} --workers {given.workers}")
    else:
        how = f"--strategy evolution --option population=12 --budget {given.budget} --steps 150 --seed 0"
        walk.run(
            f"archc search {SPACE} --task {TASK} {shlex.join(GOALS)} {how} --workers {given.workers} --study {study}"
        )
    walk.run(f"archc study report {study} -o {given.out / 'report.html'}")
    walk.run(f"archc study plot {study} -o {given.out / 'front.png'}")
    told = take(walk, study)
    told |= {"minutes": (time.monotonic() - begin) / 60, "cpu_seconds": cpu_seconds(), "date": time.strftime("%F")}
    (given.out / "walk.json").write_text(json.dumps(told, indent=1))
    print(json.dumps(told, indent=1))


def take(walk: Walk, folder: Path) -> dict[str, Any]:
    """The architecture where the front bends: its compiled network runs, agrees with torch, and comes out again."""
    study = archc.Study.open(folder)
    front = study.front
    chosen = knee([[-w.values["accuracy"], np.log(w.values["latency_ms@cpu"])] for w in front])
    assert chosen is not None
    winner = front[chosen]
    assert winner.artifact is not None
    assert winner.weights is not None
    images, labels = test_split()
    np.save(walk.out / "x.npy", images)
    walk.run(f"archc run {winner.artifact} --input {walk.out / 'x.npy'} --raw -o {walk.out / 'y.npz'}")
    with np.load(walk.out / "y.npz") as outputs:
        (logits,) = outputs.values()
    accuracy = float((logits.argmax(1) == labels).mean())
    walk.run(f"archc verify {winner.artifact} --weights {winner.weights}")
    again = walk.out / "again.safetensors"
    words = shlex.split(winner.commands[0])
    told = json.loads(walk.run(shlex.join([*words[:-1], str(again), "--json", "--quiet"])))
    return {
        "front": [{"number": w.number, **w.values} for w in front],
        "chosen": winner.number,
        "program": winner.text,
        "validation": winner.values["accuracy"],
        "test": accuracy,
        "test_examples": len(labels),
        "validation_when_trained_again": told["val"]["metrics"]["accuracy"],
        "standing": study.standing.model_dump(exclude={"front"}),
        "times": study.times(),
    }


def test_split() -> tuple[Any, Any]:
    """Images as they come, before a network's preparation, and their labels."""
    import torch

    from archc.backends.torch.training import load_task

    split = load_task(TASK).splits["test"]
    (images,), labels = split.batch(torch.arange(len(split)))
    return images.numpy(), labels.numpy()


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
