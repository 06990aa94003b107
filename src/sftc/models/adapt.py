"""A model that learned from one data set, answering another: columns, scaling, classes and units translated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sftc import columns as tables
from sftc.errors import Refused
from sftc.types import Inputs


class Adapted(nn.Module):
    """`model` for inputs, classes or units that are not its own.

    Args:
        inputs: from inputs as batches hold them to those the model learned from.
        columns: [C] which of its outputs are this data's classes, in this data's order.
        outputs: (scale, shift), each [K]: from its standard units to this data's, for values.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inputs: Rows | None = None,
        columns: Tensor | None = None,
        outputs: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.outputs_scale: Tensor | None
        self.outputs_shift: Tensor | None
        self.columns: Tensor | None
        self.inputs = inputs
        self.model = model
        self.register_buffer("outputs_scale", None if outputs is None else outputs[0], persistent=False)
        self.register_buffer("outputs_shift", None if outputs is None else outputs[1], persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, inputs: Inputs) -> Tensor:
        if self.inputs is not None:
            inputs = self.inputs(inputs)
        logits = self.model(inputs)
        if self.columns is not None:
            logits = logits.index_select(1, self.columns)
        if self.outputs_scale is not None and self.outputs_shift is not None:
            logits = logits * self.outputs_scale + self.outputs_shift
        return logits


def adapted(restore: Callable[[], nn.Module], mine: Any, theirs: Any, columns: Tensor | None, who: str) -> nn.Module:
    """A model that learned from data with the facts `theirs`, for rows, classes and units of `mine`.

    Args:
        restore: () -> the model, made when it is known to fit.
        columns: [C] which of its outputs are my classes, where they are not the same ones in order.

    Raises:
        Refused: rows cannot be told its way.
    """
    inputs = rows(mine, theirs, who)
    model = restore()
    units = _pair(theirs)
    if units is not None and columns is not None:
        units = units[0][columns], units[1][columns]
    outputs = between(units, _pair(mine))
    if inputs is None and outputs is None and columns is None:
        return model
    return Adapted(model, inputs=inputs, columns=columns, outputs=outputs)


def _pair(facts: Any) -> tuple[Tensor, Tensor] | None:
    return None if facts.target_mean is None else (facts.target_mean, facts.target_std)


class Rows(nn.Module):
    """Rows of numbers [N, D] as one data set tells them -> [N, T] as another does.

    Args:
        scale, shift: [T], of numbers.
        order: [T] which of the D columns each is; None: they are the same.
        lookup: of columns of codes, by their place among the T: the other's code for each of mine.
    """

    order: Tensor | None
    scale: Tensor
    shift: Tensor

    def __init__(
        self, scale: Tensor, shift: Tensor, order: Tensor | None = None, lookup: dict[int, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("order", order, persistent=False)
        self.coded = sorted(lookup or {})
        for j in self.coded:
            self.register_buffer(f"code{j}", (lookup or {})[j].float(), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        if self.order is not None:
            rows = rows.index_select(1, self.order)
        out = rows * self.scale + self.shift
        for j in self.coded:
            out[:, j] = self.get_buffer(f"code{j}")[rows[:, j].long()]
        return out


def rows(mine: Any, theirs: Any, who: str) -> Rows | None:
    """From rows as data with the facts `mine` hold them to rows as a model reads that learned from `theirs`.

    None if they agree, or if nothing is scaled.

    Args:
        who: learned from `theirs`, for what is said.

    Raises:
        Refused: they cannot be told that way, naming the column.
    """
    if mine.input_mean is None or theirs.input_mean is None:
        return None
    here, there = (tables.read(x.form.about, x.shape[0]) for x in (mine, theirs))
    if here and there and [c.plain() for c in here] != [c.plain() for c in there]:
        order, lookup = tables.match(here, there, who)
        own = mine.input_mean[order], mine.input_std[order]
        scale, shift = between(own, (theirs.input_mean, theirs.input_std)) or (torch.ones(len(order)), 0 * own[0])
        return Rows(scale, shift, order, lookup)
    if mine.shape != theirs.shape:
        raise Refused(f"{who} learned rows of shape {theirs.shape}; the data's are {mine.shape}")
    pair = between((mine.input_mean, mine.input_std), (theirs.input_mean, theirs.input_std))
    return None if pair is None else Rows(*pair)


def ignored(mine: Any, theirs: Any) -> list[str]:
    """Names of the columns of `mine` that `theirs` do not have."""
    here, there = (tables.read(x.form.about, x.shape[0]) if len(x.shape) == 1 else [] for x in (mine, theirs))
    names = {c.name for c in there}
    return [c.name for c in here if there and c.name not in names]


def between(mine: tuple[Tensor, Tensor] | None, theirs: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """(scale, shift) from values standardised by `mine` (mean, std) to the same standardised by `theirs`.

    None if they agree, or if nothing is standardised.
    """
    if mine is None or theirs is None:
        return None
    (a, s), (b, t) = mine, theirs
    return None if torch.equal(a, b) and torch.equal(s, t) else (s / t, (a - b) / t)
