"""`archc metanet`: what is listed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from archc.backends.weights import write_weights
from archc.metanet.store import CARD, Card, save


def test_shipped_models_are_listed_with_the_command_that_makes_them(archc) -> None:
    models = {model["name"]: model for model in archc("metanet", "list", "--json").json["models"]}
    assert {"ghn-small", "gmn-zoo", "nowcast-small"} <= models.keys()
    for name, model in models.items():
        assert model["command"].startswith(f"archc metanet train {model['kind']}"), name
        assert Path(model["file"]).stat().st_size < 4e6
        assert name in archc("metanet", "list").out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("eval", "ghn-smal"), "E0801"),
        (("train", "gnn", "-o", "m.safetensors"), "E0803"),
        (("train", "ghn", "-o", "m.safetensors", "--option", "minute=3"), "E0804"),
        (("train", "ghn", "-o", "m.safetensors", "--option", "minutes=-1"), "E0804"),
    ],
)
def test_wrong_words(
    archc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = archc("metanet", *arguments)
    assert ran.code == 1
    assert f"error[{code}]" in ran.err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_metanetwork(archc, tmp_path: Path) -> None:
    plain, spoiled, other = (tmp_path / f"{name}.safetensors" for name in ("plain", "spoiled", "other"))
    write_weights(plain, {"w": np.zeros(3)})
    write_weights(spoiled, {"w": np.zeros(3)}, {CARD: json.dumps({"kind": "ghn"})})
    card = Card(kind="ghn", name="other", config={}, command="archc metanet train ghn", format=99)
    save(other, card, {"w": np.zeros(3)})
    for path in (plain, spoiled, other):
        ran = archc("metanet", "eval", path)
        assert ran.code == 1
        assert "error[E0802]" in ran.err
