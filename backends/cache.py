"""The compile cache: artifacts by what they were made from, and the libraries that loaded artifacts run.

Everything lies in one private folder (`$ARCHC_CACHE`, else the user's cache folder): `artifacts/KEY.archc`, `locks/`,
and `lib/SHA256.so`. Code is loaded from here, so the folder must belong to the user and be writable to nobody else.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from archc.backends.artifact import open_artifact, read_manifest
from archc.backends.weights import atomic_file
from archc.ir.diagnostics import CompileError, fail

ARTIFACT_LIMIT = 8 << 30  # bytes
LIBRARY_LIMIT = 1 << 30
GRACE = 60.0  # seconds after its last use in which a file is never evicted


class CacheWarning(UserWarning):
    """Something in the cache was not as it should be; it has been dealt with."""


def cache_root() -> Path:
    """The cache folder, made if need be, mode 0700; E0530 when it cannot be had or others could write to it."""
    import platformdirs

    root = Path(os.environ.get("ARCHC_CACHE") or platformdirs.user_cache_path("archc"))
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = root.stat()
    except OSError as error:
        raise _unusable(root, error.strerror or str(error)) from error
    if not stat.S_ISDIR(status.st_mode):
        raise _unusable(root, "it is not a directory")
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise _unusable(root, "others can write to it, and code is loaded from it")
    return root


def _unusable(root: Path, why: str) -> CompileError:
    return fail(
        "E0530",
        f"the cache folder `{root}` cannot be used",
        label=why,
        help="name another in $ARCHC_CACHE, make it private (`chmod 700`), or compile with `--no-cache`",
    )


@contextlib.contextmanager
def library_file(sha256: str, data: memoryview) -> Iterator[Path]:
    """A file with these bytes, whose SHA-256 is known to be right, to load code from.

    It is kept in the cache under its hash and compared before each use; where there is no usable cache, it is a
    private temporary file.
    """
    with contextlib.ExitStack() as stack:
        try:
            path = cache_root() / "lib" / f"{sha256}.so"
            path.parent.mkdir(mode=0o700, exist_ok=True)
            if not path.is_file() or path.read_bytes() != data:
                _write(path, data)
                _evict(path.parent, LIBRARY_LIMIT)
        except (CompileError, OSError):  # a read-only home, say
            path = stack.enter_context(_elsewhere(data))
        yield path


@contextlib.contextmanager
def _elsewhere(data: memoryview) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        try:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="archc-"))) / "library.so"
            path.write_bytes(data)
        except OSError as error:
            raise fail(
                "E0530",
                f"an artifact's code can be unpacked neither in the cache nor in `{tempfile.gettempdir()}`",
                label=error.strerror or str(error),
                help="name a folder with room in $ARCHC_CACHE or $TMPDIR",
            ) from error
        yield path


def _write(path: Path, data: memoryview) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


@dataclass(frozen=True)
class Entry:
    """A cached artifact. `name` and `target` are empty when it cannot be read."""

    key: str
    path: Path
    bytes: int
    used: float  # seconds since the epoch
    name: str
    target: str


class Cache:
    """Artifacts by key. `limit` bounds their bytes: the least recently used go first.

    >>> cache = Cache(Path(tempfile.mkdtemp()))
    >>> cache.entries()
    []
    """

    def __init__(self, root: Path | None = None, *, limit: int = ARTIFACT_LIMIT) -> None:
        self.root = root or cache_root()
        self.limit = limit
        self._artifacts, self._locks = self.root / "artifacts", self.root / "locks"
        for folder in (self._artifacts, self._locks):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where the artifact of `key` is, or would be."""
        assert re.fullmatch("[0-9a-f]{64}", key), "a key comes from cache_key"
        return self._artifacts / f"{key}.archc"

    def get(self, key: str) -> Path | None:
        """The artifact of `key`, every byte of it checked; a damaged one is removed, with a warning."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            open_artifact(path)
            os.utime(path)
        except (CompileError, OSError) as error:
            if path.exists():
                warnings.warn(f"removed a damaged cache entry, {key[:12]}…: {error}", CacheWarning, stacklevel=2)
                path.unlink(missing_ok=True)
            return None
        return path

    def get_or_build(self, key: str, build: Callable[[Path], object]) -> Path:
        """The artifact of `key`, built by `build(path)` if need be: once, however many processes ask.

        Raises what `build` raises, and E0530 when there is no room for it.
        """
        from filelock import FileLock

        if found := self.get(key):
            return found
        try:
            return self._build(key, build, FileLock(self._locks / f"{key}.lock"))
        except OSError as error:
            raise _unusable(self.root, error.strerror or str(error)) from error
        except CompileError as error:
            first = error.diagnostics[0]
            if first.code == "E0608" and str(self.path(key)) in first.message:
                raise _unusable(self.root, first.label) from error
            raise

    def _build(self, key: str, build: Callable[[Path], object], lock: AbstractContextManager[Any]) -> Path:
        with lock:
            if found := self.get(key):
                return found
            for abandoned in self._artifacts.glob(f".*{key}.*"):  # we hold the lock: whoever wrote it was killed
                abandoned.unlink(missing_ok=True)
            with atomic_file(self.path(key)) as temporary:
                build(temporary)
        _evict(self._artifacts, self.limit)
        return self.path(key)

    def entries(self) -> list[Entry]:
        """What is in the cache, the most recently used first."""
        found = [_entry(path) for path in self._artifacts.glob("[0-9a-f]*.archc")]  # not what is being written
        return sorted((e for e in found if e is not None), key=lambda e: (-e.used, e.key))

    def verify(self) -> list[Entry]:
        """Check every entry; the damaged ones, which are removed."""
        damaged = []
        for entry in self.entries():
            try:
                open_artifact(entry.path)
            except CompileError:
                entry.path.unlink(missing_ok=True)
                damaged.append(entry)
        return damaged

    def clear(self) -> int:
        """Remove everything, extracted libraries too; the number of bytes freed."""
        freed = 0
        for path in [p for name in ("artifacts", "lib", "locks") for p in (self.root / name).glob("*")]:
            with contextlib.suppress(FileNotFoundError):
                freed += path.stat().st_size
                path.unlink()
        return freed


def copy_out(path: Path, out: Path | str) -> None:
    """Copy a cached artifact to where the user wants it, atomically."""
    with atomic_file(out) as temporary:
        shutil.copyfile(path, temporary)


def cache_key(**facts: Any) -> str:
    """The key of a compilation: a hash of `facts` (plain data), of the toolchain's versions and of our own code.

    >>> cache_key(ir="a", batch=1) == cache_key(batch=1, ir="a") != cache_key(ir="a", batch=2)
    True
    """
    text = json.dumps([facts, _toolchain()], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _toolchain() -> dict[str, str]:
    versions = {}
    for package in ("apache-tvm", "apache-tvm-ffi", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions | {"archc": _own_code(), "cxx": os.environ.get("CXX", ""), "cuda": os.environ.get("CUDA_HOME", "")}


def _own_code() -> str:
    """A hash of the compiler's own sources: a version number would not change while one works on it."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("ir", "passes", "backends"):
        for file in sorted((package / folder).resolve().rglob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _entry(path: Path) -> Entry | None:
    try:
        status = path.stat()
    except FileNotFoundError:  # another process has removed it
        return None
    try:
        manifest = read_manifest(path)
        name, target = manifest.name, str(manifest.target)
    except CompileError:
        name = target = ""
    return Entry(path.stem, path, status.st_size, status.st_mtime, name, target)


def _evict(folder: Path, limit: int) -> None:
    """Remove the least recently used files beyond `limit` bytes, but none that somebody may be about to open."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for used, size, path in sorted(files):
        if total <= limit or used > time.time() - GRACE:
            break
        path.unlink(missing_ok=True)
        total -= size
