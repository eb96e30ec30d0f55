"""compile, run, verify, bench, profile, export: real compilations of a tiny network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import archc as library
from archc.backends.artifact import read_manifest
from archc.backends.preprocessing import Preprocessing
from archc.backends.weights import write_weights
from archc.facade.weights import resolve

X = np.random.default_rng(0).standard_normal((5, 13), np.float32)


def expected(file: Path, x: np.ndarray = X) -> np.ndarray:
    """The network in plain numpy."""
    w = resolve(library.load(file).graph, None).arrays
    hidden = np.maximum(x @ w["linear.weight"].T + w["linear.bias"], 0)
    return hidden @ w["linear1.weight"].T + w["linear1.bias"]


def trained(file: Path, where: Path, preprocessing: Preprocessing | None = None, shift: float = 0.0) -> Path:
    """Weights as `archc train` writes them."""
    arrays = {n: a + np.float32(shift) for n, a in resolve(library.load(file).graph, None).arrays.items()}
    metadata = {"archc.preprocessing": preprocessing.model_dump_json()} if preprocessing else {}
    write_weights(where, arrays, metadata)
    return where


def test_compile_tells_what_it_made(archc, wine, tmp_path):
    ran = archc("compile", wine, "-o", tmp_path / "wine.archc")
    assert ran.code == 0
    assert ran.out.startswith(f"{tmp_path / 'wine.archc'}: wine for ")
    assert "initialised from seed 0" in ran.err
    again = archc("compile", wine, "-o", tmp_path / "again.archc", "--quiet", "--json")
    assert not again.err
    assert again.json["ir_hash"] == library.load(wine).hash
    assert (tmp_path / "again.archc").read_bytes() == (tmp_path / "wine.archc").read_bytes()


def test_run(archc, wine, wine_artifact, tmp_path):
    np.save(tmp_path / "x.npy", X)
    ran = archc("run", wine_artifact, "--input", tmp_path / "x.npy", "-o", tmp_path / "y.npz", "--top-k", 2)
    assert ran.code == 0
    y = np.load(tmp_path / "y.npz")["logits"]
    np.testing.assert_allclose(y, expected(wine), rtol=0, atol=1e-5)
    best = y.argmax(1)
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["x.npy[0]:", "x.npy[1]:"]
    assert [int(line.split()[1]) for line in lines[:5]] == best.tolist()
    np.savez(tmp_path / "x.npz", x=X)
    found = archc("run", wine_artifact, "--input", tmp_path / "x.npz", "--json", "--quiet").json
    np.testing.assert_array_equal(np.float32(found["outputs"]["logits"]["values"]), y)
    assert [len(p["classes"]) for p in found["predictions"]] == [3] * 5


def test_inputs_are_joined_and_named(archc, wine, wine_artifact, tmp_path):
    np.save(tmp_path / "a.npy", X[:2])
    np.save(tmp_path / "b=c.npy", X[2:])
    files = ("--input", f"x={tmp_path / 'a.npy'}", "--input", tmp_path / "b=c.npy")
    assert archc("run", wine_artifact, *files, "-o", tmp_path / "y.npy").code == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected(wine), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "content", "code", "exit_code"),
    [
        ("x.npy", X[:, :12], "E0522", 1),
        ("x.npy", X[0], "E0522", 1),
        ("x.npy", X.astype(np.float64), "E0521", 1),
        ("x.npy", np.array([{"an": "object"}]), "E0525", 1),
        ("x.npy", b"\x93NUMPY and then nothing", "E0525", 1),
        ("x.npz", b"PK not a zip", "E0525", 1),
        ("x.pdf", b"", "E0525", 2),
        ("x.png", b"", "E0525", 1),
        ("x.npy", None, "E0525", 2),
        ("y=x.npy", X, "E0520", 1),
    ],
)
def test_inputs_that_do_not_fit(archc, wine_artifact, tmp_path, monkeypatch, file, content, code, exit_code):
    monkeypatch.chdir(tmp_path)
    path = Path(file.partition("=")[2] or file)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    ran = archc("run", wine_artifact, "--input", file, "--quiet")
    assert (ran.code, f"error[{code}]" in ran.err) == (exit_code, True), ran.err


def test_images_are_prepared_as_in_training(archc, digits, tmp_path):
    from PIL import Image

    preprocessing = Preprocessing(
        kind="image", scale=1 / 16, mean=(0.3,), std=(0.4,), labels=tuple("abcdefghij"), size=8, channels=1
    )
    weights = trained(digits, tmp_path / "w.safetensors", preprocessing)
    out = tmp_path / "digits.archc"
    assert archc("compile", digits, "--weights", weights, "-o", out).code == 0
    raw = np.random.default_rng(1).integers(0, 17, (2, 1, 8, 8)).astype(np.float32)
    for index, image in enumerate(raw):
        Image.fromarray((image[0] * 255 / 16).round().astype(np.uint8)).save(tmp_path / f"{index}.png")
    files = ("--input", tmp_path / "0.png", "--input", tmp_path / "1.png")
    ran = archc("run", out, *files, "--top-k", 1, "-o", tmp_path / "from_images.npz")
    assert ran.code == 0
    assert not ran.err
    np.save(tmp_path / "raw.npy", raw)
    assert archc("run", out, "--input", tmp_path / "raw.npy", "--raw", "-o", tmp_path / "from_arrays.npz").code == 0
    a, b = (np.load(tmp_path / f"from_{kind}.npz")["logits"] for kind in ("images", "arrays"))
    np.testing.assert_allclose(a, b, atol=0.02)  # a PNG holds 8 bits
    labels = [line.split()[1] for line in ran.out.splitlines()[:2]]
    assert labels == ["abcdefghij"[i] for i in a.argmax(1)]
    plain = archc("run", out, "--input", tmp_path / "raw.npy", "-o", tmp_path / "plain.npz")
    assert plain.code == 0
    assert "`--raw` prepares raw data" in plain.err, "arrays that are not prepared are told"
    assert np.abs(np.load(tmp_path / "plain.npz")["logits"] - b).max() > 0.1, "unprepared data give other results"


def test_a_language_model_tells_the_next_characters(archc, tmp_path):
    file = tmp_path / "lm.arch"
    file.write_text("arch lm\ninput t: i64[N, T]\noutput y: f32[N, T, 3]\ny = t -> embedding(3, 3)\n")
    weights = tmp_path / "w.safetensors"
    table = np.array([[0, 9, 0], [0, 0, 9], [9, 0, 0]], np.float32)  # after a comes b, after b c, after c a
    preprocessing = Preprocessing(kind="text", vocabulary="abc")
    write_weights(weights, {"embedding.weight": table}, {"archc.preprocessing": preprocessing.model_dump_json()})
    (tmp_path / "x.txt").write_text("aab")
    assert archc("compile", file, "--weights", weights, "-o", tmp_path / "lm.archc").code == 0
    ran = archc("run", tmp_path / "lm.archc", "--input", tmp_path / "x.txt", "--top-k", 1)
    assert (ran.out, ran.err) == ("x.txt: next 'c' (100.0%)\n", "")
    ran = archc("run", tmp_path / "lm.archc", "--input", tmp_path / "x.txt", "--json")
    assert ran.json["predictions"][0]["classes"][0]["label"] == "c"


def test_a_fixed_batch(archc, wine, tmp_path):
    out = tmp_path / "four.archc"
    assert archc("compile", wine, "-o", out, "--batch", 4).code == 0
    assert read_manifest(out).inputs[0].dims == (4, 13)
    np.save(tmp_path / "x.npy", X)
    assert archc("run", out, "--input", tmp_path / "x.npy").code == 1
    np.save(tmp_path / "x.npy", X[:4])
    assert archc("run", out, "--input", tmp_path / "x.npy").code == 0


def test_verify_an_architecture_and_an_artifact(archc, wine, wine_artifact):
    ran = archc("verify", wine)
    assert ran.code == 0
    assert "agrees with torch in float64" in ran.out
    found = archc("verify", wine_artifact, "--dim", "N=9", "--json")
    assert (found.code, found.json["ok"], found.json["outputs"][0]["shape"]) == (0, True, [9, 3])
    assert archc("verify", wine_artifact, "--set", "hidden=4").code == 2


def test_verify_needs_the_weights_that_were_compiled(archc, wine, tmp_path):
    weights, others = (trained(wine, tmp_path / f"{s}.safetensors", shift=s) for s in (0.1, 0.2))
    out = tmp_path / "wine.archc"
    assert archc("compile", wine, "-o", out, "--weights", weights).code == 0
    assert "E0517" in archc("verify", out).err
    assert "E0517" in archc("verify", out, "--weights", others).err
    assert archc("verify", out, "--weights", weights).code == 0


def test_wrong_weights(archc, wine, digits, tmp_path):
    weights = trained(digits, tmp_path / "w.safetensors")
    ran = archc("compile", wine, "-o", tmp_path / "x.archc", "--weights", weights)
    assert ran.code == 1
    assert "E0605" in ran.err  # the same names, other shapes
    assert not (tmp_path / "x.archc").exists()


@pytest.fixture
def wrong_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lowering with a fault, as a bug in archc would be."""
    import tvm

    import archc.backends.tvm.lowerings  # noqa: F401
    from archc.backends.tvm.lower import LOWERINGS

    monkeypatch.setitem(LOWERINGS, "relu", lambda n: tvm.relax.op.add(n.x, n.const(0.01)))


@pytest.mark.usefixtures("wrong_relu")
def test_a_mismatch_is_found_and_located(archc, wine, tmp_path, monkeypatch):
    monkeypatch.setenv("ARCHC_CACHE", str(tmp_path / "cache"))
    ran = archc("verify", wine)
    assert ran.code == 3
    assert "MISMATCH" in ran.out
    assert "the first node that diverges: relu" in ran.out
    assert archc("verify", wine, "--json").json["diverges"] == "relu"
    ran = archc("compile", wine, "-o", tmp_path / "wrong.archc", "--verify")
    assert ran.code == 3
    assert "E0519" in ran.err
    assert "`relu`" in ran.err
    assert not (tmp_path / "wrong.archc").exists()


def test_profile(archc, wine_artifact, tmp_path):
    trace, chart = tmp_path / "t.json", tmp_path / "c.svg"
    ran = archc("profile", wine_artifact, "--trace", trace, "--chart", chart, "--batch", 3)
    assert ran.code == 0
    assert "ms a run" in ran.out
    assert json.loads(trace.read_text())["traceEvents"]
    assert "<svg" in chart.read_text()
    assert archc("profile", wine_artifact, "--json").json["total_ms"] > 0
    assert archc("profile", wine_artifact, "--static", "--json").json["name"] == "wine"
    table = archc("profile", wine_artifact, "--static").out
    assert table.split()[:2] == ["kernel", "code"]
    assert "wine for cpu: library " in table
    assert archc("profile", wine_artifact, "--chart", tmp_path / "c.txt").code == 2


def test_the_static_table_of_cuda_kernels(capsys):
    from archc.cli.build import _tell_facts

    kernel = {"name": "dense", "arch": "sm_90", "registers": 40, "shared_bytes": 1024, "stack_bytes": 0}
    kernel |= {"spill_store_bytes": 8, "spill_load_bytes": 8}
    _tell_facts(
        {"name": "a", "target": {"kind": "cuda"}, "bytes": {"library": 2000}, "kernels": [kernel], "images": ["sm_90"]}
    )
    head, _, row, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == ["kernel", "arch", "registers", "spills", "shared", "memory", "stack"]
    assert row.split() == ["dense", "sm_90", "40", "8", "B", "1,024", "B", "0", "B"]
    assert rest == ["", "machine code for sm_90", "a for cuda: library 2.00 kB"]


def test_bench(archc, wine, wine_artifact):
    turns = ("--rounds", 2, "--seconds", 0.01, "--threads", 1)
    ran = archc("bench", wine, "--against", "torch,onnxruntime", "--batch", 4, "--json", *turns)
    assert ran.code == 0, ran
    ours, *peers = ran.json["timings"]
    assert ran.json["inputs"] == {"x": "float32[4, 13]"}
    assert ours["median_ms"] > 0
    assert [p["runner"] for p in peers] == ["torch", "onnxruntime"]
    assert all(p["difference"] < 1e-5 and p["ratio_low"] <= p["ratio"] <= p["ratio_high"] for p in peers)
    alone = archc("bench", wine_artifact, "--against", "none", *turns)
    assert alone.code == 0
    assert "archc" in alone.out
    assert "torch" not in alone.out


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (("verify", "wine.archc", "--dim", "Q=4"), "E0215", "no input has a dimension `Q`"),
        (("verify", "wine.arch", "--dim", "n=4"), "E0215", "did you mean `N`?"),
        (("verify", "three.archc", "--dim", "N=4"), "E0215", "found x: f32[3, 13]"),
        (("bench", "wine.archc", "--batch", 5, "--dim", "N=3"), "E0516", "cannot be 5 and 3"),
        (("bench", "wine.arch", "--batch", 5, "--dim", "N=3"), "E0516", "cannot be 5 and 3"),
        (("bench", "three.archc", "--batch", 5), "E0516", "its first input is f32[3, 13]"),
        (("bench", "three.archc", "--dim", "N=5"), "E0215", "no input has a dimension `N`"),
        (("profile", "wine.archc", "--dim", "Q=4"), "E0215", "no input has a dimension `Q`"),
        (("profile", "three.archc", "--batch", 2), "E0516", "cannot be set to 2"),
    ],
)
def test_a_size_that_cannot_be_given_is_told(archc, wine, wine_artifact, command, code, told):
    three = wine.with_name("three.archc")
    assert archc("compile", wine, "-o", three, "--batch", 3, "--threads", 1).code == 0
    ran = archc(command[0], wine.with_name(command[1]), *command[2:])
    assert ran.code == 1
    assert f"error[{code}]" in ran.err
    assert told in ran.err
    assert not ran.out
    assert archc("profile", three, "--batch", 3, "--runs", 1).code == 0  # what it has already may be said


def test_a_program_and_its_artifact_are_measured_with_the_same_sizes(archc, tmp_path):
    program, turns = tmp_path / "long.arch", ("--rounds", 2, "--seconds", 0.001, "--against", "none", "--json")
    program.write_text("arch long\ninput x: f32[N, T, 4]\noutput y: f32[N, T, 3]\ny = x -> linear(3)\n")
    assert archc("compile", program, "-o", tmp_path / "long.archc").code == 0
    for file in (program, tmp_path / "long.archc"):
        assert archc("bench", file, "--batch", 5, *turns).json["inputs"] == {"x": "float32[5, 7, 4]"}
        assert archc("bench", file, "--dim", "T=2", *turns).json["inputs"] == {"x": "float32[1, 2, 4]"}


def test_export_source(archc, wine, tmp_path):
    weights = trained(wine, tmp_path / "w.safetensors", shift=0.1)
    out = tmp_path / "wine_net.py"
    ran = archc("export", wine, "--format", "torch", "--weights", weights, "-o", out)
    assert (ran.code, ran.out.strip()) == (0, str(out))
    spec = importlib.util.spec_from_file_location("wine_net", out)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import torch

    found = module.Model().load_weights(str(weights))(torch.from_numpy(X)).detach().numpy()
    ours = library.load(wine).to_torch(weights)(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_array_equal(found, ours)


def test_export_onnx(archc, wine, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "wine.onnx"
    assert archc("export", wine, "--format", "onnx", "-o", out, "--json").json["bytes"] == out.stat().st_size
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": X})[0], expected(wine), rtol=0, atol=1e-5)


def test_unavailable_device(archc, wine_artifact, monkeypatch):
    """An artifact for a CPU that this one is not."""
    monkeypatch.setattr("archc.backends.tvm.targets.host", lambda: ("riscv64", frozenset()))
    ran = archc("run", wine_artifact, "--input", "x.npy")
    assert ran.code == 4
    assert "E0505" in ran.err


def test_a_peer_that_fails_is_told(archc, wine, monkeypatch):
    """A runner that dies does not end the others; exit 4 says that one is missing."""
    monkeypatch.setattr("archc.facade.bench.PEERS", ("torch", "compile", "onnxruntime", "jax"))
    turns = ("--rounds", 2, "--seconds", 0.01, "--threads", 1)
    ran = archc("bench", wine, "--against", "jax", "--json", *turns)
    assert ran.code == 4
    ours, peer = ran.json["timings"]
    assert ours["median_ms"] > 0
    assert "jax" in peer["failure"]
    assert "failed" in archc("bench", wine, "--against", "jax", *turns).out
