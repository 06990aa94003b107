"""What models do first with a row of a table: numbers, whether they are missing, and codes each get what they need."""

from __future__ import annotations

import psutil
import torch
from torch import Tensor, nn

from sftc import columns as tables
from sftc.columns import Column
from sftc.errors import Refused
from sftc.types import Form


class Cells(nn.Module):
    """Rows as batches hold them -> numbers and codes.

    Attributes:
        numbers: how many numbers a row gives: its own, 0 (the mean) where missing, and for each column that was missing
            in training whether it is.
        codes: [K] how many codes each column of codes has.
    """

    where: Tensor
    may_lack: Tensor
    coded: Tensor
    offset: Tensor
    last: Tensor

    def __init__(self, form: Form) -> None:
        super().__init__()
        columns = tables.read(form.about, form.shape[0]) or [Column(str(j), "numeric") for j in range(form.shape[0])]
        where = [j for j, c in enumerate(columns) if not c.coded]
        lacking = [j for j in where if columns[j].missing]
        coded = [j for j, c in enumerate(columns) if c.coded]
        self.codes = [columns[j].codes for j in coded]
        self.numbers = len(where) + len(lacking)
        self.plain = not coded and not lacking
        offset = torch.tensor([0, *self.codes]).cumsum(0)[:-1]
        held = {"where": where, "may_lack": lacking, "coded": coded, "last": [n - 1 for n in self.codes]}
        for name, value in held.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.long), persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[N, D] -> numbers [N, P] without NaN, codes [N, K] long, each from 0 on."""
        gone = rows.isnan()
        clean = torch.where(gone, 0.0, rows)
        numbers = torch.cat([clean[:, self.where], gone[:, self.may_lack].to(rows.dtype)], 1)
        return numbers, torch.minimum(clean[:, self.coded].long().clamp_min(0), self.last)

    def shifted(self, codes: Tensor) -> Tensor:
        """Codes as rows of one table that holds all columns' codes one after another."""
        return codes + self.offset


class Entry(nn.Module):
    """Rows -> one vector: the numbers, and an embedding of each column of codes, or its one-hot code.

    Attributes:
        width: of the vector.
    """

    def __init__(self, form: Form, onehot: bool = False) -> None:
        super().__init__()
        self.cells = Cells(form)
        if onehot:
            check_room(max(self.cells.codes, default=0), 64)  # about what a batch of them takes
        sizes = [] if onehot else [_dim(n) for n in self.cells.codes]
        self.embeddings = nn.ModuleList(embedding(n, d) for n, d in zip(self.cells.codes, sizes, strict=False))
        self.width = self.cells.numbers + (sum(self.cells.codes) if onehot else sum(sizes))

    def forward(self, rows: Tensor) -> Tensor:
        """[N, D] -> [N, width]."""
        numbers, codes = self.cells(rows)
        if len(self.embeddings):
            coded = [embed(codes[:, k]) for k, embed in enumerate(self.embeddings)]
        else:
            coded = [nn.functional.one_hot(codes[:, k], n).to(rows.dtype) for k, n in enumerate(self.cells.codes)]
        return torch.cat([numbers, *coded], 1)


def embedding(codes: int, dim: int) -> nn.Embedding:
    """Its first row, of what is missing or was never seen, begins as nothing. Raises Refused: see `check_room`."""
    check_room(codes, dim)
    made = nn.Embedding(codes, dim)
    nn.init.uniform_(made.weight, -(dim**-0.5), dim**-0.5)
    with torch.no_grad():
        made.weight[0] = 0
    return made


def check_room(codes: int, dim: int) -> None:
    """Raises Refused: memory has no room for so many vectors, their gradient and an optimizer's two averages."""
    room = psutil.virtual_memory().available
    if torch.empty(0).device.type == "cpu" and (needed := 16 * codes * dim) > room:
        raise Refused(
            f"a column of {codes:,} categories needs {needed:,} bytes to be learned, memory has room for {room:,}: "
            "lower data.buckets, hash it (data.categories), or leave it out"
        )


def _dim(codes: int) -> int:
    """As wide as fast.ai found to do: 1.6 n^0.56, at most 64."""
    return min(64, round(1.6 * codes**0.56))
