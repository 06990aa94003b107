"""Batches in which inputs give way to what leaders say of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from sftc.models import Follower
from sftc.types import Batch, Out, Source, Teacher

SAID = "leader {}: logits"  # key of a batch's inputs


class Through:
    """A source as followers see it: each leader is asked once per batch, whoever reads it.

    Args:
        leaders: live ones that listen where any follower taps, or stored answers.
        followers: those whose keys the batches hold, all with one way to combine.

    With combine=sum a batch of N rows becomes one of M * N: every row as each of the M leaders says it.
    """

    def __init__(self, source: Source, leaders: Sequence[Teacher], followers: Sequence[Follower]) -> None:
        self.source, self.leaders, self.followers = source, list(leaders), list(followers)
        self.steps, self.rows = source.steps, source.rows

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        with contextlib.closing(self.source.epoch(epoch, start)) as batches:  # type: ignore[type-var]
            for batch in batches:
                yield self._heard(batch)

    def _heard(self, batch: Batch) -> Batch:
        outs = [leader(batch) for leader in self.leaders]
        inputs = {f.key: f.heard(outs) for f in self.followers}
        times = 1 if self.followers[0].combine == "concat" else len(outs)
        batch = Batch({}, batch.target, batch.index, batch.view, batch.weight, batch.partner)
        if times > 1:
            batch = batch.map(lambda t: t.repeat(times, *[1] * (t.ndim - 1)))
            said = {SAID.format(0): torch.cat([out.logits for out in outs])}  # to each row its own leader
        else:
            said = {SAID.format(i): out.logits for i, out in enumerate(outs)}
        batch.inputs = inputs | said
        return batch


class Said:
    """A leader as a teacher of those who read it: its logits come with the batch."""

    def __init__(self, leader: int) -> None:
        self.key = SAID.format(leader)

    def __call__(self, batch: Batch) -> Out:
        assert isinstance(batch.inputs, dict)
        return Out(batch.inputs[self.key])
