"""Training hand-written modules: what is learned, kept, resumed, interrupted and refused."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from archc.backends.torch.module import to_torch
from archc.backends.torch.training import (
    CLASSIFICATION,
    ArraySplit,
    Event,
    Recipe,
    Saved,
    Started,
    Stepped,
    Task,
    TaskConfig,
    Validated,
    confusion_picture,
    curve_picture,
    evaluate,
    gallery_picture,
    load_state,
    load_task,
    show_progress,
    state_arrays,
    train,
)
from archc.backends.torch.training.evaluate import Feed
from archc.backends.weights import read_weights, write_weights
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.ir.types import TensorType


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Byte-identical weights need a fixed number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Residual(nn.Module):
    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = nn.Identity() if width == out and stride == 1 else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(width: int = 16, blocks: int = 3, seed: int = 0) -> nn.Module:
    """With the defaults ResNet-20 (He et al., https://arxiv.org/abs/1512.03385), here for 8×8 pixels."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(3):
        for block in range(blocks):
            out = width << stage
            layers.append(Residual(before, out, 2 if stage and not block else 1))
            before = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def small(seed: int = 0) -> nn.Module:
    """Convolution, batch norm (buffers) and dropout (global random numbers): all that a resume can get wrong."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 10)
    )


def digits() -> Task:
    return load_task("digits")


def recipe(task: Task, **options: Any) -> Recipe:
    return Recipe.for_task(task.defaults, device="cpu", **options)


def state_bytes(module: nn.Module) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in state_arrays(module).items()}


def test_a_resnet_learns_digits_well() -> None:
    task = digits()
    result = train(resnet(), task, recipe(task, epochs=8))
    assert result.parameters == 271_994
    assert result.test is not None
    assert result.test.metrics["accuracy"] >= 0.975
    assert len(result.history) == 8


def test_without_the_right_labels_nothing_is_learned() -> None:
    task = digits()
    split = task.splits["train"]
    assert isinstance(split, ArraySplit)
    shuffled = ArraySplit(split.inputs, split.targets[torch.randperm(len(split))])
    task = Task(**{**vars(task), "splits": {**task.splits, "train": shuffled}})
    result = train(small(), task, recipe(task, epochs=2))
    assert result.test is not None
    assert result.test.metrics["accuracy"] < 0.3


def test_resume_is_byte_identical_wherever_training_stopped(tmp_path: Path) -> None:
    task = digits()
    options = recipe(task, epochs=3, ema=0.9, label_smoothing=0.1)
    straight = small()
    whole = train(straight, task, options)

    for stop in (1, 20, 36):  # in the first epoch, in the second, at the end of the second (18 steps each)
        path = tmp_path / f"{stop}.ckpt"

        def press_ctrl_c(event: Event, stop: int = stop) -> None:
            if isinstance(event, Stepped) and event.step == stop:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(small(), task, options, checkpoint=path, on_event=press_ctrl_c)
        resumed = small(seed=99)  # its own weights must not matter
        events: list[Event] = []
        torch.manual_seed(1234)  # nor what the caller's random numbers did meanwhile
        again = train(resumed, task, options, checkpoint=path, resume=True, on_event=events.append)
        assert isinstance(events[0], Started)
        assert events[0].step == stop
        assert not events[0].notes
        assert state_bytes(resumed) == state_bytes(straight)
        timeless = [{**row, "seconds": 0} for row in again.history]
        assert timeless == [{**row, "seconds": 0} for row in whole.history]


def test_another_seed_or_a_lost_generator_state_shows_in_the_bytes(tmp_path: Path) -> None:
    """The negative control of byte identity: each part of the state is needed."""
    task = digits()
    options = recipe(task, epochs=2)
    straight, other = small(), small()
    train(straight, task, options)
    train(other, task, recipe(task, epochs=2, seed=1))
    assert state_bytes(straight) != state_bytes(other)

    path = tmp_path / "run.ckpt"
    train(small(), task, options, checkpoint=path, stop_after_epoch=1)
    saved = read_weights(path)
    for lost in ("rng/cpu", "optimiser/0/exp_avg"):
        arrays = {**saved.arrays, lost: np.zeros_like(saved.arrays[lost])}
        if lost == "rng/cpu":
            arrays[lost] = torch.Generator().manual_seed(5).get_state().numpy()
        write_weights(path, arrays, saved.metadata)
        resumed = small()
        train(resumed, task, options, checkpoint=path, resume=True)
        assert state_bytes(resumed) != state_bytes(straight), lost


def test_sgd_resumes_exactly_too_and_stop_after_epoch_is_unfinished(tmp_path: Path) -> None:
    task = load_task("wine")
    options = recipe(task, optimiser="sgd", lr=0.05, epochs=6)

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 3))

    straight, resumed = net(), net()
    train(straight, task, options)
    path = tmp_path / "run.ckpt"
    part = train(resumed, task, options, checkpoint=path, stop_after_epoch=2)
    assert (part.finished, part.test, len(part.history)) == (False, None, 2)
    whole = train(resumed, task, options, checkpoint=path, resume=True)
    assert whole.finished
    assert state_bytes(resumed) == state_bytes(straight)
    again = train(net(), task, options, checkpoint=path, resume=True)  # nothing is left to do
    assert {**again.to_json(), "seconds": 0} == {**whole.to_json(), "seconds": 0}


PROGRAM = """
arch small(channels = 1)
input  image:  f32[N, channels, 8, 8]
output logits: f32[N, 10]
let h = image -> conv(8, 3, padding = 1) -> batch_norm -> relu -> dropout(0.1) -> flatten
logits = h -> linear(10)
"""


def test_a_program_trains_resumes_and_lives_on_in_its_weights_file(tmp_path: Path) -> None:
    graph, task = loads(PROGRAM), digits()
    options = recipe(task, epochs=4)
    module = to_torch(graph)
    result = train(module, task, options)
    assert result.test is not None
    assert result.test.metrics["accuracy"] > 0.85

    path = tmp_path / "run.ckpt"
    train(to_torch(graph), task, options, checkpoint=path, stop_after_epoch=2)
    resumed = to_torch(graph, seed=9)
    train(resumed, task, options, checkpoint=path, resume=True)
    assert state_bytes(resumed) == state_bytes(module)

    needed = {name: p.type for name, p in graph.parameters().items()}
    write_weights(tmp_path / "w.safetensors", state_arrays(module), result.metadata())
    again = to_torch(graph, read_weights(tmp_path / "w.safetensors", needed).arrays)
    assert evaluate(again, task).metrics == result.test.metrics

    with pytest.raises(CompileError, match="E0615"):
        train(to_torch(loads(PROGRAM, {"channels": 3})), task, options)


def test_ctrl_c_saves_and_a_second_program_goes_on(tmp_path: Path) -> None:
    """In a process of its own: the signal comes from outside, the exit is that of an interrupt."""
    program = """if True:
        import sys, torch
        from pathlib import Path
        from archc.backends.torch.training import *
        task = load_task("digits")
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        with show_progress() as on_event:
            train(net, task, Recipe(epochs=100000, device="cpu"), checkpoint=Path(sys.argv[1]), on_event=on_event)
    """
    path = tmp_path / "run.ckpt"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 3"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(30) in (130, -signal.SIGINT)
    assert rest.rstrip().endswith("KeyboardInterrupt")
    progress = json.loads(read_weights(path).metadata["progress"])
    assert progress["step"] >= 3 * 18
    assert os.listdir(tmp_path) == ["run.ckpt"]


def test_the_best_validated_weights_are_kept_and_the_test_split_is_opened_once() -> None:
    task = digits()
    opened: list[str] = []

    class Watched(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            opened.append(name)
            return super().__getitem__(name)

    watched = Task(**{**vars(task), "splits": Watched(task.splits)})
    opened.clear()
    module = small()
    # A rate that ends in chaos: the last epoch is not the best.
    result = train(module, watched, recipe(task, epochs=6, lr=0.1, schedule="constant", warmup=0, optimiser="sgd"))
    assert opened.count("test") == 1
    assert opened[-1] == "test"
    best = max(result.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert result.best_epoch == best["epoch"]
    assert result.val.metrics["loss"] == best["val_loss"]
    assert evaluate(module, task, "val").metrics == result.val.metrics


def test_patience_stops_early() -> None:
    task = load_task("wine")
    net = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 3))
    result = train(net, task, recipe(task, epochs=60, patience=3, lr=0.05, schedule="constant"))
    assert result.best_epoch is not None
    assert len(result.history) == result.best_epoch + 3 < 60
    assert result.finished


def test_a_loss_that_is_not_finite_keeps_the_last_good_weights(tmp_path: Path) -> None:
    class Bursts(nn.Module):
        """Sound for 25 steps (one epoch is 18), then the logarithm of a negative number."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            y: Tensor = self.linear(x.flatten(1))
            return y if self.calls <= 25 else torch.log(-y.abs())

    task, module, path = digits(), Bursts(), tmp_path / "run.ckpt"
    with pytest.raises(CompileError) as caught:
        train(module, task, recipe(task, epochs=3), checkpoint=path)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "E0618"
    assert diagnostic.message == "the loss is not finite at step 26 of 54, epoch 2"
    assert "the weights of epoch 1 are kept" in diagnostic.label
    assert diagnostic.help is not None
    assert "lr=0.0003" in diagnostic.help
    kept = {name[5:]: a for name, a in read_weights(path).arrays.items() if name.startswith("best/")}
    assert state_bytes(module) == {name: array.tobytes() for name, array in kept.items()}
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_the_callers_random_numbers_and_modes_are_left_alone() -> None:
    task, module = load_task("wine"), nn.Sequential(nn.Linear(13, 3), nn.Dropout(0.5))
    module[1].eval()  # a part that its owner froze
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(module, task, recipe(task, epochs=1))
    assert torch.equal(torch.rand(3), expected)
    assert [part.training for part in module] == [True, False]
    evaluate(module, task, "val")
    assert [part.training for part in module] == [True, False]


def test_a_validation_that_is_never_finite_keeps_the_first_weights() -> None:
    class Hidden(nn.Linear):
        """Sound in training, not in evaluation."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training or not bool(self.bias.any()) else x[:, :3] * math.nan

    task, module, events = load_task("wine"), Hidden(13, 3), list[Event]()
    nn.init.zeros_(module.bias)
    before = state_bytes(module)
    with pytest.raises(CompileError, match="every validation loss is not finite at step 6 of 6, epoch 2") as caught:
        train(module, task, recipe(task, epochs=2), on_event=events.append)
    assert "no epoch was any good" in caught.value.diagnostics[0].label
    assert state_bytes(module) == before
    assert [e.best for e in events if isinstance(e, Validated)] == [False, False]


def test_auxiliary_losses_are_added_and_exits_are_supervised() -> None:
    class WithExit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.exit, self.head = nn.Linear(13, 8), nn.Linear(8, 3), nn.Linear(8, 3)
            self.pulled = nn.Parameter(torch.tensor(5.0))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.relu(self.trunk(x)))
            return y

        def forward_with_aux(self, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            hidden = torch.relu(self.trunk(inputs[0]))
            aux = {"loss/pull": self.pulled**2, "exit/0": self.exit(hidden), "stats/ignored": hidden.sum() * math.nan}
            return self.head(hidden), aux

    task = load_task("wine")
    module = WithExit()
    before = module.exit.weight.detach().clone()
    result = train(module, task, recipe(task, epochs=40, lr=0.02, weight_decay=0.0))
    assert result.test is not None
    assert result.test.metrics["accuracy"] > 0.9
    assert abs(float(module.pulled.detach())) < 4.5
    assert not torch.equal(before, module.exit.weight)
    untrained = WithExit()
    before = untrained.exit.weight.detach().clone()
    train(untrained, task, recipe(task, epochs=2, exit_weight=0.0, weight_decay=0.0))
    assert torch.equal(before, untrained.exit.weight)


def test_decay_spares_biases_and_gains() -> None:
    """With no gradient to speak of, decay alone moves weights, and moves nothing else."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(13, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x) * 0
            return y

    task, module = load_task("wine"), Frozen()
    weight, bias = (p.detach().clone() for p in module.linear.parameters())
    train(module, task, recipe(task, epochs=1, weight_decay=1.0))
    assert torch.equal(module.linear.bias, bias)
    assert float(module.linear.weight.detach().norm()) < float(weight.norm())


@pytest.mark.parametrize(
    ("module", "code", "label"),
    [
        (nn.Linear(5, 10), "E0615", "needed f32[N, 1, 8, 8]; the network says: mat1 and mat2 shapes"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), "E0616", "needed f32[N, 10], found f32[N, 7]"),
        (nn.Flatten(), "E0616", "needed f32[N, 10], found f32[N, 64]"),
    ],
)
def test_a_module_that_does_not_fit_the_task(module: nn.Module, code: str, label: str) -> None:
    with pytest.raises(CompileError) as caught:
        train(module, digits(), Recipe(device="cpu"))
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == code
    assert diagnostic.label.startswith(label)


def test_nothing_to_train_and_no_such_device() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    with pytest.raises(CompileError, match="E0620"):
        train(module, digits(), Recipe(device="cpu"))
    with pytest.raises(CompileError, match="E0621") as caught:
        train(small(), digits(), Recipe(device="cuda:63"))
    assert caught.value.exit_code == 4


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    task, path = digits(), tmp_path / "run.ckpt"
    options = recipe(task, epochs=2)
    train(small(), task, options, checkpoint=path, stop_after_epoch=1)

    def problems(module: nn.Module, options: Recipe, path: Path = path) -> list[str]:
        with pytest.raises(CompileError) as caught:
            train(module, task, options, checkpoint=path, resume=True)
        assert {d.code for d in caught.value.diagnostics} == {"E0619"}
        return [d.message.partition(": ")[2] or d.message for d in caught.value.diagnostics]

    assert problems(small(), recipe(task, epochs=3, lr=1.0)) == ["recipe: lr differs", "recipe: epochs differs"]
    wider = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert "parameters: 1.weight differs" in problems(wider, options)
    assert problems(small(), options, tmp_path / "absent") == [f"there is no checkpoint `{tmp_path / 'absent'}`"]

    saved = read_weights(path)
    for name, array in (("optimiser/0/exp_avg", np.zeros((2, 2), np.float32)), ("rng/cpu", np.zeros(3, np.uint8))):
        write_weights(path, {**saved.arrays, name: array}, saved.metadata)
        assert problems(small(), options) == [f"`{path}` is a damaged checkpoint"]
    write_weights(path, saved.arrays, {**saved.metadata, "progress": "{"})
    assert problems(small(), options) == [f"`{path}` is a damaged checkpoint"]
    write_weights(path, state_arrays(small()))
    assert problems(small(), options) == [f"`{path}` is not a checkpoint"]


def test_another_thread_count_is_said(tmp_path: Path) -> None:
    task, path = load_task("wine"), tmp_path / "run.ckpt"
    options = recipe(task, epochs=2)
    module = nn.Linear(13, 3)
    train(module, task, options, checkpoint=path, stop_after_epoch=1)
    torch.set_num_threads(2)
    events: list[Event] = []
    train(module, task, options, checkpoint=path, resume=True, on_event=events.append)
    assert isinstance(events[0], Started)
    assert events[0].notes == ("threads was 1 and is 2: weights may differ in their last bits",)


def test_weights_carry_what_a_network_needs_to_be_used(tmp_path: Path) -> None:
    task, path = digits(), tmp_path / "w.safetensors"
    module = small()
    result = train(module, task, recipe(task, epochs=1))
    write_weights(path, state_arrays(module), result.metadata())
    saved = read_weights(path)
    preprocessing = task.preprocessing.model_validate_json(saved.metadata["archc.preprocessing"])
    assert preprocessing == task.preprocessing
    other = small(seed=5)
    load_state(other, saved.arrays, str(path))
    assert state_bytes(other) == state_bytes(module)
    # `run` feeds by the record, training by the device: the same numbers.
    split = task.splits["test"]
    rows = torch.arange(5)
    ours = Feed(task, torch.device("cpu")).batch("test", rows, None, None)[0][0]
    np.testing.assert_allclose(preprocessing.apply(split.batch(rows)[0][0].numpy()), ours.numpy(), rtol=1e-6)
    with pytest.raises(CompileError, match="E0603"):
        load_state(nn.Linear(2, 2), saved.arrays, str(path))


def test_results_are_plain_data_and_pictures(tmp_path: Path) -> None:
    task, module = digits(), small()
    result = train(module, task, recipe(task, epochs=2))
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["recipe"]["seed"] == 0
    confusion = result.confusion
    assert confusion is not None
    assert result.test is not None
    assert confusion.sum() == 300
    assert np.trace(confusion) / 300 == pytest.approx(result.test.metrics["accuracy"])
    assert confusion.sum(1).tolist() == torch.bincount(task.splits["test"].batch(torch.arange(300))[1]).tolist()
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        confusion_picture(result, tmp_path / f"confusion{suffix}")
        curve_picture(result, tmp_path / f"curve{suffix}")
        gallery_picture(module, task, tmp_path / f"gallery{suffix}", count=7)
        for name in ("confusion", "curve", "gallery"):
            assert (tmp_path / f"{name}{suffix}").read_bytes().startswith(magic)
    before = (tmp_path / "confusion.svg").read_bytes()
    confusion_picture(result, tmp_path / "confusion.svg")
    assert (tmp_path / "confusion.svg").read_bytes() == before


def test_progress_is_lines_where_there_is_no_terminal_and_nothing_when_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = load_task("wine")
    for quiet in (False, True):
        with show_progress(quiet) as on_event:
            train(nn.Linear(13, 3), task, recipe(task, epochs=2), on_event=on_event)
        captured = capsys.readouterr()
        assert captured.out == ""
        lines = captured.err.splitlines()
        assert [line[:8] for line in lines] == ([] if quiet else ["training", "epoch 1:", "epoch 2:"])


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    task, terminal = load_task("wine"), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with show_progress() as on_event:
        train(nn.Linear(13, 3), task, recipe(task, epochs=2), on_event=on_event)
    assert "6/6" in terminal.getvalue()
    assert "epoch 2: train loss" in terminal.getvalue()


def test_events_come_in_order(tmp_path: Path) -> None:
    task, events = load_task("wine"), list[Event]()
    path = tmp_path / "run.ckpt"
    train(nn.Linear(13, 3), task, recipe(task, epochs=2), checkpoint=path, on_event=events.append)
    assert [type(e) for e in events] == [Started, *[*[Stepped] * 3, Validated, Saved] * 2]


def test_a_recipe_of_steps_ends_within_an_epoch() -> None:
    task = load_task("wine")
    result = train(nn.Linear(13, 3), task, recipe(task, steps=4))
    assert [row["step"] for row in result.history] == [3, 4]


def test_ones_own_task_needs_only_tensors() -> None:
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 0).long()
    parts = {"train": slice(0, 200), "val": slice(200, 250), "test": slice(250, 300)}
    task = Task(
        "halves",
        TaskConfig(),
        (TensorType((4,), "f32"),),
        TensorType((2,), "f32"),
        CLASSIFICATION,
        {name: ArraySplit((x[rows],), y[rows]) for name, rows in parts.items()},
        data_sha256="seed 0",
    )
    result = train(nn.Linear(4, 2), task, Recipe(epochs=20, lr=0.05, device="cpu"))
    assert result.test is not None
    assert result.test.metrics["accuracy"] > 0.9


@pytest.mark.slow
def test_the_default_recipe_reaches_what_is_promised() -> None:
    task = digits()
    result = train(resnet(), task, recipe(task))
    assert result.test is not None
    assert result.test.metrics["accuracy"] >= 0.985
    assert result.seconds < 120
