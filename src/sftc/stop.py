"""What may end a run before its story does: SIGINT, SIGTERM, the clock.

While a fit polls, a signal waits for the end of the step, so that the state is whole when it is saved. Anywhere else
(data being read, a model being built) there is nothing to save, and it ends the run at once. So does a second signal.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

from sftc.errors import Stopped

OUT_OF_TIME = 75  # exit status: "not done, start me again", as batch queues use it (EX_TEMPFAIL)


class Stopper:
    """Asked after every step; gives the exception to raise once the state is saved.

    Args:
        max_minutes: of wall-clock time from now, or None.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.max_minutes = max_minutes
        self.started = time.monotonic()
        self.caught: int | None = None
        self._polled = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> Stopped | None:
        if self.caught is not None:
            return _by(self.caught)
        if self.max_minutes is not None and time.monotonic() - self.started >= self.max_minutes * 60:
            return Stopped(f"max_minutes={self.max_minutes} is over; resume= goes on from here", OUT_OF_TIME)
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
        """Inside, signals wait until they are asked for."""
        self._polled = True
        try:
            yield
        finally:
            self._polled = False

    def _catch(self, number: int, frame: Any) -> None:
        if self._polled and self.caught is None:
            self.caught = number
            return
        raise _by(number)


def _by(number: int) -> Stopped:
    return Stopped(f"stopped by {signal.Signals(number).name}; resume= goes on from here", 128 + number)
