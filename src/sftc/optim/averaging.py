"""An average of the weights over training, scored and kept in their place."""

from __future__ import annotations

from typing import Any

from torch import nn


def average(model: nn.Module, decay: float | None) -> Any:
    """timm's exponential moving average, its decay warmed up; None without a decay. Copies, so call it before taps."""
    if decay is None:
        return None
    from timm.utils.model_ema import ModelEmaV3  # here: timm takes a second, and most runs average nothing

    return ModelEmaV3(model, decay=decay, use_warmup=True)
