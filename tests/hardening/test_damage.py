"""A flipped byte, wherever it is: its code, and never other numbers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from archc.backends.cache import Cache
from archc.backends.torch.training import Recipe, load_task, train
from archc.backends.weights import DIGEST, read_weights, serialise, write_weights
from archc.facade.model import loads
from archc.facade.train import checkpoint_path
from archc.ir.diagnostics import CompileError

MLP = """\
arch mlp

input  x: f32[N, 13]
output y: f32[N, 3]

y = x -> linear(8) -> relu -> linear(3)
"""
ARRAYS = {
    "linear.weight": np.random.default_rng(0).standard_normal((8, 13), dtype=np.float32),
    "linear.bias": np.arange(8, dtype=np.float32),
    "linear1.weight": np.ones((3, 8), np.float32),
    "linear1.bias": np.zeros(3, np.float32),
}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << place % 8
    path.write_bytes(data)


def test_no_flipped_bit_changes_weights_or_metadata(tmp_path: Path) -> None:
    """Only the digest's own name may be flipped in silence: the file then says nothing of itself, and is whole."""
    data, path = serialise(ARRAYS, {"note": "0.5"}), tmp_path / "w.safetensors"
    name = range(data.index(DIGEST.encode()), data.index(DIGEST.encode()) + len(DIGEST))
    places = {*range(400), *random.Random(0).sample(range(len(data)), 300)}
    for place in sorted(places):
        path.write_bytes(data)
        flip(path, place)
        if place not in name:
            with pytest.raises(CompileError) as caught:
                read_weights(path)
            assert caught.value.diagnostics[0].code == "E0602", place
    path.write_bytes(data)
    assert read_weights(path).metadata == {"note": "0.5"}


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_no_flipped_bit_passes_in_a_checkpoint_or_the_cache(tmp_path: Path, compiled, count: int) -> None:
    """An entry of the cache is removed, with a warning, and built again."""
    from archc.backends.cache import cache_key

    model, task, state = loads(MLP), load_task("wine"), tmp_path / "w.checkpoint.safetensors"
    recipe = Recipe.for_task(task.defaults, epochs=2)
    train(model.to_torch(None, 0), task, recipe, checkpoint=state, stop_after_epoch=1)
    data = state.read_bytes()
    name = range(data.index(DIGEST.encode()), data.index(DIGEST.encode()) + len(DIGEST))
    for place in sorted(random.Random(1).sample(range(len(data)), count)):
        state.write_bytes(data)
        flip(state, place)
        if place not in name:
            with pytest.raises(CompileError) as caught:
                train(model.to_torch(None, 0), task, recipe, checkpoint=state, resume=True)
            assert caught.value.diagnostics[0].code == "E0602", place

    source = compiled(MLP)
    (tmp_path / "cache").mkdir(mode=0o700)
    cache, key = Cache(tmp_path / "cache"), cache_key(graph="a")
    built: list[Path] = []

    def build(path: Path) -> None:
        built.append(path)
        path.write_bytes(source.read_bytes())

    entry = cache.get_or_build(key, build)
    sound = entry.read_bytes()
    for place in sorted(random.Random(2).sample(range(len(sound)), count)):
        flip(entry, place)
        with pytest.warns(UserWarning, match="damaged"):
            assert cache.get_or_build(key, build).read_bytes() == sound
    assert len(built) == count + 1


def test_other_programs_write_no_digest_and_a_stale_one_is_told(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_weights(ours, ARRAYS, {"k": "v"})
    with safe_open(ours, "np") as file:
        metadata = file.metadata()
    changed = {**ARRAYS, "linear.bias": np.zeros(8, np.float32)}
    save_file(changed, theirs, metadata)
    with pytest.raises(CompileError, match="E0602") as caught:
        read_weights(theirs)
    assert DIGEST in str(caught.value.diagnostics[0].help)
    save_file(changed, theirs, {"k": "v"})
    assert not read_weights(theirs).arrays["linear.bias"].any()


def test_commands_name_the_damaged_file(tmp_path: Path, archc, compiled) -> None:
    net, x, out = tmp_path / "net.arch", tmp_path / "x.npy", tmp_path / "out.safetensors"
    net.write_text(MLP, encoding="utf-8")
    np.save(x, np.zeros((1, 13), np.float32))
    artifact, weights, state = compiled(MLP), tmp_path / "w.safetensors", checkpoint_path(out)
    write_weights(weights, ARRAYS)
    options = ["--epochs", "2", "--threads", "1", "--quiet"]
    model, task = loads(MLP), load_task("wine")
    recipe = Recipe.for_task(task.defaults, epochs=2)
    train(model.to_torch(None, 0), task, recipe, checkpoint=state, stop_after_epoch=1)
    commands = {
        artifact: ("E0511", ["run", artifact, "--input", x]),
        weights: ("E0602", ["compile", net, "--weights", weights, "-o", tmp_path / "o.archc", "--threads", 1]),
        state: ("E0602", ["train", net, "--task", "wine", "-o", out, "--resume", *options]),
    }
    for file, (code, command) in commands.items():
        sound = file.read_bytes()
        flip(file, len(sound) - 20)  # a weight, a byte of a trained state: sizes and header stay right
        ended, _, told = archc(*command)
        assert (ended, code in told, str(file) in told) == (1, True, True), told
        file.write_bytes(sound)
        assert archc(*command)[0] == 0, file


def test_the_cache_repairs_itself(tmp_path: Path, archc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHC_CACHE", str(tmp_path / "cache"))
    net, out = tmp_path / "net.arch", tmp_path / "o.archc"
    net.write_text(MLP, encoding="utf-8")
    command = ("compile", net, "-o", out, "--threads", 1)
    assert archc(*command)[0] == 0
    sound = out.read_bytes()
    (entry,) = Cache().entries()
    flip(entry.path, entry.bytes // 2)
    assert archc("cache", "verify")[0] == 1
    assert archc("cache", "verify")[0] == 0
    assert archc(*command)[0] == 0
    flip(entry.path, entry.bytes // 2)
    with pytest.warns(UserWarning, match="damaged"):
        assert archc(*command)[0] == 0
    assert out.read_bytes() == entry.path.read_bytes() == sound
