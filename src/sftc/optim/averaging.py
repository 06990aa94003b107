"""An average of the weights over training, scored and kept in their place."""

from __future__ import annotations

from timm.utils import ModelEmaV3
from torch import nn


def average(model: nn.Module, decay: float | None) -> ModelEmaV3 | None:
    """timm's exponential moving average, its decay warmed up; None without a decay. Copies, so call it before taps."""
    return None if decay is None else ModelEmaV3(model, decay=decay, use_warmup=True)
