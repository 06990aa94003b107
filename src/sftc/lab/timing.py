"""How long a step of training takes, by a few steps of which nothing is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sftc.lab.fitting import assemble
from sftc.loop import Care
from sftc.loop.steps import Steps
from sftc.objective import Learner

if TYPE_CHECKING:
    from sftc.lab.lab import Lab

WARM, TIMED = 2, 6  # steps before the clock starts, and under it


def seconds_per_step(lab: Lab, learners: Sequence[Learner]) -> float:
    """Wall-clock seconds of a step that trains `learners` together on the rows of `lab`, reading them included.

    Args:
        learners: fresh ones; they have learned a little afterwards, so they are good for nothing else.

    Raises:
        Stopped: asked to stop, or a step that is not finite.
    """
    train, _ = lab.sources()
    first = next(iter(train.epoch(0)))
    state = assemble(learners, [train], [first], lab.device, lab.seed, lab.settings)
    steps = Steps(
        state,
        lab.device,
        Care(epochs=None),
        WARM + TIMED,
        lambda state: None,
        lab.stop,
        lambda *at: None,
        lab.watch.say,
    )
    begun = 0.0
    for goal in (WARM, WARM + TIMED):
        lab.device.wait()
        begun = time.perf_counter()
        if (why := steps.train(goal)) is not None:
            raise why
    lab.device.wait()
    return (time.perf_counter() - begun) / TIMED
