"""archc train --nowcast: the model that comes with archc, another, and none."""

from __future__ import annotations

from archc.metanet.store import load

FAST = ("--task", "wine", "--epochs", 40, "--threads", 1, "--quiet")


def test_nowcasting_is_told_and_belongs_to_the_recipe(archc, wine, tmp_path):
    out = tmp_path / "w.safetensors"
    found = archc("train", wine, *FAST, "-o", out, "--nowcast", "--json").json
    assert found["recipe"]["nowcast"] == "nowcast-small"
    assert found["recipe"]["nowcast_sha256"] == load("nowcast-small").sha256
    counts = found["nowcasts"]
    assert counts["kept"] + counts["refused"] == 2  # at steps 50 and 100 of 120
    assert 2 * 2 <= counts["forwards"] <= 2 * 4
    told = archc("train", wine, *FAST, "-o", out, "--nowcast-model", "linear").out
    assert "of 2 jumps kept" in told
    assert "jumps kept" not in archc("train", wine, *FAST, "-o", out).out


def test_wrong_models_are_refused(archc, wine, tmp_path):
    out = tmp_path / "w.safetensors"
    for flags, code in (
        (("--nowcast-model", "nowcast-smal"), "E0801"),
        (("--nowcast-model", wine), "E060"),
        (("--nowcast", "--recipe", "nowcast_ahead=99"), "E0839"),
        (("--nowcast", "--recipe", "nowcast_every=20"), "E0837"),
        (("--recipe", "nowcast_every=50"), "E0617"),
    ):
        ran = archc("train", wine, *FAST, "-o", out, *flags)
        assert ran.code in (1, 2)
        assert code in ran.err
        assert not out.exists()
