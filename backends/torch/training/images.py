"""A task on a folder of pictures: one subfolder per class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from archc.backends.preprocessing import Array, Preprocessing, read_image
from archc.backends.torch.training.tasks import CLASSIFICATION, ArraySplit, Task, TaskConfig, TaskKind
from archc.ir.diagnostics import CompileError, Diagnostic, fail
from archc.ir.types import TensorType

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp"}
MAX_DATA_BYTES = 4 << 30
MAX_REPORTED = 20


class ImagesConfig(TaskConfig):
    path: Path = Field(description="a folder: `images:flowers` with one subfolder per class")
    size: int = Field(32, ge=1, le=1024, description="pictures are scaled and cut to size × size")
    channels: Literal[1, 3] = 3
    seed: int = 0
    val: float = Field(0.15, gt=0, lt=1)
    test: float = Field(0.15, gt=0, lt=1)


def images(config: ImagesConfig) -> Task:
    """Pictures f32[C, size, size], classes named by their folders.

    A picture's content decides its split (with the seed), so that a copy of a training picture is never tested on,
    and adding pictures moves none. Raises E0611 (no folder), E0612 (pictures that cannot be used, gathered) and E0614.
    """
    root = config.path
    if not root.is_dir():
        raise fail("E0611", f"there is no folder `{root}`", exit_code=2)
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        raise fail(
            "E0614",
            f"`{root}` needs a subfolder for each of two or more classes",
            label=f"found {', '.join(classes) or 'none'}",
        )
    files = [(index, path) for index, name in enumerate(classes) for path in _pictures(root / name)]
    if len(files) * config.channels * config.size**2 > MAX_DATA_BYTES:
        raise fail("E0614", f"{len(files)} pictures of this size need too much memory", help="choose a smaller `size`")

    digest = hashlib.sha256()
    problems: list[Diagnostic] = []
    parts: dict[str, list[tuple[int, Array]]] = {"train": [], "val": [], "test": []}
    for label, path in files:
        try:
            if not path.resolve().is_relative_to(root.resolve()):
                raise fail("E0612", f"cannot use image `{path}`", label="it is a link to a place outside the folder")
            pixels = read_image(path, config.size, config.channels)
        except CompileError as error:
            problems += error.diagnostics
            if len(problems) >= MAX_REPORTED:
                break
            continue
        content = hashlib.sha256(path.read_bytes()).digest()
        digest.update(content + label.to_bytes(4, "little"))
        parts[_split_of(content, config)].append((label, pixels))
    if problems:
        raise CompileError(*problems)

    def tensors(name: str) -> ArraySplit:
        labels = torch.tensor([label for label, _ in parts[name]], dtype=torch.int64)
        pixels = np.array([image for _, image in parts[name]], np.uint8)
        return ArraySplit((torch.from_numpy(pixels),), labels)

    shape = (config.channels, config.size, config.size)
    train = [image for _, image in parts["train"]] or [np.zeros(shape, np.uint8)]
    mean, std = np.mean([_moments(image) for image in train], axis=0)  # std from E[x²] − E[x]²
    std = np.sqrt(np.maximum(std - mean**2, 0))
    preprocessing = Preprocessing(
        kind="image",
        scale=1 / 255,
        mean=tuple(mean),
        std=tuple(np.maximum(std, 1e-3)),
        labels=tuple(classes),
        size=config.size,
        channels=config.channels,
    )
    return Task(
        "images",
        config,
        (TensorType(shape, "f32"),),
        TensorType((len(classes),), "f32"),
        CLASSIFICATION,
        {name: tensors(name) for name in parts},
        digest.hexdigest(),
        preprocessing,
        {"shift": config.size // 8},
    )


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())


def _split_of(content: bytes, config: ImagesConfig) -> str:
    """A number in [0, 1) from content and seed decides: nothing else about the folder does."""
    word = hashlib.sha256(content + config.seed.to_bytes(8, "little", signed=True)).digest()[:8]
    share = int.from_bytes(word, "little") / 2**64
    if share < config.test:
        return "test"
    return "val" if share < config.test + config.val else "train"


def _moments(image: Array) -> Array:
    unit = image.reshape(len(image), -1) / 255.0
    return np.stack([unit.mean(1), (unit**2).mean(1)])


IMAGES = TaskKind("images", ImagesConfig, images, "images:FOLDER with one subfolder per class")
