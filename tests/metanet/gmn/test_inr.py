"""Implicit representations of digits: fitted, varied, classified and edited."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from archc.grammar.load import loads
from archc.metanet.gmn import inr, inr_tasks
from archc.metanet.gmn.equivariance import deviation
from archc.metanet.gmn.model import GmnConfig
from archc.metanet.gmn.stacked import Stack

SMALL = inr.InrConfig(views=1, images=20, steps=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inr")
    inr.grow_inrs(path, SMALL, lambda line: None)
    return path


def _tensors(inrs: inr.Inrs) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(np.array(w)) for n, w in inrs.weights.items()}


def test_networks_show_their_images(folder: Path) -> None:
    found = inr.read_inrs(folder, "train")
    assert len(found) == 20
    assert found.psnr.min() > 20
    shown = inr.rendered(Stack(loads(inr.TEXT)), _tensors(found))
    error = (shown - inr.pictures("train")[0][:20]).square().mean((1, 2))
    np.testing.assert_allclose(-10 * error.detach().log10().numpy(), found.psnr, rtol=1e-3)


def test_orders_and_signs_keep_the_picture_and_moves_do_not(folder: Path) -> None:
    weights, stack = _tensors(inr.read_inrs(folder, "train")), Stack(loads(inr.TEXT))
    before = inr.rendered(stack, weights).detach()
    same = inr.augmented(weights, torch.Generator().manual_seed(0), moves=False)
    assert not torch.equal(same["linear1.weight"], weights["linear1.weight"])
    torch.testing.assert_close(inr.rendered(stack, same).detach(), before, atol=1e-4, rtol=1e-3)
    moved = inr.augmented(weights, torch.Generator().manual_seed(0), orders=False, signs=False)
    assert float((inr.rendered(stack, moved) - before).detach().abs().max()) > 0.1


@pytest.mark.parametrize("aim", ["classify", "edit"])
def test_training_lowers_the_loss_and_stays_equivariant(folder: Path, aim: inr_tasks.Aim) -> None:
    torch.manual_seed(0)
    model = inr_tasks.OnGraphs(aim, GmnConfig(nodes=16, edges=8, rounds=2))
    found = inr.read_inrs(folder, "train")
    recipe = inr_tasks.Recipe(steps=40, batch=8, lr=1e-2)
    losses = inr_tasks.train(aim, model, found, recipe)
    assert np.mean(losses[-8:]) < np.mean(losses[:8])
    weights = {n: w[0] for n, w in found.weights.items()}
    measured = deviation(model.gmn, model.collator, model.graph, weights, seed=3)
    assert measured.change + measured.said < 1e-5 < measured.moved
    if aim == "edit":
        after = inr_tasks.judge(aim, model, found, "train")
        assert after.mean() < inr_tasks.judge(aim, None, found, "train").mean()
