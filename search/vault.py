"""The vault of a study: results, weights and artifacts, each under the address of what it was made from.

    results/KEY.json            what came of a piece of work; KEY is its `train_key`
    weights/SHA.safetensors     trained weights, by the SHA-256 of the file
    artifacts/CODE_KEY.archc    compiled networks, by their `code_key`

Files are written under a temporary name, synced and renamed, so each is whole or not there; equal content has one file.
Workers write here, in any number, and never wait for each other.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import ValidationError

from archc.backends.weights import Array, Weights, atomic_file, read_weights, serialise
from archc.ir.diagnostics import fail
from archc.search.records import Result

RESULTS, WEIGHTS, ARTIFACTS, WINNERS = "results", "weights", "artifacts", "winners"
STATE = "archc.state"
"""Metadata of weights that a training can go on with: the address of what else it needs, among the weights."""
_KEY = re.compile(r"[0-9a-f]{8,64}")
_ABANDONED = 60.0  # seconds after which a temporary file is that of a process which was killed


def result_path(folder: Path, key: str) -> Path:
    """Where the result of a piece of work stands."""
    return _path(folder, RESULTS, key, ".json")


def weights_path(folder: Path, sha256: str) -> Path:
    return _path(folder, WEIGHTS, sha256, ".safetensors")


def artifact_path(folder: Path, key: str) -> Path:
    return _path(folder, ARTIFACTS, key, ".archc")


def _path(folder: Path, kind: str, key: str, suffix: str) -> Path:
    assert _KEY.fullmatch(key), "an address is a hash: no path leads out of the vault"
    return folder / kind / (key + suffix)


def make(folder: Path) -> None:
    """The folders of a vault."""
    for kind in (RESULTS, WEIGHTS, ARTIFACTS):
        (folder / kind).mkdir(exist_ok=True)


def write_result(folder: Path, key: str, result: Result) -> None:
    """From here on the work is done, whatever happens to who did it. Raises: CompileError (E0608)."""
    with atomic_file(result_path(folder, key)) as temporary:
        temporary.write_text(result.model_dump_json(), encoding="utf-8")


def read_result(folder: Path, key: str) -> Result | None:
    """What came of a piece of work; None when it has not been done, or what stands there is damaged: then it is done
    again."""
    try:
        return Result.model_validate_json(result_path(folder, key).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def store_weights(folder: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> str:
    """Keep weights; their address. Raises: CompileError (E0608)."""
    data = serialise(arrays, metadata)
    sha256 = hashlib.sha256(data).hexdigest()
    path = weights_path(folder, sha256)
    if not path.exists():
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)
    return sha256


def load_weights(folder: Path, sha256: str) -> Weights:
    """Weights by their address, every byte checked. Raises: CompileError E0601, E0602, E0729."""
    path = weights_path(folder, sha256)
    weights = read_weights(path)
    if weights.sha256 != sha256:
        raise fail(
            "E0729",
            f"`{path}` holds other weights than its name says",
            label=f"found SHA-256 {weights.sha256}",
            help="remove the file: what needs it starts afresh",
        )
    return weights


def has_weights(folder: Path, sha256: str) -> bool:
    return weights_path(folder, sha256).exists()


def states(folder: Path, weights: Collection[str]) -> set[str]:
    """What trainings that go on from these weights need besides."""
    found = {load_weights(folder, sha).metadata.get(STATE, "") for sha in weights if has_weights(folder, sha)}
    return found - {""}


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Files and bytes of each kind."""
    found = {}
    for kind in (RESULTS, WEIGHTS, ARTIFACTS):
        files = [p.stat().st_size for p in (folder / kind).glob("[0-9a-f]*")]
        found[kind] = (len(files), sum(files))
    return found


def collect(folder: Path, weights: Collection[str], artifacts: Collection[str], *, pretend: bool = False) -> int:
    """Remove all weights and artifacts but these, and what killed processes left half written; the bytes freed.

    Results stay: they are small, and what they tell is never worked out twice.
    """
    keep = {weights_path(folder, sha) for sha in weights} | {artifact_path(folder, key) for key in artifacts}
    doomed = [p for kind in (WEIGHTS, ARTIFACTS) for p in (folder / kind).glob("[0-9a-f]*") if p not in keep]
    before = time.time() - _ABANDONED
    for kind in (RESULTS, WEIGHTS, ARTIFACTS):
        doomed += [p for p in (folder / kind).glob(".*") if p.is_file() and p.stat().st_mtime < before]
    freed = sum(p.stat().st_size for p in doomed)
    if not pretend:
        for path in doomed:
            path.unlink(missing_ok=True)
    return freed
