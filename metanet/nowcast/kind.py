"""`archc metanet train nowcast`: training, resuming, and measuring on families that were not seen."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pydantic import Field

from archc.backends.torch.training.checkpoint import to_array, to_tensor
from archc.backends.weights import read_weights, write_weights
from archc.ir.diagnostics import fail
from archc.metanet.kinds import Kind, Say
from archc.metanet.nowcast import fit
from archc.metanet.nowcast.model import Config, Nowcaster
from archc.metanet.nowcast.nets import of_split
from archc.metanet.nowcast.trajectories import STEPS, Plan, plans, read, record
from archc.metanet.store import Card, Stored, save

SAVE_SECONDS = 30.0


class Options(Config):
    """The model's shape, and how it is trained."""

    data: str = Field("", description="the folder of recorded runs (default: OUT.runs); what is missing is recorded")
    files: int = Field(0, ge=0, description="how many of the planned files; 0: all")
    run_steps: int = Field(STEPS, ge=100, description="optimiser steps of a run that is recorded")
    iterations: int = Field(5000, ge=1, description="training steps")
    windows: int = Field(3, ge=1, le=64, description="windows of one file in a training step")
    lr: float = Field(3e-3, gt=0, description="the highest learning rate; it falls as half a cosine")
    seed: int = Field(0, ge=0)

    @property
    def shape(self) -> Config:
        return Config(**{name: getattr(self, name) for name in Config.model_fields})


def model_of(stored: Stored) -> Nowcaster:
    """The model that a file holds.

    Raises: CompileError E0835 when its tensors are not those of its configuration, or not finite.
    """
    try:
        config = Options.model_validate(stored.card.config).shape
    except ValueError as error:
        label = str(error).splitlines()[0]
        raise fail("E0835", f"{stored.path} is a damaged nowcasting model", label=label) from error
    model = Nowcaster(config)
    needed = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: a.shape for name, a in stored.arrays.items()}
    if needed != found:
        wrong = next(n for n in {**needed, **found} if needed.get(n) != found.get(n))
        label = f"`{wrong}`: needed {needed.get(wrong, 'none')}, found {found.get(wrong, 'none')}"
        raise fail("E0835", f"{stored.path} is a damaged nowcasting model", label=label, help="train it again")
    for name, array in stored.arrays.items():
        if not np.isfinite(array).all():
            label = f"`{name}` holds values that are not finite"
            raise fail("E0835", f"{stored.path} is a damaged nowcasting model", label=label, help="train it again")
    model.load_state_dict({name: to_tensor(a) for name, a in stored.arrays.items()})
    return model.eval()


def train(options: Options, out: Path, resume: bool, say: Say) -> Card:
    """Train and write the model. After Ctrl-C, `resume` goes on from `OUT.state`."""
    folder = Path(options.data) if options.data else out.with_suffix(".runs")
    runs = recorded(options, folder, say)
    torch.manual_seed(options.seed)
    model = Nowcaster(options.shape)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=1e-4)
    state = out.with_name(out.name + ".state")
    first, log, seconds = _resume(state, options, model, optimiser) if resume else (0, [], 0.0)
    began, saved_at, recent = time.process_time() - seconds, time.monotonic(), []
    try:
        for step in range(first, options.iterations):
            rng = np.random.Generator(np.random.Philox(key=[options.seed, 1 + step]))
            own = runs[int(rng.integers(len(runs)))]
            windows = fit.draw(own, options.shape, rng, options.windows, held_out=False)
            optimiser.param_groups[0]["lr"] = _rate(options, step)
            optimiser.zero_grad(set_to_none=True)
            loss = fit.loss(model, windows, own.wiring)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            recent.append(loss.item())
            first = step + 1
            if first % max(1, options.iterations // 10) == 0:
                seconds = time.process_time() - began
                row = {"step": first, "loss": float(np.mean(recent)), "cpu_seconds": round(seconds, 1)}
                say(f"step {first}: loss {row['loss']:.4f}, {row['cpu_seconds']} s")
                log.append(row)
                recent = []
            if time.monotonic() - saved_at > SAVE_SECONDS:
                _save(state, options, model, optimiser, first, log, time.process_time() - began)
                saved_at = time.monotonic()
    except KeyboardInterrupt:
        _save(state, options, model, optimiser, first, log, time.process_time() - began)
        say(f"stopped at step {first}; the same command with --resume goes on")
        raise
    trained = {"cpu_seconds": round(time.process_time() - began, 1), "torch": torch.__version__, "files": len(runs)}
    given = {k: v for k, v in options.model_dump().items() if v != Options.model_fields[k].default and k != "data"}
    card = Card(
        kind="nowcast",
        name=out.stem,
        config=options.model_dump(exclude={"data"}),
        command=" ".join(
            [f"archc metanet train nowcast -o {out.name}", *(f"--option {k}={v}" for k, v in given.items())]
        ),
        tasks=sorted({str(run.name.split("-")[1]) for run in runs}),
        trained=trained,
        figures={f"error {name}": value for name, value in fit.judge(model.eval(), runs).items()},
        log=log,
    )
    save(out, card, {name: to_array(t) for name, t in model.state_dict().items()})
    state.unlink(missing_ok=True)
    return card


def evaluate(stored: Stored, options: Options, say: Say) -> dict[str, Any]:
    """Errors on runs of the test nets, recorded for the purpose: families and seeds that it has not seen."""
    model = model_of(stored)
    with TemporaryDirectory() as folder:
        runs = []
        for net in of_split("test")[: options.files or None]:
            say(f"recording {net.name}")
            path = record(Plan(net.name, "digits", "middle", seeds=1, steps=400), Path(folder))
            runs.append(fit.Recorded.of(read(path), model.config, net.name))
        return fit.judge(model, runs)


def recorded(options: Options, folder: Path, say: Say) -> list[fit.Recorded]:
    """The runs that are learnt from, recorded where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = list(plans())[: options.files or None]
    runs = []
    for plan in chosen:
        plan = Plan(plan.net, plan.task, plan.recipe, steps=options.run_steps)
        if not (folder / plan.file).exists():
            say(f"recording {plan.file}")
        runs.append(fit.Recorded.of(read(record(plan, folder)), options.shape, plan.file.removesuffix(".safetensors")))
    return runs


def _rate(options: Options, step: int) -> float:
    progress = step / options.iterations
    return options.lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + float(np.cos(np.pi * progress)))


Log = list[dict[str, Any]]


def _save(
    path: Path,
    options: Options,
    model: Nowcaster,
    optimiser: torch.optim.Optimizer,
    step: int,
    log: Log,
    seconds: float,
) -> None:
    arrays = {f"model/{name}": to_array(t) for name, t in model.state_dict().items()}
    for index, entry in optimiser.state_dict()["state"].items():
        arrays |= {f"optimiser/{index}/{name}": to_array(torch.as_tensor(t)) for name, t in entry.items()}
    progress = {"options": options.model_dump(mode="json"), "step": step, "log": log, "seconds": seconds}
    write_weights(path, arrays, {"archc.nowcast.state": json.dumps(progress)})


def _resume(path: Path, options: Options, model: Nowcaster, optimiser: torch.optim.Optimizer) -> tuple[int, Log, float]:
    if not path.exists():
        return 0, [], 0.0
    saved = read_weights(path)
    try:
        progress = json.loads(saved.metadata["archc.nowcast.state"])
        if progress["options"] != options.model_dump(mode="json"):
            raise ValueError("it was trained with other options")
        tensors = {name: to_tensor(a) for name, a in saved.arrays.items()}
        model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser/"):
                _, index, key = name.split("/")
                entries.setdefault(int(index), {})[key] = tensor
        optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})
        return int(progress["step"]), list(progress["log"]), float(progress["seconds"])
    except (KeyError, ValueError, RuntimeError) as error:
        label = str(error).splitlines()[0]
        help = "start anew, without --resume"
        raise fail("E0835", f"{path} cannot be resumed from", label=label, help=help) from error


KIND = Kind(
    name="nowcast",
    doc="predicts the weights of a network in training some steps ahead, from its last snapshots",
    config=Options,
    train=train,
    evaluate=evaluate,
)
