"""Signals from the program's first moment on: one line and the signal's code, also while torch is being imported.

A run has its own way to stop (`stop.py`); this is for before it, after it, and for commands that train nothing.
Imports nothing that takes time.
"""

import os
import signal
import sys

_caught = 0


def listen() -> None:
    """Answer SIGINT and SIGTERM until somebody else does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def check() -> None:
    """End after all if a signal came and what it raised was lost, as it is in a callback of the import system.

    Raises:
        SystemExit: 128 and the signal's number.
    """
    if _caught:
        raise SystemExit(128 + _caught)


def _end(number: int, frame: object) -> None:
    global _caught
    if _caught:
        os._exit(128 + number)
    _caught = number
    sys.unraisablehook = lambda lost: None  # or it would print a traceback; `check` will see to it
    os.write(2, f"sftc: stopped by {signal.Signals(number).name}\n".encode())  # not print, which may be under way
    raise SystemExit(128 + number)
