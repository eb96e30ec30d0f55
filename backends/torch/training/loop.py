"""The training loop: steps, validation, the best weights kept, interruption, resumption."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archc.backends.torch.training.checkpoint import (
    Progress,
    check_origin,
    load_state,
    read_checkpoint,
    to_tensor,
    write_checkpoint,
)
from archc.backends.torch.training.evaluate import Feed, check_fit, evaluate, keeping_modes, run_with_aux
from archc.backends.torch.training.nowcast import Forecaster, Jump, Nowcasting
from archc.backends.torch.training.recipe import Recipe, counter_rng
from archc.backends.torch.training.report import TrainResult
from archc.backends.torch.training.statistics import Statistics
from archc.backends.torch.training.tasks import Task
from archc.backends.weights import Array
from archc.ir.diagnostics import CompileError, fail

SAVE_SECONDS = 60.0
GPU_CHECK_STEPS = 16  # reading the loss makes the host wait for the GPU; on the CPU it is free


@dataclass(frozen=True)
class Started:
    """Training begins, or goes on after `step` steps."""

    parameters: int
    device: str
    threads: int
    epochs: int
    steps: int
    step: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stepped:
    """A step was taken; `loss` is its own (on a GPU told for every sixteenth step)."""

    step: int
    epoch: int
    loss: float
    lr: float


@dataclass(frozen=True)
class Validated:
    """An epoch ended: its row of the history; `best` when no epoch before was better."""

    row: dict[str, Any]
    best: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written."""

    path: Path
    step: int


Event = Started | Stepped | Validated | Saved | Jump
OnEvent = Callable[[Event], None]


def _ignore(event: Event) -> None:
    pass


def train(
    module: nn.Module,
    task: Task,
    recipe: Recipe | None = None,
    *,
    forecaster: Forecaster | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    stop_after_epoch: int | None = None,
    on_event: OnEvent = _ignore,
) -> TrainResult:
    """Train `module` on `task`; it ends with the weights that validated best, or with the last ones (`recipe.keep`).
    The test split is opened once, last.

    With `checkpoint`, state is saved there after every epoch and every minute; `resume` goes on from it. Ctrl-C ends
    the current step, saves, and raises KeyboardInterrupt. `stop_after_epoch` ends early, untested and unfinished, to be
    resumed later (the schedule is still the recipe's). The caller's random generators and the module's mode are left as
    they were.

    With `forecaster`, the one that `recipe.nowcast` names, weights are predicted ahead (`training.nowcast` says how).

    Raises E0615, E0616 (module and task do not fit), E0618 (the loss is not finite; the module has its last good
    weights), E0619 (a checkpoint of another run), E0620 (nothing to train), E0621 (no such device), E0836 and E0837
    (the forecaster is of another network, or would never see enough).
    """
    recipe = recipe or Recipe.for_task(task.defaults)
    device = pick_device(recipe.device)
    module.to(device)
    feed = Feed(task, device)
    check_fit(module, task, feed)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), keeping_modes(module), _interrupt() as interrupted:
        torch.manual_seed(recipe.seed)
        run = _Run(module, task, recipe, feed, checkpoint, on_event, forecaster)
        run.start(resume)
        run.go(interrupted, stop_after_epoch)
    finished = run.is_over
    test = evaluate(module, task, "test", feed=feed) if finished else None
    val = evaluate(module, task, "val", feed=feed)
    return TrainResult(
        task=task.key,
        recipe=recipe,
        preprocessing=task.preprocessing,
        parameters=run.parameters,
        history=tuple(run.progress.history),
        best_epoch=run.progress.best_epoch,
        val=val,
        test=test,
        seconds=run.progress.seconds,
        finished=finished,
        device=str(device),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        nowcasts=run.nowcasting.counts() if run.nowcasting else None,
    )


def pick_device(name: str) -> torch.device:
    """`auto` is cuda when there is one. Raises E0621 (exit code 4) for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise fail(
            "E0621",
            f"there is no device `{name}` to train on",
            label=f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices",
            help="train with device `cpu`",
            exit_code=4,
        )
    return device


@contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag; the second is a KeyboardInterrupt at once."""
    if threading.current_thread() is not threading.main_thread():  # signals come to the main thread alone
        yield lambda: False
        return
    pressed = False

    def handler(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)


class _Run:
    """The state of one training run: network, optimiser, averages, best weights, progress."""

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        recipe: Recipe,
        feed: Feed,
        path: Path | None,
        on_event: OnEvent,
        forecaster: Forecaster | None,
    ) -> None:
        self.module, self.task, self.recipe = module, task, recipe
        self.feed, self.path, self.on_event = feed, path, on_event
        self.trained = [p for p in module.parameters() if p.requires_grad]
        if not self.trained:
            raise fail("E0620", "there is nothing to train", label="no parameter of the network takes a gradient")
        self.parameters = sum(p.numel() for p in self.trained)
        self.optimiser = _optimiser(self.trained, recipe)
        self.examples = len(feed.split("train"))
        self.batch_size = min(recipe.batch_size, self.examples)
        # A last, smaller batch is left out: batch norm cannot judge one example. Each epoch leaves out others.
        self.epoch_steps = self.examples // self.batch_size
        self.steps = recipe.steps or recipe.epochs * self.epoch_steps
        assert (recipe.nowcast is None) == (forecaster is None), "the recipe names the forecaster that is given"
        self.nowcasting = Nowcasting(module, forecaster, recipe, self.steps) if forecaster else None
        self.first = self._clone()
        self.average = self._clone() if recipe.ema else None
        self.best: dict[str, Tensor] | None = None
        self.order: Tensor | None = None
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=feed.device)
        self.statistics = Statistics()
        self.progress = Progress()
        self.saved_at = time.monotonic()

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.progress.history)

    @property
    def is_over(self) -> bool:
        patience, best = self.recipe.patience, self.progress.best_epoch
        tired = patience is not None and best is not None and self.epoch - best >= patience
        return tired or self.progress.step >= self.steps

    def start(self, resume: bool) -> None:
        notes = self._resume() if resume else ()
        self.on_event(
            Started(
                parameters=self.parameters,
                device=str(self.feed.device),
                threads=torch.get_num_threads(),
                epochs=math.ceil(self.steps / self.epoch_steps),
                steps=self.steps,
                step=self.progress.step,
                notes=notes,
            )
        )

    def go(self, interrupted: Callable[[], bool], stop_after_epoch: int | None) -> None:
        """Train until the recipe, patience, `stop_after_epoch` or Ctrl-C says enough; leave the best weights."""
        began = time.monotonic() - self.progress.seconds
        while not self.is_over and (stop_after_epoch is None or self.epoch < stop_after_epoch):
            self._train_step()
            self.progress.seconds = time.monotonic() - began
            if self.progress.step % self.epoch_steps == 0 or self.progress.step == self.steps:
                self._end_epoch()
                self.progress.seconds = time.monotonic() - began
                self._save()
            elif interrupted() or time.monotonic() - self.saved_at > SAVE_SECONDS:
                self._save()
            if interrupted():
                self._settle()
                raise KeyboardInterrupt
        self._settle()

    def _train_step(self) -> None:
        step, recipe = self.progress.step, self.recipe
        epoch, position = divmod(step, self.epoch_steps)
        if position == 0:
            self.loss_sum.zero_()
            self.statistics = Statistics()
        if position == 0 or self.order is None:
            self.order = torch.from_numpy(counter_rng(recipe.seed, "order", epoch).permutation(self.examples))
        rows = self.order[position * self.batch_size : (position + 1) * self.batch_size]
        inputs, targets = self.feed.batch("train", rows, counter_rng(recipe.seed, "augment", step), recipe)

        rate = recipe.rate(step, self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.module.train()
        if self.nowcasting and (jump := self.nowcasting.before_step(step, lambda: self._judged(inputs, targets))):
            self.on_event(jump)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._loss(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, recipe.clip)
        self.optimiser.step()
        self.loss_sum += loss.detach().double()
        self.progress.step += 1
        if self.average is not None:
            self._update_average(step)
        if self.feed.device.type == "cpu" or self.progress.step % GPU_CHECK_STEPS == 0:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise self._diverged("the loss")
            self.on_event(Stepped(self.progress.step, epoch, value, rate))

    def _judged(self, inputs: tuple[Tensor, ...], targets: Tensor) -> float:
        """The loss that a step would start from; the module, its running estimates too, and the random numbers to come
        are as they were."""
        trained = {id(p) for p in self.trained}
        kept = {n: t for n, t in self.module.state_dict(keep_vars=True).items() if id(t) not in trained}
        before = {name: tensor.detach().clone() for name, tensor in kept.items()}
        device = self.feed.device
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            loss = float(self._sum_losses(*run_with_aux(self.module, inputs), targets))
            for name, tensor in kept.items():
                tensor.copy_(before[name])
        return loss

    def _loss(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        outputs, aux = run_with_aux(self.module, inputs)
        self.statistics.add(aux, len(targets))
        return self._sum_losses(outputs, aux, targets)

    def _sum_losses(self, outputs: Tensor, aux: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        judge = self.task.objective.loss
        smoothing = self.recipe.label_smoothing
        loss = judge(outputs, targets, smoothing)
        for name, value in aux.items():
            if name.startswith("loss/"):
                loss = loss + value
            elif name.startswith("exit/"):
                loss = loss + self.recipe.exit_weight * judge(value, targets, smoothing)
        return loss

    def _end_epoch(self) -> None:
        taken = (self.progress.step - 1) % self.epoch_steps + 1
        train_loss = float(self.loss_sum) / taken
        if not math.isfinite(train_loss):
            raise self._diverged("the loss")
        with self._averaged():
            val = evaluate(self.module, self.task, "val", feed=self.feed)
            score = self.task.objective.score(val.metrics)
            former = None if self.recipe.keep == "last" else self.progress.best_score
            best = math.isfinite(score[0]) and (former is None or score > former)
            if best:
                self.best = self._clone()
                self.progress.best_score = score
                self.progress.best_epoch = self.epoch + 1
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": self.progress.step,
            "lr": self.recipe.rate(self.progress.step - 1, self.steps),
            "train_loss": train_loss,
            **{f"val_{name}": value if math.isfinite(value) else None for name, value in val.metrics.items()},
            "seconds": round(self.progress.seconds, 3),
        }
        if self.nowcasting:
            row["nowcasts"] = self.nowcasting.counts()
        if val.stats:
            row["stats"] = {"train": self.statistics.means(), "val": val.stats}
        self.progress.history.append(row)
        self.on_event(Validated(row, best))
        if self.is_over and self.best is None:
            raise self._diverged("every validation loss")

    def _diverged(self, what: str) -> CompileError:
        at = f"at step {self.progress.step} of {self.steps}, epoch {(self.progress.step - 1) // self.epoch_steps + 1}"
        self.module.load_state_dict(self.best or self.first)
        kept = f"the weights of epoch {self.progress.best_epoch} are kept" if self.best else "no epoch was any good"
        lr = self.recipe.lr
        return fail(
            "E0618",
            f"{what} is not finite {at}",
            label=f"{kept}; the learning rate was {lr:g}",
            help=f"a lower rate (`lr={lr / 10:g}`), a longer `warmup`, a smaller `clip`; or look for log, division "
            "or exp of unbounded values in the network",
        )

    def _update_average(self, step: int) -> None:
        assert self.average is not None
        assert self.recipe.ema is not None
        decay = min(self.recipe.ema, (1 + step) / (10 + step))  # young averages forget their random start
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                if tensor.dtype.is_floating_point:
                    self.average[name].lerp_(tensor, 1 - decay)
                else:
                    self.average[name].copy_(tensor)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the module, for the block; without an average, its own."""
        if self.average is None:
            yield
            return
        own = self._clone()
        self.module.load_state_dict(self.average)
        try:
            yield
        finally:
            self.module.load_state_dict(own)

    def _clone(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def _settle(self) -> None:
        """Leave the best weights in the module; before any validation there are only its own."""
        if self.best is not None:
            self.module.load_state_dict(self.best)

    def _origin(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        shapes = {name: list(tensor.shape) for name, tensor in self.module.state_dict().items()}
        recipe = self.recipe.model_dump(mode="json", exclude={"device"})
        return {"task": self.task.key, "recipe": recipe, "parameters": shapes}

    def _environment(self) -> dict[str, Any]:
        """What exactness depends on, and nothing else does."""
        device = self.feed.device.type
        return {"threads": torch.get_num_threads(), "torch": torch.__version__, "device": device}

    def _save(self) -> None:
        if self.path is None:
            return
        self.progress.epoch_loss = float(self.loss_sum)
        self.progress.epoch_stats = self.statistics.state()
        if not math.isfinite(self.progress.epoch_loss):
            return  # a GPU run that has not noticed yet; the last good checkpoint stays
        tensors = {f"model/{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in (self.best or {}).items()}
        tensors |= {f"average/{name}": tensor for name, tensor in (self.average or {}).items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            values = {name: value for name, value in state.items() if value is not None}
            tensors |= {f"optimiser/{index}/{name}": torch.as_tensor(value) for name, value in values.items()}
        if self.nowcasting:
            self.progress.nowcasts = self.nowcasting.counts()
            tensors |= {f"nowcast/{age}": tensor for age, tensor in self.nowcasting.tensors().items()}
        tensors["rng/cpu"] = torch.get_rng_state()
        if self.feed.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.feed.device)
        write_checkpoint(self.path, {**self._origin(), "environment": self._environment()}, self.progress, tensors)
        self.saved_at = time.monotonic()
        self.on_event(Saved(self.path, self.progress.step))

    def _resume(self) -> tuple[str, ...]:
        """Take up the checkpoint's state; notes on what keeps the rest of the run from being exactly the same."""
        assert self.path is not None, "resume needs the path of a checkpoint"
        saved = read_checkpoint(self.path)
        check_origin(saved, self._origin())
        where = str(self.path)
        own = self._clone()
        if best := saved.group("best"):
            load_state(self.module, best, where)
            self.best = self._clone()
        if average := saved.group("average"):
            load_state(self.module, average, where)
            self.average = self._clone()
        self.module.load_state_dict(own)
        load_state(self.module, saved.group("model"), where)
        try:
            self.statistics.restore(saved.progress.epoch_stats)
            self._restore_optimiser(saved.group("optimiser"))
            if self.nowcasting:
                tensors = {age: to_tensor(array) for age, array in saved.group("nowcast").items()}
                self.nowcasting.restore(saved.progress.nowcasts, tensors)
            for device, array in saved.group("rng").items():
                if device == "cpu":
                    torch.set_rng_state(to_tensor(array))
                elif self.feed.device.type == "cuda":
                    torch.cuda.set_rng_state(to_tensor(array), self.feed.device)
        except (ValueError, LookupError, RuntimeError, TypeError) as error:
            raise fail("E0619", f"`{where}` is a damaged checkpoint", label=str(error)) from error
        self.progress = saved.progress
        self.loss_sum = torch.tensor(saved.progress.epoch_loss, dtype=torch.float64, device=self.feed.device)
        found = saved.origin.get("environment", {})
        return tuple(
            f"{name} was {found.get(name)} and is {value}: weights may differ in their last bits"
            for name, value in self._environment().items()
            if found.get(name) != value
        )

    def _restore_optimiser(self, arrays: Mapping[str, Array]) -> None:
        in_order = [p for group in self.optimiser.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, array in arrays.items():
            index, _, key = name.partition("/")
            if array.shape not in {(), tuple(in_order[int(index)].shape)}:
                raise ValueError(f"optimiser state `{name}` has shape {array.shape}")
            state.setdefault(int(index), {})[key] = to_tensor(array)
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})


def _optimiser(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimiser == "sgd":
        nesterov = recipe.momentum > 0
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)
