"""A zoo: thousands of small trained nets of mixed families, with how each was trained and how well it does.

Every net learns the 8×8 digits from a subset of the training images with a share of wrong labels, by its own optimiser,
rate, decay, input dropout, label smoothing and number of steps: a low training loss can be memorised noise, so that it
does not give the test accuracy away. Nothing is selected; nets whose weights are not finite are counted and left out.

A folder holds one file an architecture, `NAME.safetensors`: the nets' parameters stacked along a first axis, with the
text, the records and the configuration as JSON in the metadata. Files are written atomically, and a run that was
stopped goes on with the architectures that have none.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from archc.backends.torch.training import load_task
from archc.backends.weights import Array, check_weights, read_weights, type_of, write_weights
from archc.grammar.load import loads
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.metanet.gmn.families import FAMILIES, Architecture, architectures
from archc.metanet.gmn.stacked import Optimiser, Stack, initial_weights

CARD = "archc.zoo"
FORMAT = 1
BATCH = 64
CHUNK = 200  # images judged at once


class ZooConfig(BaseModel):
    """What is drawn: the same configuration gives the same zoo, on one machine and torch version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    families: tuple[str, ...] = tuple(FAMILIES)
    architectures: int = Field(8, ge=1, le=100, description="architectures of each family")
    nets: int = Field(56, ge=1, le=10_000, description="nets of each architecture")
    steps: int = Field(300, ge=1, le=100_000, description="the most steps that a net is trained for")
    seed: int = Field(0, ge=0)


class Record(BaseModel):
    """How one net was trained, and what it reached. Losses and accuracies of training are those on its own labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    images: int
    label_noise: float
    """The share of labels replaced by another class."""
    weight_decay: float
    optimiser: Literal["adam", "sgd"]
    lr: float
    steps: int
    input_dropout: float
    """The share of pixels set to 0 in training."""
    label_smoothing: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float

    @property
    def gap(self) -> float:
        """The generalisation gap: training accuracy (own labels) minus test accuracy."""
        return self.train_accuracy - self.test_accuracy


class ShardCard(BaseModel):
    """What one file of a zoo is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    name: str
    family: str
    text: str
    config: ZooConfig
    data_sha256: str
    torch: str
    cpu_seconds: float
    lost: int
    """Nets left out since their weights were not finite."""
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Net:
    """One trained net of a zoo."""

    architecture: Architecture
    record: Record
    weights: dict[str, Array] = field(repr=False)

    @property
    def family(self) -> str:
        return self.architecture.family


@dataclass(frozen=True)
class Images:
    """The data of a zoo: images as networks see them, [n, 1, 8, 8], and classes."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    sha256: str


def images() -> Images:
    """The digits: 1197 training images; the 300 of `val` and the 300 of `test` together are the test images, since no
    net is ever chosen by either."""
    task = load_task("digits")

    def part(name: str) -> tuple[Tensor, Tensor]:
        split = task.splits[name]
        (x,), y = split.batch(torch.arange(len(split)))
        return torch.from_numpy(task.preprocessing.apply(x.numpy())), y

    val, test = part("val"), part("test")
    return Images(part("train"), (torch.cat((val[0], test[0])), torch.cat((val[1], test[1]))), task.data_sha256)


@dataclass(frozen=True)
class Plan:
    """The hyperparameters of a stack of nets, one row each."""

    seeds: list[int]
    images: Tensor
    noise: Tensor
    decay: Tensor
    adam: Tensor
    rate: Tensor
    steps: Tensor
    dropout: Tensor
    smoothing: Tensor


def draw_plan(number: int, most_steps: int, available: int, rng: np.random.Generator) -> Plan:
    """Hyperparameters, net by net and independent of each other.

    images log-uniform from 40 to all; label noise 0 for a third, else U(0, 0.6); decay 0 for a third, else log-uniform
    1e-3 … 1; Adam (rate 2e-3 … 3e-2) or SGD (3e-2 … 0.6); steps from a fifth of the most to all; input dropout 0 for a
    half, else U(0, 0.4); label smoothing 0, 0.1 or 0.3.
    """

    def log_uniform(low: float | Array, high: float | Array) -> Array:
        return np.asarray(np.exp(rng.uniform(np.log(low), np.log(high), number)))

    def sometimes(share: float, values: Array) -> Array:
        return np.where(rng.random(number) < share, values, 0.0)

    adam = rng.random(number) < 0.5
    rows = {
        "images": np.rint(log_uniform(min(40, available), available)).astype(np.int64),
        "noise": sometimes(2 / 3, rng.uniform(0, 0.6, number)),
        "decay": sometimes(2 / 3, log_uniform(1e-3, 1.0)),
        "adam": adam,
        "rate": np.where(adam, log_uniform(2e-3, 3e-2), log_uniform(3e-2, 0.6)),
        "steps": rng.integers(max(1, most_steps // 5), most_steps + 1, number),
        "dropout": sometimes(0.5, rng.uniform(0, 0.4, number)),
        "smoothing": rng.choice([0.0, 0.1, 0.3], number),
    }
    tensors = {
        k: torch.from_numpy(v) if v.dtype != np.float64 else torch.from_numpy(v).float() for k, v in rows.items()
    }
    return Plan(seeds=rng.integers(0, 2**31, number).tolist(), **tensors)


def train_stack(graph: Graph, plan: Plan, data: Images, seed: int) -> tuple[dict[str, Array], list[Record], int]:
    """Train all nets of a plan: (stacked weights, records, how many were lost for not being finite)."""
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout layers draw from the global generator
    count = len(plan.seeds)
    x, y = data.train
    order = torch.stack([torch.randperm(len(x), generator=draw) for _ in range(count)])
    wrong = torch.rand(count, len(x), generator=draw) < plan.noise[:, None]
    labels = torch.where(wrong, (y + torch.randint(1, 10, wrong.shape, generator=draw)) % 10, y)  # [nets, images]
    stack, parameters = Stack(graph), initial_weights(graph, plan.seeds)
    for value in parameters.values():
        value.requires_grad_()
    optimiser = Optimiser(parameters, plan.adam, plan.decay)
    stack.train()
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no rule for being mapped
        for step in range(int(plan.steps.max())):
            at = (torch.rand(count, BATCH, generator=draw) * plan.images[:, None]).long()
            rows = order.gather(1, at)
            kept = torch.rand(*rows.shape, *x.shape[1:], generator=draw) >= plan.dropout.view(-1, 1, 1, 1, 1)
            logits = stack(parameters, x[rows] * kept)
            loss = _smoothed(logits, labels.gather(1, rows), plan.smoothing)
            gradients = torch.autograd.grad(loss.sum(), list(parameters.values()))
            progress = step / plan.steps
            rate = plan.rate * 0.5 * (1 + torch.cos(math.pi * progress)) * (progress < 1)
            optimiser.step(dict(zip(parameters, gradients, strict=True)), rate)
        with torch.no_grad():
            stack.eval()
            own, unseen = _logits(stack, parameters, x), _logits(stack, parameters, data.test[0])
    used = torch.zeros(labels.shape).scatter_(1, order, (torch.arange(len(x)) < plan.images[:, None]).float())
    train_loss, train_accuracy = _judge(own, labels, used)
    test_loss, test_accuracy = _judge(unseen, data.test[1].expand(count, -1), torch.ones(unseen.shape[:2]))
    finite = torch.stack([v.flatten(1).isfinite().all(1) for v in parameters.values()]).all(0)
    finite &= train_loss.isfinite() & test_loss.isfinite()
    records = [
        Record(
            seed=plan.seeds[k],
            images=int(plan.images[k]),
            label_noise=float(plan.noise[k]),
            weight_decay=float(plan.decay[k]),
            optimiser="adam" if plan.adam[k] else "sgd",
            lr=float(plan.rate[k]),
            steps=int(plan.steps[k]),
            input_dropout=float(plan.dropout[k]),
            label_smoothing=float(plan.smoothing[k]),
            train_loss=float(train_loss[k]),
            train_accuracy=float(train_accuracy[k]),
            test_loss=float(test_loss[k]),
            test_accuracy=float(test_accuracy[k]),
        )
        for k in range(count)
        if finite[k]
    ]
    return {n: v.detach()[finite].numpy() for n, v in parameters.items()}, records, int((~finite).sum())


def _smoothed(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """Cross-entropy against smoothed labels, the mean of each net's batch: [nets]."""
    scores = logits.log_softmax(-1)
    hit = -scores.gather(-1, labels[..., None])[..., 0].mean(1)
    return (1 - smoothing) * hit - smoothing * scores.mean((1, 2))


def _logits(stack: Stack, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    count = len(next(iter(parameters.values())))
    return torch.cat([stack(parameters, rows.expand(count, *rows.shape)) for rows in torch.split(x, CHUNK)], 1)


def _judge(logits: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy, [nets] each, over the images of weight 1."""
    loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    hit = (logits.argmax(-1) == labels).float()
    total = weight.sum(1)
    return (loss * weight).sum(1) / total, (hit * weight).sum(1) / total


def grow(folder: Path, config: ZooConfig, say: Callable[[str], None] = print) -> None:
    """Train what the folder does not hold yet.

    Raises: CompileError E0831 for a folder with a zoo of another configuration, or with an unsound file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = images()
    for number, family in enumerate(config.families):
        for k, drawn in enumerate(architectures(family, config.architectures, config.seed)):
            path = folder / f"{drawn.name}.safetensors"
            if path.exists():
                card, _ = read_shard(path)
                if card.config != config:
                    message = f"{path} belongs to a zoo of another configuration"
                    raise fail("E0831", message, label=str(card.config), help="choose another folder")
                continue
            begun = time.process_time()
            rng = np.random.Generator(np.random.Philox(key=[config.seed, 1000 * number + k]))
            plan = draw_plan(config.nets, config.steps, len(data.train[0]), rng)
            weights, records, lost = train_stack(drawn.graph, plan, data, int(rng.integers(2**31)))
            spent = time.process_time() - begun
            card = ShardCard(name=drawn.name, family=family, text=drawn.text, config=config, data_sha256=data.sha256,
                             torch=torch.__version__, cpu_seconds=spent, lost=lost, records=tuple(records))  # fmt: skip
            write_weights(path, weights, {CARD: card.model_dump_json()})
            accuracy = np.array([r.test_accuracy for r in records])
            say(f"{drawn.name}: {len(records)} nets of {drawn.parameters} parameters, test accuracy "
                f"{np.quantile(accuracy, 0.1):.2f} … {np.quantile(accuracy, 0.9):.2f}, {spent:.0f} s")  # fmt: skip


def read_shard(path: Path) -> tuple[ShardCard, dict[str, Array]]:
    """A file of a zoo: its card, and the stacked parameters.

    Raises: CompileError E0601 or E0602 for a file that is not sound safetensors, E0831 for one that is no shard,
    E0603–E0606 for weights of another architecture than its text, E0812 for numbers that are not finite.
    """
    weights = read_weights(path)
    try:
        card = ShardCard.model_validate(json.loads(weights.metadata[CARD]))
    except (KeyError, ValueError, ValidationError) as error:
        reason = "it has no card" if isinstance(error, KeyError) else "its card cannot be read"
        raise fail("E0831", f"{path} is not part of a zoo", label=reason, help="delete it, and grow the zoo") from error
    if card.format != FORMAT:
        raise fail("E0831", f"{path} has format {card.format}, and this archc reads {FORMAT}", help="grow it again")
    needed = {n: p.type for n, p in loads(card.text).parameters().items()}
    if any(len(a) != len(card.records) for a in weights.arrays.values() if a.ndim) or not card.records:
        raise fail("E0831", f"{path} is not part of a zoo", label="it tells of more or fewer nets than it holds")
    check_weights(
        needed, {n: type_of(a[0]) if a.ndim else type_of(a) for n, a in weights.arrays.items()}, where=str(path)
    )
    check_finite(weights.arrays, str(path))
    return card, dict(weights.arrays)


def check_finite(weights: Any, where: str) -> None:
    """Raises: CompileError E0812 when a weight is NaN or infinite."""
    for name, array in weights.items():
        bad = int((~np.isfinite(array)).sum())
        if bad:
            message = f"`{name}` in {where} holds {bad} numbers that are not finite"
            raise fail("E0812", message, help="what diverged has nothing to tell: delete the file, and make it again")


def read_zoo(folder: Path) -> list[Net]:
    """All nets of a zoo, by architecture in the order of names.

    Raises: CompileError E0831 for a folder without a zoo, and what `read_shard` raises.
    """
    return [net for path in shards(folder) for net in nets_of(*read_shard(path))]


def shards(folder: Path) -> list[Path]:
    """The files of a zoo. Raises: CompileError E0831 when there are none."""
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise fail("E0831", f"there is no zoo in {folder}", help="`archc metanet train gmn` grows one there")
    return found


def nets_of(card: ShardCard, arrays: dict[str, Array]) -> Iterator[Net]:
    architecture = Architecture(card.name, card.family, card.text, loads(card.text))
    for k, record in enumerate(card.records):
        yield Net(architecture, record, {n: a[k] for n, a in arrays.items()})
