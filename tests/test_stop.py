"""Signals and the clock: wait for a question inside a fit, end at once elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from sftc.errors import Stopped
from sftc.stop import Stopper


def kill(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_waits_once_a_fit_asks_and_a_second_does_not(number, code):
    def fit():
        with Stopper().listening() as stop, stop.polling():
            assert stop() is None
            kill(number)
            why = stop()
            assert why is not None
            assert why.code == code
            kill(number)  # no Stopped now, which would have the state saved

    with pytest.raises(SystemExit) as second:
        fit()
    assert second.value.code == code


def test_before_the_first_question_a_signal_ends_at_once():
    def fit():
        with Stopper().listening() as stop, stop.polling():
            kill(signal.SIGTERM)  # a model is being compiled, say
            pytest.fail("it went on")

    with pytest.raises(Stopped, match="SIGTERM"):
        fit()


def test_after_the_last_question_a_signal_waits_for_the_end_of_the_fit():
    saved = []

    def fit():
        with Stopper().listening() as stop, stop.polling():
            stop()
            kill(signal.SIGTERM)
            saved.append("the end")

    with pytest.raises(Stopped, match="SIGTERM"):
        fit()
    assert saved


def test_no_library_keeps_a_stop_to_itself():
    def run():
        with Stopper().listening():
            try:
                kill(signal.SIGTERM)
            except Exception:
                pytest.fail("taken for an error of its own")

    with pytest.raises(Stopped):
        run()


def test_a_forked_process_leaves_signals_to_the_run():
    with Stopper().listening() as stop:
        pid = os.fork()
        if not pid:
            try:
                kill(signal.SIGTERM)
                os._exit(3)
            finally:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        assert stop.caught is None


def test_the_first_signal_of_all_is_one_line_even_where_python_loses_what_it_raises():
    """As in the callbacks of an import: what is raised there is printed and forgotten."""
    code = """
import os
from sftc import early
class Lost:
    def __del__(self):
        os.kill(os.getpid(), 15)
early.listen()
Lost()
early.check()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "sftc: stopped by SIGTERM\n")


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
