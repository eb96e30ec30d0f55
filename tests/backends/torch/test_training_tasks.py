"""Tasks: what they hold, how they split, and the data that they refuse."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits
from torch import Tensor, nn

from archc.backends.preprocessing import Preprocessing
from archc.backends.torch.training import ArraySplit, Recipe, Task, evaluate, load_task, train
from archc.backends.torch.training.datasets import HardDigitsConfig, compose, hard_digits, stratified_split
from archc.backends.weights import Array
from archc.ir.diagnostics import CompileError, Diagnostic


def refused(spec: str, **options: Any) -> tuple[Diagnostic, ...]:
    with pytest.raises(CompileError) as caught:
        load_task(spec, **options)
    return caught.value.diagnostics


def rows(task: Task, split: str) -> tuple[Tensor, Tensor]:
    inputs, targets = task.splits[split].batch(torch.arange(len(task.splits[split])))
    return inputs[0], targets


def keys(task: Task, split: str) -> list[bytes]:
    """What identifies each example of a split."""
    return [x.tobytes() for x in rows(task, split)[0].numpy()]


@pytest.mark.parametrize(
    ("name", "features", "sizes"), [("wine", 13, (106, 36, 36)), ("breast_cancer", 30, (341, 114, 114))]
)
def test_tables_are_standardised_on_the_training_split_alone(name: str, features: int, sizes: tuple[int, ...]) -> None:
    task = load_task(name)
    assert [str(spec) for spec in task.inputs] == [f"f32[{features}]"]
    assert tuple(len(task.splits[s]) for s in ("train", "val", "test")) == sizes
    scaled = {split: task.preprocessing.apply(rows(task, split)[0].numpy()) for split in ("train", "test")}
    np.testing.assert_allclose(scaled["train"].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled["train"].std(0), 1, atol=1e-4)
    assert np.abs(scaled["test"].mean(0)).max() > 0.01


def test_digits_are_the_real_ones_split_by_seed_without_overlap() -> None:
    task = load_task("digits")
    x, _ = rows(task, "train")
    assert x.shape == (1197, 1, 8, 8)
    assert (float(x.min()), float(x.max())) == (0, 16)
    for split in ("train", "val", "test"):
        counts = torch.bincount(rows(task, split)[1])
        assert int(counts.max() - counts.min()) <= (13 if split == "train" else 4)
    seen = [set(keys(task, split)) for split in ("train", "val", "test")]
    assert len(set.union(*seen)) == 1797
    assert keys(load_task("digits"), "test") == keys(task, "test")
    other = load_task("digits?seed=1")
    assert keys(other, "test") != keys(task, "test")
    assert other.data_sha256 == task.data_sha256
    assert other.key != task.key


def test_hard_digits_show_every_digit_in_full_at_any_place_and_scale() -> None:
    task = load_task("hard_digits?size=20&copies=3&noise=0")
    x, y = rows(task, "val")
    assert (x.shape, x.dtype, y.shape) == ((900, 1, 20, 20), torch.uint8, (900,))
    assert str(task.inputs[0]) == "f32[1, 20, 20]"
    assert torch.equal(y, rows(load_task("digits"), "val")[1].repeat_interleave(3))  # the same digits are held out
    lit = (x[:, 0] > 0).float()
    heights, tops = lit.amax(2).sum(1), lit.amax(2).argmax(1)
    assert float(heights.min()) >= 6  # 8 pixels, times 0.8 to 1.2, and soft edges
    assert float(heights.max()) <= 12
    assert set(range(1, 11)) <= set(tops.tolist())
    contrasts = x.amax((1, 2, 3)) / 255
    assert float(contrasts.min()) > 0.4
    noisy = rows(load_task("hard_digits?noise=0.2"), "val")[0].float() / 255
    corner = noisy[:, 0, 0, 0]  # black, mostly: half of the noise is cut off
    assert 0.4 < float((corner == 0).float().mean()) < 0.6
    assert 0.1 < float(corner.std()) < 0.13  # 0.2 · sqrt(1/2 - 1/(2π)) = 0.117


def test_hard_digits_are_drawn_from_the_seed_alone() -> None:
    task, again, other = (load_task(f"hard_digits?copies=2{seed}") for seed in ("", "&seed=0", "&seed=1"))
    assert keys(task, "test") == keys(again, "test")
    assert (task.data_sha256, task.key) == (again.data_sha256, again.key)
    assert task.data_sha256 != other.data_sha256
    assert not set(keys(task, "train")) & set(keys(other, "train"))


def test_hard_digits_compose_no_digit_into_two_splits() -> None:
    def sources(task: Task, split: str) -> set[int]:
        """Which of the 1797 the canvases show: those whose `compose` gives them."""
        return {home[key] for key in keys(task, split)}

    def shared(task: Task) -> int:
        return len(sources(task, "train") & (sources(task, "val") | sources(task, "test")))

    config = HardDigitsConfig(copies=2)
    home = {
        canvas.tobytes(): number
        for number, digit in enumerate(load_digits().images)
        for canvas in compose(digit / 16, config, number)
    }
    assert len(home) == 2 * 1797
    task = hard_digits(config)
    assert shared(task) == 0
    assert sum(len(sources(task, split)) for split in ("train", "val", "test")) == 1797
    # The control: composed first and split afterwards, digits do stand on both sides.
    x, y = (torch.cat(parts) for parts in zip(*(rows(task, s) for s in ("train", "val", "test")), strict=True))
    mixed = stratified_split(y.numpy(), 600, 600, seed=0)
    splits = {name: ArraySplit((x[part],), y[part]) for name, part in mixed.items()}
    assert shared(replace(task, splits=splits)) > 300


def test_hard_digits_can_be_learned_and_shuffled_labels_cannot() -> None:
    task = load_task("hard_digits")
    x, y = rows(task, "train")
    shuffled = y[torch.from_numpy(np.random.default_rng(0).permutation(len(y)))]
    unlearnable = replace(task, splits={**task.splits, "train": ArraySplit((x,), shuffled)})

    def accuracy(task: Task) -> float:
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(128, 10),
        )  # fmt: skip
        result = train(module, task, Recipe.for_task(task.defaults, steps=100, lr=0.01, device="cpu"))
        assert result.test is not None
        return result.test.metrics["accuracy"]

    assert accuracy(task) > 0.5  # chance is 0.1
    assert accuracy(unlearnable) < 0.2


def test_stratified_split_shares_out_every_stratum_and_every_example_once() -> None:
    strata = np.repeat([0, 1, 2], [100, 50, 3])
    parts = stratified_split(strata, val=30, test=31, seed=3)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(153))
    assert np.abs(np.bincount(strata[parts["test"]], minlength=3) - 31 * np.array([100, 50, 3]) / 153).max() < 1


@pytest.mark.parametrize(
    ("spec", "message", "help"),
    [
        ("digit", "there is no task `digit`", "did you mean `digits`?"),
        ("digits?sed=1", "task `digits` has no option `sed`", "did you mean `seed`?"),
        ("npz", "task `npz` needs `path`", "a file: `npz:data.npz` with arrays x and y"),
        ("digits:x", "task `digits` has no option `path`", "options: seed, val, test"),
        ("digits?val=ten", "task `digits`: `val` cannot be this", None),
    ],
)
def test_specs_that_name_no_task(spec: str, message: str, help: str | None) -> None:
    (diagnostic,) = refused(spec)
    assert (diagnostic.code, diagnostic.message, diagnostic.help) == ("E0610", message, help)


def test_text_becomes_windows_that_continue_each_other(tmp_path: Path) -> None:
    content = "the cat sat on the mat; ünï\n" * 60
    (tmp_path / "a.txt").write_text(content)
    task = load_task(f"text:{tmp_path / 'a.txt'}?length=16")
    alphabet = task.preprocessing.vocabulary
    assert alphabet == "".join(sorted(set(content)))
    assert (str(task.inputs[0]), str(task.output)) == ("i64[16]", f"f32[16, {len(alphabet)}]")
    inputs, targets = rows(task, "train")
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert "".join(alphabet[i] for i in inputs.flatten()) == content[: inputs.numel()]
    jittered = task.splits["train"].batch(torch.arange(5), np.random.default_rng(0))[0][0]
    assert not torch.equal(jittered, inputs[:5])
    assert task.preprocessing.encode("cat").tolist() == [alphabet.index(c) for c in "cat"]
    with pytest.raises(CompileError, match="E0613"):
        task.preprocessing.encode("CAT")


def test_a_periodic_text_is_learned_to_almost_no_bits_and_a_random_one_is_not(tmp_path: Path) -> None:
    random = "".join(np.random.default_rng(0).choice(list("abcd"), 4000))
    for name, content in (("periodic", "abcd" * 1000), ("random", random)):
        path = tmp_path / f"{name}.txt"
        path.write_text(content)
        task = load_task(f"text:{path}", length=8)
        module = nn.Sequential(nn.Embedding(4, 16), nn.Linear(16, 4))
        result = train(module, task, Recipe.for_task(task.defaults, epochs=10, lr=0.03, device="cpu"))
        assert result.test is not None
        bits = result.test.metrics["bits_per_char"]
        assert bits < 0.1 if name == "periodic" else 1.9 < bits < 2.2
        assert bits == pytest.approx(result.test.metrics["loss"] / np.log(2))


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abc" * 100)
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9" * 1000)
    short, latin1, absent = (refused(f"text:{tmp_path}/{n}.txt")[0] for n in ("short", "latin1", "absent"))
    assert (short.code, short.label) == ("E0614", "its 300 characters leave 30 held out, for windows of 128 + 1")
    assert (latin1.code, latin1.label) == ("E0614", "byte 3 is 0xe9")
    assert absent.code == "E0611"


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 20), noise: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), colour) + np.random.default_rng(noise).integers(
        0, 40, (size[1], size[0], 3)
    )
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    for i in range(40):
        paint(tmp_path / "flowers" / "rose" / f"{i}.png", (200, 30, 30), noise=i)
        paint(tmp_path / "flowers" / "violet" / f"{i}.png", (90, 30, 200), noise=100 + i)
    return tmp_path / "flowers"


def test_a_folder_of_pictures_is_learned(flowers: Path) -> None:
    task = load_task(f"images:{flowers}", size=8)
    assert (str(task.inputs[0]), task.labels) == ("f32[3, 8, 8]", ("rose", "violet"))
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    result = train(module, task, Recipe.for_task(task.defaults, epochs=5, flip=True, device="cpu", batch_size=8))
    assert result.test is not None
    assert result.test.metrics["accuracy"] == 1.0
    # One picture, as `run` would take it.
    violet = task.preprocessing.apply(task.preprocessing.image(flowers / "violet" / "3.png"))
    assert module(torch.from_numpy(violet)).argmax().item() == 1


def test_content_alone_decides_a_pictures_split(flowers: Path) -> None:
    before = load_task(f"images:{flowers}", size=8)
    (flowers / "rose" / "0.png").rename(flowers / "rose" / "zzz.png")
    paint(flowers / "rose" / "new.png", (200, 40, 40), noise=999)
    after = load_task(f"images:{flowers}", size=8)
    for split in ("train", "val", "test"):
        assert set(keys(before, split)) <= set(keys(after, split))
    assert sum(map(len, after.splits.values())) == 81
    assert after.data_sha256 != before.data_sha256
    assert keys(load_task(f"images:{flowers}", size=8, seed=1), "test") != keys(after, "test")


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_hostile_pictures_are_refused_all_at_once(flowers: Path, tmp_path: Path) -> None:
    good = (flowers / "rose" / "0.png").read_bytes()
    paint(tmp_path / "outside.png", (0, 0, 0))
    hostile = {
        "bomb.png": png_that_claims(60_000, 60_000),
        "large.png": png_that_claims(10_000, 10_000),
        "truncated.png": good[: len(good) // 2],
        "text.jpg": b"not a picture",
        "empty.bmp": b"",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, data in hostile.items():
        (flowers / "rose" / name).write_bytes(data)
    (flowers / "rose" / "link.png").symlink_to(tmp_path / "outside.png")
    found = refused(f"images:{flowers}", size=8)
    assert {d.code for d in found} == {"E0612"}
    labels = {Path(d.message.split("`")[1]).name: d.label for d in found}
    assert set(labels) == {*hostile, "link.png"}
    assert "limit" in labels["large.png"]
    assert "bomb" in labels["bomb.png"].lower()
    assert "truncated" in labels["truncated.png"].lower()
    assert "outside the folder" in labels["link.png"]


def test_a_missing_picture_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="E0611") as caught:
        load_task("digits").preprocessing.image(tmp_path / "absent.png")
    assert caught.value.exit_code == 2


def test_a_digit_as_a_picture_reaches_the_network_as_in_training(tmp_path: Path) -> None:
    task = load_task("digits")
    raw, _ = rows(task, "test")
    pixels = (raw[0, 0].numpy() * (255 / 16)).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    seen = task.preprocessing.apply(task.preprocessing.image(tmp_path / "digit.png"))
    np.testing.assert_allclose(seen, task.preprocessing.apply(raw[:1].numpy()), atol=0.01)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    assert refused(f"images:{tmp_path / 'absent'}")[0].code == "E0611"
    paint(tmp_path / "one" / "rose" / "0.png", (1, 1, 1))
    assert refused(f"images:{tmp_path / 'one'}")[0].label == "found rose"
    paint(tmp_path / "one" / "violet" / "0.png", (2, 2, 2))
    (few,) = refused(f"images:{tmp_path / 'one'}")
    assert (few.code, few.message[-5:]) == ("E0614", "split")


def npz(path: Path, **arrays: Array) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"npz:{path}"


def test_npz_classes_of_any_numbering(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(5, 3, (200, 6))
    y = np.where(x[:, 0] > 5, 7, -3)
    task = load_task(npz(tmp_path / "d.npz", x=x, y=y), standardise=True)
    assert (str(task.inputs[0]), str(task.output), task.labels) == ("f32[6]", "f32[2]", ("-3", "7"))
    result = train(nn.Linear(6, 2), task, Recipe(epochs=30, lr=0.05, batch_size=16, device="cpu"))
    assert result.test is not None
    assert result.test.metrics["accuracy"] > 0.9


def test_npz_values_are_regressed_and_given_splits_are_used(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    y = (2 * x[:, :1] - x[:, 1:2]).astype(np.float32)
    task = load_task(npz(tmp_path / "d.npz", x=x, y=y, x_test=x[:50] + 1, y_test=y[:50] + 1))
    assert torch.equal(rows(task, "test")[0], torch.from_numpy(x[:50] + 1))
    assert [len(task.splits[s]) for s in ("train", "val", "test")] == [160, 40, 50]
    module = nn.Linear(4, 1)
    train(module, task, Recipe(epochs=60, lr=0.05, batch_size=16, weight_decay=0.0, device="cpu"))
    evaluation = evaluate(module, task, "test")
    assert evaluation.metrics["mean_absolute_error"] < 0.05
    assert evaluation.confusion is None


def test_npz_bytes_are_scaled_and_ids_are_not(tmp_path: Path) -> None:
    y = np.arange(40) % 2
    bytes_ = load_task(npz(tmp_path / "u8.npz", x=np.full((40, 1, 4, 4), 255, np.uint8), y=y))
    assert str(bytes_.inputs[0]) == "f32[1, 4, 4]"
    assert float(bytes_.preprocessing.apply(rows(bytes_, "train")[0].numpy()).max()) == 1.0
    ids = load_task(npz(tmp_path / "i32.npz", x=np.full((40, 9), 5, np.int32), y=np.ones((40, 9), np.int8)))
    assert (str(ids.inputs[0]), str(ids.output)) == ("i64[9]", "f32[9, 1]")
    assert rows(ids, "val")[0].dtype == torch.int64


def pickled(path: Path) -> None:
    np.savez(path, x=np.array([print], object), y=np.zeros(1))


def member_that_claims(path: Path) -> None:
    """A header that promises 2^50 numbers, and eight bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", buffer.getvalue() + b"\0" * 8)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (pickled, "never unpickled"),
        (member_that_claims, "has dtype float64 and shape (1125899906842624,)"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no zip"), "not a zip file"),
        (lambda path: np.savez(path, x=np.zeros((9, 2))), "needed arrays `x` and `y`, found x"),
        (lambda path: np.savez(path, x=np.zeros((9, 2)), y=np.zeros(8)), "`x` is (9, 2) and `y` is (8,)"),
        (lambda path: np.savez(path, x=np.zeros((9, 2)), labels=np.zeros(9)), "found array `labels`"),
        (lambda path: np.savez(path, x=np.full((9, 2), np.nan), y=np.zeros(9)), "not a finite number"),
        (lambda path: np.savez(path, x=np.array(["a"] * 9), y=np.zeros(9)), "not a finite number"),
        (lambda path: np.savez(path, x=np.zeros((9, 2)), y=np.zeros(9), x_test=np.zeros((1, 2))), "`y_test`"),
        (lambda path: np.savez(path, x=np.zeros((1, 2)), y=np.zeros(1)), "split"),
        (lambda path: np.savez(path, x=np.zeros((0, 2)), y=np.zeros(0)), "do not leave any to train on"),
    ],
)
def test_npz_files_that_cannot_be_used(write: Callable[[Path], Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    write(path)
    (diagnostic,) = refused(f"npz:{path}")
    assert diagnostic.code == "E0614"
    assert reason in diagnostic.label + diagnostic.message


def test_damaged_npz_files_never_escape_as_another_exception(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "d.npz"
    good = []
    for save in (np.savez, np.savez_compressed):
        save(path, x=np.zeros((20, 2)), y=np.arange(20) % 2)
        good.append(path.read_bytes())
    codes = []
    for trial in range(400):
        damaged = bytearray(good[trial % 2])
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load_task(f"npz:{path}")
        except CompileError as error:
            codes.append(error.diagnostics[0].code)
    assert len(codes) > 100
    assert set(codes) == {"E0614"}


PARITY = """
from dataclasses import replace
from archc.backends.torch.training import TaskConfig, TaskKind, load_task

class Config(TaskConfig):
    odd: str = "odd"

def build(config):
    wine = load_task("wine")
    return replace(wine, name="parity", config=config, data_sha256=config.odd)

PARITY = TaskKind("parity", Config, build, "wine under another name")
"""


def test_another_package_adds_a_task_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parity.py").write_text(PARITY)
    metadata = tmp_path / "parity-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: parity\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for value, problem in (
        ("parity:PARITY", None),
        ("parity:ABSENT", "task `parity` cannot be loaded from `parity:ABSENT`"),
        ("parity:build", "`parity:build` is not a TaskKind"),
    ):
        (metadata / "entry_points.txt").write_text(f"[archc.tasks]\nparity = {value}\n")
        if problem is None:
            task = load_task("parity?odd=yes")
            assert (task.name, task.data_sha256, len(task.splits["train"])) == ("parity", "yes", 106)
        else:
            assert [(d.code, d.message) for d in refused("parity")] == [("E0610", problem)]


def test_preprocessing_scales_by_channel_whatever_the_rank() -> None:
    half, channels = Preprocessing(scale=0.5), Preprocessing(mean=(1, 2), std=(1, 4))
    assert half.apply(np.array([2, 4])).tolist() == [1, 2]
    assert channels.apply(np.full((1, 2, 1, 1), 6.0)).ravel().tolist() == [5, 1]
    for nonsense in ({"std": (0.0,)}, {"scale": float("nan")}, {"mean": (float("inf"),)}):
        with pytest.raises(ValidationError):
            Preprocessing.model_validate(nonsense)


def test_preprocessing_survives_the_trip_through_json_exactly() -> None:
    preprocessing = load_task("digits").preprocessing
    assert Preprocessing.model_validate_json(preprocessing.model_dump_json()) == preprocessing


def test_recipes_are_checked() -> None:
    with pytest.raises(CompileError) as caught:
        Recipe.for_task({}, epoch=3, lr=-1, device="tpu")
    found = {d.message: d.label or d.help for d in caught.value.diagnostics}
    assert found["the recipe has no option `epoch`"] == "did you mean `epochs`?"
    assert found["the recipe: `lr` cannot be this"] == "found -1; input should be greater than 0"
    assert len(found) == 3
    assert {d.code for d in caught.value.diagnostics} == {"E0617"}
