"""The first module of every picture model."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftc.errors import Refused
from sftc.models.vision import Prepare, Vision


def test_bytes_are_normalised_as_the_textbook_says():
    pictures = torch.randint(0, 256, (4, 3, 9, 9), dtype=torch.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    right = (pictures / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(Prepare(3, (9, 9), mean, std)(pictures), right, atol=1e-5, rtol=0)


def test_half_and_half_gives_minus_one_to_one():
    out = Prepare(1, (8, 8), [0.5], [0.5])(torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8))
    assert out[0].unique().item() == pytest.approx(-1)
    assert out[1].unique().item() == pytest.approx(1)


def test_floats_in_byte_range_are_treated_as_bytes():
    prepare, pictures = Prepare(3, (8, 8), [0.4], [0.2]), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(prepare(pictures), prepare(pictures.float()))


def test_grey_is_repeated_and_resized_with_antialiasing():
    pictures = torch.randint(0, 256, (2, 1, 40, 40), dtype=torch.uint8)
    out = Prepare(3, (10, 10), [0.5], [0.5])(pictures)
    small = F.interpolate(pictures.float(), (10, 10), mode="bilinear", antialias=True)
    assert out.shape == (2, 3, 10, 10)
    torch.testing.assert_close(out, (small / 127.5 - 1).expand(2, 3, 10, 10), atol=1e-5, rtol=0)


def test_statistics_are_of_the_config_not_of_the_weights():
    assert not Prepare(3, (8, 8), [0.5], [0.5]).state_dict()


def test_a_number_per_channel_or_one():
    with pytest.raises(Refused, match="3 channels"):
        Prepare(3, (8, 8), [0.1, 0.2], [0.5])


def test_channels_last_and_deepcopy():
    model = Vision(Prepare(3, (8, 8), [0.5], [0.5]), nn.Conv2d(3, 2, 8), ["net"], {"pretrained": "no"})
    pictures = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    out = twin(pictures.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(out, model(pictures))
    assert twin.facts == model.facts
    assert twin.facts is not model.facts
