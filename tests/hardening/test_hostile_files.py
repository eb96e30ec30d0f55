"""Hostile files and places: a code each, nothing executed, nothing written elsewhere."""

from __future__ import annotations

import io
import os
import pickle
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from archc.backends.arrays import Unreadable, read_arrays
from archc.backends.preprocessing import Preprocessing
from archc.backends.weights import Weights, atomic_file, write_weights
from archc.facade.compile import build
from archc.facade.model import loads
from archc.ir.diagnostics import CompileError

GOOD = np.arange(26, dtype=np.float32).reshape(2, 13)
PICTURE = """\
arch picture

input  x: f32[N, 3, 4, 4]
output y: f32[N, 2]

y = x -> flatten -> linear(2)
"""


class Canary:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def npy(text: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode() + data


def claims(shape: str, descr: str = "'<f4'", data: bytes = b"") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n", data)


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def archive(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return buffer.getvalue()


def changed(data: bytes, local: int, central: int, value: int) -> bytes:
    """An archive with a byte of both its headers changed."""
    copy = bytearray(data)
    copy[local] = copy[copy.index(b"PK\x01\x02") + central] = value
    return bytes(copy)


ONE = archive(("x.npy", saved(GOOD)))
BOMB = claims("(80000000, 1)", data=bytes(320_000_000))
HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "nothing": ("npy", lambda: b"", "not in numpy's format"),
    "half a magic": ("npy", lambda: b"\x93NUM", "not in numpy's format"),
    "a terabyte": ("npy", lambda: claims("(10**12, 13)".replace("10**12", str(10**12))), "claims"),
    "more than can be counted": ("npy", lambda: claims(f"({2**63}, {2**63})"), "shape"),
    "nothing of a great size": ("npy", lambda: claims(f"({10**30}, 0)"), "shape"),
    "less than nothing": ("npy", lambda: claims("(-1, 13)"), "shape"),
    "a size that is true": ("npy", lambda: claims("(True, 13)", data=bytes(52)), "shape"),
    "elements of no size": ("npy", lambda: claims(f"({10**12},)", "'|V0'"), "dtype"),
    "a hundred axes": ("npy", lambda: claims("(" + "1," * 100 + ")", data=bytes(4)), "dimension"),
    "truncated": ("npy", lambda: saved(GOOD)[:-9], "claims"),
    "a header of 4 GB": ("npy", lambda: npy("", version=(2, 0))[:8] + b"\xff" * 4, "header"),
    "a header of megabytes": ("npy", lambda: npy("{" + " " * 5_000_000, version=(2, 0)), "header"),
    "a header that nests": ("npy", lambda: npy("(" * 9000), "header"),
    "a header that calls": ("npy", lambda: npy("__import__('os').system('false')"), "header"),
    "a version to come": ("npy", lambda: npy("", version=(9, 0)), "version 9.0"),
    "a text in the archive": ("npz", lambda: archive(("x", b"hello")), "is no array"),
    "a text called an array": ("npz", lambda: archive(("x.npy", b"hello")), "not in numpy's format"),
    "an array twice": ("npz", lambda: archive(("x.npy", saved(GOOD)), ("x.npy", saved(GOOD))), "twice"),
    "a wrong CRC": ("npz", lambda: ONE[:60] + bytes([ONE[60] ^ 255]) + ONE[61:], ""),
    "encrypted": ("npz", lambda: changed(ONE, 6, 8, 1), "encrypted"),
    "compressed by the unknown": ("npz", lambda: changed(ONE, 8, 10, 99), "compression"),
    "half an archive": ("npz", lambda: ONE[: len(ONE) // 2], "zip"),
    "a bomb": ("npz", lambda: archive(("x.npy", BOMB)), "that unpack to"),
    "more than it says": ("npz", lambda: archive(("x.npy", saved(GOOD) + b"more")), "belong to nothing"),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.archc"
    build(loads("arch a\ninput x: f32[N, 13]\noutput y: f32[N, 13]\ny = x + x"), path, threads=1)
    return path


def tree(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_arrays(name: str, network: Path, tmp_path: Path, archc) -> None:
    suffix, make, reason = HOSTILE[name]
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(make())
    before = tree(tmp_path)
    code, _, told = archc("run", network, "--input", path)
    assert (code, "error[E0525]" in told, reason in told) == (1, True, True), told
    assert "pickle" not in told, "no advice to trust it"
    assert tree(tmp_path) == before


def test_sound_neighbours_of_the_hostile_arrays(network: Path, tmp_path: Path, archc) -> None:
    for suffix, data in (
        ("npy", saved(GOOD)),
        ("npz", ONE),
        ("npy", saved(np.asfortranarray(GOOD))),
        ("npy", saved(GOOD.astype(">f4"))),
        ("npy", saved(GOOD.astype(np.float16))),
        ("npz", archive(("x.npy", saved(np.zeros((1000, 13), np.float32))))),
    ):
        (tmp_path / f"x.{suffix}").write_bytes(data)
        assert archc("run", network, "--input", tmp_path / f"x.{suffix}")[0] == 0
    assert read_arrays(tmp_path / "x.npy")[""].flags.writeable
    for other in (np.complex64, "S3", "M8[s]", [("a", "f4")], np.float64, np.int64, bool):
        (tmp_path / "x.npy").write_bytes(saved(np.zeros((2, 13), other)))
        code, _, told = archc("run", network, "--input", tmp_path / "x.npy")
        assert (code, "E0521" in told) == (1, True), told


def test_nothing_is_unpickled(network: Path, tmp_path: Path, archc) -> None:
    canary = tmp_path / "executed"
    held = np.array([Canary(canary)], dtype=object)
    np.save(tmp_path / "object.npy", held, allow_pickle=True)
    np.savez(tmp_path / "object.npz", x=held)
    for name in ("pickle.npy", "pickle.npz", "w.safetensors", "net.archc", "net.arch"):
        (tmp_path / name).write_bytes(pickle.dumps(Canary(canary)))
    commands = [("run", network, "--input", tmp_path / f"{n}") for n in ("object.npy", "object.npz", "pickle.npy")]
    commands += [("run", network, "--input", tmp_path / "pickle.npz"), ("run", tmp_path / "net.archc", "--input", "x")]
    commands += [("check", tmp_path / "net.arch"), ("verify", network, "--weights", tmp_path / "w.safetensors")]
    commands += [("train", tmp_path / "net.arch", "--task", f"npz:{tmp_path / 'object.npz'}", "-o", tmp_path / "o")]
    for command in commands:
        assert archc(*command)[0] in (1, 2), command
    assert not canary.exists()
    pickle.loads((tmp_path / "net.archc").read_bytes())
    assert canary.exists(), "the control: it works"


def test_a_member_that_leads_elsewhere_is_a_name(network: Path, tmp_path: Path, archc) -> None:
    for name in ("../../evil", "/tmp/evil", "a/../../evil"):
        (tmp_path / "x.npz").write_bytes(archive((f"{name}.npy", saved(GOOD))))
        code, _, told = archc("run", network, "--input", tmp_path / "x.npz")
        assert (code, "E0520" in told) == (1, True)
    assert tree(tmp_path) == [str(tmp_path / "x.npz")]


def png(width: int, height: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_hostile_pictures(tmp_path: Path, archc) -> None:
    prepared = Preprocessing(kind="image", size=4, channels=3, labels=("a", "b"))
    arrays = {"linear.weight": np.zeros((2, 48), np.float32), "linear.bias": np.zeros(2, np.float32)}
    weights = Weights(arrays, {"archc.preprocessing": prepared.model_dump_json()})
    network = tmp_path / "net.archc"
    build(loads(PICTURE), network, weights=weights, threads=1)
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
    hostile = {
        "huge.png": png(50_000, 50_000),
        "larger.png": png(2**31 - 1, 2**31 - 1),
        "truncated.png": png(900, 900, bytes(99)),
        "none.png": png(0, 0),
        "text.png": png(4, 4, bytes(52), b"a\0\0" + zlib.compress(bytes(99_000_000))),
        "huge.gif": gif,
        "huge.bmp": bmp,
        "huge.ppm": b"P6 100000 100000 255\n",
        "comment.ppm": b"P6 #" + b"a" * 50_000_000,
        "written.ppm": b"P3 2 2 255\n" + b"1 " * 12,
        "picture.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n(rm) system\n",
    }
    for name, data in hostile.items():
        (tmp_path / name).write_bytes(data)
        code, _, told = archc("run", network, "--input", tmp_path / name)
        assert (code, "error[E0612]" in told) == (1, True), (name, told)
    (tmp_path / "sound.png").write_bytes(png(5, 4, b"\0" * 64))
    (tmp_path / "sound.ppm").write_bytes(b"P6\n# a comment\n2 2 255\n" + bytes(12))
    for name in ("sound.png", "sound.ppm"):
        assert archc("run", network, "--input", tmp_path / name)[0] == 0


@pytest.mark.parametrize("suffix", ["npy", "npz", "txt", "png", "archc", "arch", "safetensors"])
def test_what_is_no_file_is_not_waited_for(suffix: str, network: Path, tmp_path: Path, archc) -> None:
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / f"endless.{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"folder.{suffix}").mkdir()
    (tmp_path / f"loop.{suffix}").symlink_to(tmp_path / f"loop.{suffix}")
    (tmp_path / "net.arch").write_text(PICTURE)
    for name in ("pipe", "endless", "folder", "loop", "missing"):
        path = tmp_path / f"{name}.{suffix}"
        commands = {
            "archc": [("run", path, "--input", "x.npy"), ("verify", path)],
            "arch": [("check", path), ("fmt", path)],
            "safetensors": [("compile", tmp_path / "net.arch", "--weights", path, "-o", tmp_path / "o.archc")],
        }.get(suffix, [("run", network, "--input", path)])
        for command in commands:
            code, _, told = archc(*command)
            assert (code in (1, 2), told.startswith("error[E") or "\nerror[E" in told) == (True, True), told


def test_a_sparse_file_takes_no_memory(tmp_path: Path, network: Path, archc) -> None:
    for name, head in (("x.npy", claims(f"({2 * 10**9}, 13)")), ("x.npz", b"PK"), ("w.safetensors", b"")):
        with (tmp_path / name).open("wb") as file:
            file.write(head)
            file.truncate(110 * 10**9)
    assert archc("run", network, "--input", tmp_path / "x.npy")[0] == 1
    assert archc("run", network, "--input", tmp_path / "x.npz")[0] == 1
    assert archc("verify", network, "--weights", tmp_path / "w.safetensors")[0] == 1


# Places to write to


def test_devices_pipes_and_folders_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    os.symlink("/dev/null", tmp_path / "device")
    for name in ("pipe", "folder", "device"):
        before = (tmp_path / name).stat()
        with pytest.raises(CompileError, match="E0608"):
            write_weights(tmp_path / name, {"a": np.zeros(2)})
        assert (tmp_path / name).stat().st_mode == before.st_mode
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["device", "folder", "pipe"]


def test_the_formatter_keeps_links_and_modes(tmp_path: Path, archc) -> None:
    inner, link = tmp_path / "inner", tmp_path / "link.arch"
    inner.mkdir()
    file = inner / "net.arch"
    file.write_text("def  a =  relu")
    file.chmod(0o600)
    link.symlink_to(file)
    assert archc("fmt", link)[0] == 0
    assert (link.is_symlink(), file.read_text(), file.stat().st_mode & 0o777) == (True, "def a = relu\n", 0o600)
    assert tree(tmp_path) == [str(inner), str(file), str(link)]
    file.write_text("def a = ")
    assert archc("fmt", link)[0] == 1
    assert file.read_text() == "def a = ", "a program with a mistake is left as it is"


def test_long_and_odd_names(tmp_path: Path) -> None:
    for name in ("a" * 243 + ".safetensors", "é" * 127, os.fsdecode(b"\xff\xfe"), ".hidden", "a b\n"):
        with atomic_file(tmp_path / name) as temporary:
            temporary.write_bytes(b"new")
        assert (tmp_path / name).read_bytes() == b"new"
        (tmp_path / name).unlink()
    assert os.listdir(tmp_path) == []
    with pytest.raises(CompileError, match="E0608"), atomic_file(tmp_path / ("a" * 256)) as temporary:
        temporary.write_bytes(b"new")


def test_reading_arrays_says_whether_there_was_a_file(tmp_path: Path) -> None:
    with pytest.raises(Unreadable) as caught:
        read_arrays(tmp_path / "x.npy")
    assert caught.value.missing
