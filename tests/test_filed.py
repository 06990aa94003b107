"""Tensors that stay in their files: the same as in memory, and never more of them at once than a stretch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from masks import write
from problems import config, plain
from sftc import build, filed, positions
from sftc.errors import Refused, Stopped
from sftc.filed import Filed, Spool
from sftc.positions import Gathered, Positions
from sftc.store import Run
from sftc.store.files import write_parts
from sftc.store.reading import read_parts

DRAW = torch.Generator().manual_seed(0)


@pytest.fixture
def short(monkeypatch) -> int:
    monkeypatch.setattr(filed, "STRETCH", 7)
    return 7


def spooled(whole: torch.Tensor, folder: Path | None = None) -> Filed:
    spool = Spool(folder, whole.dtype, tuple(whole.shape[1:]))
    for some in whole.split(4):
        spool.add(some)
    return spool.whole()


@pytest.mark.parametrize("whole", [torch.arange(60).view(20, 3).half(), torch.arange(20, dtype=torch.uint8)], ids=str)
def test_what_lies_in_a_file_reads_as_in_memory(short, whole, tmp_path):
    part = spooled(whole, tmp_path)
    assert (len(part), part.ndim, part.nbytes, part.dtype) == (20, whole.ndim, whole.nbytes, whole.dtype)
    assert not list(tmp_path.iterdir())  # it has no name, and needs nobody to take it away
    for at in (
        slice(None),
        slice(3, 11),
        slice(15, 99),
        slice(4, 4),
        torch.tensor([0, 6, 7, 8, 19]),
        torch.tensor([13]),
    ):
        assert torch.equal(part[at], whole[at])
    assert torch.equal(torch.cat(list(filed.stretches(part))), whole)


def test_a_file_that_becomes_shorter_and_a_full_disk_are_one_line(monkeypatch):
    part = spooled(torch.arange(20))
    os.ftruncate(part._file.number, 30)
    with pytest.raises(Stopped, match="cut short"):
        part[:]
    monkeypatch.setattr(filed.tempfile, "TemporaryFile", lambda dir: Path("/dev/full").open("wb", buffering=0))  # noqa: SIM115
    full = Spool(None, torch.uint8, ())
    with pytest.raises(Stopped, match=r"cannot write scores into .*: No space left on device"):
        full.add(torch.ones(9, dtype=torch.uint8))
    full._file.close()


def parts(n: int = 50) -> dict[str, torch.Tensor]:
    scores = torch.rand(n, 5, generator=DRAW).half()
    counts = torch.tensor([n - 11, 0, 11])
    return {"scores": scores, "target": torch.arange(n).to(torch.uint8) % 5, "rows": torch.arange(3), "counts": counts}


def test_a_file_is_written_as_safetensors_writes_it(short, tmp_path):
    whole, meta = parts(), {"classes": "5"}  # of several entries safetensors itself changes the order
    path = tmp_path / "preds.safetensors"
    write_parts(path, {**whole, "scores": spooled(whole["scores"])}, meta)
    assert path.read_bytes() == save(whole, meta)
    found = read_parts(path)
    for name, want in load_file(path).items():
        assert torch.equal(found[name][:], want)


@pytest.mark.parametrize("harm", ["cut", "no header", "beyond", "overlong", "type", "scalar", "none"])
def test_a_file_that_is_not_whole_is_refused(tmp_path, harm):
    path = tmp_path / "preds.safetensors"
    content = save(parts(), {})
    swaps = {"overlong": (b"[50,5]", b"[50,6]"), "type": (b"F16", b"F99"), "scalar": (b"[50,5]", b"[]    ")}
    swaps["beyond"] = (b'"data_offsets":[48', b'"data_offsets":[88')
    if harm in swaps:
        assert content.count(swaps[harm][0]) == 1
        content = content.replace(*swaps[harm])
    content = {"cut": content[:-1], "no header": content[:5]}.get(harm, content)
    if harm != "none":
        path.write_bytes(content)
    with pytest.raises(Refused, match="does not exist" if harm == "none" else "is not a whole safetensors file"):
        read_parts(path)


@pytest.mark.parametrize("limit", [positions.LIMIT, 100], ids=["all scores", "largest few"])
def test_many_positions_go_into_a_file_and_stay_what_they_are(limit, monkeypatch, tmp_path):
    monkeypatch.setattr(positions, "LIMIT", limit)
    scores = torch.rand(500, 6, generator=DRAW).softmax(1)
    target, row = torch.arange(500) % 6, torch.arange(500) // 50 * 2

    def gathered() -> Positions:
        made = Gathered(6, 500, tmp_path)
        for part in zip(scores.split(30), target.split(30), row.split(30), strict=True):
            made.add(*part)
            assert made.held <= positions.HELD
        return made.whole()

    held = gathered()
    monkeypatch.setattr(positions, "HELD", 1000)
    there = gathered()
    in_files = {name for name, part in there.parts.items() if isinstance(part, Filed)}
    assert in_files == held.parts.keys() - set(positions.PER_ROW)
    assert str(there) == str(held)
    for at in (slice(0, 500), slice(99, 250), torch.tensor([0, 49, 50, 51, 499])):
        a, b = there.take(at), held.take(at)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.target, b.target)
        assert torch.equal(a.row, row[at])


def test_no_run_and_no_fusion_reads_more_than_a_stretch_of_what_lies_in_files(tmp_path, monkeypatch):
    """However many pixels there are, memory holds no more of what was said about them than a piece."""
    asked: list[int] = []
    read = Filed._read
    monkeypatch.setattr(Filed, "_read", lambda self, a, b: (asked.append(b - a), read(self, a, b))[1])
    for where, name, value in ((positions, "HELD", 300), (positions, "PIECE", 100), (positions, "SAMPLE", 50)):
        monkeypatch.setattr(where, name, value)
    monkeypatch.setattr(filed, "STRETCH", 100)
    root = write(tmp_path / "scenes", 2)
    words = ("data=segmentation_folder", f"data.root={root}", "model=fcn", "model.channels=[4]", "model.depth=1")
    pair = [plain(tmp_path / str(s), *words, "max_steps=1", f"seed={s}") for s in range(2)]
    runs = f"runs=[{','.join(str(run.path) for run in pair)}]"
    build.fuse(config(runs, "fuse=mean", "quiet=true", command="fuse"), tmp_path / "fused", [], "sftc fuse")
    said, _ = Run.open(tmp_path / "fused").predictions("val")
    assert isinstance(said, Positions)
    assert isinstance(said.parts["scores"], Filed)
    assert len(said) == 2 * (16 * 16 - 4)
    assert max(asked) == 100
