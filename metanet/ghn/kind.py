"""`archc metanet train ghn`: the command's options, what it does, and the measuring of what it made."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from archc.backends.torch.training.checkpoint import to_array, to_tensor
from archc.backends.torch.training.registry import load_task
from archc.backends.weights import check_weights, type_of
from archc.ir.diagnostics import CompileError, fail
from archc.metanet.distribution import TASKS, nets
from archc.metanet.ghn.likeness import ranges
from archc.metanet.ghn.model import Ghn, GhnConfig, parameter_count
from archc.metanet.ghn.nets import Data, Net
from archc.metanet.ghn.training import TrainConfig, Trainer, accuracies
from archc.metanet.kinds import Kind, Say
from archc.metanet.store import Card, Stored, save
from archc.metanet.vocabulary import Vocabulary


class GhnTraining(GhnConfig, TrainConfig):
    """Everything that decides what `archc metanet train ghn` makes."""

    tasks: tuple[str, ...] = Field(("hard_digits",), min_length=1, description=f"of {', '.join(TASKS)}")
    pool: int = Field(1000, ge=1, description="nets to train on, for each task")
    judged: int = Field(40, ge=1, description="unseen nets of each split to measure it on")
    splits: tuple[str, ...] = Field(("test",), description="what it is measured on: test, wide, deep, dense, …")
    examples: int = Field(600, ge=1, description="held-out examples that each of them is measured with")


def model_config(config: GhnTraining) -> GhnConfig:
    return GhnConfig(**{name: getattr(config, name) for name in GhnConfig.model_fields})


def train_config(config: GhnTraining) -> TrainConfig:
    return TrainConfig(**{name: getattr(config, name) for name in TrainConfig.model_fields})


def state_path(out: Path) -> Path:
    """Where the state of an unfinished run stands.

    >>> str(state_path(Path("ghn.safetensors")))
    'ghn.safetensors.state'
    """
    return out.with_name(out.name + ".state")


def train(config: GhnTraining, out: Path, resume: bool, say: Say) -> Card:
    """Train, measure, and write the model; an interrupted run goes on from its state."""
    if config.steps is None and config.minutes is None:
        raise fail("E0804", "`ghn` needs `steps` or `minutes`", help="for instance `--option minutes=25`")
    torch.set_num_threads(1)  # nets are small: threads would only wait for each other
    model = Ghn(model_config(config), config.tasks, seed=config.seed)
    pools, graphs = [], []
    for index, task in enumerate(config.tasks):
        data = Data(load_task(task), index)
        drawn = nets("train", config.pool, config.seed, task)
        graphs += [graph for _, graph in drawn]
        pools.append((data, [Net(name, graph, model.words) for name, graph in drawn]))
    state = state_path(out)
    trainer = Trainer(model, pools, train_config(config), state, {"model": config.model_dump(mode="json")}, say)
    if resume and state.exists():
        trainer.resume()
        say(f"going on after {trainer.progress.step} steps")
    elif state.exists():
        say(f"starting anew: {state} is of an interrupted run, which --resume would go on with")
    done = trainer.run()
    if trainer.team.rank:
        return Card(kind="ghn", name=out.stem, config=config.model_dump(mode="json"), command=_command(config, out))
    figures: dict[str, Any] = {}
    for data, _ in pools:
        figures |= measure(model, data, config, say)
    card = Card(
        kind="ghn",
        name=out.stem,
        config=config.model_dump(mode="json"),
        command=_command(config, out),
        vocabulary=model.words.to_json(),
        tasks=list(config.tasks),
        trained={
            "steps": done.step,
            "batches": done.batches,
            "skipped": done.skipped,
            "cpu_minutes": round(done.cpu_seconds / 60, 2),
            "wall_minutes": round(done.wall_seconds / 60, 2),
            "parameters": parameter_count(model),
            "statistics": "calibrated",
            "seen": ranges(graphs),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "data": {data.task.name: data.task.data_sha256 for data, _ in pools},
        },
        figures=figures,
        log=[dict(row) for row in done.log],
    )
    save(out, card, {name: to_array(tensor) for name, tensor in model.state_dict().items()})
    state.unlink(missing_ok=True)
    return card


def measure(model: Ghn, data: Data, config: GhnTraining, say: Say) -> dict[str, Any]:
    """Zero-step accuracies on unseen nets: `TASK/SPLIT` (mean), and its spread under `TASK/SPLIT/…`."""
    figures: dict[str, Any] = {}
    model.eval()
    for split in config.splits:
        drawn = nets(split, config.judged, config.seed, data.task.name)
        found = accuracies(model, [Net(n, g, model.words) for n, g in drawn], data, "val", config.examples)
        figures |= summary(f"{data.task.name}/{split}", found)
        say(f"{data.task.name}, {len(found)} nets of `{split}`: mean accuracy {np.mean(found):.3f}")
    return figures


def summary(name: str, found: Sequence[float]) -> dict[str, Any]:
    """Mean, deviation, tenths and count of accuracies."""
    low, high = np.percentile(found, [10, 90])
    return {
        name: float(np.mean(found)),
        f"{name}/deviation": float(np.std(found)),
        f"{name}/p10": float(low),
        f"{name}/p90": float(high),
        f"{name}/nets": len(found),
    }


def evaluate(stored: Stored, config: GhnTraining, say: Say) -> dict[str, Any]:
    """Measure a stored model on the splits that `config` names."""
    model = restore(stored)
    figures: dict[str, Any] = {}
    for task in config.tasks:
        figures |= measure(model, Data(load_task(task), model.tasks.index(task)), config, say)
    return figures


def restore(stored: Stored) -> Ghn:
    """The model of a file.

    Raises: CompileError E0823 when the tensors are not those of the card's model, or are not finite.
    """
    card = stored.card
    try:
        config = GhnTraining.model_validate(card.config)
        words = Vocabulary.from_json(card.vocabulary)
    except (ValueError, KeyError) as error:
        raise fail("E0823", f"the card of {stored.path} describes no hypernetwork", label=str(error)) from error
    model = Ghn(model_config(config), card.tasks, words)
    needed = {name: type_of(to_array(tensor)) for name, tensor in model.state_dict().items()}
    try:
        check_weights(needed, stored.arrays, where=str(stored.path))
    except CompileError as error:
        why = error.diagnostics[0]
        raise fail(
            "E0823",
            f"{stored.path} does not hold the model that its card describes",
            label=f"{why.message}: {why.label}",
            help="fetch or train it again",
        ) from error
    for name, array in stored.arrays.items():
        if not np.isfinite(array).all():
            raise fail("E0823", f"`{name}` in {stored.path} holds what is not a finite number", help="train it again")
    model.load_state_dict({name: to_tensor(array) for name, array in stored.arrays.items()})
    model.eval()
    return model


def _command(config: GhnTraining, out: Path) -> str:
    default = GhnTraining.model_construct()
    given = [
        f"--option {name}={_text(getattr(config, name))}"
        for name in GhnTraining.model_fields
        if getattr(config, name) != getattr(default, name)
    ]
    return " ".join(["archc metanet train ghn -o", out.name, *given])


def _text(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


KIND = Kind(
    "ghn",
    "a graph hypernetwork: predicts the parameters of nets that were never trained",
    GhnTraining,
    train,
    evaluate,
)
