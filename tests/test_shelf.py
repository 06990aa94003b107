"""What is kept between runs: whole or not there, and never too much."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sftc.data.shelf import Shelf, place


def shelf(folder: Path, most: int = 1000) -> Shelf:
    return Shelf(lambda: folder, most)


def test_what_was_kept_is_found_and_what_is_damaged_is_not(tmp_path: Path):
    one = shelf(tmp_path / "new")
    assert one.find("a") is None
    one.keep("a", b"hello")
    assert shelf(tmp_path / "new").find("a") == b"hello"
    (tmp_path / "new" / "a").write_bytes((tmp_path / "new" / "a").read_bytes()[:-1])
    assert one.find("a") is None
    one.keep("a", b"again")
    assert one.find("a") == b"again"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a"]


def test_what_was_not_used_for_the_longest_makes_room(tmp_path: Path):
    one = shelf(tmp_path, most=800)
    for i in range(8):
        one.keep(str(i), bytes(84))  # 100 with its digest
        os.utime(tmp_path / str(i), (i, i))
    assert one.find("0") is not None  # used now
    one.keep("a", bytes(84))
    assert len(list(tmp_path.iterdir())) == 9
    one.keep("b", bytes(84))  # more than 800 are there: half of that stays, and this
    assert {p.name for p in tmp_path.iterdir()} == {"6", "7", "0", "a", "b"}


@pytest.mark.skipif(os.name == "nt", reason="a folder that is a file is another error there")
def test_a_place_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    one = Shelf(lambda: place("things"), 100)
    one.keep("a", b"hello")
    assert one.find("a") is None
