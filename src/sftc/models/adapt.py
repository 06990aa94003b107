"""A model that learned from one data set, answering another: scaling, classes and units translated on the way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftc.types import Inputs


class Adapted(nn.Module):
    """`model` for inputs, classes or units that are not its own.

    Args:
        inputs: (scale, shift), each [D]: from inputs as batches hold them to those the model learned from.
        columns: [C] which of its outputs are this data's classes, in this data's order.
        outputs: (scale, shift), each [K]: from its standard units to this data's, for values.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inputs: tuple[Tensor, Tensor] | None = None,
        columns: Tensor | None = None,
        outputs: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.inputs_scale: Tensor | None
        self.inputs_shift: Tensor | None
        self.outputs_scale: Tensor | None
        self.outputs_shift: Tensor | None
        self.columns: Tensor | None
        self.model = model
        for name, pair in (("inputs", inputs), ("outputs", outputs)):
            self.register_buffer(f"{name}_scale", None if pair is None else pair[0], persistent=False)
            self.register_buffer(f"{name}_shift", None if pair is None else pair[1], persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, inputs: Inputs) -> Tensor:
        if self.inputs_scale is not None and self.inputs_shift is not None:
            assert isinstance(inputs, Tensor)
            inputs = inputs * self.inputs_scale + self.inputs_shift
        logits = self.model(inputs)
        if self.columns is not None:
            logits = logits.index_select(1, self.columns)
        if self.outputs_scale is not None and self.outputs_shift is not None:
            logits = logits * self.outputs_scale + self.outputs_shift
        return logits


def between(mine: tuple[Tensor, Tensor] | None, theirs: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """(scale, shift) from values standardised by `mine` (mean, std) to the same standardised by `theirs`.

    None if they agree, or if nothing is standardised.
    """
    if mine is None or theirs is None:
        return None
    (a, s), (b, t) = mine, theirs
    return None if torch.equal(a, b) and torch.equal(s, t) else (s / t, (a - b) / t)
