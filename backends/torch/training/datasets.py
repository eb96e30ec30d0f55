"""Tasks from arrays: the small real data sets that scikit-learn carries, and one's own `.npz` files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from archc.backends.arrays import Unreadable, read_arrays
from archc.backends.preprocessing import Array, Preprocessing
from archc.backends.torch.training.recipe import counter_rng
from archc.backends.torch.training.tasks import (
    CLASSIFICATION,
    REGRESSION,
    ArraySplit,
    Task,
    TaskConfig,
    TaskKind,
)
from archc.ir.diagnostics import CompileError, did_you_mean, fail
from archc.ir.types import TensorType

SPLITS = ("train", "val", "test")


class SharesConfig(TaskConfig):
    """Shares of the examples that are held out; the seed decides which."""

    seed: int = 0
    val: float = Field(0.2, gt=0, lt=1)
    test: float = Field(0.2, gt=0, lt=1)


class DigitsConfig(TaskConfig):
    """Numbers of held-out images of 1797."""

    seed: int = 0
    val: int = Field(300, ge=10, le=800)
    test: int = Field(300, ge=10, le=800)


class HardDigitsConfig(DigitsConfig):
    size: int = Field(12, ge=10, le=64, description="a canvas is size × size pixels")
    copies: int = Field(4, ge=1, le=64, description="canvases that are composed of each digit")
    noise: float = Field(0.1, ge=0, le=1, description="deviation of the noise, black to white being 1")


class NpzConfig(SharesConfig):
    path: Path = Field(description="a file: `npz:data.npz` with arrays x and y")
    standardise: bool = Field(False, description="centre and scale each feature by the training split")


def stratified_split(strata: Array, val: int, test: int, seed: int) -> dict[str, Array]:
    """Sorted indices of `train`, `val` and `test`, each stratum shared out in proportion (to within one).

    Examples are laid out by stratum, at random within each, and every n-th is taken: systematic sampling.

    >>> parts = stratified_split(np.repeat([0, 1], [60, 30]), val=15, test=15, seed=0)
    >>> {name: np.bincount(np.repeat([0, 1], [60, 30])[rows]).tolist() for name, rows in parts.items()}
    {'train': [40, 20], 'val': [10, 5], 'test': [10, 5]}
    """
    remaining = np.lexsort((counter_rng(seed, "split").random(len(strata)), strata))
    parts = {}
    for name, count in (("test", test), ("val", val)):
        assert 0 <= count <= len(remaining)
        places = ((np.arange(count) + 0.5) * len(remaining) / max(1, count)).astype(np.int64)
        parts[name] = np.sort(remaining[places])
        remaining = np.delete(remaining, places)
    return {"train": np.sort(remaining), "val": parts["val"], "test": parts["test"]}


def array_digest(*arrays: Array) -> str:
    """SHA-256 over dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _splits(x: Array, y: Array, parts: Mapping[str, Array]) -> dict[str, ArraySplit]:
    return {name: ArraySplit((torch.tensor(x[parts[name]]),), torch.tensor(y[parts[name]])) for name in SPLITS}


def digits(config: DigitsConfig) -> Task:
    """The 1797 real handwritten digits of 8×8 pixels (Alpaydin & Kaynak, 1998; test part), 10 classes.

    >>> task = digits(DigitsConfig())
    >>> str(task.inputs[0]), [len(split) for split in task.splits.values()]
    ('f32[1, 8, 8]', [1197, 300, 300])
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = data.images.astype(np.float32)[:, None], data.target.astype(np.int64)  # pixels are 0..16
    parts = stratified_split(y, config.val, config.test, config.seed)
    train = x[parts["train"]] / 16
    preprocessing = Preprocessing(
        kind="image",
        scale=1 / 16,
        mean=(float(train.mean()),),
        std=(float(train.std()),),
        labels=tuple(map(str, range(10))),
        size=8,
        channels=1,
    )
    return Task(
        "digits",
        config,
        (TensorType((1, 8, 8), "f32"),),
        TensorType((10,), "f32"),
        CLASSIFICATION,
        _splits(x, y, parts),
        array_digest(x, y),
        preprocessing,
        {"shift": 1},
    )


SCALES, CONTRASTS = (0.8, 1.2), (0.5, 1.0)


def compose(digit: Array, config: HardDigitsConfig, number: int) -> Array:
    """The canvases, u8[copies, 1, size, size], of one digit of 8×8 pixels in [0, 1]; its `number` and the seed decide.

    Each shows it in a scale of 0.8–1.2 (bilinear), at a place where all of it is seen, in a contrast of 0.5–1, before
    noise: normal, independent by pixel, cut off at black and white.

    >>> quiet = HardDigitsConfig(size=10, copies=2, noise=0)
    >>> compose(np.ones((8, 8)), quiet, 0)[:, 0].max((1, 2)).tolist()  # two contrasts
    [141, 147]
    """
    rng = counter_rng(config.seed, "compose", number)
    return paint(np.broadcast_to(digit, (config.copies, 8, 8)), rng, config.size, SCALES, config.noise)[:, None]


def paint(digits: Array, rng: np.random.Generator, size: int, scales: tuple[float, float], noise: float) -> Array:
    """A canvas u8[n, size, size] for each of the digits [n, 8, 8], see `compose`; all numbers are drawn from `rng`."""
    scale = rng.uniform(*scales, (len(digits), 1, 1))
    places = rng.uniform(0, size - 8 * scale, (len(digits), 2, 1))  # of the upper left corner
    contrast = rng.uniform(*CONTRASTS, (len(digits), 1, 1))
    centres = (np.arange(size) + 0.5 - places) / scale - 0.5  # (n, 2, size), in pixels of the digit
    weights = np.maximum(0, 1 - np.abs(centres[..., None] - np.arange(8)))  # (n, 2, size, 8)
    canvas = contrast * (weights[:, 0] @ digits @ weights[:, 1].swapaxes(1, 2))
    canvas = canvas + noise * rng.standard_normal(canvas.shape)
    pixels: Array = np.rint(255 * canvas.clip(0, 1)).astype(np.uint8)
    return pixels


def hard_digits(config: HardDigitsConfig) -> Task:
    """Shifted noisy digits: `digits` on a larger canvas, see `compose`. The 1797 source images are split first, the
    same way, so that no digit stands on two sides; then each split is composed of its own.

    >>> task = hard_digits(HardDigitsConfig())
    >>> str(task.inputs[0]), [len(split) for split in task.splits.values()]
    ('f32[1, 12, 12]', [4788, 1200, 1200])
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    y = data.target.astype(np.int64)
    x = np.stack([compose(image / 16, config, number) for number, image in enumerate(data.images)])
    parts = stratified_split(y, config.val, config.test, config.seed)
    splits = {
        name: ArraySplit(
            (torch.from_numpy(x[rows].reshape(-1, *x.shape[2:])),), torch.from_numpy(y[rows].repeat(config.copies))
        )
        for name, rows in parts.items()
    }
    train = x[parts["train"]] / 255
    preprocessing = Preprocessing(
        kind="image",
        scale=1 / 255,
        mean=(float(train.mean()),),
        std=(float(train.std()),),
        labels=tuple(map(str, range(10))),
        size=config.size,
        channels=1,
    )
    return Task(
        "hard_digits",
        config,
        (TensorType((1, config.size, config.size), "f32"),),
        TensorType((10,), "f32"),
        CLASSIFICATION,
        splits,
        array_digest(x, y),
        preprocessing,
    )


def _table(name: str, config: SharesConfig) -> Task:
    from sklearn import datasets

    data = {"breast_cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}[name]()
    x, y = data.data.astype(np.float32), data.target.astype(np.int64)
    val, test = round(config.val * len(y)), round(config.test * len(y))
    parts = stratified_split(y, val, min(test, len(y) - val), config.seed)
    return Task(
        name,
        config,
        (TensorType(x.shape[1:], "f32"),),
        TensorType((len(data.target_names),), "f32"),
        CLASSIFICATION,
        _splits(x, y, parts),
        array_digest(x, y),
        _standardised("table", x[parts["train"]], tuple(map(str, data.target_names))),
        {"epochs": 60, "batch_size": 32},
    )


def _standardised(kind: Any, train: Array, labels: tuple[str, ...] = ()) -> Preprocessing:
    """Mean 0 and deviation 1 along axis 1, judged by the training split alone; a constant feature is left unscaled."""
    if not len(train):
        return Preprocessing(kind=kind, labels=labels)  # the task itself will say that the split is empty
    axes = tuple(axis for axis in range(train.ndim) if axis != 1)
    mean, std = train.mean(axes, dtype=np.float64), train.std(axes, dtype=np.float64)
    return Preprocessing(kind=kind, mean=tuple(mean), std=tuple(np.where(std > 1e-12, std, 1.0)), labels=labels)


def npz(config: NpzConfig) -> Task:
    """Arrays `x` (N, …) and `y` from an `.npz` file; `x_val`, `y_val`, `x_test`, `y_test` when the split is given.

    Integer `y` are classes, one per example (N,) or per position (N, T), in any numbering; floating `y` (N, …) are
    values to predict by squared error. `x` is u8 (scaled to [0, 1]), another integer (ids, kept) or floating.
    Raises E0611 (no such file) and E0614 (not such arrays).
    """

    def bad(message: str, help: str | None = None) -> CompileError:
        return fail("E0614", f"`{config.path}` cannot be a task", label=message, help=help)

    arrays = read_npz(config.path)
    expected = ("x", "y", "x_val", "y_val", "x_test", "y_test")
    for name in arrays:
        if name not in expected:
            raise bad(f"found array `{name}`", did_you_mean(name, expected) or f"arrays: {', '.join(expected)}")
    for suffix in ("", "_val", "_test"):
        pair = (f"x{suffix}", f"y{suffix}")
        present = [name in arrays for name in pair]
        if not all(present) and (any(present) or not suffix):
            raise bad(f"needed arrays `{pair[0]}` and `{pair[1]}`, found {', '.join(arrays) or 'none'}")
    for name in [name for name in arrays if name[0] == "x"]:
        x, y = arrays[name], arrays["y" + name[1:]]
        if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
            raise bad(f"`{name}` is {x.shape} and `y{name[1:]}` is {y.shape}", "both need one row per example")
        if x.shape[1:] != arrays["x"].shape[1:] or y.shape[1:] != arrays["y"].shape[1:]:
            raise bad(f"`{name}` or `y{name[1:]}` differs in shape from `x` and `y`")
        for array in (x, y):
            if array.dtype.kind not in "fiu" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
                raise bad(f"`{name}` or `y{name[1:]}` ({array.dtype}) holds what is not a finite number")

    given = {split: (arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in ("val", "test") if f"x_{split}" in arrays}
    x, y = arrays["x"], arrays["y"]
    sizes = {s: 0 if s in given else round(share * len(y)) for s, share in (("val", config.val), ("test", config.test))}
    if sum(sizes.values()) >= len(y):
        raise bad(f"{len(y)} examples do not leave any to train on", "add data, or lower `val` and `test`")
    strata = y if y.ndim == 1 else np.zeros(len(y))
    parts = {
        name: (x[rows], y[rows])
        for name, rows in stratified_split(strata, sizes["val"], sizes["test"], config.seed).items()
    } | given

    classes: Array = np.zeros(0)
    if y.dtype.kind in "iu":
        classes = np.unique(np.concatenate([part.ravel() for _, part in parts.values()]))
        parts = {name: (px, np.searchsorted(classes, py).astype(np.int64)) for name, (px, py) in parts.items()}
        shape = (*y.shape[1:], len(classes))
    else:
        parts = {name: (px, py.astype(np.float32)) for name, (px, py) in parts.items()}
        shape = y.shape[1:]
    if x.dtype != np.uint8:
        wide = np.float32 if x.dtype.kind == "f" else np.int64
        parts = {name: (px.astype(wide), py) for name, (px, py) in parts.items()}
    ids = parts["train"][0].dtype == np.int64

    labels = tuple(str(value) for value in classes)
    preprocessing = Preprocessing(scale=1 / 255 if x.dtype == np.uint8 else 1.0, labels=labels)
    if config.standardise and not ids and x.ndim > 1:
        unit = parts["train"][0] * np.float32(preprocessing.scale)
        preprocessing = _standardised("array", unit, labels).model_copy(update={"scale": preprocessing.scale})
    return Task(
        "npz",
        config,
        (TensorType(x.shape[1:], "i64" if ids else "f32"),),
        TensorType(shape, "f32"),
        CLASSIFICATION if len(classes) else REGRESSION,
        {name: ArraySplit((torch.from_numpy(parts[name][0]),), torch.from_numpy(parts[name][1])) for name in SPLITS},
        array_digest(*arrays.values()),
        preprocessing,
    )


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` file, in the order of their names. Raises E0611 and E0614."""
    try:
        arrays = read_arrays(path)
    except Unreadable as error:
        if error.missing:
            raise fail("E0611", f"there is no data file `{path}`", exit_code=2) from error
        raise fail(
            "E0614", f"`{path}` is not a sound .npz file", label=str(error), help="write it with numpy.savez"
        ) from error
    if "" in arrays:
        raise fail("E0614", f"`{path}` is one array, not an .npz file", help="write it with numpy.savez")
    return arrays


KINDS = (
    TaskKind("digits", DigitsConfig, digits, "handwritten digits, 8×8 pixels, 1797 images, 10 classes"),
    TaskKind(
        "hard_digits", HardDigitsConfig, hard_digits, "shifted, scaled and noisy digits on a canvas of 12×12 pixels"
    ),
    TaskKind(
        "breast_cancer",
        SharesConfig,
        lambda config: _table("breast_cancer", config),
        "569 tumours by 30 measurements, 2 classes",
    ),
    TaskKind("wine", SharesConfig, lambda config: _table("wine", config), "178 wines by 13 measurements, 3 classes"),
    TaskKind("npz", NpzConfig, npz, "npz:FILE with arrays x and y (and x_val, y_val, x_test, y_test)"),
)
