"""What decides a run's numbers and what does not, end to end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from files import make
from problems import plain, same, untimed
from sftc import track
from sftc.store.checkpoints import Checkpoints
from sftc.track import TRACKERS

DROPS = ("model=simple_cnn", "model.dropout=0.3")
AUGMENT = (
    "data.augment.crop=2",
    "data.augment.flip=0.5",
    "data.augment.mixup=0.4",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of pictures, and a cache of fingerprints of its own."""
    return make(tmp_path_factory.mktemp("pictures") / "pets", n=12, size=(18, 14))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def folder(root: Path, *more: str) -> tuple[str, ...]:
    return ("data=image_folder", f"data.root={root}", "data.size=12", "batch_size=7", *DROPS, *more)


def test_the_same_seed_twice_gives_the_same_bits_whatever_was_drawn_before(tmp_path: Path):
    a = plain(tmp_path / "a", *DROPS)
    torch.manual_seed(1234)
    torch.rand(77)
    b = plain(tmp_path / "b", *DROPS)
    assert same(a, b)
    for split in ("val", "test"):
        assert torch.equal(a.predictions(split)[0].scores, b.predictions(split)[0].scores)


@pytest.fixture(scope="module")
def held(pictures: Path, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return plain(tmp_path_factory.mktemp("held") / "run", *folder(pictures, *AUGMENT, "data.cache=host"))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine with few cores
@pytest.mark.parametrize(("cache", "workers"), [("host", 2), ("none", 0), ("none", 2), ("none", 4)])
def test_how_pictures_are_read_changes_no_bit(cache: str, workers: int, held, pictures: Path, tmp_path: Path):
    how = (f"data.cache={cache}", f"data.workers={workers}")
    run = plain(tmp_path / "run", *folder(pictures, *AUGMENT, *how))
    assert run.config["data"]["cache"] == cache
    assert same(run, held)


SAVING = {
    "only at the end": ("checkpoint.epochs=null",),
    "after every step": ("checkpoint.steps=1",),
    "never by the clock": ("checkpoint.minutes=1000",),
    "all the time": ("checkpoint.minutes=1e-9",),
}
# Everything that has state between two steps: a save in between must not touch it.
STATEFUL = ("data=fake", "ema=0.9", "clip=0.1", "micro_batch_size=11", "schedule=plateau", "data.augment.mixup=0.4")


@pytest.fixture(scope="module")
def stateful(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("stateful") / "run", *DROPS, *STATEFUL)


@pytest.mark.parametrize("saving", SAVING)
def test_how_often_it_is_saved_changes_no_bit(saving: str, stateful, tmp_path: Path, monkeypatch):
    written = []
    write = Checkpoints.write
    monkeypatch.setattr(Checkpoints, "write", lambda self, s: (written.append(s["step"]), write(self, s)))
    assert same(plain(tmp_path / "run", *DROPS, *STATEFUL, *SAVING[saving]), stateful)
    every = list(range(1, stateful.result["last"]["step"] + 1))
    assert written == {"only at the end": every[-1:], "never by the clock": [3, 6]}.get(saving, every)


@pytest.mark.parametrize("tracker", sorted(TRACKERS))
@pytest.mark.parametrize("display", ["none", "lines", "bars"])
def test_who_looks_on_changes_no_bit(display: str, tracker: str, stateful, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: display == "bars", raising=False)
    watch = track.make(tracker, quiet=display == "none")
    run = plain(tmp_path / "run", *DROPS, *STATEFUL, watch=watch)
    assert same(run, stateful)
    said = capsys.readouterr()
    assert bool(said.out or said.err) == (display != "none")
    assert (run.path / "metrics.csv").is_file() == (tracker == "csv")
    assert bool(list(run.path.glob("tensorboard/*"))) == (tracker == "tensorboard")


@pytest.mark.parametrize("leave_out", AUGMENT)
def test_the_comparison_sees_each_augmentation(leave_out: str, held, pictures: Path, tmp_path: Path):
    rest = [x for x in AUGMENT if x != leave_out]
    assert not same(plain(tmp_path / "run", *folder(pictures, *rest, "data.cache=host")), held)


def test_another_seed_is_another_run_on_the_same_rows(tmp_path: Path):
    a, b = (plain(tmp_path / str(seed), f"seed={seed}") for seed in (0, 1))
    assert not same(a, b)
    for split in ("train", "val"):
        rows = a.rows_of(split)
        assert rows is not None
        assert torch.equal(rows, b.rows_of(split))  # type: ignore[arg-type]
    assert torch.equal(a.predictions("test")[0].row, b.predictions("test")[0].row)
    assert a.result["fingerprints"]["data"] == b.result["fingerprints"]["data"]


def test_split_seed_decides_the_validation_rows(tmp_path: Path):
    a, b = (plain(tmp_path / str(seed), f"data.split_seed={seed}") for seed in (0, 1))
    mine, theirs = a.rows_of("val"), b.rows_of("val")
    assert mine is not None
    assert theirs is not None
    assert not torch.equal(mine, theirs)
    assert a.result["fingerprints"]["data"] != b.result["fingerprints"]["data"]


def test_more_epochs_begin_like_fewer(tmp_path: Path):
    """Batches and augmentation of an epoch do not depend on how many there are."""
    settings = (*DROPS, "data=fake", "data.augment.crop=2", "data.augment.mixup=0.4", "schedule=constant")
    short, long = (plain(tmp_path / str(n), *settings, f"epochs={n}") for n in (2, 3))
    first = [{k: v for k, v in row.items() if k != "ended"} for row in untimed(short)]
    assert len(first) == 2
    assert first == untimed(long)[:2]
    assert not same(short, long)


def test_micro_batches_see_the_same_rows(tmp_path: Path):
    """Accumulation changes rounding at most, also where partners come from the other end of the batch."""
    settings = ("data=fake", "data.augment.mixup=0.4", "optim=sgd", "optim.lr=0.05")
    whole = plain(tmp_path / "whole", *settings).weights("last")
    pieces = plain(tmp_path / "pieces", *settings, "micro_batch_size=5").weights("last")
    assert all(torch.allclose(pieces[k], v, atol=1e-6) for k, v in whole.items())
