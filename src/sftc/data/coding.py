"""What the numbers or colours in masks mean: a table from them to classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sftc.data.masks import MOST, UNKNOWN
from sftc.data.pictures import Unreadable, codes, quiet, shown
from sftc.errors import Refused, nearest

_STRANGE = 256  # in the table of numbers: neither a class nor ignored


class Coding:
    """Numbers [H, W], or colours [H, W, 3], to classes [H, W] as uint8; 255 is none.

    Args:
        names: of the classes.
        known: what masks hold: numbers, or 65536 R + 256 G + B.
        classes: which class each of them is; 255 for none.
        coloured: whether masks hold colours.
    """

    def __init__(self, names: list[str], known: list[int], classes: list[int], coloured: bool) -> None:
        self.names, self.coloured = names, coloured
        order = np.argsort(known)
        self._codes, self._classes = np.array(known)[order], np.array(classes, np.uint8)[order]
        self._table = np.full(256, _STRANGE, np.int16)
        if not coloured:
            self._table[self._codes] = self._classes

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Raises Unreadable: it holds something that is neither a class nor ignored."""
        if not self.coloured:
            found = self._table[raw]
            if (strange := found == _STRANGE).any():
                raise Unreadable(f"class number {int(raw[strange][0])} is unknown{self._known()}")
            return found.astype(np.uint8)
        colours = raw.astype(np.int64) @ np.array([65536, 256, 1])
        at = np.searchsorted(self._codes, colours).clip(max=len(self._codes) - 1)
        if (strange := self._codes[at] != colours).any():
            red, green, blue = raw[strange][0].tolist()
            raise Unreadable(f"colour {red} {green} {blue} is not in data.palette")
        return self._classes[at]

    def only(self, numbers: Sequence[int]) -> Coding:
        """With these classes alone, in this order; the others are none."""
        new = np.full(256, UNKNOWN, np.uint8)
        new[list(numbers)] = np.arange(len(numbers))
        return Coding(
            [self.names[i] for i in numbers], self._codes.tolist(), new[self._classes].tolist(), self.coloured
        )

    def _known(self) -> str:
        return f" (there are {len(self.names)} classes; data.ignore lists numbers that are none)"

    def identity(self) -> str:
        return f"{self.coloured}{self._codes.tolist()}{self._classes.tolist()}{self.names}"


def read(
    root: Path, ignore: Sequence[Any], palette: str | None, classes_file: str | None, names: Sequence[str] | None
) -> Coding | None:
    """As the keys say; None where they do not. Files are named relative to the root.

    Raises:
        Refused: keys that exclude each other, a file or an entry that cannot be understood.
    """
    if sum(x is not None for x in (palette, classes_file, names)) > 1:
        raise Refused("data.palette, data.classes_file and data.names say the same; give one of them")
    if palette is not None:
        listed = _palette(root / Path(palette).expanduser())
    elif classes_file is not None:
        lines = _lines(root / Path(classes_file).expanduser(), "classes_file")
        listed = {line: number for number, line in enumerate(lines)}
        _all_different(lines, f"data.classes_file={classes_file}")
    elif names is not None:
        listed = {str(name): number for number, name in enumerate(names)}
        _all_different([str(name) for name in names], "data.names")
    else:
        return None
    ignored = [_ignored(x, listed, palette is not None) for x in ignore]
    kept = {name: code for name, code in listed.items() if code not in ignored}
    return _made(list(kept), list(kept.values()), [x for x in ignored if x is not None], palette is not None)


def discovered(paths: Sequence[str], ignore: Sequence[Any], skip: bool) -> tuple[Coding, str]:
    """The classes that are found in masks, all of them: from 0 to the largest number that is not ignored.

    Raises:
        Refused: a mask cannot be read, and not `skip`; a number is ignored by name.
    """
    if words := [x for x in ignore if not _is_number(x)]:
        raise Refused(f"data.ignore={words[0]} is a name; numbers have names by data.names or data.classes_file")
    found: set[int] = set()
    with quiet():
        for path in paths:
            try:
                found |= set(np.unique(codes(path, False)).tolist())
            except Unreadable as why:
                if not skip:
                    raise Refused(f"{shown(path)} cannot be used as a mask: {why}") from None
    ignored = {int(x) for x in ignore}
    entries = [n for n in range(max(found - ignored, default=-1) + 1) if n not in ignored]
    why = f"classes are the numbers up to {max(entries, default=0)}, as in all {len(paths):,} training masks"
    return _made([str(n) for n in entries], entries, sorted(ignored), False), why


def _made(names: list[str], entries: list[int], ignored: list[int], coloured: bool) -> Coding:
    if not 2 <= len(names) <= MOST:
        hint = "; if 255 is a class, give data.palette" if len(names) < 2 and UNKNOWN in ignored else ""
        raise Refused(f"masks tell {len(names)} classes apart; there must be 2 to {MOST}{hint}")
    return Coding(names, [*entries, *ignored], [*range(len(entries)), *[UNKNOWN] * len(ignored)], coloured)


def _is_number(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _ignored(x: Any, listed: dict[str, int], coloured: bool) -> int | None:
    """The code of an entry of data.ignore; None for 255, or another number, among colours."""
    if str(x) in listed:
        return listed[str(x)]
    if _is_number(x) and 0 <= x <= UNKNOWN:
        return None if coloured else x
    raise Refused(f"data.ignore={x} is neither a number from 0 to 255 nor a class{nearest(str(x), listed)}")


def _lines(path: Path, key: str) -> list[str]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise Refused(f"data.{key}={path} cannot be read: {why}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _all_different(names: list[str], where: str) -> None:
    doubled = [name for name in names if names.count(name) > 1]
    if doubled:
        raise Refused(f"{where} names {doubled[0]} twice")


def _palette(path: Path) -> dict[str, int]:
    """Name -> colour as one number. Raises Refused: a line is not "R G B name", or says what another says."""
    out: dict[str, int] = {}
    for line in _lines(path, "palette"):
        parts = line.split(maxsplit=3)
        numbers = [int(p) for p in parts[:3] if p.isdecimal()]
        if len(parts) < 4 or len(numbers) < 3 or max(numbers) > 255:
            raise Refused(f'data.palette={path}: "{shown(line)}" is not R G B name, three numbers from 0 to 255')
        colour = numbers[0] * 65536 + numbers[1] * 256 + numbers[2]
        if parts[3] in out or colour in out.values():
            raise Refused(f'data.palette={path}: "{shown(line)}" says a name or a colour again')
        out[parts[3]] = colour
    return out
