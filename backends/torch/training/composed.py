"""Tasks whose images are composed of several digits: `add_digits`, `mult_digits` and `tiles`.

The source images are split first, so that no digit stands on two sides; then each split is composed of its own. They
are like AddNIST, MultNIST and CIFARTile of "Unseen NAS" (Geada et al. 2024, Insights from the Use of Previously Unseen
Neural Architecture Search Datasets, CVPR, arXiv:2404.02189) on canvases that small networks learn in seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field

from archc.backends.preprocessing import Array, Preprocessing
from archc.backends.torch.training.datasets import (
    SPLITS,
    DigitsConfig,
    array_digest,
    paint,
    stratified_split,
)
from archc.backends.torch.training.recipe import counter_rng
from archc.backends.torch.training.tasks import CLASSIFICATION, ArraySplit, Task, TaskKind
from archc.ir.types import TensorType

Draw = Callable[[Array, np.random.Generator, int], tuple[Array, Array]]
"""(classes of a split's digits, random numbers, count) -> which digits, i64[count, parts], and labels, i64[count]."""


class ComposedConfig(DigitsConfig):
    copies: int = Field(4, ge=1, le=64, description="images for each source digit of a split")
    classes: int = Field(10, ge=2, le=10, description="only digits below this are shown")
    noise: float = Field(0.1, ge=0, le=1, description="deviation of the noise, black to white being 1")


class ChannelsConfig(ComposedConfig):
    size: int = Field(12, ge=10, le=64, description="a canvas is size × size pixels")


class AddDigitsConfig(ChannelsConfig):
    modulo: int = Field(28, ge=2, le=28, description="the label is the sum modulo this; 28 leaves the sum as it is")


class MultDigitsConfig(ChannelsConfig):
    pass


class TilesConfig(ComposedConfig):
    size: int = Field(16, ge=16, le=64, multiple_of=2, description="a canvas is size × size pixels, a tile half of it")


def sums(classes: Array, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Three digits for each image, every digit as often as any other; the label is their sum.

    >>> digits, labels = sums(np.array([0, 4, 9]), np.random.default_rng(0), 6)
    >>> np.bincount(digits.ravel()).tolist(), bool((np.array([0, 4, 9])[digits].sum(1) == labels).all())
    ([6, 6, 6], True)
    """
    rounds = -(-count // len(classes))
    columns = [np.concatenate([rng.permutation(len(classes)) for _ in range(rounds)])[:count] for _ in range(3)]
    digits = np.stack(columns, 1)
    return digits, classes[digits].sum(1)


def products(classes: Array, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Three digits for each image, the label being their product modulo 10, every label as probable as any other.

    Of three digits drawn freely 43 % have a product that ends in 0, and 2 % one that ends in 9.

    >>> classes = np.arange(10).repeat(3)
    >>> digits, labels = products(classes, np.random.default_rng(0), 50)
    >>> bool((classes[digits].prod(1) % 10 == labels).all()), np.bincount(labels).tolist()
    (True, [5, 5, 5, 5, 5, 5, 5, 5, 5, 5])
    """
    members = [np.flatnonzero(classes == c) for c in range(10)]
    tuples = np.array([t for t in np.ndindex(10, 10, 10) if all(len(members[c]) for c in t)])
    ends = tuples.prod(1) % 10
    labels = rng.permutation(np.resize(np.unique(ends), count))
    shown = np.empty((count, 3), np.int64)
    for label in np.unique(ends):
        shown[labels == label] = rng.choice(tuples[ends == label], (labels == label).sum())
    sizes = np.array([len(m) for m in members])
    places = (rng.random((count, 3)) * sizes[shown]).astype(np.int64)
    firsts = np.cumsum(sizes) - sizes
    digits: Array = np.concatenate(members)[firsts[shown] + places]
    return digits, labels


def four_tiles(classes: Array, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Four digits for each image, of 1 to 4 distinct classes with equal probability (fewer, where there are not so
    many); the label is that number − 1.

    >>> classes = np.arange(10).repeat(3)
    >>> digits, labels = four_tiles(classes, np.random.default_rng(0), 50)
    >>> all(len(set(classes[d])) == n + 1 for d, n in zip(digits, labels))
    True
    """
    members = [np.flatnonzero(classes == c) for c in range(10)]
    digits = np.empty((count, 4), np.int64)
    present = [c for c in range(10) if len(members[c])]
    labels = rng.integers(0, min(4, len(present)), count)
    for image, distinct in enumerate(labels + 1):
        chosen = rng.permutation(present)[:distinct]
        shown = rng.permutation(np.concatenate([chosen, rng.choice(chosen, 4 - distinct)]))
        digits[image] = [rng.choice(members[c]) for c in shown]
    return digits, labels


def sources(config: ComposedConfig, draw: Draw) -> dict[str, tuple[Array, Array]]:
    """Which of the 1797 digits each image of each split shows, i64[images, parts], and its label."""
    from sklearn.datasets import load_digits

    classes = load_digits().target.astype(np.int64)
    found = {}
    for number, (name, rows) in enumerate(stratified_split(classes, config.val, config.test, config.seed).items()):
        rng = counter_rng(config.seed, "compose", number, 1)
        shown = rows[classes[rows] < config.classes]
        digits, labels = draw(classes[shown], rng, config.copies * len(rows))
        found[name] = shown[digits], labels
    return found


def _task(name: str, config: ComposedConfig, draw: Draw, lay_out: Callable[[Array], Array], cell: int) -> Task:
    """`lay_out` makes canvases (images, channels, size, size) of painted digits (images, parts, cell, cell)."""
    from sklearn.datasets import load_digits

    pixels = load_digits().images / 16
    images: dict[str, Array] = {}
    labels: dict[str, Array] = {}
    scales = (0.8, 1.2) if cell >= 10 else (0.7, cell / 8)
    for number, (split, (digits, target)) in enumerate(sources(config, draw).items()):
        rng = counter_rng(config.seed, "compose", number, 2)
        painted = paint(pixels[digits.ravel()], rng, cell, scales, config.noise)
        images[split] = lay_out(painted.reshape(*digits.shape, cell, cell))
        labels[split] = target
    count = 1 + max(int(target.max()) for target in labels.values())
    channels, size = images["train"].shape[1:3]
    preprocessing = Preprocessing(
        kind="image",
        scale=1 / 255,
        mean=(float(images["train"].mean() / 255),) * channels,
        std=(float(images["train"].std() / 255),) * channels,
        labels=tuple(str(n + (name == "tiles")) for n in range(count)),
        size=size,
        channels=channels,
    )
    return Task(
        name,
        config,
        (TensorType((channels, size, size), "f32"),),
        TensorType((count,), "f32"),
        CLASSIFICATION,
        {split: ArraySplit((torch.from_numpy(images[split]),), torch.from_numpy(labels[split])) for split in SPLITS},
        array_digest(*images.values(), *labels.values()),
        preprocessing,
    )


def add_digits(config: AddDigitsConfig) -> Task:
    """Three channels with a digit each; the class is their sum.

    >>> task = add_digits(AddDigitsConfig())
    >>> str(task.inputs[0]), len(task.labels), [len(split) for split in task.splits.values()]
    ('f32[3, 12, 12]', 28, [4788, 1200, 1200])
    """

    def draw(classes: Array, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        digits, labels = sums(classes, rng, count)
        return digits, labels % config.modulo

    return _task("add_digits", config, draw, lambda painted: painted, config.size)


def mult_digits(config: MultDigitsConfig) -> Task:
    """Three channels with a digit each; the class is the last digit of their product.

    >>> task = mult_digits(MultDigitsConfig())
    >>> str(task.inputs[0]), len(task.labels), [len(split) for split in task.splits.values()]
    ('f32[3, 12, 12]', 10, [4788, 1200, 1200])
    """
    return _task("mult_digits", config, products, lambda painted: painted, config.size)


def tiles(config: TilesConfig) -> Task:
    """A digit in each quarter of a canvas; the class is how many distinct digits there are, 1 to 4.

    >>> task = tiles(TilesConfig())
    >>> str(task.inputs[0]), task.labels, [len(split) for split in task.splits.values()]
    ('f32[1, 16, 16]', ('1', '2', '3', '4'), [4788, 1200, 1200])
    """

    def lay_out(painted: Array) -> Array:
        rows = [np.concatenate([painted[:, i], painted[:, i + 1]], 2) for i in (0, 2)]
        canvas: Array = np.concatenate(rows, 1)[:, None]
        return canvas

    return _task("tiles", config, four_tiles, lay_out, config.size // 2)


KINDS = (
    TaskKind("add_digits", AddDigitsConfig, add_digits, "three channels with a digit each; the class is their sum"),
    TaskKind(
        "mult_digits",
        MultDigitsConfig,
        mult_digits,
        "three channels with a digit each; the class is the last digit of their product",
    ),
    TaskKind("tiles", TilesConfig, tiles, "2×2 tiles with a digit each; the class is the number of distinct digits"),
)
