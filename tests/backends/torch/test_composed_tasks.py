"""Tasks of several digits: labels, and that no source digit stands on two sides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from archc.backends.torch.training import load_task
from archc.backends.torch.training.composed import (
    AddDigitsConfig,
    ComposedConfig,
    MultDigitsConfig,
    TilesConfig,
    four_tiles,
    products,
    sources,
    sums,
)
from archc.backends.torch.training.datasets import stratified_split
from archc.ir.diagnostics import CompileError

CLASSES = load_digits().target


def rows(spec: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    part = load_task(spec).splits[split]
    (x,), y = part.batch(torch.arange(len(part)))
    return x, y


DRAWS = [(AddDigitsConfig(copies=1), sums), (TilesConfig(), four_tiles), (MultDigitsConfig(), products)]


@pytest.mark.parametrize(("config", "draw"), DRAWS)
def test_no_source_digit_stands_on_two_sides(config: ComposedConfig, draw: Callable) -> None:
    def shared(parts: dict[str, np.ndarray]) -> int:
        train, val, test = (set(parts[name].ravel().tolist()) for name in ("train", "val", "test"))
        return len(train & (val | test)) + len(val & test)

    found = {split: digits for split, (digits, _) in sources(config, draw).items()}
    assert shared(found) == 0
    held_out = stratified_split(CLASSES, config.val, config.test, config.seed)
    assert set(found["test"].ravel().tolist()) <= set(held_out["test"].tolist())
    # The control: composed of all digits first and split afterwards, digits do stand on two sides.
    digits, _ = draw(CLASSES, np.random.default_rng(0), 1797)
    assert shared({"train": digits[600:], "val": digits[:300], "test": digits[300:600]}) > 100


def test_labels_are_those_of_the_digits_shown() -> None:
    for digits, labels in sources(AddDigitsConfig(), sums).values():
        assert np.array_equal(CLASSES[digits].sum(1), labels)
    for digits, labels in sources(MultDigitsConfig(), products).values():
        assert np.array_equal(CLASSES[digits].prod(1) % 10, labels)
        assert np.ptp(np.bincount(labels, minlength=10)) <= 1
    for digits, labels in sources(TilesConfig(), four_tiles).values():
        assert [len(set(row)) - 1 for row in CLASSES[digits]] == labels.tolist()
        assert np.bincount(labels).min() > 0.2 * len(labels)
    assert torch.equal(rows("add_digits?modulo=10", "val")[1], rows("add_digits", "val")[1] % 10)


def test_every_digit_is_shown_in_its_channel_or_tile() -> None:
    x, _ = rows("add_digits?noise=0&copies=1", "test")
    assert (x.shape, x.dtype) == ((300, 3, 12, 12), torch.uint8)
    assert float(x.float().amax((2, 3)).min()) > 0.35 * 255  # the least contrast is a half
    x, _ = rows("tiles?noise=0&copies=1", "test")
    assert x.shape == (300, 1, 16, 16)
    quarters = x.unfold(2, 8, 8).unfold(3, 8, 8).flatten(1, 3)
    assert float(quarters.float().amax((2, 3)).min()) > 0.3 * 255
    assert load_task("tiles").labels == ("1", "2", "3", "4")


def test_a_task_is_drawn_from_its_seed_alone() -> None:
    for name in ("add_digits", "mult_digits", "tiles"):
        first, again, other = (load_task(f"{name}?copies=1{seed}") for seed in ("", "&seed=0", "&seed=1"))
        assert first.data_sha256 == again.data_sha256 != other.data_sha256
        assert first.key == again.key


def test_wrong_options() -> None:
    for spec in ("tiles?size=17", "add_digits?modulo=1", "add_digits?copies=0"):
        with pytest.raises(CompileError, match="E0610"):
            load_task(spec)
