"""A tiny zoo: two families, an architecture each, made twice, broken, learned from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from archc.backends.weights import read_weights, write_weights
from archc.ir.diagnostics import CompileError
from archc.metanet.gmn.families import FAMILIES, MAX_PARAMETERS, architectures
from archc.metanet.gmn.stacked import Optimiser, Stack, initial_weights
from archc.metanet.gmn.zoo import CARD, ZooConfig, grow, images, read_shard, read_zoo

TINY = ZooConfig(families=("mlp", "kan"), architectures=1, nets=12, steps=20)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    grow(folder, TINY, lambda line: None)
    return folder


def test_families_draw_small_architectures_of_their_own() -> None:
    drawn = [a for family in FAMILIES for a in architectures(family, 2)]
    assert len({a.text for a in drawn}) == len(drawn)
    assert max(a.parameters for a in drawn) <= MAX_PARAMETERS
    assert [a.text for a in architectures("cnn", 2, seed=1)] != [a.text for a in architectures("cnn", 2, seed=0)]


def test_records_are_what_the_weights_do(zoo: Path) -> None:
    """Test accuracy and loss, computed anew with the ordinary module."""
    from archc.backends.torch.module import to_torch

    x, y = images().test
    for net in (read_zoo(zoo)[0], read_zoo(zoo)[-1]):
        with torch.no_grad():
            logits = to_torch(net.architecture.graph, net.weights).eval()(x)
        assert float((logits.argmax(1) == y).float().mean()) == pytest.approx(net.record.test_accuracy, abs=2e-3)
        loss = torch.nn.functional.cross_entropy(logits, y)
        assert float(loss) == pytest.approx(net.record.test_loss, rel=1e-3)


def test_a_zoo_grows_the_same_again_and_only_what_is_missing(zoo: Path, tmp_path: Path) -> None:
    shard = next(zoo.glob("kan0*"))
    kept = {p: p.read_bytes() for p in zoo.glob("*.safetensors")}
    before, _ = read_shard(shard)
    shard.unlink()
    said: list[str] = []
    grow(zoo, TINY, said.append)
    assert [line.split(":")[0] for line in said] == ["kan0"]
    after, _ = read_shard(shard)
    assert after.records == before.records
    for path, data in kept.items():
        if path != shard:
            assert path.read_bytes() == data


def test_nets_of_a_stack_do_not_see_each_other() -> None:
    """One net's step is the same whatever its neighbours are."""
    graph = architectures("mlp", 1)[0].graph
    stack = Stack(graph)
    x = torch.randn(3, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def stepped(seeds: list[int], rows: torch.Tensor) -> torch.Tensor:
        parameters = initial_weights(graph, seeds)
        for p in parameters.values():
            p.requires_grad_()
        optimiser = Optimiser(parameters, torch.ones(len(seeds), dtype=torch.bool), torch.zeros(len(seeds)))
        gradients = torch.autograd.grad(stack(parameters, rows).square().sum(), list(parameters.values()))
        optimiser.step(dict(zip(parameters, gradients, strict=True)), torch.full((len(seeds),), 0.01))
        return parameters["linear.weight"].detach()

    together = stepped([0, 1, 2], x)
    torch.testing.assert_close(together[1], stepped([1], x[1:2])[0])
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("damage", ["flipped", "nan", "cut", "other", "no card", "empty"])
def test_a_damaged_shard_is_told(zoo: Path, tmp_path: Path, damage: str) -> None:
    source = sorted(zoo.glob("*.safetensors"))[0]
    path = tmp_path / source.name
    read = read_weights(source)
    arrays, card = {n: np.array(a) for n, a in read.arrays.items()}, read.metadata[CARD]
    if damage == "flipped":
        data = bytearray(source.read_bytes())
        data[-5] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "nan":
        next(iter(arrays.values())).flat[3] = np.nan
        write_weights(path, arrays, {CARD: card})
    elif damage == "cut":
        write_weights(path, {n: a[1:] for n, a in arrays.items()}, {CARD: card})
    elif damage == "other":
        text = json.loads(card)
        text["text"] = architectures("glu", 1)[0].text
        write_weights(path, arrays, {CARD: json.dumps(text)})
    elif damage == "no card":
        write_weights(path, arrays)
    expected = {"flipped": {"E0602"}, "nan": {"E0812"}, "cut": {"E0831"}, "no card": {"E0831"}, "empty": {"E0831"},
                "other": {"E0603", "E0604", "E0605"}}[damage]  # fmt: skip
    with pytest.raises(CompileError) as caught:
        read_zoo(tmp_path)
    assert {d.code for d in caught.value.diagnostics} <= expected


def test_a_zoo_of_another_configuration_is_not_added_to(zoo: Path) -> None:
    with pytest.raises(CompileError) as caught:
        grow(zoo, TINY.model_copy(update={"steps": 21}), lambda line: None)
    assert caught.value.diagnostics[0].code == "E0831"
