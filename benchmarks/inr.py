"""Fits implicit neural representations of digits, which `benchmarks/gmn.py` classifies and edits.

    python benchmarks/inr.py --out inr [--views 2 --steps 250 --lr 0.01 --seed 0]

1,797 images, each fitted by two networks from independent random weights: 3,594 networks. A run that was killed goes
on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from archc.metanet.gmn.inr import InrConfig, grow_inrs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name, info in InrConfig.model_fields.items():
        parser.add_argument(f"--{name}", type=info.annotation, default=info.default, help=info.description)
    options = vars(parser.parse_args())
    grow_inrs(options.pop("out"), InrConfig(**options), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
