"""Record the training runs that a nowcaster learns from (`metanet/nowcast/trajectories.py` has the format).

    python benchmarks/nowcast_data.py --out runs/nowcast

Ten families on two tasks by two to four recipes, 4 seeds each, 600 steps, a snapshot every 10: about 0.3 GB. Files that
are there are kept, so a script that was killed goes on where it was. `times.jsonl` gets the CPU seconds of each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from archc.metanet.nowcast.trajectories import plans, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for plan in plans():
        if (folder / plan.file).exists():
            continue
        began = time.process_time()
        path = record(plan, folder)
        row = {"file": path.name, "cpu_seconds": round(time.process_time() - began, 2)}
        with (folder / "times.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
