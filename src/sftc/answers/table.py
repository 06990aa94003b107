"""The answers in memory: logits by (view, row), dense or the largest of each row with the mass of the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sftc.data.source import host_free
from sftc.device import Later
from sftc.errors import Refused
from sftc.store.answers import Answered, Parts
from sftc.types import Batch, Out

LIVE = "use strategy.teacher_outputs=live"


class Answers:
    """A types.Teacher: logits by (batch.view, batch.index).

    Attributes:
        bytes: on disk.
        made, found: views computed now, and read from disk.
        note: all that in one line.

    Raises, when called:
        Refused: the batch is mixed.
        LookupError: a row or view that is not stored. On an accelerator nothing waits to see that: its logits are NaN,
            and the next call raises.
    """

    def __init__(
        self,
        views: Sequence[Answered],
        rows: Tensor,
        *,
        still: bool,
        temperature: float | None,
        place: str,
        device: torch.device,
        found: int,
        note: str,
    ) -> None:
        self.bytes = sum(v.bytes for v in views)
        self.made, self.found = len(views) - found, found
        self.note = note
        self.place = place  # device, host or mapped
        self._views, self._n, self._still = len(views), len(rows), still
        self._classes, self._temperature = views[0].classes, temperature
        self._home = device if place == "device" else torch.device("cpu")
        slot = torch.full((int(rows.max()) + 1,), -1)
        slot[rows] = torch.arange(len(rows))
        self._slot = slot.to(self._home)  # row number -> place in a view
        tables = [_asked(v, temperature) for v in views]
        self._tables = tables if place == "mapped" else [_stacked(tables, self._home)]
        self._late: Later | None = None

    def __call__(self, batch: Batch) -> Out:
        if batch.partner is not None:
            raise Refused(f"stored answers are about unmixed pictures: {LIVE}, or data.augment.mixup=0 and cutmix=0")
        parts = self.parts(batch)
        return Out(decode(parts, self._classes, self._temperature))

    def parts(self, batch: Batch) -> Parts:
        """What is stored about the rows of a batch, on the batch's device."""
        at = self._places(batch.index.to(self._home), batch.view.to(self._home))
        if len(self._tables) == 1:
            out = {k: t.index_select(0, at) for k, t in self._tables[0].items()}
        else:
            out = {k: t.new_empty((len(at), *t.shape[1:])) for k, t in self._tables[0].items()}
            for v, table in enumerate(self._tables):
                mine = (at // self._n == v).nonzero()[:, 0]
                for k, t in table.items():
                    out[k][mine] = t.index_select(0, at[mine] - v * self._n)
        return {k: t.to(batch.index.device) for k, t in out.items()}

    def _places(self, index: Tensor, view: Tensor) -> Tensor:
        """Places in the stacked views [N]; one past their end for what is not stored."""
        self._complain()
        view = torch.zeros_like(view) if self._still else view
        at = self._slot.index_select(0, index.clamp(0, len(self._slot) - 1))
        lost = (at < 0) | (index < 0) | (index >= len(self._slot)) | (view < 0) | (view >= self._views)
        first = lost.byte().argmax(0, keepdim=True)
        self._late = Later(torch.cat((lost.any(0, keepdim=True).long(), index.gather(0, first), view.gather(0, first))))
        if self._home.type == "cpu":
            self._complain()  # nothing to wait for
        return torch.where(lost, self._views * self._n, view * self._n + at)

    def _complain(self) -> None:
        late, self._late = self._late, None
        if late is not None:
            lost, row, view = (int(x) for x in late.read())
            if lost:
                raise LookupError(f"the stored answers hold no row {row} in view {view}")


def _asked(view: Answered, temperature: float | None) -> Parts:
    """What lookups need: of the rest's mass, the column of the temperature in use."""
    parts = dict(view.parts)
    if "rest" in parts:
        parts["rest"] = parts["rest"][:, view.temperatures.index(temperature)]  # type: ignore[arg-type]
    return parts


def _stacked(tables: Sequence[Parts], home: torch.device) -> Parts:
    """The views one after the other [views * n + 1, ...]; the row past their end is NaN."""
    n = len(next(iter(tables[0].values())))
    out = {}
    for k, like in tables[0].items():
        lost = math.nan if like.is_floating_point() else 0
        out[k] = torch.full((len(tables) * n + 1, *like.shape[1:]), lost, dtype=like.dtype, device=home)
        for v, table in enumerate(tables):
            out[k][v * n : (v + 1) * n] = table[k].to(home)
    return out


def encode(logits: Tensor, topk: int | None, temperatures: Sequence[float], index: Tensor | None = None) -> Parts:
    """Float32 logits as they are stored. `index` [n, k]: keep these classes instead of the largest."""
    if topk is None or topk >= logits.shape[1]:
        return {"logits": logits.half()}
    index = logits.topk(topk, 1).indices if index is None else index.long()
    others = logits.scatter(1, index, -math.inf)
    rest = torch.stack([(others / t).logsumexp(1) for t in temperatures], 1)
    return {"values": logits.gather(1, index).half(), "index": index.int(), "rest": rest}


def decode(parts: Parts, classes: int, temperature: float | None) -> Tensor:
    """Float32 logits; classes whose logits were not kept share their mass at `temperature` evenly."""
    if "logits" in parts:
        return parts["logits"].float()
    assert temperature is not None
    each = temperature * (parts["rest"] - math.log(classes - parts["index"].shape[1]))
    return each.unsqueeze(1).expand(-1, classes).scatter(1, parts["index"].long(), parts["values"].float())


def place(nbytes: int, device: torch.device, free_bytes: int | None) -> str:
    """Where tables of this size live: "device", "host", or "mapped" from their files."""
    if device.type != "cpu" and free_bytes is not None and nbytes <= free_bytes / 4:
        return "device"
    return "host" if nbytes <= host_free() / 4 else "mapped"
