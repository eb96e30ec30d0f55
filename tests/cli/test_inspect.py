"""Commands that read architectures."""

from __future__ import annotations

from pathlib import Path


def test_summary(archc, wine):
    ran = archc("summary", wine)
    assert ran.code == 0
    assert "139 parameters" in ran.out  # 13 * 8 + 8 + 8 * 3 + 3
    found = archc("summary", wine, "--json", "--set", "hidden=10").json
    assert found["totals"]["params"] == 13 * 10 + 10 + 10 * 3 + 3
    assert [r["op"] for r in found["rows"]] == ["linear", "relu", "linear"]


def test_hash_and_diff(archc, wine, tmp_path):
    other = tmp_path / "other.arch"
    other.write_text(wine.read_text().replace("hidden", "width"))
    assert archc("hash", wine).out == archc("hash", other).out
    assert archc("diff", wine, other).code == 0
    other.write_text(wine.read_text().replace("relu", "tanh"))
    assert archc("hash", wine).out != archc("hash", other).out
    ran = archc("diff", wine, other)
    assert ran.code == 1
    assert "tanh" in ran.out
    assert archc("diff", wine, other, "--json").json["same"] is False


def test_fmt(archc, wine):
    untidy = "arch   wine( hidden=8 )  # wines\ninput x:f32[N,13]\noutput y:f32[N,3]\ny=x->linear(hidden)->linear(3)\n"
    wine.write_text(untidy)
    assert archc("fmt", wine, "--check").code == 1
    assert wine.read_text() == untidy
    assert archc("fmt", wine).code == 0
    assert "# wines" in wine.read_text()
    assert archc("fmt", wine, "--check").code == 0


def test_ops_and_explain(archc):
    assert "conv" in archc("ops").out
    assert archc("ops", "linear", "--json").json["weights"] == {"weight": "trained", "bias": "trained"}
    assert archc("explain", "e0301").out.startswith("# E0301")


def test_ops_tells_what_the_reference_does(archc):
    """Names of the language's values, the prose, the signature of the example, whole lines."""
    told = archc("ops", "moe").out
    reference = Path("docs/reference.md").read_text()
    for part in ("top_k, normalize = true, capacity = none", "x:f32[x0, x1, x2] -> :f32[x0, x1, o0]", "2292 FLOPs"):
        assert part in told
        assert part in reference
    assert "later rows lose it" in told
    assert 'import "std/ffn.arch" (swiglu_ffn)' in archc("ops", "swiglu_ffn").err
    assert not [line for line in archc("ops").out.splitlines() if line.endswith("…")]


def test_symmetry(archc, wine):
    ran = archc("symmetry", wine, "--json")
    assert ran.code == 0
    assert [c["size"] for c in ran.json["classes"]] == [8]


def test_show(archc, wine, tmp_path):
    out = tmp_path / "wine.svg"
    ran = archc("show", wine, "-o", out)
    assert (ran.code, ran.out.strip()) == (0, str(out))
    assert "<svg" in out.read_text()


def test_examples_are_right(archc):
    files = sorted(Path("examples").glob("*.arch"))
    assert files
    assert archc("check", *files).code == 0
