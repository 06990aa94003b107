"""What may end a run before its story does: SIGINT, SIGTERM, the clock.

A fit asks between two steps, and between two batches of a validation: there the state is whole and can be saved. Until
it has asked for the first time (data being read, a model being built or compiled) there is nothing new to save, and a
signal ends the run at once. A second signal ends it at once anywhere; the last checkpoint on disk is whole.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from sftc.errors import Stopped

OUT_OF_TIME = 75  # exit status: "not done, start me again", as batch queues use it (EX_TEMPFAIL)


class Stopper:
    """Asked where a run can be stopped; gives the exception to raise once the state is saved.

    Args:
        max_minutes: of wall-clock time from now, or None.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.max_minutes = max_minutes
        self.started = time.monotonic()
        self.caught: int | None = None
        self._asking = False  # somebody asks, so a signal may wait
        self._fitting = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __call__(self) -> Stopped | None:
        self._asking = self._fitting
        if self.caught is not None:
            return _by(self.caught)
        if self.max_minutes is not None and time.monotonic() - self.started >= self.max_minutes * 60:
            return Stopped(f"max_minutes={self.max_minutes} is over", OUT_OF_TIME)
        return None

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stopper]:
        """Handle signals until the end of the block. In a launcher's thread only the clock is heard."""
        with contextlib.suppress(ValueError):  # signal works in the main thread only
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._catch)
        try:
            yield self
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def polling(self) -> Iterator[None]:
        """A fit: from its first question on, signals wait for the next."""
        self._fitting, self._asking = True, False
        try:
            yield
        finally:
            self._fitting = self._asking = False
        if self.caught is not None:  # after the last question, while the end was being saved
            raise _by(self.caught)

    def _catch(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a data worker, just forked
        if self.caught is not None:
            raise SystemExit(128 + number)  # not a Stopped: nobody may save a state in the middle of a step
        self.caught = number
        if not self._asking:
            raise _by(number)


def _by(number: int) -> Stopped:
    return Stopped(f"stopped by {signal.Signals(number).name}", 128 + number)
