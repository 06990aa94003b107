"""Grouped image operations against one row at a time, and their strengths against torchvision's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from sftc.data import ops


def images(n: int = 40, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_group_gets_the_bits_each_row_gets_alone(channels: int):
    x = images(200, channels)
    u = np.random.default_rng(0).random((200, 4))
    op, value = ops.rand_augment(u, 9, 16, 16)
    op[0, 0], value[0, 0] = ops.NAMES.index("Invert"), 0.0  # the one that only AutoAugment has
    assert len(set(op[:, 0].tolist())) == 15
    together = ops.apply(x, op[:, 0], value[:, 0])
    alone = torch.cat([ops.OPS[ops.NAMES[op[i, 0]]](x[i : i + 1], value[i, 0]) for i in range(200)])
    assert torch.equal(together, alone)
    assert together.dtype == torch.uint8
    assert not torch.equal(together, x)


def test_the_input_is_left_alone():
    x = images()
    before = x.clone()
    ops.apply(x, np.full(40, ops.NAMES.index("Invert")), np.zeros(40))
    assert torch.equal(x, before)
    assert ops.apply(x, np.zeros(40, dtype=int), np.zeros(40)) is x


@pytest.mark.parametrize("op", ops.NAMES)
def test_every_operation_is_torchvisions(op: str):
    x = images(4)
    for m in (0.25, -0.25) if op != "Posterize" else (5.0,):
        m = m * 40 if op in ("Rotate", "TranslateX", "TranslateY") else m
        theirs = v2.RandAugment()._apply_image_or_video_transform(x, op, m, interpolation="nearest", fill={})
        assert torch.equal(ops.OPS[op](x, m), theirs)


def test_strengths_are_torchvisions():
    for bins, space in ((31, v2.RandAugment._AUGMENTATION_SPACE), (10, v2.AutoAugment._AUGMENTATION_SPACE)):
        for name, (scale, signed) in space.items():
            theirs = scale(bins, 32, 24)
            assert signed == (name in ops._SIGNED)
            for i in range(bins):
                want = 0.0 if theirs is None else float(theirs[i])
                assert math.isclose(ops.strength(name, i, bins, 32, 24), want, abs_tol=1e-4)


def test_randaugment_draws_every_operation_and_both_signs():
    op, value = ops.rand_augment(np.random.default_rng(1).random((5000, 4)), 9, 32, 32)
    assert set(op.ravel().tolist()) == set(range(14))
    turns = value[op == ops.NAMES.index("Rotate")]
    assert set(np.round(turns, 6)) == {9.0, -9.0}
    assert not np.signbit(value[value == 0]).any()


def test_autoaugment_follows_the_published_policy():
    u = np.random.default_rng(2).random((30_000, 5))
    op, value = ops.auto_augment(u, "cifar10", 32, 32)
    # (("Invert", 0.1, None), ("Contrast", 0.2, 6)) is the first of 25 sub-policies
    first = u[:, 0] < 1 / 25
    assert (op[first, 0] == ops.NAMES.index("Invert")).mean() == pytest.approx(0.1, abs=0.03)
    contrast = op[first, 1] == ops.NAMES.index("Contrast")
    assert contrast.mean() == pytest.approx(0.2, abs=0.04)
    assert np.abs(value[first, 1][contrast]) == pytest.approx(0.6)
    assert (value[op == 0] == 0).all()
