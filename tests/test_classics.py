"""Readers of the classic sets on small files of the same formats, and on the real MNIST if it lies nearby."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from files import write_cifar, write_mnist
from sftc import data
from sftc.data import classics
from sftc.errors import Refused


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["FashionMNIST/raw", "."])
def test_idx_files_plain_or_zipped_in_a_folder_left_as_it_is(tmp_path: Path, zipped: bool, place: str):
    root = tmp_path / "root"
    pixels = write_mnist(root / place, zipped=zipped)
    before = sorted(root.rglob("*"))
    d = data.build({"name": "fashion_mnist", "root": str(root), "val_share": 0.2})
    train, test = d.splits["train"], d.splits["test"]
    assert torch.equal(train.table.read(torch.arange(60))[:, 0], torch.from_numpy(pixels[:60]))
    assert torch.equal(test.table.read(torch.arange(60))[:, 0], torch.from_numpy(pixels[60:]))
    assert train.table.target.tolist() == [i % 10 for i in range(60)]
    assert d.class_names[9] == "ankle boot"
    assert sorted(root.rglob("*")) == before


def test_the_test_files_stay_unread_until_asked_for(tmp_path: Path, monkeypatch):
    write_mnist(tmp_path / "MNIST" / "raw", zipped=True)
    read: list[str] = []
    real = classics._read_idx
    monkeypatch.setattr(classics, "_read_idx", lambda folder, file: read.append(file) or real(folder, file))
    d = data.build({"name": "mnist", "root": str(tmp_path)})
    for split in ("train", "val"):
        list(d.source(split, 16, train=False, seed=0, device=torch.device("cpu")).epoch(0))
    assert d.fingerprint
    assert all(file.startswith("train") for file in read)
    assert len(d.splits["test"].rows) == 60
    assert any(file.startswith("t10k") for file in read)


def test_idx_files_are_read_as_torchvision_does(tmp_path: Path):
    write_mnist(tmp_path / "MNIST" / "raw", zipped=False)
    for train, split in ((True, "train"), (False, "test")):
        theirs = datasets.MNIST(tmp_path, train=train)
        table = data.build({"name": "mnist", "root": str(tmp_path)}).splits[split].table
        assert torch.equal(table.read(torch.arange(60))[:, 0], theirs.data)
        assert torch.equal(table.target, theirs.targets)


@pytest.mark.parametrize(("zipped", "keep"), [(True, 500), (False, 500), (False, 3), (False, 0)])
def test_a_torn_file_is_named(tmp_path: Path, zipped: bool, keep: int):
    folder = tmp_path / "MNIST" / "raw"
    write_mnist(folder, zipped=zipped)
    torn = next(folder.glob("train-images-idx3-ubyte*"))
    torn.write_bytes(torn.read_bytes()[:keep])
    with pytest.raises(Refused, match=r"train-images-idx3-ubyte\S* is no readable idx file"):
        data.build({"name": "mnist", "root": str(tmp_path)})


@pytest.mark.parametrize(("key", "name", "rows"), [("cifar10", "CIFAR10", 100), ("cifar100", "CIFAR100", 20)])
def test_cifar_pickles(tmp_path: Path, monkeypatch, key: str, name: str, rows: int):
    pixels = write_cifar(tmp_path, name, monkeypatch)
    d = data.build({"name": key, "root": str(tmp_path), "val_share": 0.2})
    table = d.splits["train"].table
    assert len(table.target) == rows
    assert d.class_names[3] == "name3"
    assert torch.equal(table.read(torch.arange(20)), torch.from_numpy(pixels).view(20, 3, 32, 32))
    assert len(d.splits["test"].rows) == 20


def test_files_that_are_not_the_published_ones_are_not_unpickled(tmp_path: Path, monkeypatch):
    write_cifar(tmp_path, "CIFAR10", monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"something else")
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(Refused, match=r"corrupted.*; remove it and set data\.download=true"):
        data.build({"name": "cifar10", "root": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("fashion_mnist", "FashionMNIST/raw/train-images"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
    ],
)
def test_missing_files_are_named_with_the_way_out(tmp_path: Path, name: str, file: str):
    for root, words in ((tmp_path, "no .*"), (tmp_path / "nowhere", "does not exist .*")):
        with pytest.raises(Refused, match=rf"{words}{file}.*data\.download=true") as error:
            data.check({"name": name, "root": str(root)})
        assert "\n" not in str(error.value)
    with pytest.raises(Refused, match=r"data\.root is not set"):
        data.check({"name": name})


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_download_without_network_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch, name: str):
    def cut(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", cut)
    monkeypatch.setattr(socket, "getaddrinfo", cut)
    spec = {"name": name, "root": str(tmp_path / "new"), "download": True}
    data.check(spec)
    with pytest.raises(Refused, match=r"could not be downloaded into .*unreachable") as error:
        data.build(spec)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists() or list((tmp_path / "new").iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_a_download_arrives_whole_and_only_once(tmp_path: Path, monkeypatch):
    fetched = []

    def fetch(self):
        fetched.append(self.raw_folder)
        write_mnist(Path(self.raw_folder), zipped=False)

    monkeypatch.setattr(datasets.MNIST, "download", fetch)
    for _ in range(2):
        d = data.build({"name": "mnist", "root": str(tmp_path), "download": True})
        assert len(d.splits["train"].rows) + len(d.splits["val"].rows) == 60
    assert [p.name for p in tmp_path.iterdir()] == ["MNIST"]
    assert len(fetched) == 1


def test_a_broken_set_is_replaced_by_a_download(tmp_path: Path, monkeypatch):
    write_mnist(tmp_path / "MNIST" / "raw", zipped=False)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: write_mnist(Path(self.raw_folder), zipped=False))
    d = data.build({"name": "mnist", "root": str(tmp_path), "download": True})
    assert len(d.splits["test"].rows) == 60


def test_the_real_mnist(real_data: Path):
    d = data.build({"name": "mnist", "root": str(real_data / "mnist")})
    assert [len(s.rows) for s in d.splits.values()] == [54_000, 6_000, 10_000]
    table = d.splits["train"].table
    pixels = table.read(torch.arange(60_000))
    assert pixels.double().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)  # the published mean
    assert table.target[:5].tolist() == [5, 0, 4, 1, 9]
