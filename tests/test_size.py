"""Finding the picture size an architecture can read."""

from __future__ import annotations

import pytest
import torch

from sftc.errors import Refused
from sftc.models import hub_timm, hub_torchvision, size

TIMM, TV = hub_timm, hub_torchvision


@pytest.mark.parametrize(
    ("source", "name", "wanted", "data", "side"),
    [
        (TIMM, "test_resnet", "auto", 28, 28),
        (TIMM, "test_resnet", "auto", 5, 8),
        (TIMM, "test_resnet", "min", 28, 8),
        (TIMM, "test_vit", "auto", 28, 32),
        (TIMM, "test_vit", "min", 28, 16),
        (TIMM, "test_vit", "auto", 33, 48),
        (TIMM, "vit_tiny_patch16_224", "auto", 28, 32),
        (TIMM, "vit_small_patch14_dinov2", "auto", 29, 42),
        (TIMM, "vit_small_patch14_dinov2", "min", 29, 14),
        (TIMM, "vgg16", "auto", 28, 32),
        (TIMM, "vgg16", "min", 64, 32),
        (TV, "alexnet", "auto", 28, 63),
        (TV, "vit_b_32", "auto", 20, 32),
    ],
)
def test_size(source, name, wanted, data, side):
    assert size.fit(source, name, {}, wanted, (data, data)) == (side, side)


@pytest.mark.slow
@pytest.mark.parametrize("source", [TIMM, TV])
def test_inception_needs_75(source):
    assert size.fit(source, "inception_v3", {}, "min", (28, 28)) == (75, 75)
    assert size.fit(source, "inception_v3", {}, "auto", (28, 28)) == (75, 75)
    assert size.fit(source, "inception_v3", {}, "auto", (80, 80)) == (80, 80)


def test_a_size_asked_for_must_fit_and_the_nearest_is_named():
    assert size.fit(TIMM, "test_vit", {}, (64, 64), (28, 28)) == (64, 64)
    with pytest.raises(Refused, match="input_size=28 is not a size test_vit can read; 32 is"):
        size.fit(TIMM, "test_vit", {}, (28, 28), (28, 28))


def test_pictures_that_are_not_square():
    assert size.fit(TIMM, "test_resnet", {}, "auto", (20, 40)) == (20, 40)
    assert size.fit(TIMM, "test_vit", {}, "auto", (20, 40)) == (48, 48)


def test_looking_for_it_draws_no_random_number():
    before = torch.get_rng_state()
    size._found.clear()
    size.fit(TIMM, "test_vit", {}, "auto", (28, 28))
    size.fit(TV, "regnet_y_400mf", {}, "min", (28, 28))  # computes while it is built
    assert torch.equal(before, torch.get_rng_state())


def test_found_once_it_is_remembered(monkeypatch):
    size.fit(TIMM, "test_vit", {}, "auto", (28, 28))
    monkeypatch.setattr(size, "smallest", None)
    assert size.fit(TIMM, "test_vit", {}, "auto", (28, 28)) == (32, 32)


def test_halving_ends_at_the_smallest():
    assert size.smallest(lambda h, w: h >= 75, 10, 299) == 75
    assert size.smallest(lambda h, w: h >= 75 and h % 2 == 0, 300, 299) == 300
    with pytest.raises(Refused):
        size.smallest(lambda h, w: False, 10, 299)
