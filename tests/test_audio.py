"""Sounds in files: layouts, rates, lengths, fingerprints, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from clips import PITCH, clips, tone, write
from sftc import data
from sftc.data import sounds
from sftc.errors import Refused

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build(root: Path, like: Any = None, **more) -> data.Data:
    return data.build({"name": "audio_folder", "root": str(root), **more}, like=like)


def rows(d: data.Data, split: str = "train") -> torch.Tensor:
    table = d.splits[split].table
    return table.read(torch.arange(len(table.target)))


def test_split_folders(tmp_path: Path):
    d = build(clips(tmp_path / "tones"))
    assert [len(s.rows) for s in d.splits.values()] == [12, 12, 12]
    assert d.class_names == ["high", "low"]
    assert (d.form.kind, d.form.shape, d.form.about) == ("sound", (1, 2000), {"rate": 8000})
    want, _ = soundfile.read(tmp_path / "tones" / "train" / "low" / "low_1.wav", dtype="int16")
    got = rows(d)[7]
    assert got.dtype == torch.int16
    assert np.array_equal(got[0].numpy(), want)
    assert any(n.startswith("rate 8000: that of 12 of all 12 clips") for n in d.notes)


def test_classes_and_splits_by_name(tmp_path: Path):
    for digit in "01":
        for who in ("ann", "bob"):
            for take in (0, 4, 5, 10):
                write(tmp_path / "flat" / f"{digit}_{who}_{take}.wav", tone(300, take))
    write(tmp_path / "flat" / "noise.wav", tone(300, 0))
    takes = r"(?P<label>\d)_\w+_((?P<test>[0-4])|\d+)"
    d = build(tmp_path / "flat", pattern=takes, val_share=0.25)
    assert d.class_names == ["0", "1"]
    table: Any = d.splits["test"].table
    assert sorted({os.path.basename(table.path(i)).split("_")[2] for i in range(8)}) == ["0.wav", "4.wav"]
    assert len(d.splits["train"].rows) + len(d.splits["val"].rows) == 8
    assert table.target.tolist() == [0] * 4 + [1] * 4
    assert any("noise.wav" in n and n.startswith("1 clips") for n in d.notes)
    people = build(tmp_path / "flat", pattern=r"(?P<label>\d)_((?P<test>bob)|(?P<val>x)|\w+)_\d+", val_share=0.25)
    table = people.splits["test"].table
    assert {os.path.basename(table.path(i)).split("_")[1] for i in range(8)} == {"bob"}


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "is no regular expression"),
        (r"\d_.*", r"needs a group \(\?P<label>"),
        (r"(?P<label>x)", "finds no training clip.*the first is"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(tmp_path: Path, pattern: str, says: str):
    with pytest.raises(Refused, match=says):
        build(clips(tmp_path / "tones"), pattern=pattern)


def sheet(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_csv_of_paths_and_labels(tmp_path: Path):
    root = clips(tmp_path / "tones", ("all",))
    lines = [f"all/{name}/{name}_{i}.wav,{name},{i % 3}" for name in PITCH for i in range(6)]
    file = sheet(root / "list.csv", "\n".join(["file,word,part", *lines, "all/low/low_0.wav,,0"]) + "\n")
    for part, split in enumerate(("train", "valid", "test")):
        file.write_text(file.read_text().replace(f",{part}\n", f",{split}\n"))
    keys = {"name": "audio_csv", "root": str(file), "path": "file", "label": "word", "split": "part"}
    d = data.build(keys)
    assert [len(s.rows) for s in d.splits.values()] == [5, 4, 4]
    assert d.splits["train"].target.tolist() == [1, 1, 0, 0, -1]
    want, _ = soundfile.read(root / "all" / "high" / "high_3.wav", dtype="int16")
    assert np.array_equal(rows(d)[3, 0].numpy(), want)
    assert d.fingerprint != data.build(keys | {"seconds": 0.1}).fingerprint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,labl\na.wav,x\n", "data.label=label is no column of .* did you mean 'labl'"),
        ("path,label\n,x\n", "line 2 names no file"),
        ("", "data.path=path is no column"),
        ("path,label\nall/low/low_0.wav,x\n", "nothing to tell apart: the classes are x"),
        ("path,label\ngone.wav,x\nb.wav,y\n", "gone.wav cannot be read as a sound: No such file"),
        ("path,label,split\na.wav,x,dev\n", "split 'dev' is none of train, val"),
    ],
)
def test_a_csv_that_does_not_fit_is_one_line(tmp_path: Path, text: str, says: str):
    file = sheet(clips(tmp_path / "tones", ("all",)) / "list.csv", text)
    with pytest.raises(Refused, match=says) as error:
        data.build({"name": "audio_csv", "root": str(file), **({"split": "split"} if ",split" in text else {})})
    assert "\n" not in str(error.value)


def test_other_rates_are_resampled_to_the_most_common_one(tmp_path: Path):
    root = clips(tmp_path / "tones")
    odd = write(root / "train" / "low" / "low_0.wav", tone(300, 20, 44_100), 44_100)
    d = build(root)
    assert d.form.about == {"rate": 8000}
    assert any("others (44100) are resampled" in n for n in d.notes)
    x = rows(d)[6, 0].double().numpy() / 32768
    at = np.arange(2000) / 8000
    middle = slice(100, 1900)
    basis = np.stack([np.sin(2 * np.pi * 300 * at), np.cos(2 * np.pi * 300 * at)])[:, middle]
    weights = np.linalg.lstsq(basis.T, x[middle], rcond=None)[0]
    assert np.hypot(*weights) == pytest.approx(0.5, abs=0.01)  # the tone is still there, and as loud
    assert (x[middle] - weights @ basis).std() < 0.02  # of the noise, what lay above 4 kHz is gone
    assert build(root, rate=4000, seconds=0.25).shape == (1, 1000)
    assert odd.exists()


def test_what_was_resampled_is_kept_between_runs_and_made_anew_where_it_is_damaged(tmp_path: Path, monkeypatch):
    import scipy.signal

    path = write(tmp_path / "a.wav", tone(300, 20, 44_100), 44_100)
    made: list[int] = []
    resample = scipy.signal.resample_poly
    monkeypatch.setattr(scipy.signal, "resample_poly", lambda *a: (made.append(1), resample(*a))[1])

    def read(rate: int = 8000, length: int = 2100) -> np.ndarray:
        return sounds.samples(str(path), rate, length)

    first = read()
    again = read()
    again[:] = 0  # nobody else's
    assert np.array_equal(read(), first)
    assert (first.dtype, len(made)) == (np.int16, 1)
    assert len(read(4000)) == len(read(8000, 2100)) == 2100
    assert len(read(8000, 1000)) == 1000
    assert len(made) == 3  # another rate, and another length, are other clips
    for file in (tmp_path / "cache" / "sftc" / "resampled").iterdir():
        file.write_bytes(file.read_bytes()[:-2] + b"xy")
    assert np.array_equal(read(), first)
    assert len(made) == 4
    write(path, tone(600, 21, 44_100, seconds=0.26), 44_100)
    assert not np.array_equal(read(), first)
    assert len(made) == 5
    sounds.samples(str(write(tmp_path / "b.wav", tone(300, 1))), 8000, 100)
    assert len(made) == 5
    assert len(list((tmp_path / "cache" / "sftc" / "resampled").iterdir())) == 4  # of the right rate: nothing to keep


def test_stereo_is_mixed_down_and_said(tmp_path: Path):
    root = clips(tmp_path / "tones")
    left = tone(300, 0)
    write(root / "train" / "low" / "low_0.wav", np.stack([left, np.zeros_like(left)], 1))
    d = build(root)
    assert any("1 of all 12 clips have more than one channel: mixed to one" in n for n in d.notes)
    assert np.abs(rows(d)[6, 0].numpy() / 32768 - left / 2).max() < 1e-4


def test_one_very_long_clip_among_few_does_not_decide_how_long_rows_are(tmp_path: Path):
    root = clips(tmp_path / "tones")
    write(root / "train" / "low" / "low_1.wav", tone(300, 0, seconds=60))
    d = build(root)
    assert d.shape == (1, 2000)
    assert any("1 longer ones are cut" in n for n in d.notes)


def test_lengths(tmp_path: Path):
    root = clips(tmp_path / "tones", n=20)
    long = tone(300, 9, seconds=2.0)
    write(root / "train" / "low" / "low_0.wav", long)
    short = tone(300, 9, seconds=0.1)
    write(root / "train" / "low" / "low_1.wav", short)
    d = build(root)
    assert d.shape == (1, 2000)  # the 95th percentile
    note = next(n for n in d.notes if n.startswith("seconds"))
    assert "last 0.1 to 2 s; 1 longer ones are cut, shorter ones padded with silence" in note
    some = rows(d)[:, 0].numpy() / 32768
    assert np.abs(some[20] - long[7000:9000]).max() < 1e-4  # the middle
    assert not some[21][:600].any()
    assert not some[21][1400:].any()
    assert np.abs(some[21][600:1400] - short).max() < 1e-4
    whole = build(root, seconds=2)
    assert np.abs(rows(whole)[20, 0].numpy() / 32768 - long).max() < 1e-4


def test_room_for_training_moves_nothing_when_it_is_not_used(tmp_path: Path):
    """With a shift, more is read; what is validated on stays the same to the bit, whatever the length of a clip."""
    root = clips(tmp_path / "tones", ("train", "test"), n=10)
    for i, seconds in enumerate((0.1, 0.24, 0.2501, 0.2502, 0.26, 0.9, 0.90013)):
        write(root / "train" / "low" / f"low_{i}.wav", tone(300, i, seconds=seconds))
    one, two = (build(root, seconds=0.25, augment={"shift": s}) for s in (0.0, 0.05))
    assert rows(two).shape[-1] == 2000 + 2 * 400
    assert one.fingerprint == two.fingerprint
    for split in ("train", "val"):
        a, b = (
            torch.cat([x.inputs for x in d.source(split, 64, train=False, seed=0, device=CPU).epoch(0)])
            for d in (one, two)
        )
        assert a.shape[1:] == (1, 2000)
        assert torch.equal(a, b)


@pytest.mark.parametrize(("cache", "workers"), [("none", 0), ("none", 2)])
def test_held_or_streamed_with_augmentation_the_same(tmp_path: Path, cache: str, workers: int):
    root = clips(tmp_path / "tones")
    augment = {"shift": 0.02, "gain": 6.0, "noise": 0.1, "time_mask": 0.3, "freq_mask": 0.3}

    def batches(**more):
        d = build(root, augment=augment, **more)
        return list(d.source("train", 5, train=True, seed=1, device=CPU).epoch(2))

    for a, b in zip(batches(cache="host"), batches(cache=cache, workers=workers), strict=True):
        assert a.inputs.dtype == torch.float32
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.index, b.index)


def test_rows_come_as_the_model_of_a_run_needs_them(tmp_path: Path):
    mine = build(clips(tmp_path / "tones"))
    other = build(clips(tmp_path / "other", rate=16_000, seconds=0.3), like=mine)
    assert (other.form.about, other.shape) == ({"rate": 8000}, (1, 2000))
    assert "rate 8000, seconds 0.25: those of the run" in other.notes


def header_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:44])


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def holding(value: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        write(path, np.r_[tone(300, 0), value], subtype="FLOAT")

    return change


def many_channels(path: Path) -> None:
    write(path, np.zeros((50, 40)))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "it is empty"),
    "text": (lambda p: p.write_text("no sound\nat all"), "it is none of WAV FLAC OGG"),
    "truncated": (truncated, "it is truncated: 1,956 of 4,000 bytes"),
    "header only": (header_only, "it is truncated: 0 of"),
    "no samples": (lambda p: write(p, np.zeros(0)), "it holds no samples"),
    "not a number": (holding(np.nan), "samples that are not finite"),
    "infinite": (holding(np.inf), "samples that are not finite"),
    "another scale": (holding(20_000.0), "its samples reach 20000"),
    "rate": (lambda p: write(p, tone(300, 0), 10), "its rate of 10 samples a second"),
    "channels": (many_channels, "it has 40 channels"),
    "other format": (lambda p: soundfile.write(p, tone(300, 0), 8000, format="AIFF"), "it is none of WAV FLAC OGG"),
    "pipe": (piped, ""),
    "gone": (lambda p: (p.unlink(), p.symlink_to("nowhere")), "No such file"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), ""),
}


def read(d: data.Data) -> list:
    return [b for s in ("train", "val") for b in d.source(s, 16, train=False, seed=0, device=CPU).epoch(0)]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_broken_clip_is_named_in_one_line_or_skipped(tmp_path: Path, how: str):
    root = clips(tmp_path / "tones")
    change, says = DAMAGE[how]
    broken = root / "train" / "low" / "low_3.wav"
    change(broken)
    if how == "folder":
        broken.rmdir()
        lines = [f"train/{c}/{c}_{i}.wav,{c}" for c in PITCH for i in range(6)]
        file = sheet(root / "list.csv", "\n".join(["path,label", *lines]))
        broken.mkdir()
        spec = {"name": "audio_csv", "root": str(file), "test_share": 0, "val_share": 0.3}
    else:
        spec = {"name": "audio_folder", "root": str(root)}
    with pytest.raises(Refused, match=f"low_3.wav cannot be read as a sound: .*{says}") as error:
        read(data.build(spec))
    assert "\n" not in str(error.value)
    assert "data.on_error=skip" in str(error.value)
    held = data.build(spec | {"on_error": "skip"})
    batches = read(held)
    weights = [b.weight for b in batches if b.weight is not None]
    assert len(weights) == 1
    assert int((weights[0] == 0).sum()) == 1
    (found,) = [why for s in held.skipped.values() for path, why in s["rows"].items() if "low_3" in path]
    assert says in found


def test_what_a_pipe_promises_is_no_damage(tmp_path: Path):
    """ffmpeg writes headers into pipes, and does not know then how much will follow."""
    path = write(tmp_path / "a.wav", tone(300, 0))
    raw = bytearray(path.read_bytes())
    raw[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    assert sounds.extent(str(path)).frames == 2000


def test_of_a_long_file_only_the_middle_is_read(tmp_path: Path, monkeypatch):
    path = write(tmp_path / "a.wav", np.linspace(-1, 1, 80_001), 8000)
    read = soundfile.SoundFile.read
    asked = []
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, **k: asked.append(n) or read(self, n, **k))
    got = sounds.samples(str(path), 8000, 101)
    assert abs(int(got[50])) <= 1
    assert asked == [101]
    assert len(sounds.samples(str(path), 1000, 100)) == 100
    assert asked[1] == 800 + 2 * 160


@pytest.mark.parametrize(("rate", "own"), [(8000, 44_101), (16_000, 11_025), (1000, 384_000), (44_100, 48_000)])
def test_a_rate_is_missed_by_less_than_a_millionth(rate: int, own: int):
    ratio = Fraction(rate, own).limit_denominator(1000)
    assert abs(float(ratio) / (rate / own) - 1) < 1e-5


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"root": None}, "data.root is not set"),
        ({"root": "/nowhere/at/all"}, "is not a folder.*wav"),
        ({"rate": 10}, "data.rate=10 must be auto"),
        ({"seconds": -1}, "data.seconds=-1 must be auto"),
        ({"size": 32}, "holds sounds, not images: leave out data.size"),
        ({"augment": {"flip": 0.5}}, "data.augment.flip changes images, and this data set holds sounds"),
        ({"augment": {"noise": -1}}, "data.augment.noise=-1 must lie between 0 and 10"),
        ({"augment": {"noize": 1}}, "data.augment.noize is not known; did you mean 'noise'"),
        ({"sample_rate": 8000}, "data.sample_rate is not known"),
    ],
)
def test_wrong_keys_are_one_line(tmp_path: Path, keys: dict, says: str):
    root = clips(tmp_path / "tones", n=2)
    with pytest.raises(Refused, match=says) as error:
        data.build({"name": "audio_folder", "root": str(root), **keys})
    assert "\n" not in str(error.value)


def test_augmentations_of_sounds_are_refused_for_pictures():
    with pytest.raises(Refused, match=r"data.augment.shift changes sounds, and this data set holds images"):
        data.check({"name": "digits", "augment": {"shift": 0.1}})
    with pytest.raises(Refused, match=r"data.augment.shift changes sounds, and this data set holds tables"):
        data.check({"name": "diabetes", "augment": {"shift": 0.1}})


def test_pictures_in_the_folder_are_no_sounds(tmp_path: Path):
    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(b"")
    with pytest.raises(Refused, match=r"holds no sounds \(.wav .flac .ogg\)"):
        build(root)


def test_without_soundfile_one_line_says_so(tmp_path: Path):
    code = (
        "import sys; sys.modules['soundfile'] = None\n"
        "from sftc import data\n"
        "from sftc.errors import Refused\n"
        f"try: data.check({{'name': 'audio_folder', 'root': {str(tmp_path)!r}}})\n"
        "except Refused as e: print(e)\n"
        "data.check({'name': 'digits'})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "sounds are read by soundfile, which is not installed: pip install 'sftc[audio]'\n"
