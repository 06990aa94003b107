"""Batches in which inputs give way to what leaders say of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch

from sftc.models import Follower
from sftc.types import Batch, Out, Source, Teacher

SAID = "leader {}: logits"  # key of a batch's inputs


class Through:
    """A source as followers see it: each leader is asked once per batch, whoever reads it.

    Args:
        leaders: by name; live ones that listen where any follower taps, or stored answers.
        followers: those whose keys the batches hold, each reading some of the leaders, all with one way to combine;
            with sum they all read the same ones.

    With combine=sum a batch of N rows becomes one of M * N: every row as each of the M leaders says it.
    """

    def __init__(self, source: Source, leaders: Mapping[str, Teacher], followers: Sequence[Follower]) -> None:
        self.source, self.leaders, self.followers = source, dict(leaders), list(followers)
        self.steps, self.rows = source.steps, source.rows

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        with contextlib.closing(self.source.epoch(epoch, start)) as batches:  # type: ignore[type-var]
            for batch in batches:
                yield self._heard(batch)

    def _heard(self, batch: Batch) -> Batch:
        outs = {name: leader(batch) for name, leader in self.leaders.items()}
        inputs = {f.key: f.heard([outs[name] for name in f.names]) for f in self.followers}
        first = self.followers[0]
        times = 1 if first.combine == "concat" else len(first.names)
        batch = Batch({}, batch.target, batch.index, batch.view, batch.weight, batch.partner)
        if times > 1:
            batch = batch.map(lambda t: t.repeat(times, *[1] * (t.ndim - 1)))
            # To each row its own leader.
            said = {SAID.format(first.names[0]): torch.cat([outs[name].logits for name in first.names])}
        else:
            said = {SAID.format(name): out.logits for name, out in outs.items()}
        batch.inputs = inputs | said
        return batch


class Said:
    """A leader as a teacher of those who read it: its logits come with the batch."""

    def __init__(self, leader: str) -> None:
        self.key = SAID.format(leader)

    def __call__(self, batch: Batch) -> Out:
        assert isinstance(batch.inputs, dict)
        return Out(batch.inputs[self.key])
