"""States on disk: the newest two, whole or passed over, and never executed."""

from __future__ import annotations

import os
import zlib

import pytest
import torch

from sftc.errors import Refused, Stopped
from sftc.store.checkpoints import Checkpoints


@pytest.fixture
def kept(tmp_path):
    return Checkpoints(tmp_path / "checkpoint")


def state(step):
    return {"step": step, "weights": {"w": torch.full((50,), float(step))}}


def test_the_newest_two_are_kept_and_the_newest_is_read(kept):
    assert kept.read() is None
    for step in (1, 2, 30):
        kept.write(state(step))
    assert [p.name.rsplit("-", 1)[0] for p in kept.files()] == ["0000000003-30", "0000000002-2"]
    assert kept.read()["step"] == 30
    assert torch.equal(kept.read()["weights"]["w"], torch.full((50,), 30.0))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_newest_gives_way_to_the_one_before_with_a_warning(damage, kept):
    kept.write(state(1))
    kept.write(state(2))
    newest = kept.files()[0]
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    newest.write_bytes(content[: {"cut": -7, "flip": len(content), "empty": 0}[damage]])
    with pytest.warns(UserWarning, match="damaged"):
        assert kept.read()["step"] == 1


def test_nothing_whole_is_refused(kept):
    kept.write(state(1))
    kept.files()[0].write_bytes(b"no")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(Refused, match="train a new run"):
        kept.read()


def test_a_write_that_fails_leaves_what_was_there(kept, monkeypatch):
    kept.write(state(1))
    before = sorted(p.name for p in kept.folder.iterdir())

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(Stopped, match=r"cannot write .*disk full"):
        kept.write(state(2))
    monkeypatch.undo()
    assert sorted(p.name for p in kept.folder.iterdir()) == before
    assert kept.read()["step"] == 1


def test_a_state_with_code_is_not_executed(kept, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    kept.folder.mkdir()
    torch.save({"step": 1, "x": Bomb()}, tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    (kept.folder / f"0000000001-1-{zlib.crc32(content):08x}.pt").write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(Refused):
        kept.read()
    assert not (tmp_path / "boom").exists()


def test_the_last_written_is_the_newest_whatever_the_clock_and_the_step_say(kept):
    for step, value in ((7, 1.0), (7, 2.0), (3, 3.0)):
        kept.write({"step": step, "w": torch.tensor(value)})
        os.utime(kept.files()[0], (2e9 - 1e8 * value, 2e9 - 1e8 * value))  # the clock goes backwards
    assert [p.name.rsplit("-", 1)[0] for p in kept.files()] == ["0000000003-3", "0000000002-7"]
    assert kept.read()["w"] == 3


def test_a_wrong_byte_anywhere_is_seen(kept):
    kept.write({"step": 1})
    (file,) = kept.files()
    content = file.read_bytes()
    for i in range(0, len(content), 7):
        file.write_bytes(content[:i] + bytes([content[i] ^ 0x10]) + content[i + 1 :])
        with pytest.raises(Refused):
            kept.read(lambda line: None)
    file.write_bytes(content)
    assert kept.read()["step"] == 1


def test_what_is_passed_over_does_not_crowd_out_what_is_whole(kept):
    for step in (1, 2):
        kept.write(state(step))
    kept.files()[0].write_bytes(b"torn")
    again = Checkpoints(kept.folder)
    with pytest.warns(UserWarning, match="damaged"):
        assert again.read()["step"] == 1
    again.write(state(3))
    assert [torch.load(p, weights_only=True)["step"] for p in again.files()] == [3, 1]


def test_what_a_kill_left_half_written_goes_with_the_rest(kept):
    kept.write(state(1))
    (kept.folder / ".new.4711.0a1b2c.tmp").write_bytes(b"half")
    (kept.folder / "mine.tmp").write_bytes(b"somebody's")
    kept.drop()
    assert [p.name for p in kept.folder.iterdir()] == ["mine.tmp"]


def test_dropping_leaves_no_folder(kept):
    kept.write(state(1))
    kept.drop()
    assert not kept.folder.exists()
