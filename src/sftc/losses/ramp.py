"""Numbers that change while a fit goes on: temperatures, weights of terms."""

from __future__ import annotations

import math
from collections.abc import Callable

from sftc.errors import Refused, choose

Weight = float | Callable[[float], float]  # of a term: a number, or one for each progress in [0, 1]
SHAPES = ("linear", "cosine")


class Ramp:
    """From `start` to `end` over the planned steps; `start` for ever without an end.

    Args:
        shape: linear, or cosine (flat at both ends, steepest in the middle).

    Raises:
        Refused: no such shape.
    """

    def __init__(self, start: float, end: float | None = None, shape: str = "linear") -> None:
        self.start = float(start)
        self.end = self.start if end is None else float(end)
        self.shape = choose("shape", shape, SHAPES)

    def __call__(self, progress: float) -> float:
        """The number at `progress` in [0, 1]; before and after it stands still."""
        done = min(max(progress, 0.0), 1.0)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done if done < 1 else self.end

    def __repr__(self) -> str:
        return f"Ramp({self.start:g}, {self.end:g}, {self.shape})"


def heat(temperature: float | Ramp) -> Ramp:
    """A temperature as a ramp. Raises Refused: it is not above 0 all the way."""
    ramp = temperature if isinstance(temperature, Ramp) else Ramp(temperature)
    if not min(ramp.start, ramp.end) > 0:
        raise Refused(f"temperature={temperature} must stay above 0")
    return ramp
