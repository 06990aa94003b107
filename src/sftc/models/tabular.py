"""Nets for tables: a residual net, a transformer over columns, and two that multiply columns for click data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftc.errors import Refused, nearest
from sftc.models import keys
from sftc.models.entry import Cells, Entry, check_room, embedding
from sftc.models.vision import Vision
from sftc.types import Form


class TabResnet(nn.Module):
    """The ResNet of Gorishniy et al. (2021): each block adds Linear(ReLU(Linear(BatchNorm(x))))."""

    def __init__(self, form: Form, out_dim: int, width: int = 128, depth: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.entry = Entry(form)
        self.first = nn.Linear(self.entry.width, width)
        self.blocks = nn.ModuleList(_Residual(width, dropout) for _ in range(depth))
        self.last = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, out_dim)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.first(self.entry(rows))
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x))


class _Residual(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(self.drop(F.relu(self.up(self.norm(x))))))


class Tokens(nn.Module):
    """Each number times its own vector, each code its own, plus a vector per column; and one in front to be read.

    The tokenizer of Gorishniy et al. (2021): [N, D] -> [N, 1 + P + K, width].
    """

    def __init__(self, form: Form, width: int) -> None:
        super().__init__()
        self.cells = Cells(form)
        self.weight = nn.Parameter(_small(self.cells.numbers + 1, width))  # the first is the token that is read
        self.bias = nn.Parameter(_small(self.cells.numbers + len(self.cells.codes), width))
        check_room(max(self.cells.codes, default=0), width)
        self.codes = nn.Embedding(max(1, sum(self.cells.codes)), width)
        nn.init.uniform_(self.codes.weight, -(width**-0.5), width**-0.5)

    def forward(self, rows: Tensor) -> Tensor:
        numbers, codes = self.cells(rows)
        ones = torch.ones(len(rows), 1, dtype=numbers.dtype, device=numbers.device)
        tokens = torch.cat([ones, numbers], 1)[:, :, None] * self.weight
        tokens = torch.cat([tokens, self.codes(self.cells.shifted(codes))], 1)
        return tokens + F.pad(self.bias, (0, 0, 1, 0))


class FTTransformer(nn.Module):
    """Feature Tokenizer + Transformer (Gorishniy et al. 2021): norms first, ReGLU, the first token is read."""

    def __init__(
        self, form: Form, out_dim: int, width: int = 64, depth: int = 3, heads: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if width % heads:
            raise Refused(f"model.width={width} is no multiple of model.heads={heads}")
        self.tokens = Tokens(form, width)
        self.blocks = nn.ModuleList(_Attending(width, heads, dropout, first=i == 0) for i in range(depth))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.ReLU())
        self.head = nn.Linear(width, out_dim)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.tokens(rows)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x[:, 0]))


class _Attending(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, first: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if first else nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        inner = width * 4 // 3
        self.up = nn.Linear(width, 2 * inner)
        self.down = nn.Linear(inner, width)
        self.heads, self.dropout = heads, dropout

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> the same."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropped = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropped)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        a, gate = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.dropout(a * F.relu(gate), self.dropout, self.training))


class DCN(nn.Module):
    """Deep and cross network v2 (Wang et al. 2021): x0 * (W x + b) + x, beside dense layers on the same."""

    def __init__(
        self,
        form: Form,
        out_dim: int,
        dim: int = 16,
        crosses: int = 3,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.cells = Cells(form)
        self.codes = nn.ModuleList(embedding(n, dim) for n in self.cells.codes)
        width = self.cells.numbers + dim * len(self.codes)
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(crosses))
        widths = [width, *hidden]
        self.deep = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout))
                for a, b in zip(widths, hidden, strict=False)
            )
        )
        self.last = nn.Identity()  # to be tapped
        self.head = nn.Linear(width + widths[-1], out_dim)

    def forward(self, rows: Tensor) -> Tensor:
        numbers, codes = self.cells(rows)
        first = torch.cat([numbers, *(embed(codes[:, k]) for k, embed in enumerate(self.codes))], 1)
        x = first
        for cross in self.crosses:
            x = first * cross(x) + x
        return self.head(self.last(torch.cat([x, self.deep(first)], 1)))


class FM(nn.Module):
    """A factorisation machine (Rendle 2010): linear, plus the products of all pairs of columns through `dim` factors.

    Its head weighs the factors; with all ones and one output it is Rendle's.
    """

    def __init__(self, form: Form, out_dim: int, dim: int = 16) -> None:
        super().__init__()
        self.cells = Cells(form)
        self.factors = nn.Parameter(0.1 * _small(self.cells.numbers, dim))
        self.codes = nn.ModuleList(embedding(n, dim) for n in self.cells.codes)
        self.linear = Entry(form, onehot=True)
        self.weights = nn.Linear(self.linear.width, out_dim)
        self.last = nn.Identity()  # to be tapped
        self.head = nn.Linear(dim, out_dim, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        numbers, codes = self.cells(rows)
        each = [embed(codes[:, k]) for k, embed in enumerate(self.codes)]
        total = numbers @ self.factors + sum(each, torch.zeros((), device=rows.device))
        squares = numbers.square() @ self.factors.square() + sum((e * e for e in each), total.new_zeros(()))
        return self.head(self.last((total.square() - squares) / 2)) + self.weights(self.linear(rows))


NETS: dict[str, type[nn.Module]] = {"tab_resnet": TabResnet, "ft_transformer": FTTransformer, "dcn": DCN, "fm": FM}


def check(spec: Mapping[str, Any]) -> None:
    """What `build` would refuse whatever the data.

    Raises:
        Refused: an unknown key, a number below one, a dropout outside [0, 1).
    """
    family, taken = spec["family"], list(signature(NETS[spec["family"]]).parameters)[2:]
    for key, value in keys.rest(spec).items():
        if key not in taken:
            raise Refused(f"model.{key} is no key of {family}{nearest(key, taken)}")
        numbers: list[Any] = list(value) if isinstance(value, Sequence) and value else [value]
        if key == "dropout":
            if not 0 <= numbers[0] < 1:
                raise Refused(f"model.dropout={value} must lie in [0, 1)")
        elif not all(type(n) is int and n > 0 for n in numbers):
            raise Refused(
                f"model.{key}={value} must be {'a list of widths' if key == 'hidden' else 'a number above 0'}"
            )
    if keys.pretrained(spec) == "true" and not spec.get("checkpoint"):
        raise Refused(f"model.pretrained=true: nobody published weights for {family}; give model.checkpoint=PATH")


def build(spec: Mapping[str, Any], out_dim: int, form: Form) -> Vision:
    """The net for rows (D,). Raises Refused: what `check` refuses."""
    check(spec)
    net = NETS[spec["family"]](form, out_dim, **keys.rest(spec))
    return Vision(nn.Identity(), net, ["net.head"], {"pretrained": "no"})


def _small(rows: int, width: int) -> Tensor:
    return torch.empty(rows, width).uniform_(-(width**-0.5), width**-0.5)
