"""Sounds through every strategy, fusion, export, evaluation and resume, on a few tones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clips import clips
from problems import After, config, lab, plain, same, told
from sftc import build, models
from sftc.errors import Refused, Stopped
from sftc.models import weights
from sftc.store import Run
from sftc.types import Form


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> str:
    return f"data.root={clips(tmp_path_factory.mktemp('tones'), n=8)}"


AUDIO = ("data=audio_folder", "epochs=4", "batch_size=4", "optim.lr=0.01", "model.sound.n_mels=16")
CNN = ("model=audio_cnn", "model.channels=[8,8]")
LSTM = ("model=audio_bilstm", "model.units=8")
NOISY = (
    "data.augment.shift=0.02",
    "data.augment.noise=0.1",
    "data.augment.time_mask=0.3",
    "data.augment.freq_mask=0.3",
)


def test_a_run_learns_opens_from_its_folder_and_says_what_it_chose(tmp_path: Path, tones: str):
    run = plain(tmp_path / "run", *AUDIO, *CNN, *NOISY, tones)
    assert run.result["test"]["accuracy"] == 1
    assert run.config["data"]["rate"] == 8000
    assert run.config["data"]["seconds"] == 0.25
    assert run.config["model"]["sound"] == {"n_fft": 256, "hop": 80, "n_mels": 16, "level": "own"}
    home = lab(tmp_path / "run")
    assert home.measure(home.restore(), "val")[1] == pytest.approx(run.result["val"], abs=0)


@pytest.mark.parametrize("model", [CNN, LSTM], ids=["cnn", "lstm"])
def test_interrupted_and_gone_on_with_it_is_the_same_to_the_bit(tmp_path: Path, tones: str, model):
    overrides = (*AUDIO, *model, *NOISY, "data.augment.gain=6", "epochs=2", tones)
    whole = plain(tmp_path / "whole", *overrides)
    for workers, cache in ((0, "none"), (2, "none")):
        more = (*overrides, f"data.workers={workers}", f"data.cache={cache}")
        out = tmp_path / f"cut{workers}"
        with pytest.raises(Stopped):
            plain(out, *more, stop=After(3))
        assert same(plain(out), whole)


def test_evaluated_on_clips_of_another_rate_and_length(tmp_path: Path, tones: str, capsys):
    run = plain(tmp_path / "run", *AUDIO, *CNN, tones)
    other = clips(tmp_path / "other", n=4, rate=22_050, seconds=0.4)
    capsys.readouterr()
    node = config("data=audio_folder", f"data.root={other}")["data"]
    build.evaluate({"run": str(run.path), "data": node, "split": "test", "device": None, "quiet": False})
    said = capsys.readouterr().out
    assert "rate 8000, seconds 0.25: those of the run" in said
    assert "1.0000" in next(line for line in said.splitlines() if line.startswith("accuracy"))


def test_a_teacher_of_sounds_is_asked_live_or_from_stored_answers(tmp_path: Path, tones: str):
    teacher = plain(tmp_path / "teacher", *AUDIO, *CNN, tones)
    kd = (*AUDIO, *LSTM, tones, "strategy=kd", f"strategy.teachers=[{teacher.path}]", *NOISY, "data.views=2")
    live = told(tmp_path / "live", *kd, "strategy.teacher_outputs=live")
    cached = told(tmp_path / "cached", *kd, "strategy.teacher_outputs=cached")
    assert (teacher.path / "answers").is_dir()
    assert live.result["test"]["accuracy"] > 0.9
    for a, b in zip(live.rows(), cached.rows(), strict=True):
        assert a["train/soft"] == pytest.approx(b["train/soft"], rel=1e-3)


def test_a_teacher_that_hears_another_rate_is_refused(tmp_path: Path, tones: str):
    teacher = plain(tmp_path / "teacher", *AUDIO, *CNN, tones, "data.rate=4000")
    with pytest.raises(Refused, match="form sound 1x1000 at 4000 Hz; the data's are sound 1x2000 at 8000 Hz"):
        told(tmp_path / "kd", *AUDIO, *LSTM, tones, "strategy=kd", f"strategy.teachers=[{teacher.path}]")


def test_a_leader_of_sounds_with_followers_on_a_tapped_layer(tmp_path: Path, tones: str):
    source = plain(tmp_path / "source", *AUDIO, *CNN, tones)
    leads = (*AUDIO, *CNN, tones, "strategy=leader", f"strategy.source={source.path}", "strategy.keep=1")
    run = told(tmp_path / "run", *leads, "strategy.followers=[{tap:net.pool},{tap:logits}]")
    assert run.finished
    assert run.result["test"]["accuracy"] > 0.9
    for i in range(2):
        follower = Run.open(run.path / "members" / f"follower{i}")
        home = lab(follower.path)
        assert home.measure(home.restore(), "test")[1] == pytest.approx(follower.result["test"], abs=0)


@pytest.mark.parametrize("members", ["bagging", "snapshot", "folds"])
def test_teams_of_sounds(tmp_path: Path, tones: str, members: str):
    team = ("strategy=ensemble", f"strategy.members={members}", "strategy.n=2", "fuse@strategy.fuse=mean")
    run = told(tmp_path / "run", *AUDIO, *CNN, tones, *team)
    assert run.fused
    assert run.result["test"]["accuracy"] > 0.9


def test_a_residual_net_on_spectrograms_and_a_recurrent_one_in_one_team(tmp_path: Path, tones: str):
    small = ("model=cifar", "model.name=resnet8", "model.input_size=16")
    one = plain(tmp_path / "resnet", *AUDIO, *small, tones, "epochs=2")
    two = plain(tmp_path / "lstm", *AUDIO, *LSTM, tones)
    cfg = config(f"runs=[{one.path},{two.path}]", "fuse=weighted", "quiet=true", command="fuse")
    build.fuse(cfg, tmp_path / "fused", [], "sftc fuse")
    fused = Run.open(tmp_path / "fused")
    assert fused.result["test"]["accuracy"] >= two.result["test"]["accuracy"] - 1e-9
    home = lab(fused.path)
    assert home.measure(home.restore(), "test")[1] == pytest.approx(fused.result["test"], abs=1e-6)


def test_an_exported_model_answers_as_the_run_did(tmp_path: Path, tones: str):
    run = plain(tmp_path / "run", *AUDIO, *LSTM, tones)
    build.export(config(f"run={run.path}", f"out={tmp_path / 'file'}", command="export"))
    about = json.loads((tmp_path / "file" / "config.json").read_text())
    assert about["about"] == {"rate": 8000}
    form = Form(about["shape"], about["form"], about["about"])
    model = models.build(about["model"], out_dim=2, form=form)
    model.load_state_dict(weights.read(str(tmp_path / "file" / "model.safetensors")))
    home = lab(run.path)
    batch = next(iter(home.source("test").epoch(0)))
    with torch.no_grad():
        assert torch.equal(model.eval()(batch.inputs), home.restore()(batch.inputs))


def test_a_clip_that_is_skipped_counts_nothing(tmp_path: Path):
    root = clips(tmp_path / "tones", n=8)
    (root / "train" / "low" / "low_2.wav").write_bytes(b"RIFF")
    run = plain(tmp_path / "run", *AUDIO, *CNN, f"data.root={root}", "data.on_error=skip")
    (path,) = run.skipped["train"]["rows"]
    assert path.endswith("low_2.wav")
    assert run.result["test"]["accuracy"] == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("data.json", '"rate": 8000', '"rate": 1e12', "sounds of 1000000000000.0 samples a second cannot be read"),
        ("data.json", '"rate": 8000', '"speed": 8000', "sounds of None samples a second"),
        ("config.yaml", "hop: 80", "hop: 2", "model.sound.hop=2 must lie between"),
        ("config.yaml", "n_mels: 16", "n_mels: 16000000", "model.sound.n_mels=16000000"),
        ("config.yaml", "level: own", "_target_: os.system", "nothing reads model.sound._target_"),
    ],
)
def test_what_a_damaged_folder_says_of_sounds_is_one_line(tmp_path: Path, tones: str, file, old, new, says: str):
    run = plain(tmp_path / "run", *AUDIO, *CNN, tones, "epochs=1")
    text = (run.path / file).read_text()
    assert old in text
    (run.path / file).write_text(text.replace(old, new))
    with pytest.raises(Refused, match=says) as error:
        build.evaluate({"run": str(run.path), "data": None, "split": "test", "device": None, "quiet": True})
    assert "\n" not in str(error.value)
