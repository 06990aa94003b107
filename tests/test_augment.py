"""Augmentation: `draw` is a pure table, `apply` a pure function; each operation against a plain reading."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sftc.data.augment import Augment, _stretch, shift_flip
from sftc.errors import Refused

SHAPE = (3, 10, 12)
ROWS = np.arange(40)


def images(n: int = 40, shape=SHAPE) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def run(augment: Augment, n: int = 40, view: int = 0):
    x = images(n)
    draw = augment.draw(0, ROWS[:n], np.full(n, view), SHAPE)
    return x, draw, *augment.apply(x, draw)


def test_crop_and_flip_against_slices():
    x, draw, out, lam = run(Augment(crop=3, flip=0.5))
    offset, flip = draw.tensors["offset"], draw.tensors["flip"]
    for i, padded in enumerate(F.pad(x, (3, 3, 3, 3))):
        top, left = divmod(int(offset[i]), 12 + 6)
        picture = padded.flip(-1) if flip[i] else padded
        assert torch.equal(out[i], picture[:, top : top + 10, left : left + 12])
    assert len(set(offset.tolist())) > 20
    assert 8 < int(flip.sum()) < 32
    assert lam is None


def test_crop_alone_and_flip_alone():
    x, draw, out, _ = run(Augment(flip=1.0))
    assert torch.equal(out, x.flip(-1))
    x, draw, out, _ = run(Augment(crop=2))
    assert int(draw.tensors["offset"].max()) <= 4 * 16 + 4
    middle = torch.full((40,), 2 * 16 + 2)
    assert torch.equal(shift_flip(x, 2, middle, None), x)


def test_flip_share_and_offsets_are_as_asked():
    draw = Augment(crop=2, flip=0.2).draw(0, np.arange(20_000), np.zeros(20_000, dtype=int), SHAPE)
    assert draw.tensors["flip"].float().mean().item() == pytest.approx(0.2, abs=0.01)
    counts = torch.bincount(draw.tensors["offset"] // 16) / 20_000
    assert counts.tolist() == pytest.approx([0.2] * 5, abs=0.01)


def test_an_operation_draws_the_same_with_or_without_the_others():
    alone = Augment(erasing=0.5).draw(0, ROWS, ROWS, SHAPE)
    beside = Augment(erasing=0.5, crop=4, flip=0.5, randaugment=2, cutmix=1.0).draw(0, ROWS, ROWS, SHAPE)
    assert torch.equal(alone.tensors["erase"], beside.tensors["erase"])


def test_views_and_seeds_and_rows_differ():
    augment = Augment(crop=4)
    cells = [(0, 0), (0, 1), (1, 0)]
    offsets = [augment.draw(s, ROWS, np.full(40, v), SHAPE).tensors["offset"].tolist() for s, v in cells]
    assert len({tuple(o) for o in offsets}) == 3


def test_erasing_leaves_a_grey_rectangle():
    x, draw, out, _ = run(Augment(erasing=0.5))
    box = draw.tensors["erase"]
    erased = 0
    for i, (top, bottom, left, right) in enumerate(box.tolist()):
        want = x[i].clone()
        want[:, top:bottom, left:right] = 128
        assert torch.equal(out[i], want)
        assert 0 <= top <= bottom <= 10
        assert 0 <= left < right <= 12
        erased += bottom > top
        assert (bottom - top) * (right - left) <= 0.45 * 120  # a third, and rounding
    assert 8 < erased < 32


def test_mixup_is_the_weighted_mean_with_the_mirrored_row():
    x, _, out, lam = run(Augment(mixup=0.4))
    assert lam is not None
    own = lam.view(-1, 1, 1, 1)
    torch.testing.assert_close(out, own * x.float() + (1 - own) * x.flip(0).float())
    draws = Augment(mixup=0.4).draw(0, np.arange(20_000), np.zeros(20_000, dtype=int), SHAPE).tensors["lam"]
    assert draws.mean().item() == pytest.approx(0.5, abs=0.01)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.005)  # of Beta(a, a)


def test_cutmix_pastes_a_box_and_lam_is_what_is_left():
    x, draw, out, lam = run(Augment(cutmix=1.0))
    assert lam is not None
    assert out.dtype == torch.uint8
    for i, (top, bottom, left, right) in enumerate(draw.tensors["cut"].tolist()):
        want = x[i].clone()
        want[:, top:bottom, left:right] = x[39 - i, :, top:bottom, left:right]
        assert torch.equal(out[i], want)
        assert lam[i].item() == pytest.approx(1 - (bottom - top) * (right - left) / 120)
    assert lam.std() > 0.1


def test_with_both_each_row_takes_one():
    x, draw, out, lam = run(Augment(mixup=1.0, cutmix=1.0))
    assert lam is not None
    blend, cut = draw.tensors["blend"], draw.tensors["cut"]
    cuts = (cut[:, 1] > cut[:, 0]) & (cut[:, 3] > cut[:, 2])
    assert not (cuts & (blend < 1)).any()
    assert 8 < int((blend < 1).sum()) < 32
    rows = (blend < 1).nonzero().view(-1)
    own = lam[rows].view(-1, 1, 1, 1)
    torch.testing.assert_close(out[rows], own * x[rows].float() + (1 - own) * x.flip(0)[rows].float())


def test_resized_crop_reads_the_region():
    x = images(4, (1, 16, 16))
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(4, 4)
    assert torch.equal(_stretch(x, whole), x)
    quarter = torch.tensor([[0.5, 0.0, 0.5, 0.5]]).expand(4, 4)
    part = F.interpolate(x[:, :, 8:, :8].float(), (16, 16), mode="bilinear", align_corners=False)
    assert (_stretch(x, quarter)[:, :, 1:-1, 1:-1].float() - part[:, :, 1:-1, 1:-1]).abs().max() <= 0.5
    draw = Augment(resized_crop=0.25).draw(0, np.arange(5000), np.zeros(5000, dtype=int), (3, 16, 16))
    top, left, height, width = draw.tensors["region"].unbind(1)
    assert (height * width).min() > 0.2
    assert ((top >= 0) & (top + height <= 1.0001) & (left >= 0) & (left + width <= 1.0001)).all()
    assert (height * width).mean().item() == pytest.approx(0.62, abs=0.03)


def test_slices_of_a_draw_are_draws_of_the_slice():
    augment = Augment(crop=2, flip=0.5, randaugment=2, erasing=0.5)
    x = images()
    draw = augment.draw(0, ROWS, ROWS, SHAPE)
    whole, _ = augment.apply(x, draw)
    parts = [augment.apply(x[a:b], draw[a:b])[0] for a, b in ((0, 7), (7, 40))]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"flip": 1.5}, r"data\.augment\.flip=1\.5"),
        ({"crop": -1}, "crop=-1"),
        ({"magnitude": 31}, "magnitude=31"),
        ({"resized_crop": 0.0}, "above 0"),
        ({"mixup": -0.1}, "at least 0"),
        ({"randaugment": 2, "autoaugment": "svhn"}, "exclude each other"),
        ({"crop": 4, "resized_crop": 0.5}, "exclude each other"),
        ({"autoaugment": "cifar"}, "did you mean 'cifar10'"),
    ],
)
def test_refused(keys: dict, words: str):
    with pytest.raises(Refused, match=words):
        Augment(**keys)


def test_off_by_default():
    assert not Augment().active
    assert Augment().identity() != Augment(flip=0.1).identity()
