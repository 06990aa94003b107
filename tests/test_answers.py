"""Stored answers: what the live teacher says about the same picture, whoever asks, in whatever order, or an error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from killing import wait
from sftc import data
from sftc.answers import stored, table
from sftc.device import Device
from sftc.errors import Refused, Stopped
from sftc.objective import Live
from sftc.store.files import hash_tensors, write_tensors
from sftc.store.lock import locked
from sftc.store.reading import read_meta, read_tensors
from sftc.types import Batch, Out, Partner

CPU = torch.device("cpu")
ALONE = {"crop": 2, "flip": 0.5, "randaugment": 1, "erasing": 0.3}
FAKE = {"name": "fake", "count": 70, "size": 8, "val_share": 0.2, "augment": ALONE, "views": 3}
STILL = FAKE | {"augment": {}, "views": None}
MARKS = {"model": "m0", "data": "d0", "precision": "32"}


class Net(nn.Module):
    """Pixels in, logits [N, *shape] out."""

    def __init__(self, shape=(10,), seed: int = 0, scale: float = 3.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.out = nn.Linear(3 * 64, int(torch.tensor(shape).prod()))
        self.shape, self.scale = shape, scale

    def forward(self, x):
        return self.scale * self.out(x.float().flatten(1) / 64 - 2).view(-1, *self.shape)


class Asked:
    """A live teacher that counts its batches; in a file, if other processes are to see them."""

    def __init__(self, model: nn.Module | None = None, log: Path | None = None, pause: float = 0.0) -> None:
        self.live = Live(Net() if model is None else model, Device("cpu", threads=1))
        self.rows, self.log, self.pause = 0, log, pause

    def __call__(self, batch: Batch) -> Out:
        self.rows += len(batch)
        if self.log is not None:
            with self.log.open("a") as f:
                f.write(f"{int(batch.view[0])} {len(batch)}\n")
        time.sleep(self.pause)
        return self.live(batch)


class Here:
    """A place with a teacher's and a student's run, where answers are wanted."""

    def __init__(self, root: Path, spec: dict = FAKE) -> None:
        self.data = data.build(spec)
        self.home, self.beside = root / "teacher", root / "student"
        self.home.mkdir()
        self.beside.mkdir()
        self.lines: list[str] = []
        self.n = len(self.data.splits["train"].rows)

    def view(self, v: int):
        return self.data.source("train", 20, train=False, seed=0, device=CPU, view=v)

    def get(self, teacher=None, **more):
        fixed = {"home": self.home, "beside": self.beside, "marks": MARKS, "view": self.view, "device": CPU}
        return stored(teacher or Asked(), **({"views": 3, "say": self.lines.append} | fixed | more))  # type: ignore[arg-type]

    def training(self, epoch: int = 0, seed: int = 1, rows=None) -> list[Batch]:
        return list(self.data.source("train", 16, train=True, seed=seed, device=CPU, rows=rows).epoch(epoch))

    def files(self) -> list[Path]:
        return sorted(self.home.glob("answers/*/*.safetensors"))


@pytest.fixture
def here(tmp_path) -> Here:
    return Here(tmp_path)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Within the rounding of fp16, and of float32 in batches of another size."""
    return a.shape == b.shape and bool(((a - b).abs() <= 2**-10 * b.abs() + 1e-4).all())


def rewritten(path: Path, change) -> None:
    """A file with other content, and everything else as a forger would leave it: marks, and the right hash."""
    parts, meta = read_tensors(path), read_meta(path)
    parts = {k: v.clone() for k, v in parts.items()}
    change(parts)
    write_tensors(path, parts, meta | {"hash": hash_tensors(parts)})


# What is answered


def test_every_batch_of_training_is_answered_as_by_the_live_teacher(here):
    answers, live = here.get(), Asked()
    for seed in (0, 1):
        for epoch in range(4):
            for batch in here.training(epoch, seed):
                said = answers(batch).logits
                assert said.dtype == torch.float32
                assert close(said, live(batch).logits)
    # and it would be seen if views were left out: pictures of a row differ between them
    batch = here.training()[0]
    still = Batch(batch.inputs, batch.target, batch.index, torch.zeros_like(batch.view))
    assert not close(answers(still).logits, live(batch).logits)


def test_repeated_rows_and_some_rows_only(here):
    answers, live = here.get(), Asked()
    mine = here.data.splits["train"].rows
    for rows in (mine[torch.randint(len(mine), (40,), generator=torch.Generator().manual_seed(0))], mine[7:19]):
        for batch in here.training(2, rows=rows):
            assert close(answers(batch).logits, live(batch).logits)


def test_without_augmentation_every_view_is_the_same(tmp_path):
    here = Here(tmp_path, STILL)
    answers, live = here.get(views=5), Asked()
    rows = here.data.splits["train"].rows
    assert len(here.files()) == 1
    for epoch in (0, 3):
        for batch in here.training(epoch, rows=torch.cat((rows, rows[:9]))):
            assert close(answers(batch).logits, live(batch).logits)


@pytest.mark.parametrize("shape", [(1,), (4,), (5, 6, 7)])
def test_values_labels_and_positions(tmp_path, shape):
    here = Here(tmp_path)
    teacher = Asked(Net(shape))
    answers = here.get(teacher)
    for batch in here.training(1):
        assert close(answers(batch).logits, teacher(batch).logits)


def test_tables_of_numbers(tmp_path):
    here = Here(tmp_path, {"name": "diabetes"})
    torch.manual_seed(0)
    teacher = Asked(nn.Linear(10, 2))
    answers = here.get(teacher)
    for batch in here.training(3):
        assert close(answers(batch).logits, teacher(batch).logits)


def test_a_second_student_reads_the_same_bits_and_asks_a_few_rows_only(here):
    batch = here.training()[0]
    first, second = Asked(), Asked()
    a, b = here.get(first), here.get(second)
    assert torch.equal(a(batch).logits, b(batch).logits)
    assert torch.equal(a(batch).logits, a(batch).logits.half().float())
    assert (a.found, a.made, b.found, b.made) == (0, 3, 3, 0)
    assert first.rows > 3 * here.n
    assert 12 <= second.rows <= 18  # 16, in equal parts of three views, and a last batch is short
    assert b.bytes == sum(f.stat().st_size for f in here.files())
    assert b.note == f"answers of {here.home}: 3 views of {here.n} rows found, 0 made, {b.bytes / 1e6:.1f} MB (fp16)"
    assert here.lines == [f"{here.home} answers 3 views of {here.n} rows"]


def test_more_views_are_added_to_those_there_are(tmp_path):
    few = Here(tmp_path, FAKE | {"views": 2})
    few.get(views=2)
    few.data = data.build(FAKE)
    more = few.get()
    assert (more.found, more.made) == (2, 1)


def test_what_is_not_stored_is_named(here):
    answers = here.get()
    good = here.training()[0]
    missing = int(here.data.splits["val"].rows[0])
    for row, view in ((missing, 0), (-1, 0), (10**6, 2), (int(good.index[0]), 3), (int(good.index[0]), -1)):
        index, views = good.index.clone(), good.view.clone()
        index[4], views[4] = row, view
        with pytest.raises(LookupError, match=f"no row {row} in view {view}$"):
            answers(Batch(good.inputs, good.target, index, views))
    answers(good)


def test_mixed_pictures_are_refused(here):
    answers, b = here.get(), here.training()[0]
    b.partner = Partner(b.index.flip(0), b.view.flip(0), b.target.flip(0), torch.rand(len(b)))
    with pytest.raises(Refused, match=r"teacher_outputs=live, or data.augment.mixup=0"):
        answers(b)


# The largest k


def mass(logits: torch.Tensor, index: torch.Tensor, t: float) -> torch.Tensor:
    return (logits.double() / t).softmax(1).gather(1, index).sum(1)


def test_the_largest_are_exact_and_the_rest_has_its_mass(here):
    teacher = Asked()
    for t in (1.0, 4.0):
        answers = here.get(teacher, topk=3, temperature=t)
        for batch in here.training(1):
            live, said = teacher(batch).logits, answers(batch).logits
            top = live.topk(3, 1).indices
            assert close(said.gather(1, top), live.gather(1, top))
            rest = torch.ones_like(said).scatter(1, top, 0).bool()
            want = torch.logsumexp((live / t).masked_fill(~rest, -torch.inf), 1)
            torch.testing.assert_close(torch.logsumexp((said / t).masked_fill(~rest, -torch.inf), 1), want)
            torch.testing.assert_close(mass(said, top, t), mass(live, top, t), rtol=2e-3, atol=0)
            spread = said.masked_fill(~rest, -torch.inf).amax(1) - said.masked_fill(~rest, torch.inf).amin(1)
            assert (spread == 0).all()
        assert "the largest 3 of 10, fp16" in answers.note


def test_a_new_temperature_is_added_to_the_old_ones(here):
    here.get(topk=3, temperature=2.0)
    assert here.get(topk=3, temperature=4.0).made == 3
    assert sum("does not know temperature 4" in x for x in here.lines) == 3
    assert [here.get(topk=3, temperature=t).made for t in (2.0, 4.0)] == [0, 0]
    assert read_tensors(here.files()[0])["temperatures"].tolist() == [2.0, 4.0]


def test_as_many_as_there_are_is_all_of_them(here):
    dense, full = here.get(), here.get(topk=10, temperature=2.0)
    batch = here.training()[0]
    assert torch.equal(dense(batch).logits, full(batch).logits)


def test_the_largest_k_of_what_has_no_rest(here):
    with pytest.raises(Refused, match="one temperature, and this one changes"):
        here.get(topk=3)
    with pytest.raises(Refused, match=r"one distribution a row, not for \(5, 2, 2\)"):
        here.get(Asked(Net((5, 2, 2))), topk=3, temperature=2.0)
    with pytest.raises(Refused, match="at least one class"):
        here.get(topk=0, temperature=2.0)


# What is not used


def test_other_marks_are_other_answers(here):
    here.get()
    for change in ({"model": "m1"}, {"data": "d1"}, {"input": "96"}):
        assert here.get(Asked(Net(seed=1)), marks=MARKS | change).found == 0
    here.data = data.build(FAKE | {"augment": ALONE | {"flip": 0.4}})
    assert here.get().found == 0
    assert len(list(here.home.glob("answers/*"))) == 5
    assert not any("made again" in line for line in here.lines)  # none was taken for another


def test_a_file_of_another_teacher_in_our_place_is_made_again(here):
    other = Asked(Net(seed=1))
    here.get(other, marks=MARKS | {"model": "m1"})
    theirs = here.files()
    here.get()
    ours = sorted(set(here.files()) - set(theirs))
    for a, b in zip(theirs, ours, strict=True):
        shutil.copyfile(a, b)
    shutil.copyfile(theirs[0], ours[1])
    here.lines.clear()
    answers, live = here.get(check=0), Asked()
    assert sum("is about something else; made again" in x for x in here.lines) == 3
    batch = here.training()[0]
    assert close(answers(batch).logits, live(batch).logits)


@pytest.mark.parametrize("at", [3, 40, 300, 0.5, 0.9, -1])
def test_a_flipped_bit_is_seen(here, at):
    before = here.get()
    path = here.files()[1]
    raw = bytearray(path.read_bytes())
    raw[int(at * len(raw)) if isinstance(at, float) else at] ^= 4
    path.write_bytes(raw)
    after = here.get(check=0)
    assert (after.found, after.made) == (2, 1)
    (line,) = [x for x in here.lines if "made again" in x]
    assert str(path) in line
    batch = here.training()[0]
    assert torch.equal(before(batch).logits, after(batch).logits)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def forget(path: Path) -> None:
    path.write_bytes(b"")


def without_a_row(path: Path) -> None:
    rewritten(path, lambda p: p.update(row=p["row"][:-1], logits=p["logits"][:-1]))


def other_order(path: Path) -> None:
    rewritten(path, lambda p: p.update(row=p["row"].flip(0)))


def wide(path: Path) -> None:
    rewritten(path, lambda p: p.update(logits=p["logits"].float()))


def not_finite(path: Path) -> None:
    rewritten(path, lambda p: p["logits"][3, 3].fill_(torch.nan))


def nothing(path: Path) -> None:
    write_tensors(path, {}, read_meta(path))


@pytest.mark.parametrize("spoil", [cut, forget, without_a_row, other_order, wide, not_finite, nothing])
def test_a_file_that_does_not_fit_is_made_again(here, spoil):
    here.get()
    spoil(here.files()[2])
    after = here.get(check=0)
    assert (after.found, after.made) == (2, 1)
    assert sum("made again" in x for x in here.lines) == 1


def test_an_index_out_of_range_is_made_again(here):
    here.get(topk=3, temperature=2.0)
    rewritten(here.files()[0], lambda p: p["index"][0, 0].fill_(10))
    assert here.get(topk=3, temperature=2.0).made == 1


@pytest.mark.parametrize("topk", [None, 3])
def test_answers_the_live_teacher_does_not_give_are_made_again(here, topk):
    some = {"topk": topk, "temperature": 2.0}
    here.get(Asked(Net(seed=1)), **some)  # of another teacher, whose marks are stale
    after, live = here.get(**some), Asked()
    assert (after.found, after.made) == (0, 3)
    assert sum("not what the teacher says now; made again" in x for x in here.lines) == 1
    batch = here.training()[0]
    top = live(batch).logits.topk(3, 1)
    assert close(after(batch).logits.gather(1, top.indices), top.values)
    assert here.get(**some).found == 3


def test_views_of_different_classes_are_made_again(here):
    here.get()
    rewritten(here.files()[1], lambda p: p.update(logits=p["logits"][:, :4].contiguous(), classes=torch.tensor([4])))
    assert here.get().made == 3


def test_a_teacher_that_says_something_else_each_time_is_refused(here):
    def moody(batch):
        return Out(torch.randn(len(batch), 4))

    with pytest.raises(Refused, match=r"differently each time; use strategy.teacher_outputs=live"):
        here.get(moody)


@pytest.mark.parametrize("value", [7e4, -7e4, torch.inf, torch.nan])
def test_what_fp16_cannot_hold_is_refused(here, value):
    row = here.data.splits["train"].rows[25]

    def loud(batch):
        logits = torch.zeros(len(batch), 4)
        logits[batch.index == row, 2] = value
        return Out(logits)

    with pytest.raises(Refused, match=f"about row {row}, which fp16 cannot hold"):
        here.get(loud)
    assert not here.files()


def test_a_source_that_passes_other_things_is_an_error(here):
    whole, rows = here.view, here.data.splits["train"].rows.flip(0)
    sources = {
        "not in order": lambda v: here.data.source("train", 16, train=True, seed=0, device=CPU),
        "of another view": lambda v: whole(0),
        "in another order": lambda v: here.data.source("train", 16, train=False, seed=0, device=CPU, view=v, rows=rows),
    }
    for source in sources.values():
        with pytest.raises(ValueError, match="must pass all rows in one order"):
            here.get(view=lambda v, source=source: source(v) if v else whole(0))


def test_a_disk_without_room_is_one_line(here, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 100))  # type: ignore[attr-defined]
    with pytest.raises(Refused, match=r"MB for a view, and .* has 0.0 MB free; use strategy.teacher_outputs=live"):
        here.get()


# Where tables live


def test_where_tables_live(monkeypatch):
    monkeypatch.setattr(table, "host_free", lambda: 1000)
    gpu = torch.device("meta")  # any device that is not the host
    cases = [(250, CPU, None, "host"), (251, CPU, 10**6, "mapped"), (100, gpu, 400, "device")]
    cases += [(101, gpu, 400, "host"), (100, gpu, None, "host"), (251, gpu, 400, "mapped")]
    for nbytes, device, free, want in cases:
        assert table.place(nbytes, device, free) == want


@pytest.mark.parametrize("topk", [None, 3])
def test_mapped_tables_say_the_same(here, monkeypatch, topk):
    some = {"topk": topk, "temperature": 2.0}
    held = here.get(**some)
    monkeypatch.setattr(table, "host_free", lambda: 0)
    mapped = here.get(**some)
    assert (held.place, mapped.place) == ("host", "mapped")
    for batch in here.training(2):
        assert torch.equal(held(batch).logits, mapped(batch).logits)
    with pytest.raises(LookupError, match="no row 9999"):
        mapped(Batch(batch.inputs, batch.target, torch.full_like(batch.index, 9999), batch.view))
    for file in here.files():
        file.unlink()  # another process makes them again: what is mapped stays
    assert torch.equal(held(batch).logits, mapped(batch).logits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("topk", [None, 3])
def test_on_a_gpu_nothing_waits_and_a_missing_row_is_said_one_call_later(here, topk):
    gpu = torch.device("cuda")
    some = {"topk": topk, "temperature": 2.0}
    want = here.get(**some)
    answers = here.get(device=gpu, free_bytes=10**9, **some)
    assert answers.place == "device"
    batches = here.training(1)
    there = [b.to(gpu) for b in batches]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        said = [answers(b).logits for b in there]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for b, logits in zip(batches, said, strict=True):
        torch.testing.assert_close(logits.cpu(), want(b).logits)
    lost = there[0].index.clone()
    lost[4] = 9999
    logits = answers(Batch(there[0].inputs, there[0].target, lost, there[0].view)).logits
    assert logits[4].isnan().all()
    assert logits[5:].isfinite().all()
    with pytest.raises(LookupError, match="no row 9999"):
        answers(there[1])


# Other processes, signals, and folders that are not ours


def child(story) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        story()
        code = 0
    finally:
        os._exit(code)


def until(what, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def views_in(log: Path) -> list[int]:
    return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []


def test_two_processes_that_want_the_same_ask_once(here, tmp_path):
    log, batch = tmp_path / "log", here.training()[0]

    def student(name: str) -> None:
        answers = here.get(Asked(log=log, pause=0.05), check=0)
        torch.save(answers(batch).logits, tmp_path / f"{name}.pt")
        (tmp_path / f"{name}.json").write_text(json.dumps([answers.found, answers.made, here.lines]))

    pids = [child(lambda name=name: student(name)) for name in "ab"]
    assert [wait(pid) for pid in pids] == [0, 0]
    assert views_in(log) == sorted(views_in(log))
    assert len(views_in(log)) == 3 * here.view(0).steps
    a, b = sorted(json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert (a[:2], b[:2]) == ([0, 3], [3, 0])
    assert sum("another process is asking" in line for line in b[2]) == 1
    assert torch.equal(*(torch.load(tmp_path / f"{name}.pt") for name in "ab"))
    assert not list(here.home.rglob(".*"))


def test_a_fill_that_was_killed_goes_on_with_the_next_view(here, tmp_path):
    log = tmp_path / "log"
    pid = child(lambda: here.get(Asked(log=log, pause=0.05)))
    until(lambda: 1 in views_in(log))
    os.kill(pid, signal.SIGKILL)
    assert wait(pid) == 128 + signal.SIGKILL
    assert len(here.files()) == 1
    torn = here.files()[0].with_name(f".view-0001.safetensors.{pid}.abcdef.tmp")
    torn.write_bytes(b"half")  # had it died while writing
    answers, live = here.get(), Asked()
    assert (answers.found, answers.made) == (1, 2)
    assert not torn.exists()
    for batch in here.training():
        assert close(answers(batch).logits, live(batch).logits)


def test_a_fill_stops_between_batches_and_goes_on(here):
    left = here.view(0).steps + 1

    def stop():
        nonlocal left
        left -= 1
        return Stopped("enough", 143) if left < 0 else None

    with pytest.raises(Stopped, match="enough"):
        here.get(stop=stop)
    assert len(here.files()) == 1
    assert here.get().found == 1


def test_who_waits_can_be_stopped(here, tmp_path):
    here.get()
    for file in here.files():
        file.unlink()

    def hold() -> None:
        with locked(folder):
            (tmp_path / "held").touch()
            time.sleep(20)

    (folder,) = here.home.glob("answers/*")
    pid = child(hold)
    try:
        until((tmp_path / "held").exists)
        with pytest.raises(Stopped, match="enough"):
            here.get(stop=lambda: Stopped("enough", 143) if any("waiting" in x for x in here.lines) else None)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # and not because the lock came free
    finally:
        os.kill(pid, signal.SIGKILL)
        wait(pid)


def test_a_teacher_that_cannot_be_written_is_answered_for_beside(here):
    home = Path("/proc/self/fd")  # not even root makes a folder there
    first, again = here.get(home=home), here.get(home=home)
    assert (first.made, again.found) == (3, 3)
    assert len(list(here.beside.glob("answers/*/*.safetensors"))) == 3
    for answers in (first, again):
        assert answers.note.endswith(f"(fp16), kept in {here.beside}: {home} cannot be written")
    with pytest.raises(Refused, match="cannot be kept"):
        here.get(home=home, beside=home)


def test_finding_everything_writes_nothing(here):
    here.get()
    before = {p: p.stat().st_mtime_ns for p in here.home.rglob("*")}
    here.get()
    assert {p: p.stat().st_mtime_ns for p in here.home.rglob("*")} == before
    assert not list(here.beside.iterdir())


@pytest.mark.parametrize("what", ["answers", "key", "lock", "lock twice"])
def test_a_link_in_a_teachers_folder_leads_nowhere(here, tmp_path, what):
    here.get()
    (folder,) = here.home.glob("answers/*")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    if what == "answers":
        shutil.rmtree(folder.parent)
        folder.parent.symlink_to(outside)
    elif what == "key":
        shutil.rmtree(folder)
        folder.symlink_to(outside)
    else:
        for file in here.files():
            file.unlink()
        if what == "lock":
            (folder / ".lock").symlink_to(outside / "precious")
        else:
            os.link(outside / "precious", folder / ".lock")
    assert here.get().made == 3
    assert [(p.name, p.read_text()) for p in outside.iterdir()] == [("precious", "mine")]
    assert len(list(here.beside.glob("answers/*/*.safetensors"))) == 3


def test_a_linked_file_is_replaced_and_not_followed(here, tmp_path):
    here.get()
    path = here.files()[0]
    kept = path.rename(tmp_path / "kept")
    before = kept.read_bytes()
    path.symlink_to(kept)
    assert here.get().made == 1
    assert any("is not a plain file" in x for x in here.lines)
    assert kept.read_bytes() == before
    assert not path.is_symlink()


def test_other_rounding_is_no_disagreement_and_other_rows_are(here):
    def rounding(batch):
        logits = Asked()(batch).logits
        return Out(logits + 0.01 * logits.std() * torch.randn(logits.shape))

    here.get()
    assert here.get(rounding).found == 3
    for file in here.files():
        rewritten(file, lambda p: p.update(logits=p["logits"].roll(1, 0)))
    assert here.get().made == 3
