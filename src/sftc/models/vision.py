"""A picture model: raw bytes in, logits out. What a net wants done to pictures is part of the model, not of a loader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftc.errors import Refused


class Prepare(nn.Module):
    """Raw pictures to what a net wants: float, resized, normalised, grey repeated to RGB.

    Args:
        channels: channels the net reads.
        size: (height, width) in pixels the net reads.
        mean, std: per channel on a scale of 0 to 1; one number serves all channels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, channels: int, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        for key, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise Refused(
                    f"model.{key}={list(values)} has {len(values)} numbers, the net reads {channels} channels"
                )
        self.size = size
        self.mean = [float(m) for m in mean] * (channels // len(mean))
        self.std = [float(s) for s in std] * (channels // len(std))
        center = torch.tensor(self.mean, device="cpu").view(1, -1, 1, 1)
        spread = torch.tensor(self.std, device="cpu").view(1, -1, 1, 1)
        # (x / 255 - mean) / std in one pass. Not persistent: a checkpoint of other statistics must not bring them along.
        self.register_buffer("scale", 1 / (255 * spread), persistent=False)
        self.register_buffer("shift", -center / spread, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """[N, 1 or channels, H, W] uint8, or float in 0..255 -> [N, channels, *size] float32."""
        x = pictures.to(self.scale.dtype)
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return torch.addcmul(self.shift, x, self.scale)

    def extra_repr(self) -> str:
        return f"size={self.size}, mean={self.mean}, std={self.std}"


class Vision(nn.Module):
    """`prepare` then `net`. Tables of numbers pass through the same form with nothing to prepare.

    Attributes:
        heads: paths of the modules that give the logits.
        facts: what was chosen for this model and why, in plain types.
    """

    def __init__(self, prepare: nn.Module, net: nn.Module, heads: list[str], facts: dict[str, Any]) -> None:
        super().__init__()
        self.prepare = prepare
        self.net = net
        self.heads = heads
        self.facts = facts

    def forward(self, inputs: Tensor) -> Tensor:
        """[N, C, H, W] raw pictures or [N, D] numbers -> logits [N, out_dim]."""
        return self.net(self.prepare(inputs))

    def say(self, **facts: Any) -> Vision:
        """Add to the facts."""
        self.facts.update(facts)
        return self
