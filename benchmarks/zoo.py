"""Grows the zoo that `benchmarks/gmn.py` learns from, and says what is in it.

    python benchmarks/zoo.py --out zoo [--architectures 8 --nets 56 --steps 300 --seed 0]

Seven families of 8 architectures of 56 nets each: 3,136 nets. A run that was killed goes on where it was. How nets are
trained and what varies: `archc/metanet/gmn/zoo.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from archc.metanet.gmn.zoo import ZooConfig, grow, nets_of, read_shard, shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name in ("architectures", "nets", "steps", "seed"):
        parser.add_argument(f"--{name}", type=int, default=ZooConfig.model_fields[name].default)
    options = vars(parser.parse_args())
    folder = options.pop("out")
    grow(folder, ZooConfig(**options), lambda line: print(line, flush=True))
    describe(folder)


def describe(folder: Path) -> None:
    """A table: nets, parameters and accuracies by family; what the obvious predictors say."""
    from scipy.stats import kendalltau

    read = [read_shard(path) for path in shards(folder)]
    nets = [net for shard in read for net in nets_of(*shard)]
    print("\n| family | nets | parameters | test accuracy: mean (10 % … 90 %) | gap: mean (10 % … 90 %) |")
    print("|---|---:|---:|---:|---:|")
    for family in [*dict.fromkeys(n.family for n in nets), "all"]:
        own = [n for n in nets if family in (n.family, "all")]
        sizes = [n.architecture.parameters for n in own]
        cells = [_spread([n.record.test_accuracy for n in own]), _spread([n.record.gap for n in own])]
        print(f"| {family} | {len(own)} | {min(sizes)}–{max(sizes)} | {cells[0]} | {cells[1]} |")
    accuracy, gap = [n.record.test_accuracy for n in nets], [n.record.gap for n in nets]
    loss = [n.record.train_loss for n in nets]
    print(f"\nKendall τ of training loss (negated) with test accuracy {-kendalltau(loss, accuracy)[0]:.3f}, "
          f"with the gap {-kendalltau(loss, gap)[0]:.3f}")  # fmt: skip
    print(f"CPU seconds {sum(card.cpu_seconds for card, _ in read):.0f}; lost {sum(card.lost for card, _ in read)}")


def _spread(values: list[float]) -> str:
    low, high = np.quantile(values, [0.1, 0.9])
    return f"{np.mean(values):.2f} ({low:.2f} … {high:.2f})"


if __name__ == "__main__":
    main()
