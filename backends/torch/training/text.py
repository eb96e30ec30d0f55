"""A language task on a text file: predict the next character."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from archc.backends.preprocessing import Preprocessing
from archc.backends.torch.training.tasks import NEXT_CHARACTER, Batch, Task, TaskConfig, TaskKind
from archc.ir.diagnostics import fail
from archc.ir.types import TensorType

MAX_TEXT_BYTES = 256 << 20


class TextConfig(TaskConfig):
    path: Path = Field(description="a file: `text:book.txt`")
    length: int = Field(128, ge=1, le=1 << 16, description="characters that the network sees at once")
    val: float = Field(0.1, gt=0, lt=0.5)
    test: float = Field(0.1, gt=0, lt=0.5)


@dataclass(frozen=True)
class Windows:
    """A stretch of text as windows of `length` characters that do not overlap; in training, each starts anywhere in
    its stretch. Inputs i64[N, T]; targets i64[N, T], one character further on.

    >>> windows = Windows(torch.arange(10), 4)
    >>> len(windows), [t.tolist() for t in windows.batch(torch.tensor([1]))[0]], windows.batch(torch.tensor([1]))[1]
    (2, [[[4, 5, 6, 7]]], tensor([[5, 6, 7, 8]]))
    """

    codes: Tensor
    length: int

    def __len__(self) -> int:
        return max(0, len(self.codes) - 1) // self.length

    def batch(self, indices: Tensor, rng: np.random.Generator | None = None) -> Batch:
        starts = indices * self.length
        if rng is not None:
            starts = starts + torch.from_numpy(rng.integers(0, self.length, len(indices)))
            starts = starts.clamp(max=len(self.codes) - 1 - self.length)
        window = starts[:, None] + torch.arange(self.length + 1)
        codes = self.codes[window.to(self.codes.device)].long()
        return (codes[:, :-1],), codes[:, 1:]

    def to(self, device: torch.device) -> Windows:
        return Windows(self.codes.to(device), self.length)


def text(config: TextConfig) -> Task:
    """Characters of a UTF-8 file; the first part trains, the next validates, the last tests.

    The vocabulary is the alphabet of the whole file, sorted. Raises E0611 and E0614.
    """
    path = config.path
    if not path.is_file():
        raise fail("E0611", f"there is no text file `{path}`", exit_code=2)
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise fail("E0614", f"`{path}` is too long", label=f"the limit is {MAX_TEXT_BYTES} bytes")
    data = path.read_bytes()
    try:
        content = data.decode()
    except UnicodeDecodeError as error:
        raise fail(
            "E0614", f"`{path}` is not UTF-8 text", label=f"byte {error.start} is {data[error.start]:#04x}"
        ) from None
    points = np.frombuffer(content.encode("utf-32-le"), np.uint32)
    alphabet, codes = np.unique(points, return_inverse=True)
    vocabulary = "".join(map(chr, alphabet))
    val, test = (int(share * len(codes)) for share in (config.val, config.test))
    if min(val, test) <= config.length:
        raise fail(
            "E0614",
            f"`{path}` is too short",
            label=f"its {len(codes)} characters leave {min(val, test)} held out, for windows of {config.length} + 1",
            help=f"a longer text, or `text:{path}?length={max(1, min(val, test) // 8)}`",
        )
    everything = torch.from_numpy(codes.astype(np.int32))
    edges = (0, len(codes) - val - test, len(codes) - test, len(codes))
    return Task(
        "text",
        config,
        (TensorType((config.length,), "i64"),),
        TensorType((config.length, len(vocabulary)), "f32"),
        NEXT_CHARACTER,
        {
            name: Windows(everything[start:end], config.length)
            for name, start, end in zip(("train", "val", "test"), edges, edges[1:], strict=False)
        },
        hashlib.sha256(data).hexdigest(),
        Preprocessing(kind="text", vocabulary=vocabulary),
        {"epochs": 10, "batch_size": 32},
    )


TEXT = TaskKind("text", TextConfig, text, "text:FILE, predict the next character")
