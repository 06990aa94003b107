"""Signals and the clock: wait for a question inside a fit, end at once elsewhere."""

from __future__ import annotations

import os
import signal

import pytest

from sftc.errors import Stopped
from sftc.stop import Stopper


def kill(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_waits_once_a_fit_asks_and_a_second_does_not(number, code):
    with Stopper().listening() as stop, stop.polling():
        assert stop() is None
        kill(number)
        why = stop()
        assert why is not None
        assert why.code == code
        with pytest.raises(SystemExit) as second:  # no Stopped, which would have the state saved
            kill(number)
    assert second.value.code == code


def test_before_the_first_question_a_signal_ends_at_once():
    with Stopper().listening() as stop, stop.polling(), pytest.raises(Stopped, match="SIGTERM"):
        kill(signal.SIGTERM)  # a model is being compiled, say


def test_a_signal_outside_a_fit_ends_at_once():
    with Stopper().listening() as stop:
        stop()
        with pytest.raises(Stopped, match="SIGTERM"):
            kill(signal.SIGTERM)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stopper().listening():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_clock_stops_with_75():
    stop = Stopper(max_minutes=1)
    assert stop() is None
    stop.started -= 61
    why = stop()
    assert why is not None
    assert why.code == 75
    assert why.state == "stopped"
