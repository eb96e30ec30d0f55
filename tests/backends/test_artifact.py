"""Artifacts: equal bytes for equal input, every flipped byte found, hostile files refused, and what was stored runs."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors

from archc.backends import artifact as container
from archc.backends.artifact import Port, dim_value, is_artifact, open_artifact, read_manifest, write_artifact
from archc.backends.runtime import load
from archc.ir.diagnostics import CompileError

RUN = """
from archc.backends.runtime import load; import numpy as np
print(load("{path}")(np.ones((1, 64), "f")).shape)
"""
X = np.random.default_rng(1).standard_normal((5, 64), dtype=np.float32)


def refused(code: str, action: Callable[..., Any], *args: Any, exit_code: int = 1, **options: Any) -> str:
    """The message of the one diagnostic that `action` must end in."""
    with pytest.raises(CompileError) as caught:
        action(*args, **options)
    first = caught.value.diagnostics[0]
    assert (first.code, caught.value.exit_code) == (code, exit_code), caught.value
    return f"{first.message} {first.label} {first.help}"


def forge(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of an artifact whose manifest was changed by someone who can compute SHA-256."""
    data = path.read_bytes()
    _, version, length, _ = container._HEADER.unpack_from(data)
    manifest = json.loads(data[56 : 56 + length])
    sections = bytes(open_artifact(path)._buffer)[-(-(56 + length) // 64) * 64 :]
    change(manifest)
    text = json.dumps(manifest).encode()
    body = text + bytes(-(56 + len(text)) % 64) + sections
    header = container._HEADER.pack(container.MAGIC, version, len(text), 56 + len(body))
    forged = path.with_name("forged.archc")
    forged.write_bytes(header + bytes.fromhex(container._sha256([header, text])) + body)
    return forged


def test_equal_input_gives_equal_bytes(compile_relax: Any, mlp: Any, mlp_path: Path) -> None:
    for _ in range(8):  # TVM's own order of computing sizes differs about once in nine
        again = compile_relax(mlp.module(), mlp.facts(), source="arch mlp")
        assert again.read_bytes() == mlp_path.read_bytes()
    other = compile_relax(mlp.module(), mlp.facts(weights_origin="file"), source="arch mlp")
    assert other.read_bytes() != mlp_path.read_bytes()


def test_it_says_what_it_is(mlp_path: Path, tmp_path: Path) -> None:
    manifest = read_manifest(mlp_path)
    assert manifest.seed_initialised
    assert [str(p) for p in manifest.inputs + manifest.outputs] == ["x: f32[N, 64]", "y: f32[N, 10]"]
    assert manifest.toolchain["tvm"].startswith("0.27")
    opened = open_artifact(mlp_path)
    assert opened.source == "arch mlp"
    assert {k["name"] for k in opened.report["kernels"]} >= {"fused_matmul_add_relu"}
    assert str(tmp_path).encode() not in mlp_path.read_bytes(), "no path reaches the file"
    assert is_artifact(mlp_path)
    assert not is_artifact(tmp_path / "nothing")


def test_weights_are_safetensors_and_mapped_not_copied(mlp: Any, mlp_path: Path) -> None:
    opened = open_artifact(mlp_path)
    (weight,) = opened.constants()  # the small ones stayed in the code
    stored = load_safetensors(bytes(opened.section("weights")))
    np.testing.assert_array_equal(stored["0"], weight)
    start = np.frombuffer(opened._buffer, np.uint8).ctypes.data
    assert start <= weight.ctypes.data < start + mlp_path.stat().st_size
    assert weight.ctypes.data % 64 == 0
    artifact = load(mlp_path)
    (placed,) = artifact._constants
    mapped = np.from_dlpack(placed).ctypes.data
    whole = np.frombuffer(artifact.container._buffer, np.uint8).ctypes.data
    assert whole <= mapped < whole + mlp_path.stat().st_size


def test_every_flipped_byte_is_found(mlp_path: Path, tmp_path: Path) -> None:
    data = mlp_path.read_bytes()
    opened = open_artifact(mlp_path)
    places = set(range(60)) | {len(data) - 1} | set(random.Random(0).sample(range(len(data)), 300))
    gap = 56 + container._HEADER.unpack_from(data)[2]
    places |= set(range(gap, -(-gap // 64) * 64))  # the zeros between
    broken = tmp_path / "broken.archc"
    for place in sorted(places):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        broken.write_bytes(changed)
        with pytest.raises(CompileError) as caught:
            open_artifact(broken)
        assert caught.value.diagnostics[0].code in {"E0510", "E0511", "E0512"}, place
    broken.write_bytes(data)
    assert open_artifact(broken).digest == opened.digest  # the control: it is the flip that is refused


@pytest.mark.parametrize("length", [0, 1, 7, 8, 23, 24, 55, 56, 57, 500, -1])
def test_truncated_files_are_refused(mlp_path: Path, tmp_path: Path, length: int) -> None:
    cut = tmp_path / "cut.archc"
    cut.write_bytes(mlp_path.read_bytes()[:length])
    refused("E0511" if length else "E0510", load, cut)


def test_a_longer_file_is_refused(mlp_path: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.archc"
    long.write_bytes(mlp_path.read_bytes() + b"\0")
    assert "needed" in refused("E0511", load, long)


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refused("E0509", load, tmp_path / "none.archc", exit_code=2)
    refused("E0509", load, tmp_path)
    os.mkfifo(tmp_path / "pipe")  # would block for ever
    refused("E0509", load, tmp_path / "pipe")
    (tmp_path / "text").write_text("import torch")
    refused("E0510", load, tmp_path / "text")
    for version in (0, 2, 2**32 - 1):
        (tmp_path / "new").write_bytes(struct.pack("<8sIIQ32s", container.MAGIC, version, 2**32 - 1, 2**64 - 1, b""))
        refused("E0512", load, tmp_path / "new")
    (tmp_path / "huge").write_bytes(struct.pack("<8sIIQ32s", container.MAGIC, 1, 2**32 - 1, 56, b""))
    refused("E0511", load, tmp_path / "huge")


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("E0513", lambda m: m.update(surprise=1)),
        ("E0513", lambda m: m.pop("target")),
        ("E0513", lambda m: m["target"].update(kind="tpu")),
        ("E0513", lambda m: m["sections"][0].update(name="../../etc/passwd")),
        ("E0513", lambda m: m["sections"][0].update(length=-64)),
        ("E0513", lambda m: m["sections"][0].update(length=2**70)),
        ("E0513", lambda m: m["sections"].append(m["sections"][0])),
        ("E0513", lambda m: m["sections"].pop(0)),
        ("E0513", lambda m: m["inputs"][0].update(dims=["__import__('os').system('false')"])),
        ("E0513", lambda m: m["inputs"][0].update(dims=["(" * 300])),
        ("E0513", lambda m: m["inputs"][0].update(dims=[-1])),
        ("E0511", lambda m: m["sections"][0].update(length=2**62)),
        ("E0511", lambda m: m["sections"].pop()),
        ("E0511", lambda m: m["sections"].reverse()),
        ("E0511", lambda m: m.update(constants=2**40)),
    ],
)
def test_hostile_manifests_are_refused(mlp_path: Path, code: str, change: Any) -> None:
    refused(code, load, forge(mlp_path, change))


def test_the_forger_of_these_tests_forges_well(mlp_path: Path) -> None:
    forged = forge(mlp_path, lambda m: m.update(name="renamed"))
    assert load(forged).manifest.name == "renamed"


def test_foreign_machines_and_devices_exit_with_4(mlp_path: Path) -> None:
    lacks = forge(mlp_path, lambda m: m["target"].update(features=["avx1024"]))
    assert "avx1024" in refused("E0505", load, lacks, exit_code=4)
    foreign = forge(mlp_path, lambda m: m["target"].update(triple="riscv64-linux-gnu"))
    assert "riscv64" in refused("E0505", load, foreign, exit_code=4)
    assert "0.26" in refused("E0515", load, forge(mlp_path, lambda m: m["toolchain"].update(tvm="0.26.0")), exit_code=4)
    refused("E0508", load, mlp_path, device="cuda", exit_code=4)


def test_a_failed_write_leaves_the_old_file(mlp: Any, tmp_path: Path, mlp_path: Path) -> None:
    target = read_manifest(mlp_path).target
    options: dict[str, Any] = {"facts": mlp.facts(), "target": target, "code": "shared", "toolchain": {}}
    path = tmp_path / "a.archc"
    write_artifact(path, library=b"old", **options)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_artifact(path, library=b"new", report={"unserialisable": object()}, **options)
    assert path.read_bytes() == before
    write_artifact(path, library=b"new", **options)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["a.archc"]


def test_unaligned_constants_are_stored_last_and_still_read(mlp: Any, mlp_path: Path, tmp_path: Path) -> None:
    import ml_dtypes

    constants = [
        np.arange(3, dtype=np.float32),
        np.arange(32, dtype=np.float64),
        np.ones((2, 2), bool),
        np.arange(5).astype(ml_dtypes.bfloat16),
        np.float32(3).reshape(()),
    ]
    path = tmp_path / "a.archc"
    target = read_manifest(mlp_path).target
    write_artifact(
        path, facts=mlp.facts(), target=target, code="shared", toolchain={}, library=b"", constants=constants
    )
    for stored, constant in zip(open_artifact(path).constants(), constants, strict=True):
        assert (stored.dtype, stored.shape) == (constant.dtype, constant.shape)
        np.testing.assert_array_equal(stored, constant)


@pytest.mark.parametrize(("text", "value"), [("N", 3), ("2*N + 1", 7), ("(N + 1)//2", 2), ("-N % 2", 1), ("M", None)])
def test_dimensions(text: str, value: int | None) -> None:
    assert dim_value(text, {"N": 3}) == value


@pytest.mark.parametrize("text", ["", "N.x", "f(N)", "N**9", "N if N else 1", "[1]", "'a'", "1 << 99"])
def test_a_dimension_is_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a dimension"):
        Port(name="x", dtype="f32", dims=(text,))


# running


def test_it_computes_what_the_module_says(mlp: Any, mlp_path: Path) -> None:
    artifact = load(mlp_path)
    for batch in (1, 5, 33):
        x = np.random.default_rng(batch).standard_normal((batch, 64), dtype=np.float32)
        np.testing.assert_allclose(artifact(x), mlp.reference(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(artifact.run({"x": X})["y"], artifact(x=X))


def test_any_memory_layout_is_taken(mlp: Any, mlp_path: Path) -> None:
    artifact = load(mlp_path)
    wanted = artifact(X)
    wide = np.zeros((5, 65), np.float32)
    wide[:, 1:] = X
    frozen = X.copy()
    frozen.flags.writeable = False
    for same in (wide[:, 1:], np.asfortranarray(X), X.astype(">f4"), X.astype(np.float32)[::1], frozen):
        np.testing.assert_array_equal(artifact(same), wanted)
    np.testing.assert_array_equal(artifact(np.repeat(X, 2, 0)[::2]), wanted)
    np.testing.assert_array_equal(artifact(X[::-1])[::-1], wanted)
    assert artifact(X[:0]).shape == (0, 10)
    half = X.astype(np.float16)  # widened in silence: nothing is lost
    np.testing.assert_array_equal(artifact(half), artifact(half.astype(np.float32)))


def test_outputs_belong_to_the_caller(mlp_path: Path) -> None:
    artifact = load(mlp_path)
    first = artifact(X)
    kept = first.copy()
    artifact(X * 2)
    np.testing.assert_array_equal(first, kept)
    first[...] = 0
    np.testing.assert_array_equal(artifact(X), kept)


@pytest.mark.parametrize(
    ("code", "inputs", "said"),
    [
        ("E0520", {}, "x: f32[N, 64]"),
        ("E0520", {"xx": X}, "did you mean `x`?"),
        ("E0521", {"x": X.astype(np.float64)}, "x.astype('float32')"),
        ("E0521", {"x": X.astype(np.int8)}, "found int8"),
        ("E0521", {"x": X.astype(np.complex64)}, "found complex64"),
        ("E0521", {"x": [["a"]]}, "needs dtype float32"),
        ("E0522", {"x": X[0]}, "x[None]"),
        ("E0522", {"x": X[:, :63]}, "needs 64 of [N, 64]; found 63"),
    ],
)
def test_wrong_inputs_are_explained(mlp_path: Path, code: str, inputs: dict[str, Any], said: str) -> None:
    assert said in refused(code, load(mlp_path).run, inputs)


def two_inputs() -> Any:
    from archc.backends.tvm.load import tvm

    relax = tvm.relax
    builder = relax.BlockBuilder()
    n = tvm.tirx.Var("N", "int64")
    x, y = (relax.Var(name, relax.TensorType(dims, "float32")) for name, dims in (("x", (n, 4)), ("y", (2 * n + 1, 4))))
    with builder.function("main", [x, y]):
        builder.emit_func_output(relax.Tuple([builder.emit(relax.op.concat([x, y])), x]))
    return builder.get()


def test_symbols_hold_across_inputs_and_outputs_may_be_inputs(compile_relax: Any, mlp: Any) -> None:
    ports = {
        "inputs": (Port(name="x", dtype="f32", dims=("N", 4)), Port(name="y", dtype="f32", dims=("2*N + 1", 4))),
        "outputs": (Port(name="both", dtype="f32", dims=("3*N + 1", 4)), Port(name="same", dtype="f32", dims=("N", 4))),
    }
    artifact = load(compile_relax(two_inputs(), mlp.facts(name="two", **ports)))
    x, y = np.ones((2, 4), np.float32), np.zeros((5, 4), np.float32)
    both, same = artifact(x, y)
    np.testing.assert_array_equal(both, np.concatenate([x, y]))
    same[...] = 7  # not the caller's x
    assert x.max() == 1
    assert "needs 2*N + 1 = 5; found 4" in refused("E0522", artifact.run, {"x": x, "y": y[:4]})
    with pytest.raises(CompileError) as caught:
        artifact.run({"x": x[0], "z": y})
    assert [d.code for d in caught.value.diagnostics] == ["E0520", "E0522", "E0520"]
    assert "given twice" in refused("E0520", artifact, x, y, x=x)
    assert "found 3" in refused("E0520", artifact, x, y, x)


def test_bfloat16_and_bool_pass(compile_relax: Any, mlp: Any) -> None:
    import ml_dtypes

    from archc.backends.tvm.load import tvm

    relax = tvm.relax
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((3,), "bfloat16"))
    c = relax.Var("c", relax.TensorType((3,), "bool"))
    with builder.function("main", [x, c]):
        builder.emit_func_output(relax.Tuple([builder.emit(relax.op.add(x, x)), builder.emit(relax.op.logical_not(c))]))
    ports = {
        "inputs": (Port(name="x", dtype="bf16", dims=(3,)), Port(name="c", dtype="bool", dims=(3,))),
        "outputs": (Port(name="y", dtype="bf16", dims=(3,)), Port(name="d", dtype="bool", dims=(3,))),
    }
    artifact = load(compile_relax(builder.get(), mlp.facts(name="kinds", **ports)))
    y, d = artifact(np.array([1, 2, 3], ml_dtypes.bfloat16), np.array([True, False, True]))
    assert y.dtype == ml_dtypes.bfloat16
    assert y.astype(float).tolist() == [2, 4, 6]
    assert d.tolist() == [False, True, False]


def test_torch_tensors_in_torch_tensors_out(mlp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    artifact = load(mlp_path)
    y = artifact(torch.from_numpy(X).requires_grad_())
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), artifact(X))
    np.testing.assert_array_equal(artifact(torch.from_numpy(X.T.copy()).T).numpy(), artifact(X))
    assert "found float64" in refused("E0521", artifact, torch.from_numpy(X).double())


def test_loading_imports_neither_tvm_nor_torch(mlp_path: Path) -> None:
    code = f"""
import sys, numpy as np
from archc.backends.runtime import load
print(load({str(mlp_path)!r})(np.ones((1, 64), np.float32)).shape)
print(sorted({{"tvm", "torch", "lark", "matplotlib", "archc.grammar"}} & set(sys.modules)))
import torch, tvm  # and they can still be imported, in this order
print(torch.ones(2).sum().item(), load({str(mlp_path)!r})(np.ones((2, 64), np.float32)).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(1, 10)", "[]", "2.0 (2, 10)"]


def test_threads_call_side_by_side(mlp_path: Path) -> None:
    artifact = load(mlp_path, threads=2)
    inputs = [np.random.default_rng(i).standard_normal((16, 64), dtype=np.float32) for i in range(6)]
    wanted = [artifact(x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(100) if not np.array_equal(artifact(inputs[i]), wanted[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_child_is_told(mlp_path: Path) -> None:
    code = f"""
import os, sys, numpy as np
from archc.backends.runtime import load
from archc.ir.diagnostics import CompileError
x = np.ones((1, 64), np.float32)
artifact, single = load({str(mlp_path)!r}, threads=2), load({str(mlp_path)!r}, threads=1)
artifact(x)
if os.fork() == 0:
    for stranded in (artifact, load({str(mlp_path)!r}, threads=2)):
        try:
            stranded(x)
        except CompileError as error:
            print(error.diagnostics[0].code, flush=True)
    print(single(x).shape, flush=True)
    os._exit(0)
os.wait()
print(artifact(x).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["E0523", "E0523", "(1, 10)", "(1, 10)"]


def test_a_failing_program_is_a_diagnostic(compile_relax: Any, mlp: Any) -> None:
    lie = mlp.facts(name="lie", inputs=(Port(name="x", dtype="f32", dims=("N", 63)),))
    artifact = load(compile_relax(mlp.module(), lie))
    assert "63" in refused("E0524", artifact, np.ones((1, 63), np.float32))


def test_the_library_is_checked_again_when_it_was_extracted_before(mlp_path: Path, private_cache: Path) -> None:
    wanted = load(mlp_path)(X)
    sha256 = next(s.sha256 for s in read_manifest(mlp_path).sections if s.name == "library")
    extracted = private_cache / "lib" / f"{sha256}.so"
    assert extracted.is_file()
    assert (private_cache / "lib").stat().st_mode & 0o077 == 0
    code = RUN.format(path=mlp_path)
    evil = bytearray(extracted.read_bytes())
    evil[len(evil) // 2] ^= 255
    extracted.unlink()  # not in place: it is mapped into this process
    extracted.write_bytes(evil)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 10)\n"
    assert extracted.read_bytes() == bytes(open_artifact(mlp_path).section("library"))
    np.testing.assert_array_equal(load(mlp_path)(X), wanted)


def test_it_loads_without_a_usable_cache(mlp_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    code = RUN.format(path=mlp_path)
    environment = os.environ | {"ARCHC_CACHE": str(tmp_path / "file")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "(1, 10)\n"


@pytest.mark.parametrize(
    ("shape", "help"),
    [
        ((1, 8, 8), "a batch axis is missing: add it with `x[None]`"),
        ((3, 8, 8), "axis 1 is missing: add it with `x[:, None]`"),
        ((3, 1, 8), None),
        ((8, 8), None),
    ],
)
def test_a_missing_axis_is_added_where_it_fits(shape: tuple[int, ...], help: str | None) -> None:
    from archc.backends.artifact import Port
    from archc.backends.runtime import _shape_problems

    (found,) = _shape_problems(Port(name="x", dtype="f32", dims=("N", 1, 8, 8)), shape, {})
    assert (found.code, found.help) == ("E0522", help)
