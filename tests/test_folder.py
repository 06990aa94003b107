"""Folders of pictures: layouts, sizes, colours, fingerprints, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from files import make, paint
from sftc import data
from sftc.data import folder, pictures
from sftc.errors import Refused

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build(root: Path, **more) -> data.Data:
    return data.build({"name": "image_folder", "root": str(root), **more})


def test_split_folders(tmp_path: Path):
    d = build(make(tmp_path / "pets"))
    assert [len(s.rows) for s in d.splits.values()] == [12, 12, 12]
    assert d.class_names == ["cat", "dog"]
    assert d.shape == (3, 12, 12)
    want = np.asarray(Image.open(tmp_path / "pets" / "train" / "dog" / "1.png").convert("RGB"))
    got = d.splits["train"].table.read(torch.tensor([7]))[0]
    assert got.dtype == torch.uint8
    assert torch.equal(got.permute(1, 2, 0), torch.from_numpy(want.copy()))
    assert any("size 12: that of all 12 pictures" in n for n in d.notes)


def test_without_a_test_folder_it_is_carved_from_train_and_said(tmp_path: Path):
    d = build(make(tmp_path / "pets", ("train", "valid")), test_share=0.25)
    assert [len(s.rows) for s in d.splits.values()] == [9, 12, 3]
    assert any(n.startswith("test: 0.25 of") for n in d.notes)
    only = build(tmp_path / "pets", test_share=0)
    assert list(only.splits) == ["train", "val"]


def test_one_folder_of_class_folders(tmp_path: Path):
    d = build(make(tmp_path / "pets", (".",), n=20))
    parts = [s.rows.tolist() for s in d.splits.values()]
    assert [len(p) for p in parts] == [29, 3, 8]
    assert sorted(row for part in parts for row in part) == list(range(40))


@pytest.mark.parametrize("cache", ["host", "none"])
@pytest.mark.parametrize("workers", [0, 2])
def test_held_or_streamed_with_augmentation_the_same(tmp_path: Path, cache: str, workers: int):
    root = make(tmp_path / "pets", size=(20, 14))
    augment = {"crop": 2, "flip": 0.5, "randaugment": 1}

    def batches(**more):
        d = build(root, size=10, augment=augment, **more)
        return list(d.source("train", 5, train=True, seed=1, device=CPU).epoch(2))

    for a, b in zip(batches(cache="host"), batches(cache=cache, workers=workers), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.index, b.index)


def test_streaming_holds_no_more_than_a_batch(tmp_path: Path, monkeypatch):
    """Decoded pictures are dropped as the epoch goes on: never more than two batches exist at once."""
    import gc
    import weakref

    d = build(make(tmp_path / "pets", n=20), cache="none", workers=0)
    alive: list[weakref.ref] = []
    real = folder.FolderTable.read

    def read(self, rows):
        out = real(self, rows)
        alive.append(weakref.ref(out))
        return out

    monkeypatch.setattr(folder.FolderTable, "read", read)
    for _ in d.source("train", 4, train=True, seed=0, device=CPU).epoch(0):
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 2
    assert len(alive) == 10


def test_modes_become_rgb_without_warnings(tmp_path: Path):
    for i, mode in enumerate(("L", "RGBA", "P", "1", "CMYK", "LA")):
        path = tmp_path / f"{i}.{'tif' if mode == 'CMYK' else 'png'}"
        paint(path, i, mode=mode)
        assert pictures.pixels(str(path), 12).shape == (12, 12, 3)


def test_the_middle_square_is_resized(tmp_path: Path):
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:30] = 200, 40, 40  # the middle square
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (pictures.pixels(str(tmp_path / "a.png"), 10)[:, 1:-1] == [200, 40, 40]).all()
    large = np.broadcast_to(np.uint8([200, 40, 40]), (200, 400, 3))
    Image.fromarray(np.ascontiguousarray(large)).save(tmp_path / "b.jpg")
    assert np.abs(pictures.pixels(str(tmp_path / "b.jpg"), 5).astype(int) - [200, 40, 40]).max() < 6


@pytest.mark.parametrize(
    ("sizes", "model_size", "want", "words"),
    [
        ([(32, 32)], 224, 32, "that of all"),
        ([(96, 96)], None, 96, "for the model"),
        ([(96, 96)], 64, 64, "for the model"),
        ([(500, 500)], None, 224, "for the model"),
        ([(32, 32), (40, 32)], None, 224, "the usual; .* differ"),
        ([(32, 32), (40, 32)], 64, 64, "the largest model input"),
        ([(40, 32)], None, 224, "the usual"),
    ],
)
def test_choice_of_size(tmp_path: Path, sizes, model_size, want: int, words: str):
    paths = []
    for i, size in enumerate(sizes):
        paint(tmp_path / f"{i}.png", i, size)
        paths.append(str(tmp_path / f"{i}.png"))
    size, why = folder.choose_size(paths, model_size)
    assert size == want
    import re

    assert re.search(words, why)


def test_large_folders_are_sampled_for_their_size(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(folder, "_HEADERS", 4)
    d = build(make(tmp_path / "pets"))
    assert any("of 4 pictures looked at" in n for n in d.notes)


def test_fingerprint_follows_pixels_names_and_size_not_place_or_time(tmp_path: Path):
    a = make(tmp_path / "a")
    mine = build(a).fingerprint
    shutil.copytree(a, tmp_path / "b")
    assert build(tmp_path / "b").fingerprint == mine
    os.utime(a / "train" / "cat" / "0.png", (1, 1))
    assert build(a).fingerprint == mine
    assert build(a, size=10).fingerprint != mine
    paint(tmp_path / "b" / "train" / "cat" / "0.png", 999)
    assert build(tmp_path / "b").fingerprint != mine
    (a / "val" / "dog" / "0.png").rename(a / "val" / "dog" / "00.png")
    assert build(a).fingerprint != mine


def test_contents_are_hashed_once(tmp_path: Path, monkeypatch):
    root = make(tmp_path / "pets")
    mine = build(root).fingerprint
    monkeypatch.setattr(folder.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert build(root).fingerprint == mine


def test_a_home_that_cannot_be_written_is_no_trouble(tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build(make(tmp_path / "pets")).fingerprint


def test_the_test_folder_is_listed_but_not_opened(tmp_path: Path):
    root = make(tmp_path / "pets")
    (root / "test" / "cat" / "0.png").write_bytes(b"not a picture")
    d = build(root)
    assert d.fingerprint
    with pytest.raises(Refused, match=r"test/cat/0\.png cannot be read as a picture"):
        list(d.source("test", 4, train=False, seed=0, device=CPU).epoch(0))


def test_refused(tmp_path: Path):
    cases = {}
    (tmp_path / "pets" / "train" / "cat").mkdir(parents=True)
    cases["pets"] = r"class folder .*train/cat holds no pictures"
    make(tmp_path / "odd")
    shutil.rmtree(tmp_path / "odd" / "val" / "dog")
    paint(tmp_path / "odd" / "val" / "bird" / "0.png", 0)
    cases["odd"] = "val folder has other classes than train: it adds bird and lacks dog"
    make(tmp_path / "headless", ("val", "test"))
    cases["headless"] = "has test, val but no train folder"
    (tmp_path / "empty").mkdir()
    cases["empty"] = "holds no class folders"
    cases["pet"] = r"is not a folder; did you mean 'pets'\? \(looked for train/"
    for name, words in cases.items():
        with pytest.raises(Refused, match=words) as error:
            build(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(Refused, match=r"data\.root is not set"):
        data.check({"name": "image_folder"})
    with pytest.raises(Refused, match="cannot be downloaded"):
        data.check({"name": "image_folder", "root": str(tmp_path), "download": True})


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path):
    root = make(tmp_path / "pets")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / "._0.png").write_bytes(b"junk")
    (root / "train" / "cat" / "notes.txt").write_text("no picture")
    assert [len(s.rows) for s in build(root).splits.values()] == [12, 12, 12]


def test_the_real_cifar_subset(real_data: Path):
    d = build(real_data / "cifar10_subset")
    assert [len(s.rows) for s in d.splits.values()] == [2400, 1000, 600]
    assert d.shape == (3, 32, 32)
    val = next(iter(d.source("val", 100, train=False, seed=0, device=CPU).epoch(0)))
    assert set(val.target.tolist()) == {0}
    assert d.class_names[0] == "airplane"
