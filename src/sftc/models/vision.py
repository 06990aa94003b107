"""A picture model: raw bytes in, logits out. What a net wants done to pictures belongs to it, not to loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftc.errors import Refused
from sftc.models import keys

GREY = [0.5]  # mean and std where nothing was trained before: inputs in [-1, 1]


class Prepare(nn.Module):
    """Raw pictures to what a net wants: float, resized, normalised, grey repeated to RGB.

    Args:
        channels: channels the net reads.
        size: (height, width) in pixels the net reads.
        mean, std: per channel on a scale of 0 to 1; one number serves all channels.

    Raises:
        Refused: as many numbers as the net has not channels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for key, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise Refused(f"model.{key}={list(values)} does not fit a net that reads {channels} channels")
        self.size = size
        self.mean = [float(m) for m in mean] * (channels // len(mean))
        self.std = [float(s) for s in std] * (channels // len(std))
        # On the CPU even where the model is built without memory: there, arithmetic imports torch's whole compiler.
        center = torch.tensor(self.mean, device="cpu").view(1, -1, 1, 1)
        spread = torch.tensor(self.std, device="cpu").view(1, -1, 1, 1)
        # (x / 255 - mean) / std in one pass. Not persistent: a checkpoint must not bring its own.
        here = torch.get_default_device()
        self.register_buffer("scale", (1 / (255 * spread)).to(here), persistent=False)
        self.register_buffer("shift", (-center / spread).to(here), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """[N, 1 or channels, H, W] uint8, or float in 0..255 -> [N, channels, *size] float32."""
        x = pictures.to(self.scale.dtype)
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return torch.addcmul(self.shift, x, self.scale)

    def extra_repr(self) -> str:
        return f"size={self.size}, mean={self.mean}, std={self.std}"


class Vision(nn.Module):
    """`prepare` then `net`, then `head` where it has grown one. Tables take the same form, with nothing to prepare, and
    texts, whose tokens are.

    Attributes:
        heads: paths of the modules that give the logits.
        facts: what was chosen for this model, in plain types.
        loaded: names of the parameters that came from a checkpoint or published weights.
        aliases: what files from elsewhere call the model's weights -> their names here.
    """

    def __init__(self, prepare: nn.Module, net: nn.Module, heads: list[str], facts: dict[str, Any]) -> None:
        super().__init__()
        self.prepare = prepare
        self.net = net
        self.head: nn.Module | None = None
        self.heads = heads
        self.facts = facts
        self.loaded: set[str] = set()
        self.aliases: dict[str, str] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        """[N, C, H, W] raw pictures, [N, D] numbers, [N, L] bytes -> logits [N, out_dim], of words [N, out_dim, T]."""
        out = self.net(self.prepare(inputs))
        return out if self.head is None else self.head(out)


def prepare(
    spec: Mapping[str, Any],
    *,
    channels: int,
    pixels: tuple[int, int],
    shape: tuple[int, ...],
    look: tuple[Sequence[float], Sequence[float]],
    facts: dict[str, Any],
) -> Prepare:
    """The Prepare of a model node, noted in `facts`; `look` is the mean and std that `auto` stands for."""
    mean, std = keys.per_channel(spec, "mean") or look[0], keys.per_channel(spec, "std") or look[1]
    made = Prepare(channels, pixels, mean, std)
    facts |= {
        "input_size": pixels[0] if pixels[0] == pixels[1] else list(pixels),
        "data_size": list(shape[1:]),
        "mean": made.mean,
        "std": made.std,
    }
    return made
