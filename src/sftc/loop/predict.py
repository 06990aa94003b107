"""`predict`: scores of every row, in eval mode, with metrics as they pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sftc.device import Device
from sftc.positions import Gathered, Said
from sftc.types import Batch, Predictions, Source


@torch.no_grad()
def predict(
    model: nn.Module,
    source: Source,
    task: Any,
    device: Device,
    meter: Any = None,
    keep: bool = True,
    stop: Any = None,
    folder: Path | None = None,
) -> Said:
    """Scores of every row of a source, in its order; a meter sees the logits as they pass.

    Rows of weight 0, which could not be read, are left out.

    Args:
        stop: asked between batches; what it returns is raised.
        keep: False feeds the meter only and returns empty predictions: the epoch's validation needs no more.
        folder: where a file may lie that takes answers at millions of pixels.
    """
    was = [(m, m.training) for m in model.modules()]
    model.eval()
    scores: list[Tensor] = []
    targets: list[Tensor] = []
    rows: list[Tensor] = []
    gathered: Gathered | None = None
    try:
        for batch in source.epoch(0):
            with device.autocast():
                logits = model(device.inputs(batch.inputs))
            logits = logits.float()
            if meter is not None:
                meter.update(logits, batch.target, batch.weight)
            if keep:
                s, t, r = task.flat(*_counting(batch, logits))
                if logits.ndim > 3:  # an answer at every pixel: too many to be held as they are
                    gathered = gathered or Gathered(logits.shape[1], len(source.rows) * logits[0, 0].numel(), folder)
                    gathered.add(s, t, r)
                else:
                    scores.append(s.float().cpu())
                    targets.append(t.cpu())
                    rows.append(r.cpu())
            if stop is not None and (why := stop()) is not None:
                raise why
    finally:
        for module, mode in was:
            module.training = mode
    if not keep:
        empty = torch.empty(0)
        return Predictions(empty, empty, empty.long())
    if gathered is not None:
        return gathered.whole()
    return Predictions(torch.cat(scores), torch.cat(targets), torch.cat(rows))


def _counting(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and row numbers of the rows that count."""
    if batch.weight is None:
        return logits, batch.target, batch.index
    keep = batch.weight.reshape(len(batch), -1).any(1)
    return logits[keep], batch.target[keep], batch.index[keep]
