"""Several models as one: each answers, a rule makes one answer of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sftc.fusion import Pooling
from sftc.models.surgery import Tapped
from sftc.types import Inputs, Task


class Fused(nn.Module):
    """`fused(inputs)` gives logits [N, C, *positions], as any model does: it can teach, lead and be fused again.

    Args:
        members: models of the same classes and inputs.
        rule: what makes one set of scores of theirs; fitted already.
        task: translates logits into scores and back.
        temperature: the fused logits are divided by it.
        taps: for each member, module paths whose outputs the rule reads too.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        rule: Pooling,
        task: Task,
        temperature: float = 1.0,
        taps: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.rule = rule
        self.task = task
        self.temperature = temperature
        self.taps = [list(t) for t in taps] or [[] for _ in members]
        self.facts: dict[str, Any] = {"family": "fused", "name": "fused", "members": len(self.members)}
        self._tapped = [Tapped(member, t) for member, t in zip(members, self.taps, strict=True)]
        for name, value in rule.state().items():  # part of the state, so that the hash of the model covers the rule
            self.register_buffer(f"rule_{name.replace('.', '_')}", value)

    def forward(self, inputs: Inputs) -> Tensor:
        outs = [tapped(inputs) for tapped in self._tapped]
        # Rules are arithmetic on the CPU, wherever the members are.
        scores = torch.stack([self.task.scores(out.logits.float()) for out in outs]).cpu()
        features = [
            gathered(f).cpu() for out, paths in zip(outs, self.taps, strict=True) for f in _of(out.features, paths)
        ]
        fused = _positions(scores, lambda flat: self.rule.apply(flat, features))
        logits = self.task.logits(fused).to(outs[0].logits.device)
        return logits if self.temperature == 1 else logits / self.temperature


def gathered(feature: Tensor) -> Tensor:
    """[N, D, *positions] -> [N, D]: what a tap gave, averaged over positions; tokens [N, L, D] over their places."""
    if feature.ndim == 3:
        return feature.float().mean(1)
    return feature.float().flatten(2).mean(2) if feature.ndim > 3 else feature.float()


def _of(features: dict[str, Tensor], paths: Sequence[str]) -> list[Tensor]:
    return [features[path] for path in paths]


def _positions(scores: Tensor, apply: Any) -> Tensor:
    """`apply` over [M, P, C], whatever positions [M, N, C, *positions] the scores have."""
    if scores.ndim == 3:
        return apply(scores)
    last = scores.movedim(2, -1)
    return apply(last.flatten(1, -2)).view(last.shape[1:]).movedim(-1, 1)
