"""Checkpoints from which training goes on as if it had never stopped.

One safetensors file: tensors under `model/`, `best/`, `average/`, `optimiser/INDEX/`, `nowcast/` and `rng/`, the rest
as JSON in the metadata. Nothing is pickled, and a file is replaced as a whole or not at all.

After a resume the final weights are byte for byte those of a run that was never interrupted, on the CPU with the same
number of threads and the same torch version; the file records both. Other threads add up in another order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from archc.backends.weights import Array, check_weights, numpy_dtype, read_weights, type_of, write_weights
from archc.ir.diagnostics import CompileError, Diagnostic, fail

FORMAT = "archc.checkpoint.1"


class Progress(BaseModel):
    """How far a run has come: the part of a checkpoint that is not tensors."""

    model_config = ConfigDict(extra="forbid")

    step: int = Field(0, ge=0)
    epoch_loss: float = 0.0  # summed over the steps of the current epoch
    epoch_stats: dict[str, Any] = {}  # as `Statistics.state` has them
    best_epoch: int | None = None
    best_score: tuple[float, float] | None = None
    history: list[dict[str, Any]] = []
    seconds: float = 0.0
    nowcasts: dict[str, int] = {}  # as `Nowcasting.counts` has them


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: `origin` says what it belongs to (task, recipe, model, versions, threads)."""

    path: Path
    origin: Mapping[str, Any]
    progress: Progress
    arrays: Mapping[str, Array]

    def group(self, prefix: str) -> dict[str, Array]:
        """The tensors under `prefix/`, without it."""
        return {name[len(prefix) + 1 :]: a for name, a in self.arrays.items() if name.startswith(prefix + "/")}


def to_array(tensor: Tensor) -> Array:
    """A torch tensor as a numpy array of its own memory; bf16 keeps its bits."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.array(tensor.view(torch.uint16).numpy().view(numpy_dtype("bf16")))
    return np.array(tensor.numpy())


def to_tensor(array: Array) -> Tensor:
    """The reverse of `to_array`.

    >>> to_tensor(to_array(torch.tensor([1.5], dtype=torch.bfloat16)))
    tensor([1.5000], dtype=torch.bfloat16)
    """
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array.view(np.uint16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def state_arrays(module: torch.nn.Module) -> dict[str, Array]:
    """A module's parameters and buffers by name, ready for `write_weights`."""
    return {name: to_array(tensor) for name, tensor in module.state_dict().items()}


def load_state(module: torch.nn.Module, arrays: Mapping[str, Array], where: str) -> None:
    """Copy weights into a module; E0603–E0606, gathered, when they are not exactly its own."""
    needed = {name: type_of(array) for name, array in state_arrays(module).items()}
    check_weights(needed, arrays, where=where)
    module.load_state_dict({name: to_tensor(array) for name, array in arrays.items()})


def write_checkpoint(path: Path, origin: Mapping[str, Any], progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Write atomically. Raises E0608 when the place cannot be written."""
    text = {"format": FORMAT, "origin": json.dumps(origin, sort_keys=True), "progress": progress.model_dump_json()}
    write_weights(path, {name: to_array(tensor) for name, tensor in tensors.items()}, text)


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises E0601 or E0602 for a file that is not safetensors, E0619 for one that is not a checkpoint."""
    if not path.exists():
        raise fail("E0619", f"there is no checkpoint `{path}`", help="leave out `resume` to start anew", exit_code=2)
    weights = read_weights(path)
    if weights.metadata.get("format") != FORMAT:
        found = weights.metadata.get("format", "weights without training state")
        raise fail("E0619", f"`{path}` is not a checkpoint", label=f"needed {FORMAT}, found {found}")
    try:
        origin = json.loads(weights.metadata["origin"])
        progress = Progress.model_validate_json(weights.metadata["progress"])
        if not isinstance(origin, dict):
            raise ValueError("`origin` is not an object")
    except (KeyError, ValueError, ValidationError, RecursionError) as error:
        raise fail("E0619", f"`{path}` is a damaged checkpoint", label=str(error)) from error
    return Checkpoint(path, origin, progress, weights.arrays)


def check_origin(checkpoint: Checkpoint, needed: Mapping[str, Any]) -> None:
    """Raise E0619, gathered, for each way in which the checkpoint is of another run."""
    problems = []
    for key, value in needed.items():
        found = checkpoint.origin.get(key)
        if isinstance(value, dict) and isinstance(found, dict):
            names = [name for name in {**value, **found} if value.get(name) != found.get(name)]
            pairs = [(f"{key}: {name}", value.get(name), found.get(name)) for name in names]
        else:
            pairs = [(key, value, found)] if value != found else []
        problems += [
            Diagnostic(
                "E0619",
                f"`{checkpoint.path}` belongs to another run: {name} differs",
                label=f"needed {wanted!r}, found {there!r}",
                help="train with what the checkpoint was made with, or start anew without resuming",
            )
            for name, wanted, there in pairs
        ]
    if problems:
        raise CompileError(*problems)
