"""Pictures with masks: pairs, codes, sizes, what augmentation does to both, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from masks import scene, write
from sftc import data
from sftc.data.augment import Augment
from sftc.errors import Refused

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build(root: Path, **more) -> data.Data:
    return data.build({"name": "segmentation_folder", "root": str(root), **more})


def batch(d: data.Data, split: str = "train", *, train: bool = False, n: int = 64, epoch: int = 0) -> Any:
    return next(iter(d.source(split, n, train=train, seed=0, device=CPU).epoch(epoch)))


def saved(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_a_mask_becomes_a_target_for_every_pixel_and_255_is_unknown(tmp_path: Path):
    d = build(write(tmp_path, 4, size=(14, 18)))
    assert (d.kind, d.shape, d.class_names) == ("pixels", (3, 14, 18), ["0", "1", "2"])
    b = batch(d, "val")
    picture, mask = scene(102, (14, 18))
    assert torch.equal(b.inputs[2].permute(1, 2, 0), torch.from_numpy(picture))
    want = mask.astype(int)
    want[:2, :2] = -1
    assert torch.equal(b.target[2], torch.from_numpy(want))
    assert b.target.dtype == torch.long


@pytest.mark.parametrize("layout", ["kinds first", "one of each", "lists"])
def test_other_layouts_hold_the_same(tmp_path: Path, layout: str):
    here, there = write(tmp_path / "a", 5), tmp_path / "b"
    for split in ("train", "val", "test"):
        for kind in ("images", "masks"):
            folder = {"kinds first": f"{kind}/{split}", "one of each": kind}.get(layout, f"x/{kind}")
            for i in range(5):
                image = Image.open(here / split / kind / f"{i}.png")
                saved(there / folder / f"{split}{i}.png", np.asarray(image))
        if layout == "lists":
            lines = [f"x/images/{split}{i}.png\tx/masks/{split}{i}.png\n" for i in range(5)]
            (there / f"{split}.txt").write_text("".join(lines))
    d, other = build(here), build(there, test_share=0.2, val_share=0.25)
    if layout == "one of each":
        assert [len(s.rows) for s in other.splits.values()] == [9, 3, 3]
    else:
        for split in d.splits:
            assert torch.equal(batch(d, split).target, batch(other, split).target)


def test_names_and_numbers_that_are_no_class(tmp_path: Path):
    write(tmp_path, 4, classes=4)
    (tmp_path / "names.txt").write_text("ground\nred\ngreen\nblue\n")
    d = build(tmp_path, classes_file="names.txt", ignore=["red", 255])
    assert d.class_names == ["ground", "green", "blue"]
    raw = np.stack([scene(100 + i, classes=4)[1] for i in range(4)]).astype(int)
    raw[:, :2, :2] = -1
    want = np.select([raw == 0, raw == 2, raw == 3], [0, 1, 2], -1)
    assert torch.equal(batch(d, "val").target, torch.from_numpy(want))
    few = build(tmp_path, names=["ground", "red", "green", "blue"], classes=["blue", "ground"])
    assert torch.equal(batch(few, "val").target, torch.from_numpy(np.select([raw == 3, raw == 0], [0, 1], -1)))


def test_masks_in_colours_have_a_palette(tmp_path: Path):
    write(tmp_path, 3)
    palette = np.array([[0, 0, 0], [128, 0, 64], [10, 20, 30]], np.uint8)
    for path in tmp_path.glob("*/masks/*.png"):
        numbers = np.asarray(Image.open(path))
        saved(path, np.where((numbers == 255)[..., None], 255, palette[numbers.clip(max=2)]).astype(np.uint8))
    (tmp_path / "palette.txt").write_text("0 0 0 ground\n128 0 64 red car\n10 20 30 tree\n255 255 255 void\n")
    d = build(tmp_path, palette="palette.txt", ignore=["void"])
    assert d.class_names == ["ground", "red car", "tree"]
    want = scene(101)[1].astype(int)
    want[:2, :2] = -1
    assert torch.equal(batch(d, "val").target[1], torch.from_numpy(want))


def test_a_smaller_size_takes_the_nearest_class_and_keeps_the_shape_of_the_picture(tmp_path: Path):
    d = build(write(tmp_path, 2, size=(16, 24)), size=8)
    assert d.shape == (3, 8, 12)
    want = Image.open(tmp_path / "val/masks/0.png").resize((12, 8), Image.Resampling.NEAREST)
    got = batch(d, "val").target[0]
    assert torch.equal(torch.where(got < 0, 255, got), torch.from_numpy(np.asarray(want).astype(int)))


def test_counts_give_balanced_weights(tmp_path: Path):
    d = build(write(tmp_path, 4), class_weights="balanced")
    target = batch(d).target
    counts = torch.bincount(target[target >= 0], minlength=3)
    assert d.class_counts is not None
    assert torch.equal(d.class_counts, counts)
    assert d.class_weights is not None
    assert torch.allclose(d.class_weights, counts.sum() / (3 * counts.float()))


@pytest.mark.parametrize("lone", ["masks/1.png", "images/1.png"])
def test_a_file_without_its_partner_is_refused_or_left_out(tmp_path: Path, lone: str):
    (write(tmp_path, 4) / "train" / lone).unlink()
    with pytest.raises(Refused, match=r"1\.png has no (mask|picture) .*data\.on_error=skip leaves such files out"):
        build(tmp_path)
    d = build(tmp_path, on_error="skip")
    assert any("left out" in note and "1.png has no" in note for note in d.notes)
    assert torch.equal(batch(d).target, batch(build(write(tmp_path, 4))).target[[0, 2, 3]])


def test_hidden_labels_hide_whole_masks(tmp_path: Path):
    d = build(write(tmp_path, 8), unlabeled=0.5)
    known = (batch(d).target >= 0).flatten(1).any(1)
    assert int(known.sum()) == 4
    assert torch.equal(known, d.splits["train"].target >= 0)


GEOMETRY = [
    {"flip": 1.0},
    {"crop": 3},
    {"resized_crop": 0.3},
    {"randaugment": 3, "magnitude": 20},
    {"crop": 2, "flip": 0.5},
]


@pytest.mark.parametrize("augment", GEOMETRY, ids=str)
def test_a_mask_goes_where_its_picture_goes(augment):
    """A picture that says at every pixel which class is there still does, wherever it was moved to."""
    made = Augment(**augment)
    mask = torch.stack([torch.from_numpy(scene(i)[1]) for i in range(64)]).unsqueeze(1)
    mask[:, :, 5:7, 3:9] = 255
    pictures = (mask + 1).expand(-1, 3, -1, -1)  # 0, black, where nothing is known
    rows = np.arange(64)
    draw = made.draw(3, rows, rows, (3, 16, 16))
    moved, lam = made.follow(mask, draw)
    assert lam is None
    assert (moved != mask).any()
    if draw.op is not None:  # only what moves: colours would change what pictures say
        from sftc.data import ops

        draw.op = ops.moving(draw.op)
        assert (draw.op > 0).any()
    shown, _ = made.apply(pictures, draw)
    same = shown[:, :1] == moved + 1
    assert same.all() if "resized_crop" not in augment else same.float().mean() > 0.85  # bilinear blurs the edges


def test_erasing_takes_no_label_and_colours_change_no_mask():
    made = Augment(erasing=1.0, autoaugment="none")
    rows = np.arange(8)
    draw = made.draw(0, rows, rows, (3, 16, 16))
    mask = torch.stack([torch.from_numpy(scene(i)[1]) for i in range(8)]).unsqueeze(1)
    assert torch.equal(made.follow(mask, draw)[0], mask)


def test_cutmix_pastes_classes_and_mixup_blends_both(tmp_path: Path):
    root = write(tmp_path, 8)
    cut = batch(build(root, augment={"cutmix": 1.0}), train=True)
    plain = batch(build(root), train=True)
    assert (cut.partner is None) or bool((cut.partner.lam == 1).all())
    pasted = cut.target != plain.target
    assert pasted.any()
    assert torch.equal(cut.target[pasted], plain.target.flip(0)[pasted])
    assert torch.equal((cut.inputs != plain.inputs).any(1) | ~pasted, torch.ones_like(pasted))
    blended = batch(build(root, augment={"mixup": 1.0}), train=True)
    assert blended.partner is not None
    assert torch.equal(blended.partner.target, blended.target.flip(0))
    assert bool((blended.partner.lam < 1).any())


@pytest.mark.parametrize(("cache", "workers"), [("none", 0), ("none", 2)])
def test_held_or_streamed_the_same(tmp_path: Path, cache: str, workers: int):
    root, augment = write(tmp_path, 8), {"flip": 0.5, "resized_crop": 0.5}
    held = build(root, augment=augment, cache="host").source("train", 3, train=True, seed=1, device=CPU)
    read = build(root, augment=augment, cache=cache, workers=workers).source("train", 3, train=True, seed=1, device=CPU)
    for a, b in zip(held.epoch(2), read.epoch(2), strict=True):
        assert torch.equal(a.inputs, b.inputs)  # type: ignore[arg-type]
        assert torch.equal(a.target, b.target)


def test_a_changed_mask_is_another_fingerprint(tmp_path: Path):
    before = build(write(tmp_path, 3)).fingerprint
    saved(tmp_path / "train/masks/1.png", np.zeros((16, 16), np.uint8))
    assert build(tmp_path).fingerprint != before
    assert build(tmp_path, ignore=[2, 255]).fingerprint != build(tmp_path).fingerprint


BAD = {
    "another size": (lambda m: np.zeros((12, 16), np.uint8), "its mask .*it is 16 x 12, the picture 16 x 16"),
    "colours": (lambda m: np.zeros((16, 16, 3), np.uint8), "mode is RGB.*data.palette"),
    "unknown number": (lambda m: np.full((16, 16), 77, np.uint8), "class number 77 is unknown"),
    "16 bits": (lambda m: np.full((16, 16), 3000, np.uint16), "3000"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_masks_are_one_line_or_skipped(tmp_path: Path, what: str):
    change, says = BAD[what]
    write(tmp_path, 6)
    saved(tmp_path / "train/masks/2.png", change(None))
    names = {"names": ["a", "b", "c"]}
    with pytest.raises(Refused, match=says) as error:
        batch(build(tmp_path, **names))
    assert "train/images/2.png" in str(error.value)
    d = build(tmp_path, **names, on_error="skip")
    b = batch(d)
    assert b.weight is not None
    assert b.weight.tolist() == [1, 1, 0, 1, 1, 1]
    assert bool((b.target[2] == -1).all())
    assert list(d.skipped["train"]["rows"]) == [str(tmp_path / "train/images/2.png")]


def test_what_is_refused(tmp_path: Path):
    root = write(tmp_path / "ok", 3)
    with pytest.raises(Refused, match="holds no pictures with masks"):
        build(write(tmp_path / "no", 2, splits=("other",)))
    with pytest.raises(Refused, match="give one of them"):
        build(root, names=["a", "b", "c"], palette="x")
    with pytest.raises(Refused, match=r"classes_file=.*cannot be read: No such file"):
        build(root, classes_file="nowhere.txt")
    with pytest.raises(Refused, match=r"data\.ignore=grund is neither .* nor a class; did you mean 'ground'"):
        build(root, names=["ground", "b", "c"], ignore=["grund"])
    with pytest.raises(Refused, match="names a twice"):
        build(root, names=["a", "a", "c"])
    (root / "palette.txt").write_text("0 0 300 a\n")
    with pytest.raises(Refused, match='"0 0 300 a" is not R G B name'):
        build(root, palette="palette.txt")
    with pytest.raises(Refused, match="tell 1 classes apart"):
        build(root, ignore=[1, 2, 255])


def test_partners_that_are_missing(tmp_path: Path):
    root = write(tmp_path, 3)
    (root / "train/masks/1.png").rename(root / "train/masks/9.png")
    with pytest.raises(Refused, match=r"images/1\.png has no mask"):
        build(root)
    (root / "train/images/1.png").rename(root / "train/images/10.png")
    (root / "train.txt").write_text("train/images/0.png train/masks/0.png\ntrain/images/2.png train/masks/4.png\n")
    with pytest.raises(Refused, match=r"masks/4\.png, which the list of train names, does not exist"):
        build(root)
    (root / "train.txt").write_text("a b c\n")
    with pytest.raises(Refused, match="line 1 names 3 files"):
        build(root)
    lines = ["train/images/0.png train/masks/0.png", "train/images/10.png", "train/images/2.png train/masks/2.png"]
    (root / "train.txt").write_text("\n".join(lines))
    d = build(root, val_share=0.34, test_share=0)
    assert d.splits["train"].table.target.tolist() == [0, -1, 0]  # a picture without a mask is an unlabelled row


def test_real_streets(real_data: Path):
    d = build(real_data / "camvid_240x180", ignore=[11], limit=4)
    b = batch(d, "train")
    assert d.shape == (3, 180, 240)
    assert [len(d.splits[s].rows) for s in d.splits] == [4, 34, 59]
    assert b.target.unique().tolist() == list(range(-1, 11))
