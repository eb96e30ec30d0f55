"""How raw data become a network's input: the record that training writes beside the weights and `run` reads.

One home for the rule, so that a network sees at work what it saw in training. No torch here.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat

from archc.ir.diagnostics import CompileError, fail

Array = np.ndarray[Any, np.dtype[Any]]

MAX_PIXELS = 64_000_000
MAX_IMAGE_BYTES = 256 << 20
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")
_PPM = re.compile(rb"P[56](?:(?:\s|#[^\n]*\n)+\d+){3}\s")  # in text, or with a comment without end, it takes for ever


class Preprocessing(BaseModel):
    """`value = (raw * scale - mean) / std`, with `mean` and `std` along axis 1 of the batch (channel or feature).

    `kind` says what a raw example is: an `image` (C, H, W), a `table` row (features), `text` (characters, encoded by
    their place in `vocabulary`) or plain `array`s. For images, `scale` turns the data set's own range into [0, 1].
    An empty `mean` is 0, an empty `std` is 1. `labels` names the classes in the order of the logits.

    >>> p = Preprocessing(kind="table", mean=(1.0, 0.0), std=(2.0, 1.0))
    >>> p.apply(np.array([[3.0, 5.0]], np.float32)).tolist()
    [[1.0, 5.0]]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["image", "table", "text", "array"] = "array"
    scale: FiniteFloat = Field(1.0, gt=0)
    mean: tuple[FiniteFloat, ...] = ()
    std: tuple[PositiveFloat, ...] = ()
    labels: tuple[str, ...] = ()
    vocabulary: str = ""
    size: int | None = Field(None, ge=1, le=4096)
    channels: Literal[1, 3] | None = None

    @property
    def is_identity(self) -> bool:
        return self.scale == 1.0 and not self.mean and not self.std

    def affine(self, rank: int) -> tuple[Array, Array]:
        """`(factor, offset)` with `value = raw * factor + offset`, shaped to broadcast over a batch of this rank."""
        mean, std = np.array(self.mean or (0.0,)), np.array(self.std or (1.0,))
        factor, offset = np.broadcast_arrays(self.scale / std, -mean / std)
        shape = (1,) * rank if factor.size == 1 else (1, -1) + (1,) * (rank - 2)
        return factor.reshape(shape).astype(np.float32), offset.reshape(shape).astype(np.float32)

    def apply(self, raw: Array) -> Array:
        """A batch of raw examples as the network's input; integers stay as they are when there is nothing to do."""
        if self.is_identity:
            return raw
        factor, offset = self.affine(raw.ndim)
        return np.asarray(raw.astype(np.float32) * factor + offset)

    def image(self, path: Path | str) -> Array:
        """An image file as a raw batch of one, (1, C, size, size), so that `apply` gives the network's input.

        Raises E0611 for a missing file, E0612 for a hostile or broken image.
        """
        if self.size is None or self.channels is None:
            raise fail("E0612", f"the network does not take images such as `{path}`", label=f"it takes: {self.kind}")
        pixels = read_image(path, self.size, self.channels).astype(np.float32)
        return np.asarray(pixels[None] / (255.0 * self.scale))

    def encode(self, text: str) -> Array:
        """Text as ids, i64[T]; E0613 for a character outside the vocabulary.

        >>> Preprocessing(kind="text", vocabulary="abc").encode("cab").tolist()
        [2, 0, 1]
        """
        table = {character: index for index, character in enumerate(self.vocabulary)}
        try:
            return np.array([table[character] for character in text], np.int64)
        except KeyError as error:
            raise fail(
                "E0613",
                f"the network does not know the character {error.args[0]!r}",
                label=f"its vocabulary has {len(table)} characters",
                help="leave it out, or train on text that has it",
            ) from None


def read_image(path: Path | str, size: int, channels: int) -> Array:
    """An image as u8[channels, size, size]: shorter side scaled to `size`, the centre cut out, upright by its EXIF.

    Raises E0611 for a missing file, E0612 for what is not an image, is broken, or would unpack to more than 64 million
    pixels. The size is judged by the header, before anything is unpacked.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.is_file():
        raise fail("E0611", f"there is no image `{path}`", exit_code=2)

    def bad(label: str) -> CompileError:
        return fail("E0612", f"cannot use image `{path}`", label=label, help="mend the file or take it away")

    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise bad(f"{path.stat().st_size} bytes; the limit is {MAX_IMAGE_BYTES}")
        with path.open("rb") as file:
            head = file.read(1024)
        if head[:1] == b"P" and not _PPM.match(head):
            raise bad("it is neither a binary PGM nor PPM file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we judge by our own, lower limit
            with Image.open(path, formats=FORMATS) as opened:
                if math.prod(opened.size) > MAX_PIXELS:
                    raise bad(f"{opened.width} × {opened.height} pixels; the limit is {MAX_PIXELS}")
                picture = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except CompileError:
        raise
    # Pillow's decoders signal broken files by OSError, SyntaxError, ValueError, struct.error, zlib.error and more.
    except Exception as error:
        raise bad(f"{type(error).__name__}: {error}") from error
    picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
