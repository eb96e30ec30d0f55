"""Parameter prediction, one training run: a view of the graph and a seed, and what the predicted weights are worth.

    python benchmarks/ghn.py --out RUNS/ghn --view graph --seed 0 --minutes 2.5

Writes OUT/VIEW-rROUNDS-tTURNS-SEED.jsonl: the zero-step test accuracy of every net of all splits, what wiring twins'
weights are worth, ranks of the predicted matrices, what the run cost; and the model beside it. Views are those of
`archc.metanet.ghn.tables`: one architecture, one decoder, one trainer and one number of parameters for all of them.

Runs have equal CPU time. Those of one seed begin with the same weights and see the same nets and images in the same
order. After every so many steps the nets of the `test` split are judged as well, so that views can be compared after
equal numbers of batches; that time is not counted, and nothing is chosen by it. A script that was killed goes on from
its last state, which is saved every minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import Results

if TYPE_CHECKING:
    from archc.metanet.ghn.model import Ghn
    from archc.metanet.ghn.nets import Data, Net
    from archc.metanet.ghn.training import Trainer

TRAIN, TEST, OTHER = 600, 120, 60
"""Nets to train on, test nets of the same distribution, nets of each of the other splits."""
NETS_SEED = 0
SPACE = Path(__file__).parent / "nets" / "routed.arch"
SNAPSHOT = 1000
"""Steps between evaluations for the comparison at equal batches."""
OTHERS = ("wide", "deep", "dense", "norm_free", "unseen")


@dataclass
class Bench:
    """One run: its model, nets as its view shows them, its trainer and the file of its results."""

    view: str
    model: Ghn
    data: Data
    trainer: Trainer
    results: Results

    @classmethod
    def make(cls, options: argparse.Namespace) -> Bench:
        from archc.backends.torch.training import load_task
        from archc.metanet.ghn.model import GhnConfig
        from archc.metanet.ghn.nets import Data
        from archc.metanet.ghn.tables import build
        from archc.metanet.ghn.training import TrainConfig, Trainer

        name, turns = name_of(options), options.turns
        options.out.mkdir(parents=True, exist_ok=True)
        data = Data(load_task(options.task))
        model = build(options.view, GhnConfig(rounds=options.rounds, turns=turns), [options.task], seed=options.seed)
        bench = cls(options.view, model, data, None, Results(options.out / f"{name}.jsonl"))  # type: ignore[arg-type]
        pool = bench.nets("train", options.train)
        config = TrainConfig(minutes=options.minutes, seed=options.seed, nets=options.nets, lr=options.lr)
        origin = {
            "view": options.view,
            "rounds": options.rounds,
            "turns": turns,
            "space": str(options.space.name),
            "task": options.task,
            "train_nets": options.train,
        }
        state = options.out / f"{name}.state"
        bench.trainer = Trainer(model, [(data, pool)], config, state, origin)
        if state.exists():
            bench.trainer.resume()
        return bench

    def nets(self, split: str, count: int) -> list[Net]:
        """Nets of a split, as the view shows them."""
        from archc.metanet.distribution import nets
        from archc.metanet.ghn.nets import Net
        from archc.metanet.ghn.tables import viewed

        words, task = self.model.words, self.data.task.name
        return [viewed(Net(name, graph, words), self.view) for name, graph in nets(split, count, NETS_SEED, task)]  # type: ignore[arg-type]

    def zero_step(self, nets: Sequence[Net]) -> list[float]:
        from archc.metanet.ghn.training import accuracies

        return [round(value, 5) for value in accuracies(self.model, nets, self.data, "test")]

    def train(self, judged: Sequence[Net], every: int = SNAPSHOT, stop: int | None = None) -> None:
        """Train to the end of the run, or to step `stop`. Nets are prepared, and judged, off the clock."""
        trainer = self.trainer
        for _, nets in trainer.pools:
            for net in nets:
                _ = net.subject, net.module
        saved, done = time.process_time(), trainer.progress
        while trainer.share < 1.0 and done.step != stop:
            begun, wall = time.process_time(), time.monotonic()
            trainer.step()
            done.cpu_seconds += time.process_time() - begun
            done.wall_seconds += time.monotonic() - wall
            if done.step % every == 0:
                self.results.add({"step": done.step, "cpu_seconds": done.cpu_seconds, "test": self.zero_step(judged)})
            if time.process_time() - saved > 60:
                saved = time.process_time()
                trainer.save()
        trainer.save()

    def twins(self, count: int) -> list[dict[str, float]]:
        """Zero-step accuracy of nets with their own predicted weights, and with those predicted for their twins."""
        from archc.metanet.distribution import twin_pairs
        from archc.metanet.ghn.nets import Net, accuracy
        from archc.metanet.ghn.tables import viewed
        from archc.metanet.ghn.training import predict

        found = []
        for number, pair in enumerate(twin_pairs(count, NETS_SEED, "test", self.data.task.name)):
            names = (f"pair-{number}", f"twin-{number}")
            one, other = (
                viewed(Net(name, graph, self.model.words), self.view)  # type: ignore[arg-type]
                for name, graph in zip(names, pair, strict=True)
            )
            own, foreign = (predict(self.model, net, self.data.index) for net in (one, other))
            judged = {"own": own, "twin": {name: foreign[name] for name in own}}
            found.append({k: round(accuracy(one, w, self.data, "test"), 5) for k, w in judged.items()})
        return found

    def matrices(self, nets: Sequence[Net]) -> dict[str, float]:
        """Of predicted matrices of 8 × 8 and more: numerical rank as a share of the full one (singular values above a
        thousandth of the largest), and the share of values that occur once; means over matrices."""
        import torch

        from archc.metanet.ghn.training import predict

        ranks, unique = [], []
        for net in nets:
            for value in predict(self.model, net, self.data.index).values():
                if value.ndim >= 2 and min(value.flatten(1).shape) >= 8:
                    singular = torch.linalg.svdvals(value.flatten(1))
                    ranks.append(float((singular > 1e-3 * singular[0]).sum()) / len(singular))
                    unique.append(len(value.unique()) / value.numel())
        return {"rank": _mean(ranks), "unique": _mean(unique), "matrices": len(ranks)}

    def finish(self, judged: Sequence[Net], other: int, pairs: int, options: Mapping[str, Any]) -> None:
        """Judge the trained model on everything, and store it."""
        from archc.backends.torch.training.checkpoint import to_array
        from archc.backends.weights import write_weights
        from archc.metanet.ghn.model import parameter_count

        done = self.trainer.progress
        splits = {split: self.nets(split, other) for split in ("train", "val", *OTHERS)}
        row: dict[str, Any] = {
            "finished": True,
            **options,
            "parameters": parameter_count(self.model),
            "steps": done.step,
            "batches": done.batches,
            "skipped": done.skipped,
            "cpu_seconds": round(done.cpu_seconds, 1),
            "wall_seconds": round(done.wall_seconds, 1),
            "accuracy": {"test": self.zero_step(judged)} | {s: self.zero_step(nets) for s, nets in splits.items()},
            "twins": self.twins(pairs),
            "matrices": self.matrices(judged[:20]),
        }
        tensors = {name: to_array(value) for name, value in self.model.state_dict().items()}
        write_weights(self.results.path.with_suffix(".safetensors"), tensors)
        self.results.add(row)


def name_of(options: argparse.Namespace) -> str:
    """What the files of a run are called."""
    return f"{options.view}-r{options.rounds}-t{options.turns}-{options.seed}"


def use_space(path: Path) -> None:
    """Let the splits of `archc.metanet.distribution` be those of another space with the same parameters."""
    from archc.metanet import distribution

    assert not distribution.space.cache_info().currsize or path == distribution.SPACE, "before any net is drawn"
    distribution.SPACE = path


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--view", default="graph")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=8, help="rounds in which ops tell how they turn what passes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--space", type=Path, default=SPACE)
    parser.add_argument("--minutes", type=float, default=2.5, help="CPU minutes of training")
    parser.add_argument("--task", default="hard_digits")
    parser.add_argument("--train", type=int, default=TRAIN, help="nets to train on")
    parser.add_argument("--test", type=int, default=TEST)
    parser.add_argument("--other", type=int, default=OTHER, help="nets of each other split")
    parser.add_argument("--nets", type=int, default=4, help="nets of a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--snapshot", type=int, default=SNAPSHOT)
    options = parser.parse_args(arguments)

    import torch

    torch.set_num_threads(1)
    use_space(options.space)
    name = name_of(options)
    if any(row.get("finished") for row in Results(options.out / f"{name}.jsonl").rows):
        print(f"{name}: done before")
        return
    bench = Bench.make(options)
    judged = bench.nets("test", options.test)
    bench.train(judged, options.snapshot)
    told = {name: value for name, value in vars(options).items() if name not in ("out", "space")}
    told["space"] = options.space.name
    bench.finish(judged, options.other, options.other, told)
    row = bench.results.rows[-1]
    print(f"{bench.results.path.stem}: test {_mean(row['accuracy']['test']):.4f} after {row['steps']} steps")


if __name__ == "__main__":
    main()
