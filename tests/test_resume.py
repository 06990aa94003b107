"""A run stopped in mid-epoch and gone on with ends bit-identical, whatever it is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from files import make
from problems import After, plain, same
from sftc.errors import Stopped

CNN = ("model=simple_cnn", "model.dropout=0.2", "model.batch_norm=true")
MIXUP = ("data=fake", "data.augment.mixup=0.4", "data.augment.crop=2")
STREAM = ("data=image_folder", "data.cache=none", "data.workers=2", "data.augment.flip=0.5", "data.augment.cutmix=1")
CASES = {
    "plateau, sgd": ("schedule=plateau", "schedule.patience=0", "schedule.threshold=1", "optim=sgd"),
    "plateau, adamw, warm-up": ("schedule=plateau", "schedule.patience=0", "schedule.threshold=1", "schedule.warmup=1"),
    "onecycle, sgd": ("schedule=onecycle", "optim=sgd", "optim.nesterov=true"),
    "onecycle, lion, max_steps": ("schedule=onecycle", "optim=lion", "max_steps=8"),
    "step, adamw": ("schedule=step", "schedule.every=0.5"),
    "step, lion": ("schedule=step", "schedule.every=1", "optim=lion"),
    "cosine, warm-up": ("schedule.warmup=1.3",),
    "constant, timm's lookahead": ("schedule=constant", "optim=timm", "optim.name=lookahead_radam"),
    "batch norm, dropout": CNN,
    "mixup": MIXUP,
    "mixup in pieces": (*MIXUP, *CNN, "micro_batch_size=11"),
    "views": (*MIXUP, "data.views=2"),
    "streaming": (*STREAM, *CNN),
    "ema": ("ema=0.9", *CNN),
    "ema, clipped, penalties": ("ema=0.99", "clip=0.1", "penalty.l1=1e-4", "penalty.l2_sp=0.01"),
    "gradual": ("finetune=gradual", "ema=0.9", *CNN),
    "gradual within an epoch": ("finetune=gradual", "finetune.every=0.5", "optim=sgd", "schedule=onecycle"),
    "layerwise": ("finetune=layerwise", "schedule=step", "schedule.every=1"),
    "first_n, slower": ("finetune=first_n", "finetune.keep_lr=0.1", "optim=lion"),
    "head, batch norm": ("finetune=head", *CNN),
    "values": ("data=diabetes", "loss=huber", "schedule=plateau", "schedule.patience=0"),
    "labels, some hidden": ("data=fake", "data.kind=labels", "data.unlabeled=0.5", "loss=focal"),
    "patience": ("patience=2", "epochs=6", "optim.lr=1e-12"),  # ends after the third epoch
}
MOVING = ("plateau", "onecycle", "step", "layerwise", "cosine")  # whose rate has to change for the test to say much


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    home = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        yield make(home / "pets", n=38, splits=("train", "val"), size=(10, 10))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine with one core
@pytest.mark.parametrize("name", CASES)
def test_stopped_in_mid_epoch_and_resumed_it_ends_bit_identical(name: str, pictures: Path, tmp_path: Path):
    settings = ("epochs=3", *CASES[name])
    if "data=image_folder" in settings:
        settings = (*settings, f"data.root={pictures}")
    whole = plain(tmp_path / "whole", *settings)
    if name.startswith(MOVING):
        assert len({row["lr"] for row in whole.rows()}) > 1
    for steps in (4, 4):  # three steps an epoch: in the second and in the third
        with pytest.raises(Stopped):
            plain(tmp_path / "run", *settings, stop=After(steps))
    assert same(plain(tmp_path / "run"), whole)


def test_stopped_at_every_step_it_ends_bit_identical(tmp_path: Path):
    settings = ("epochs=2", "ema=0.9", "schedule=plateau", "schedule.patience=0", "finetune=gradual", *CNN)
    whole = plain(tmp_path / "whole", *settings)
    for _ in range(6):
        with pytest.raises(Stopped):
            plain(tmp_path / "run", *settings, stop=After(1))
    assert same(plain(tmp_path / "run"), whole)
