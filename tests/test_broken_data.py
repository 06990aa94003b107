"""Damaged, missing and odd files: named in one line, or skipped without moving anything else."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from files import make, paint, write_mnist
from problems import After, lab, plain, same
from sftc import data
from sftc.data import folder, random
from sftc.data import source as sources
from sftc.data.pictures import Unreadable, pixels
from sftc.errors import Refused, Stopped
from sftc.store import Run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build(root: Path, **more) -> data.Data:
    return data.build({"name": "image_folder", "root": str(root), **more})


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it holds side x side pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:1500])


def relinked(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "it is empty"),
    "truncated": (truncated, "truncated"),
    "text": (lambda p: p.write_text("no picture\nat all"), "none of JPEG PNG"),
    "script": (lambda p: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "none of JPEG PNG"),
    "bomb": (lambda p: p.write_bytes(bomb(10_000)), "10000 x 10000 pixels"),
    "large bomb": (lambda p: p.write_bytes(bomb(60_000)), "3600000000 pixels"),
    "gone": (Path.unlink, "No such file"),
    "dangling": (lambda p: relinked(p, "nowhere"), "No such file"),
    "own link": (lambda p: relinked(p, "3.png"), "symbolic links"),
    "pipe": (piped, "it is empty"),
    "floats": (lambda p: Image.fromarray(np.ones((9, 9), np.float32)).save(p, "TIFF"), "floats"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_cannot_be_read_is_named_in_one_line_or_skipped(kind: str, tmp_path: Path):
    damage, words = DAMAGE[kind]
    root = make(tmp_path / "pets")
    fail, skip = build(root, cache="none", size=12), build(root, on_error="skip", size=12)
    path = root / "train" / "cat" / "3.png"
    damage(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Refused, match=words) as error:
            list(fail.source("train", 4, train=False, seed=0, device=CPU).epoch(0))
        batches = list(skip.source("train", 4, train=False, seed=0, device=CPU).epoch(0))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB
    assert str(error.value).startswith(f"{path} cannot be read as a picture: ")
    assert "\n" not in str(error.value)
    assert "data.on_error=skip" in str(error.value)
    assert [None if b.weight is None else b.weight.tolist() for b in batches] == [[1, 1, 1, 0], None, None]
    ((name, why),) = skip.skipped["train"]["rows"].items()
    assert name == str(path)
    assert words in why
    assert fail.fingerprint  # what is gone or damaged does not keep the rest from being told apart


@pytest.mark.parametrize("form", ["png", "tif", "pgm"])
def test_16_bits_become_8_and_are_not_clipped(form: str, tmp_path: Path):
    values = (np.arange(144, dtype=np.uint16) * 450).reshape(12, 12)
    path = tmp_path / f"a.{form}"
    if form == "pgm":
        path.write_bytes(b"P5\n12 12\n65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    got = pixels(str(path), 12)
    assert (got == (values >> 8)[..., None]).all()


def test_grey_and_others_stand_among_rgb(tmp_path: Path):
    root = make(tmp_path / "pets")
    for i, mode in enumerate(("L", "RGBA", "P", "CMYK")):
        path = root / "train" / "cat" / f"{i}.{'tif' if mode == 'CMYK' else 'png'}"
        paint(path, i, mode=mode)
    (batch,) = build(root).source("train", 99, train=False, seed=0, device=CPU).epoch(0)
    assert batch.inputs.shape[1:] == (3, 12, 12)


def test_a_damaged_file_brings_nothing_else_out_of_the_reader(tmp_path: Path):
    """Bytes of real files turned at random: pixels, or a reason."""
    rng, path = np.random.default_rng(0), tmp_path / "a"
    seen = {"read": 0, "refused": 0}
    warnings.simplefilter("ignore")  # pytest undoes it
    for form in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path, form)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for i in range(40):
            raw = whole.copy()
            raw[rng.integers(0, len(raw))] = rng.integers(0, 256)
            raw[rng.integers(0, min(60, len(raw)))] = rng.integers(0, 256)
            path.write_bytes((raw[: rng.integers(1, len(raw))] if i % 2 else raw).tobytes())
            try:
                assert pixels(str(path), 8).shape == (8, 8, 3)
                seen["read"] += 1
            except Unreadable as error:
                why = str(error)
                seen["refused"] += bool(why) and "\n" not in why
    assert sum(seen.values()) == 280
    assert min(seen.values()) > 20


AUGMENT = {"crop": 2, "flip": 0.5, "mixup": 0.4, "cutmix": 1.0}


def epoch(root: Path, **more) -> list:
    d = build(root, size=12, augment=AUGMENT, **more)
    return list(d.source("train", 5, train=True, seed=1, device=CPU).epoch(2))


def parts(batch) -> list[torch.Tensor]:
    weight = torch.ones(len(batch)) if batch.weight is None else batch.weight
    return [batch.inputs, batch.target, batch.index, batch.view, weight, batch.partner.lam, batch.partner.target]


def test_skipped_rows_keep_their_place_and_nothing_else_moves(tmp_path: Path):
    root = make(tmp_path / "pets")
    whole = epoch(root)
    lost = [3, 8]
    (root / "train" / "cat" / "3.png").write_bytes(b"")
    (root / "train" / "dog" / "2.png").write_text("text")
    found = epoch(root, on_error="skip")
    touched = 0
    for a, b in zip(whole, found, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.view, b.view)
        assert torch.equal(a.target, b.target)
        gone = torch.isin(b.index, torch.tensor(lost))
        widowed = gone.flip(0) & ~gone
        assert torch.equal(parts(b)[4], (~gone).float())
        assert (b.partner.lam[widowed] == 1).all()  # who has no partner is not mixed
        rest = ~gone & ~widowed
        assert torch.equal(a.inputs[rest].float(), b.inputs[rest].float())
        assert torch.equal(a.partner.lam[rest], b.partner.lam[rest])
        touched += int(widowed.sum())
    assert touched
    for cache in ("host", "none"):
        for workers in (0, 2):
            again = epoch(root, on_error="skip", cache=cache, workers=workers)
            assert all(
                torch.equal(s, t)
                for a, b in zip(found, again, strict=True)
                for s, t in zip(parts(a), parts(b), strict=True)
            )


def broken_pets(tmp_path: Path) -> Path:
    root = make(tmp_path / "pets", n=12)
    for name in ("train/cat/3.png", "val/dog/1.png", "test/cat/0.png"):
        (root / name).write_bytes(b"")
    return root


SKIP = ("data=image_folder", "data.on_error=skip", "batch_size=5", "data.augment.mixup=0.2", "epochs=3")


def test_a_run_skips_alike_held_streamed_and_gone_on_with(tmp_path: Path):
    root = f"data.root={broken_pets(tmp_path)}"
    whole = plain(tmp_path / "a", *SKIP, root)
    streamed = plain(tmp_path / "b", *SKIP, root, "data.cache=none", "data.workers=2")
    assert same(whole, streamed)
    for steps in (1, 7):  # the second in the middle of an epoch
        with pytest.raises(Stopped):
            plain(tmp_path / f"c{steps}", *SKIP, root, "data.cache=none", stop=After(steps))
        assert same(whole, plain(tmp_path / f"c{steps}"))
    for run in (whole, streamed, Run(tmp_path / "c1"), Run(tmp_path / "c7")):
        assert run.skipped == {
            split: {"of": 24, "rows": {str(tmp_path / "pets" / name): "it is empty"}}
            for split, name in (("train", "train/cat/3.png"), ("val", "val/dog/1.png"), ("test", "test/cat/0.png"))
        }
        for split, row in (("val", 13), ("test", 0)):
            assert run.predictions(split)[0].row.tolist() == [i for i in range(24) if i != row]
            assert sum(c["rows"] for c in run.result["per_class"][split].values()) == 23
            assert run.result[split] == whole.result[split]


def test_what_was_skipped_in_an_earlier_sitting_is_still_listed(tmp_path: Path):
    """Killed once the last step is saved: who goes on reads no training row again."""
    pets = make(tmp_path / "pets", n=12)
    table: Any = build(pets).splits["train"].table
    late = table.path(random.order(0, 0, 24)[-1])  # the first batch is looked at again
    Path(late).write_bytes(b"")
    root = f"data.root={pets}"
    with pytest.raises(Stopped):
        plain(tmp_path / "run", *SKIP, root, "data.cache=none", stop=After(19))  # 15 steps, and what validation asks
    state = Run(tmp_path / "run").checkpoints.read()
    assert state is not None
    assert state["step"] == 15
    run = plain(tmp_path / "run")
    assert run.skipped == {"train": {"of": 24, "rows": {late: "it is empty"}}}


def test_more_than_half_is_refused(tmp_path: Path):
    root = make(tmp_path / "pets")
    for i in range(6):
        (root / "train" / "cat" / f"{i}.png").write_bytes(b"")
    half = build(root, on_error="skip", size=12)
    assert len(list(half.source("train", 4, train=False, seed=0, device=CPU).epoch(0))) == 3
    assert build(root, on_error="skip").shape == (3, 12, 12)
    (root / "train" / "dog" / "0.png").write_bytes(b"")
    for more in ({}, {"size": 12}, {"size": 12, "cache": "none"}):
        with pytest.raises(
            Refused, match=r"7 of 12 rows of train cannot be read, more than half; the first is .*cat/0"
        ):
            list(build(root, on_error="skip", **more).source("train", 4, train=False, seed=0, device=CPU).epoch(0))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_broken_picture_of_training_or_validation_leaves_no_folder(split: str, tmp_path: Path):
    root = make(tmp_path / "pets")
    (root / split / "cat" / "3.png").write_bytes(b"")
    with pytest.raises(Refused, match=r"3\.png"):
        lab(tmp_path / "run", "data=image_folder", f"data.root={root}")
    assert not (tmp_path / "run").exists()


ODD = ["a b.png", "a=b.png", "ünï☃.png", "new\nline.png", "quote'\".png", os.fsdecode(b"\xff\xfe.png")]


def test_odd_names_are_read_and_told_in_one_line(tmp_path: Path):
    root = make(tmp_path / "pe ts=ü\n")
    for i, name in enumerate(ODD):
        (root / "train" / "cat" / f"{i}.png").rename(root / "train" / "cat" / name)
    d = build(root, on_error="skip", cache="none")
    for name in ODD:
        (root / "train" / "cat" / name).write_bytes(b"")
    list(d.source("train", 4, train=False, seed=0, device=CPU).epoch(0))
    assert len(d.skipped["train"]["rows"]) == 6
    assert all(path.isprintable() for path in d.skipped["train"]["rows"])
    with pytest.raises(Refused, match=r"pe ts=ü\\n/train/cat/.* is empty") as error:
        list(build(root, size=12).source("train", 4, train=False, seed=0, device=CPU).epoch(0))
    assert str(error.value).isprintable()
    (root / "val" / "cat").rename(root / "val" / "c\nat")
    (root / "train" / "cat").rename(root / "train" / "c\nat")
    (root / "test" / "cat").rename(root / "test" / "c\nat")
    with pytest.raises(Refused, match="rename it"):
        build(root)


def test_links_that_lead_back_are_not_followed(tmp_path: Path):
    root = make(tmp_path / "pets")
    cat = root / "train" / "cat"
    paint(tmp_path / "more" / "x.png", 1)
    (cat / "more").symlink_to(tmp_path / "more")
    for name, target in (("self", "."), ("up", ".."), ("root", root), ("itself", "itself")):
        (cat / name).symlink_to(target)
    (tmp_path / "more" / "back").symlink_to(cat)
    files = [name for name, label in folder.list_files(root / "train", ["cat", "dog"]) if label == 0]
    assert files == [*(f"cat/{i}.png" for i in range(6)), "cat/more/x.png"]


def test_the_folders_of_all_splits_are_looked_at_before_training(tmp_path: Path):
    root = make(tmp_path / "pets")
    for file in (root / "test" / "dog").iterdir():
        file.unlink()
    with pytest.raises(Refused, match=r"test/dog holds no pictures"):
        build(root)
    (root / "test" / "dog").rmdir()
    with pytest.raises(Refused, match="test folder has other classes than train: it lacks dog"):
        build(root)


def test_labels_out_of_range_and_files_that_do_not_belong_together(tmp_path: Path):
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw, zipped=False)
    spec = {"name": "mnist", "root": str(tmp_path)}
    labels = raw / "train-labels-idx1-ubyte"
    good = labels.read_bytes()
    labels.write_bytes(good[:-2] + b"\x0a\xff")
    with pytest.raises(Refused, match=r"train split has 2 targets out of range: row 58 says 10, .* 10 classes"):
        data.build(spec)
    labels.write_bytes(struct.pack(">II", 0x0801, 59) + good[8:-1])
    with pytest.raises(Refused, match=r"train files .* images \[60, 28, 28\], labels \[59\]"):
        data.build(spec)
    for what, dims in (("images", 3), ("labels", 1)):
        head = struct.pack(f">I{dims}I", 0x0800 + dims, 0, *[28] * (dims - 1))
        (raw / f"train-{what}-idx{dims}-ubyte").write_bytes(head)
    with pytest.raises(Refused, match="train split has no rows"):
        data.build(spec)


class Deadly:
    """A table in which a row kills who reads it, as often as there are files to say so."""

    shape, nbytes = (1, 1, 1), 6

    def __init__(self, places: list[Path]) -> None:
        self.places = places
        for place in places:
            place.touch()

    def read(self, rows, lost=None):
        for place in self.places if 3 in rows.tolist() else []:
            if place.exists():
                place.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return rows.to(torch.uint8).view(-1, 1, 1, 1)


def test_a_worker_that_dies_is_replaced_once_and_handlers_stay(tmp_path: Path, capsys):
    before = signal.getsignal(signal.SIGCHLD)
    stream = sources.Streaming(Deadly([tmp_path / "a"]), 1, CPU)
    found = [raw.flatten().tolist() for raw, _ in stream.batches(torch.arange(6), [(0, 2), (2, 4), (4, 6)])]
    assert found == [[0, 1], [2, 3], [4, 5]]
    assert capsys.readouterr().err.count("\n") == 1
    assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.slow
def test_a_worker_that_dies_twice_ends_the_run(tmp_path: Path):
    stream = sources.Streaming(Deadly([tmp_path / "a", tmp_path / "b"]), 1, CPU)
    with pytest.raises(Stopped, match=r"a process that reads data died .* twice") as stopped:
        list(stream.batches(torch.arange(6), [(0, 2), (2, 4), (4, 6)]))
    assert (stopped.value.code, stopped.value.state) == (1, "failed")


def command(cwd: Path, *args: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "sftc", "train", "model=mlp", "device=cpu", "device.threads=1", *args]
    return subprocess.Popen(
        line, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen[str], cwd: Path, code: int, words: str) -> None:
    """It printed one line and left no run folder."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert words in err
    assert err.count("\n") == 1
    assert not list(cwd.glob("outputs/*"))


def test_sigterm_while_imports_go_on_takes_the_reserved_folder_away(tmp_path: Path):
    process = command(tmp_path)
    while not list(tmp_path.glob("outputs/*/*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    ended(process, tmp_path, 143, "stopped by SIGTERM")


def reads(process: subprocess.Popen[str], root: Path) -> bool:
    some = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    return any(file.path.startswith(str(root)) for p in some for file in p.open_files())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "workers", "all_of_it"),
    [("SIGTERM", 0, False), ("SIGINT", 2, False), ("SIGTERM", 2, True), ("SIGINT", 2, True)],
)
def test_signals_end_a_long_reading(number: str, workers: int, all_of_it: bool, tmp_path: Path):
    root = make(tmp_path / "pets")
    paint(tmp_path / "large.png", 0, (2000, 2000))
    for i in range(500):
        os.link(tmp_path / "large.png", root / "train" / "cat" / f"large{i}.png")
    args = ["data=image_folder", f"data.root={root}", "data.size=12", f"data.workers={workers}"]
    process = command(tmp_path, *args)
    while not reads(process, root / "train"):
        time.sleep(0.02)
    (os.killpg if all_of_it else os.kill)(process.pid, signal.Signals[number])
    ended(process, tmp_path, 128 + signal.Signals[number], f"stopped by {number}")


@pytest.fixture
def slow_server() -> Iterator[tuple[str, list[str]]]:
    """Sends a byte now and then, and never comes to an end."""
    asked: list[str] = []

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.1)
            except OSError:
                return

        def log_message(self, *args):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_download(number: signal.Signals, slow_server, tmp_path: Path):
    url, asked = slow_server
    program = f"""
import sys
from torchvision import datasets
datasets.MNIST.mirrors = ["{url}"]
from sftc.cli import main
sys.exit(main(["train", "data=mnist", "data.root=mnist", "data.download=true", "device=cpu"]))
"""
    line = [sys.executable, "-c", program]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not asked:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert f"stopped by {number.name}" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not list(tmp_path.glob("outputs/*"))
    assert not list(tmp_path.glob("mnist/*"))
    assert not list(tmp_path.glob("mnist/.*"))
