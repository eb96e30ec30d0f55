"""Predicted parameters: `archc.predict`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc.facade.model import Model, as_model
from archc.ir.diagnostics import Diagnostic, fail

if TYPE_CHECKING:
    from archc.backends.torch.training import Task
    from archc.backends.weights import Weights
    from archc.metanet.ghn.prediction import Expected, Predicted
    from archc.metanet.store import Stored

DEFAULT_MODEL = "ghn-small"


@dataclass(frozen=True)
class Prediction:
    """Predicted weights, ready for `archc.compile` and `archc.train`.

    provenance  model, its SHA-256, the task, how statistics were set; the same is in the weights' metadata
    expected    what unseen nets reach without a step of training; None without a task
    warnings    E0826: the net is unlike those of training; E0827: the model knows next to nothing of the task
    before      validation accuracy with the weights as predicted, where it was measured
    after       the same after `steps` steps of training
    """

    weights: Weights = field(repr=False)
    provenance: dict[str, Any]
    expected: Expected | None
    warnings: tuple[Diagnostic, ...]
    before: float | None = None
    after: float | None = None
    steps: int = 0


def predict(
    model: Model | Path | str,
    task: str | Task | None = None,
    *,
    using: Path | str | Stored = DEFAULT_MODEL,
    out: Path | str | None = None,
    finetune: int = 0,
    seed: int = 0,
    **recipe: Any,
) -> Prediction:
    """Weights for a network without training it, by a graph hypernetwork.

    `task` is one that the model `using` (a file, or one that comes with archc) was trained for; without it, running
    statistics stay as initialised. `finetune` takes so many steps with the task's data from there; `recipe` are
    options of that training. With `out` the weights are written.

    Raises: CompileError E0801, E0802 and E0823 (no such model, or a broken one), E0810 and E0820 (what it has no word
    or no rule for), E0822 (another task), E0824 (not finite), E0825 (`finetune` without a task), E0615 and E0616.
    """
    from archc.backends.torch.training import load_task
    from archc.backends.weights import Weights, write_weights
    from archc.metanet.ghn.kind import restore
    from archc.metanet.ghn.prediction import PREDICTION, measured, predict_weights
    from archc.metanet.store import Stored, load

    if finetune and task is None:
        raise fail("E0825", "`finetune` needs a task to train on", help="say which: `--task hard_digits`")
    model = as_model(model)
    stored = using if isinstance(using, Stored) else load(using, "ghn")
    data = load_task(task) if isinstance(task, str) else task
    network = restore(stored)
    found = predict_weights(model.graph, stored, data, network)
    weights = Weights(found.arrays, found.metadata(data))
    before = after = None
    if data is not None and finetune:
        before = measured(model.graph, found.arrays, data, network)
        weights, after = _trained(model, weights, data, finetune, seed, recipe)
        import json

        weights.metadata[PREDICTION] = json.dumps({**found.provenance, "finetuned": finetune}, sort_keys=True)  # type: ignore[index]
    if out is not None:
        write_weights(out, weights.arrays, weights.metadata)
    return Prediction(weights, found.provenance, found.expected, _warnings(model, found), before, after, finetune)


def _trained(
    model: Model, weights: Weights, task: Task, steps: int, seed: int, recipe: dict[str, Any]
) -> tuple[Weights, float]:
    """`steps` steps from these weights; the last ones, and their validation accuracy."""
    from archc.backends.torch.training import Recipe, state_arrays
    from archc.backends.torch.training import train as run
    from archc.backends.weights import Weights

    options = {"lr": 1e-3, "keep": "last", **recipe}
    module = model.to_torch(weights)
    result = run(module, task, Recipe.for_task(task.defaults, seed=seed, steps=steps, **options))
    module.cpu()
    return Weights(state_arrays(module), {**result.metadata(), **weights.metadata}), result.val.metrics["accuracy"]


def _warnings(model: Model, found: Predicted) -> tuple[Diagnostic, ...]:
    warnings = []
    if found.unlike:
        warnings.append(
            Diagnostic(
                "E0826",
                f"`{model.name}` is unlike the nets that the model was trained on",
                label="; ".join(found.unlike),
                help="expect less than its figures say, and measure",
                severity="warning",
            )
        )
    expected = found.expected
    if expected is not None and not expected.learned:
        warnings.append(
            Diagnostic(
                "E0827",
                f"the model has learned next to nothing of task `{expected.task}`",
                label=f"its nets reach {expected.mean:.3f} on average, and guessing {expected.chance:.3f}",
                help="train the net itself, or a model for this task alone: `archc metanet train ghn`",
                severity="warning",
            )
        )
    return tuple(warnings)
