"""A pool of trained nets: nets of the distribution that prediction learns on, each trained with Adam.

    python benchmarks/pool.py --out RUNS/pool --split train --count 350
    python benchmarks/pool.py --out RUNS/pool --split val --count 8 --lr 0 --start aware --steps 200
    python benchmarks/pool.py --out RUNS/pool --split test --count 40 --lr 0.01
    python benchmarks/pool.py --out RUNS/pool --split test --count 120 --nearest

Each net gets a line in `OUT/pool.jsonl` as soon as it is done (a script that was killed goes on where it was): its
program, its accuracy on validation and test images after some numbers of steps, and, for nets of the `train` split,
the name of a file of its final weights. Adam with a constant learning rate (a linear warm-up over the first 10
steps), 64 images a step drawn with a stated seed; `--start` says where the weights begin (`archc.metanet.ghn.starts`).

The pool teaches the accuracy surrogate, holds the candidates of the baseline "nearest trained architecture", and tells
how many steps of tuned Adam are worth a prediction. Times are CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghn import SPACE, use_space
from results import Results

if TYPE_CHECKING:
    import torch

    from archc.backends.torch.training.evaluate import Feed
    from archc.ir.graph import Graph
    from archc.metanet.ghn.starts import Start

GRID = (0, 10, 25, 50, 75, 100, 150, 200, 250, 300)
"""After how many steps accuracy is measured."""
BATCH = 64
WARMUP = 10
RATES = (3e-3, 1e-2, 3e-2, 1e-1)


def feed_of(task: str) -> Feed:
    """The task's images, ready for networks."""
    import torch

    from archc.backends.torch.training import load_task
    from archc.backends.torch.training.evaluate import Feed

    return Feed(load_task(task), torch.device("cpu"))


class Images:
    """Whole splits as tensors, prepared once: `x[split]` and `y[split]`."""

    def __init__(self, task: str) -> None:
        import torch

        feed = feed_of(task)
        self.x: dict[str, torch.Tensor] = {}
        self.y: dict[str, torch.Tensor] = {}
        for split in ("train", "val", "test"):
            inputs, self.y[split] = feed.batch(split, torch.arange(len(feed.split(split))), None, None)
            self.x[split] = inputs[0].contiguous()


def accuracy(module: torch.nn.Module, images: Images, split: str, rows: int = 600) -> float:
    """The share of a split that the module gets right, in evaluation mode; what is not finite is wrong."""
    import torch

    module.eval()
    right = 0
    with torch.no_grad():
        for x, y in zip(images.x[split].split(rows), images.y[split].split(rows), strict=True):
            logits = module(x)
            right += int(((logits.argmax(-1) == y) & logits.isfinite().all(-1)).sum())
    return right / len(images.y[split])


def fit(
    graph: Graph, images: Images, weights: Mapping[str, Any], lr: float, grid: Sequence[int] = GRID, seed: int = 0
) -> tuple[dict[str, Any], torch.nn.Module]:
    """Train from `weights`, up to the last number of steps in `grid`: accuracies there, and the trained module.

    A run whose loss is not finite ends there; its accuracies from then on are those of chance.
    """
    import torch

    from archc.backends.torch.module import to_torch
    from archc.backends.torch.training.recipe import counter_rng

    begun = time.process_time()
    module = to_torch(graph, {name: torch.as_tensor(value) for name, value in weights.items()})
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), foreach=True)
    order = counter_rng(seed, "order", 0).integers(0, len(images.y["train"]), (max(grid), BATCH))
    rows = torch.from_numpy(order)
    told: dict[str, list[float]] = {"val": [], "test": []}
    loss = torch.zeros(())
    failed = False
    for step in range(max(grid) + 1):
        if step in grid:
            for split, values in told.items():
                values.append(round(0.1 if failed else accuracy(module, images, split), 5))
        if step == max(grid) or failed:
            continue
        module.train()
        optimiser.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / WARMUP)
        outputs, aux = module.forward_with_aux(images.x["train"][rows[step]])
        assert isinstance(outputs, torch.Tensor)
        loss = torch.nn.functional.cross_entropy(outputs, images.y["train"][rows[step]])
        loss = loss + sum((value for name, value in aux.items() if name.startswith("loss/")), torch.zeros(()))
        failed = not bool(loss.isfinite())
        if failed:
            continue
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    row = {"grid": list(grid), **told, "loss": float(loss.detach()), "failed": failed}
    return {**row, "seconds": round(time.process_time() - begun, 3)}, module


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="hard_digits")
    parser.add_argument("--space", type=Path, default=SPACE)
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, default=350)
    parser.add_argument("--seed", type=int, default=0, help="of the nets, their first weights and the order of images")
    parser.add_argument("--start", default="kaiming", help="kaiming, aware, or a model of `ghn.py`: predicted weights")
    parser.add_argument("--lr", type=float, default=3e-3, help="0: each of several, one after the other")
    parser.add_argument("--steps", type=int, default=max(GRID))
    parser.add_argument("--nearest", action="store_true", help="train none: judge what the nearest net's weights reach")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many CPU seconds")
    options = parser.parse_args(arguments)

    import torch

    from archc.backends.weights import write_weights
    from archc.grammar.printer import print_graph
    from archc.metanet.distribution import nets

    torch.set_num_threads(1)
    use_space(options.space)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "weights").mkdir(exist_ok=True)
    results = Results(options.out / "pool.jsonl")
    if options.nearest:
        judge_nearest(results, options)
        return
    done = {key_of(row) for row in results.rows}
    images, starter = Images(options.task), starter_of(options.start, options.task)
    grid = [step for step in GRID if step <= options.steps]
    for lr in RATES if options.lr == 0 else (options.lr,):
        for name, graph in nets(options.split, options.count, options.seed, options.task):
            row: dict[str, Any] = {
                "task": options.task,
                "split": options.split,
                "seed": options.seed,
                "name": name,
                "start": options.start,
                "lr": lr,
                "steps": max(grid),
            }
            if key_of(row) in done:
                continue
            if time.process_time() > options.seconds:
                print(f"stopped after {time.process_time():.0f} CPU seconds")
                return
            start = starter(graph, options.seed)
            row |= {"params": sum(p.size for p in graph.parameters().values()), "text": print_graph(graph)}
            found, module = fit(graph, images, start.weights, lr * start.rate, grid, options.seed)
            if options.split == "train":
                row["weights"] = f"weights/{name.replace('/', '-')}-{options.seed}-{options.start}-{lr:g}.safetensors"
                trained = {key: value.detach().numpy() for key, value in module.state_dict().items()}
                write_weights(options.out / row["weights"], trained)
            results.add({**row, **found})
        print(f"{options.split} {options.start} {lr:g}: {time.process_time():.0f} CPU seconds", flush=True)


def starter_of(start: str, task: str) -> Callable[[Graph, int], Start]:
    """What gives a net its first weights; a file is a model that `ghn.py` trained on graphs."""
    from archc.metanet.ghn.starts import STARTS, Start

    if start in STARTS:
        return STARTS[start]

    from archc.backends.torch.training import load_task
    from archc.backends.torch.training.checkpoint import to_tensor
    from archc.backends.weights import read_weights
    from archc.metanet.ghn.model import GhnConfig
    from archc.metanet.ghn.nets import Data, Net, calibrate
    from archc.metanet.ghn.tables import build
    from archc.metanet.ghn.training import predict

    view, rounds = Path(start).stem.split("-")[:2]
    model, data = build(view, GhnConfig(rounds=int(rounds[1:])), [task]), Data(load_task(task))
    model.load_state_dict({name: to_tensor(a) for name, a in read_weights(start).arrays.items()})

    def predicted(graph: Graph, seed: int) -> Start:
        net = Net("net", graph, model.words)
        weights = predict(model, net, 0)
        return Start({name: value.numpy() for name, value in {**weights, **calibrate(net, weights, data)}.items()})

    return predicted


def judge_nearest(results: Results, options: argparse.Namespace) -> None:
    """Zero-step accuracy of nets with the weights of the trained net that is most like each: OUT/nearest.json."""
    import torch

    from archc.backends.torch.training import load_task
    from archc.backends.weights import read_weights
    from archc.grammar.load import loads
    from archc.metanet.distribution import nets
    from archc.metanet.ghn.nearest import likeness, nearest, similarity, transplant
    from archc.metanet.ghn.nets import Data, Net, accuracy
    from archc.metanet.vocabulary import vocabulary

    trained = [row for row in results.rows if "weights" in row and row["task"] == options.task]
    graphs = [loads(row["text"]) for row in trained]
    kinds, data, words = [likeness(graph) for graph in graphs], Data(load_task(options.task)), vocabulary()
    found: dict[str, Any] = {"pool": len(trained), "test": [], "similarity": []}
    for name, graph in nets(options.split, options.count, options.seed, options.task):
        best = nearest(graph, kinds)
        arrays = dict(read_weights(options.out / trained[best]["weights"]).arrays)
        weights = {k: torch.from_numpy(v) for k, v in transplant(graphs[best], arrays, graph, options.seed).items()}
        found["test"].append(round(accuracy(Net(name, graph, words), weights, data, "test"), 5))
        found["similarity"].append(round(similarity(likeness(graph), kinds[best]), 3))
    (options.out / "nearest.json").write_text(json.dumps(found))
    print(f"nearest of {len(trained)}: {sum(found['test']) / len(found['test']):.4f}")


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a run of the pool the one it is."""
    return tuple(row[field] for field in ("task", "split", "seed", "name", "start", "lr", "steps"))


if __name__ == "__main__":
    main()
