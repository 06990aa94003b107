"""What we tell a user who made a mistake: one line, the nearest right name, the way out. Imports no torch."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class Refused(Exception):
    """The user asked for something that cannot be done. The CLI prints the message alone and exits 2."""


class Stopped(BaseException):
    """A run ended before its story did: `code` is the exit status, `state` what status.json says.

    Not an Exception: a signal raises it in the middle of anybody's code, and no `except Exception` may keep it.
    """

    def __init__(self, message: str, code: int, state: str = "stopped") -> None:
        super().__init__(message)
        self.code = code
        self.state = state


def nearest(word: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """`"; did you mean 'x'?"` for the closest of `names`, or an empty string."""
    close = difflib.get_close_matches(str(word), sorted({str(n) for n in names}), n=1, cutoff=cutoff)
    return f"; did you mean '{close[0]}'?" if close else ""


def printable(text: object) -> str:
    """`text` as a terminal may have it: what could move its cursor, colour it or turn it round is spelled out.

    Class names, notes and paths come from folders that somebody else may have made.
    """
    text = str(text)
    return text if text.isprintable() else "".join(map(_spelled, text))


def _spelled(char: str) -> str:
    kind = unicodedata.category(char)
    hidden = kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\n\t\u200c\u200d"  # joiners are part of scripts
    return char.encode("unicode_escape").decode() if hidden else char


def choose(what: str, name: str, options: Iterable[str]) -> str:
    """Return `name` if it is one of `options`, else refuse it with the nearest and the whole list.

    Raises:
        Refused: `name` is not an option.
    """
    options = list(options)
    if name in options:
        return name
    raise Refused(f"{what}={name} is not known{nearest(name, options)} (one of: {', '.join(map(str, options))})")
