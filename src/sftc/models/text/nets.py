"""What follows the tokens: a body that gives a vector for each, a pool that makes one of them, a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sftc.models.text.tokens import PADDING, Read

SPREAD = 0.1  # of fresh embeddings; of torch's own, ten times as large, what words mean is learned many epochs later
POOLS = ("cls", "mean", "max", "last", "pooler")


class TextNet(nn.Module):
    """Read -> logits: [N, C], or [N, C, T] with an answer for each word.

    Args:
        body: Read -> vectors [W, L, D] of tokens, or [W, D] of windows that it has pooled itself.
        width: D.
        pooling: one of POOLS.
    """

    def __init__(self, body: nn.Module, width: int, out_dim: int, pooling: str, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.pool = Pool(pooling)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, out_dim)

    def forward(self, read: Read) -> Tensor:
        logits = self.head(self.dropout(self.pool(self.body(read), read)))
        return logits if read.at is None else logits.movedim(-1, 1)


class Pool(nn.Module):
    """Vectors of tokens [W, L, D] -> one of each text [N, D], the mean over its windows; or of each word [N, T, D]."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, read: Read) -> Tensor:
        if read.at is not None:  # the first piece of each word; zeros where there is none
            found = x.flatten(0, 1)[read.at.clamp_min(0)]
            return torch.where((read.at >= 0).unsqueeze(-1), found, 0.0)
        x = self._window(x, read) if x.ndim == 3 else x
        if read.owner is None:
            return x
        total = x.new_zeros(read.rows, x.shape[1]).index_add(0, read.owner, x)
        return total / torch.bincount(read.owner, minlength=read.rows).unsqueeze(1)

    def _window(self, x: Tensor, read: Read) -> Tensor:
        if self.how == "cls":
            return x[:, 0]
        mask = read.mask.unsqueeze(-1)
        if self.how == "max":
            return x.masked_fill(~mask, -torch.inf).amax(1)
        if self.how == "mean":
            return (x * mask).sum(1) / mask.sum(1)
        last = read.mask.sum(1) - 1
        return x[torch.arange(len(x), device=x.device), last]

    def extra_repr(self) -> str:
        return self.how


class Bag(nn.Module):
    """The embeddings alone: an order of words does not count."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, dim, padding_idx=PADDING)
        with torch.no_grad():
            self.embedding.weight.mul_(SPREAD)
        self.width = dim

    def forward(self, read: Read) -> Tensor:
        return self.embedding(read.ids)


class Convolutions(Bag):
    """Convolutions of several widths over the embeddings, with ReLU (Kim 2014)."""

    def __init__(self, tokens: int, dim: int, channels: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__(tokens, dim)
        self.dropout = nn.Dropout(dropout)
        self.convs = nn.ModuleList(nn.Conv1d(dim, channels, width) for width in widths)
        self.widths = list(widths)
        self.width = channels * len(widths)

    def forward(self, read: Read) -> Tensor:
        # The embedding of padding is zeros, as what is put around a text here: it gives the same in any batch.
        x = self.dropout(self.embedding(read.ids)).transpose(1, 2)
        around = [((w - 1) // 2, w // 2) for w in self.widths]
        said = [conv(F.pad(x, pad)).relu() for conv, pad in zip(self.convs, around, strict=True)]
        return torch.cat(said, 1).transpose(1, 2)


class Recurrent(Bag):
    """A bidirectional LSTM over the embeddings; padding is not read."""

    def __init__(self, tokens: int, dim: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__(tokens, dim)
        self.dropout = nn.Dropout(dropout)
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(dim, hidden, layers, batch_first=True, bidirectional=True, dropout=between)
        self.width = 2 * hidden

    def forward(self, read: Read) -> Tensor:
        x = self.dropout(self.embedding(read.ids))
        if x.device.type == "meta":
            return x.new_empty(*x.shape[:2], self.width)
        packed = pack_padded_sequence(x, read.lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]
