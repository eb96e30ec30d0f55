"""Files in, predictions out: what `archc run` does with an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc.ir.diagnostics import did_you_mean, fail

if TYPE_CHECKING:
    from archc.backends.artifact import Manifest
    from archc.backends.preprocessing import Array, Preprocessing
    from archc.backends.runtime import Artifact

MAX_TEXT = 16 << 20  # bytes
ARRAYS = {".npy", ".npz"}
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """The best classes of one example: (label, score), best first. The scores are probabilities."""

    example: str
    classes: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Read:
    """The network's inputs, and for each example of the batch where it came from. `unprepared` are the files that were
    taken as they are, though the artifact knows how raw data are prepared."""

    inputs: Mapping[str, Array]
    examples: tuple[str, ...]
    unprepared: tuple[str, ...] = ()


def run_files(artifact: Artifact, files: Sequence[str], raw: bool = False) -> tuple[Read, dict[str, Array]]:
    """Run an artifact on files; what was read, and the outputs by name."""
    read = read_inputs(artifact.manifest, files, raw)
    return read, artifact.run(read.inputs)


def read_inputs(manifest: Manifest, files: Sequence[str], raw: bool = False) -> Read:
    """The inputs in files `[name=]path`: .npy, .npz (arrays by name), images, and .txt for networks that read text.

    Images and text are prepared as in training; arrays are what the network takes, unless they are `raw` data. Several
    files for one input are joined along the batch axis.

    Raises: CompileError E0525 for a file that cannot be used (exit code 2 when missing), E0520 for an input that there
    is not, E0611–E0613 for images and text.
    """
    import numpy as np

    names = [port.name for port in manifest.inputs]
    parts: dict[str, list[Array]] = {}
    origins: dict[str, list[str]] = {}
    for file in files:
        name, path = _split(file, names)
        for key, array in _arrays(path, manifest.preprocessing, raw).items():
            goes = key or name or _first_free(names, parts, path)
            if goes not in names:
                help = did_you_mean(goes, names) or f"inputs: {', '.join(map(str, manifest.inputs))}"
                raise fail("E0520", f"there is no input `{goes}`", help=help)
            parts.setdefault(goes, []).append(array)
            origins.setdefault(goes, []).extend(_examples(path.name, len(array) if array.ndim else 1))
    for name, arrays in parts.items():
        if len({(a.shape[1:], a.ndim) for a in arrays}) > 1:
            shapes = ", ".join(str(list(a.shape)) for a in arrays)
            raise fail("E0525", f"the files for input `{name}` do not fit together", label=f"their shapes: {shapes}")
    joined = {n: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for n, arrays in parts.items()}
    prepares = manifest.preprocessing is not None and not manifest.preprocessing.is_identity and not raw
    unprepared = tuple(f for f in files if prepares and _split(f, names)[1].suffix.lower() in ARRAYS)
    return Read(joined, tuple(origins.get(names[0], ())) if names else (), unprepared)


def predictions(manifest: Manifest, read: Read, outputs: Mapping[str, Array], top: int) -> list[Prediction]:
    """The `top` classes of each example, where the first output is logits over the classes; else nothing.

    Classes have the labels that were trained, or their numbers; for a language model they are the next characters.
    """
    import numpy as np

    logits = next(iter(outputs.values()))
    labels = manifest.preprocessing.labels if manifest.preprocessing else ()
    if manifest.preprocessing and manifest.preprocessing.kind == "text" and logits.ndim == 3 and logits.shape[1]:
        labels, logits = tuple(manifest.preprocessing.vocabulary), logits[:, -1]
    if logits.ndim != 2 or logits.dtype.kind not in "fV" or (labels and len(labels) != logits.shape[1]):
        return []
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    found = []
    for index, row in enumerate(shares):
        best = np.argsort(-row, kind="stable")[:top]
        example = read.examples[index] if index < len(read.examples) else str(index)
        found.append(Prediction(example, tuple((labels[c] if labels else str(c), float(row[c])) for c in best)))
    return found


def write_outputs(outputs: Mapping[str, Array], path: Path) -> None:
    """Write outputs as .npz, or the only one as .npy, atomically. bf16 is written as f32, which holds it exactly."""
    import numpy as np

    from archc.backends.weights import atomic_file

    arrays: dict[str, Any] = {n: a.astype(np.float32) if a.dtype.name == "bfloat16" else a for n, a in outputs.items()}
    if path.suffix not in (".npz", ".npy") or (path.suffix == ".npy" and len(arrays) > 1):
        raise fail(
            "E0025", f"outputs go into an .npz file; found `{path}`", help="or .npy, for one output", exit_code=2
        )
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        if path.suffix == ".npy":
            np.save(file, next(iter(arrays.values())))
        else:
            np.savez(file, **arrays)


def _split(file: str, names: Sequence[str]) -> tuple[str, Path]:
    """`name=path`; a path may hold `=` itself, so a prefix counts as a name when there is no such file."""
    name, equals, path = file.partition("=")
    if equals and (name in names or (name.isidentifier() and not Path(file).exists())):
        return name, Path(path)
    return "", Path(file)


def _examples(file: str, count: int) -> list[str]:
    return [file] if count == 1 else [f"{file}[{index}]" for index in range(count)]


def _first_free(names: Sequence[str], parts: Mapping[str, Any], path: Path) -> str:
    """Where a file without a name goes: the only input, or the next that has nothing yet."""
    if len(names) == 1:
        return names[0]
    free = [n for n in names if n not in parts]
    if not free:
        raise fail("E0520", f"every input has something already; where does `{path}` go?", help="say `name=path`")
    return free[0]


def _arrays(path: Path, preprocessing: Preprocessing | None, raw: bool) -> dict[str, Array]:
    """What a file holds: arrays by name, or one without."""
    suffix = path.suffix.lower()
    if suffix in IMAGES or suffix == ".txt":
        if preprocessing is None:
            raise fail(
                "E0525",
                f"the artifact does not say how to prepare `{path}`",
                help="compile it with weights from `archc train`, or give the network's input as .npy",
            )
        if suffix == ".txt":
            return {"": preprocessing.encode(_text(path))[None]}
        return {"": preprocessing.apply(preprocessing.image(path))}
    found = _numpy(path)
    if raw and preprocessing is not None:
        return {n: preprocessing.apply(a) for n, a in found.items()}
    return found


def _text(path: Path) -> str:
    from archc.backends.arrays import Unreadable, open_regular

    try:
        with open_regular(path) as file:
            data = file.read(MAX_TEXT + 1)
        if len(data) > MAX_TEXT:
            raise Unreadable(f"it has more than {MAX_TEXT} bytes")
        return data.decode()
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from error


def _numpy(path: Path) -> dict[str, Array]:
    """Arrays in a numpy file. Nothing is unpickled."""
    from archc.backends.arrays import Unreadable, read_arrays

    if path.suffix.lower() not in ARRAYS:
        raise fail("E0525", f"cannot use `{path}` as an input", help="give .npy, .npz, an image or .txt", exit_code=2)
    try:
        return read_arrays(path)
    except Unreadable as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> Exception:
    missing = isinstance(error, FileNotFoundError) or getattr(error, "missing", False)
    return fail(
        "E0525",
        f"there is no file `{path}`" if missing else f"cannot use `{path}` as an input",
        label="" if missing else (getattr(error, "strerror", None) or str(error)),
        exit_code=2 if missing else 1,
    )
