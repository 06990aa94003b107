"""The columns of a table: what each holds, kept with a run, so that rows written one way can be told another way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sftc.errors import Refused

NUMBERS = ("numeric", "boolean", "date")  # as they are (0 or 1; days since 1970), NaN where missing
CODED = ("categorical", "hash")  # whole numbers; 0: missing, or never seen in training
KINDS = (*NUMBERS, *CODED)
PARTS = ("month", "weekday", "hour")  # of a date: 1 to 12, 1 (Monday) to 7, 0 to 23
LARGEST = 1 << 24  # codes of a column


class Column:
    """What one column of a table holds.

    Args:
        kind: one of KINDS.
        missing: whether training rows lack it: models then also read whether a row does.
        values: of a categorical column, in the order of its codes 1, 2, ...
        buckets: of a hash column: its codes are 1 to `buckets`.
        part: of PARTS, where the categories are those of a column of dates, which is called `of`.

    Raises:
        ValueError: no such column.
    """

    __slots__ = ("_code", "buckets", "kind", "missing", "name", "of", "part", "values")

    def __init__(
        self,
        name: str,
        kind: str,
        missing: bool = False,
        values: Sequence[str] = (),
        buckets: int = 0,
        part: str = "",
        of: str = "",
    ) -> None:
        words = type(name) is str and all(type(v) is str for v in values)
        if not words or kind not in KINDS or type(missing) is not bool or type(buckets) is not int:
            raise ValueError(f"no column: {str(name)[:40]}, {str(kind)[:40]}")
        if bool(values) > (kind == "categorical") or (kind == "hash") != (0 < buckets <= LARGEST):
            raise ValueError(f"column {name[:40]} of kind {kind} cannot have these codes")
        if type(of) is not str or (bool(of) or part != "") > (bool(of) and part in PARTS and kind == "categorical"):
            raise ValueError(f"column {name[:40]} is no part of a date")
        self.part, self.of = part, of
        self.name, self.kind, self.missing, self.values, self.buckets = name, kind, missing, list(values), buckets
        self._code = {value: i for i, value in enumerate(self.values, 1)}
        if len(self._code) < len(self.values):
            raise ValueError(f"column {name[:40]} has a category twice")

    @property
    def coded(self) -> bool:
        return self.kind in CODED

    @property
    def source(self) -> str:
        """The column of the file that says it."""
        return self.of or self.name

    @property
    def codes(self) -> int:
        """How many codes there are, 0 included; none for numbers."""
        return (len(self.values) or self.buckets) + 1 if self.coded else 0

    def code(self, word: str) -> int:
        """Of a category; 0 if it was never seen."""
        if self.kind == "hash":
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            return 1 + int.from_bytes(digest, "little") % self.buckets
        return self._code.get(word, 0)

    def plain(self) -> dict[str, Any]:
        out: dict[str, Any] = {"name": self.name, "kind": self.kind, "missing": self.missing}
        out |= {"part": self.part, "of": self.of} if self.part else {}
        return out | {"categorical": {"values": self.values}, "hash": {"buckets": self.buckets}}.get(self.kind, {})


def told(columns: Sequence[Column], target: Sequence[str] = ()) -> dict[str, Any]:
    """`about` of a form whose rows have these columns, in a file where `target` is what is predicted."""
    return {"columns": [column.plain() for column in columns]} | ({"target": list(target)} if target else {})


def read(about: Mapping[str, Any], width: int) -> list[Column]:
    """The columns that `about` of a form tells of; none where it tells of none: then all are plain numbers.

    Raises:
        ValueError: what it says is no list of `width` columns.
    """
    if "columns" not in about:
        return []
    nodes = about["columns"]
    try:
        columns = [Column(**node) for node in nodes]
    except TypeError:
        raise ValueError("columns that are none") from None
    if len(columns) != width or len({c.name for c in columns}) < width:
        raise ValueError(f"{len(columns)} columns for rows of {width} numbers, or two of one name")
    goals = about.get("target", [])
    if type(goals) is not list or not all(type(goal) is str for goal in goals):
        raise ValueError("a target that is no list of columns")
    return columns


def coded(about: Mapping[str, Any], width: int) -> Tensor:
    """[width] bool: which numbers of a row are codes, which nothing must scale."""
    columns = read(about, width)
    return torch.tensor([c.coded for c in columns]) if columns else torch.zeros(width, dtype=torch.bool)


def other(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """What `about` of two forms first differs in, in words; None where weights for one fit the other's columns."""
    here, there = mine.get("columns"), theirs.get("columns")
    if here is None or there is None or here == there:
        return None
    for a, b in zip(here, there, strict=False):
        if a["name"] != b["name"]:
            return f"column {a['name']} stands where column {b['name']} stood"
        if a != b:
            return f"column {a['name']} is {a['kind']}, was {b['kind']}" + " of other codes" * (a["kind"] == b["kind"])
    return f"{len(here)} columns, not {len(there)}"


def match(mine: Sequence[Column], theirs: Sequence[Column], who: str) -> tuple[Tensor, dict[int, Tensor]]:
    """How to tell rows of `mine` as rows of `theirs`, column by column of the same name.

    Returns:
        order: [T] which of my columns each of theirs is.
        lookup: position among theirs -> [codes of mine] long, their code of each of mine.

    Raises:
        Refused: a column of theirs is not there, or holds what cannot be told their way; `who` they are.
    """
    at = {column.name: i for i, column in enumerate(mine)}
    order, lookup = [], {}
    for j, their in enumerate(theirs):
        if their.name not in at:
            raise Refused(f"{who} reads column {their.name}, which the data does not have, or leaves out")
        my = mine[at[their.name]]
        order.append(at[their.name])
        if my.coded != their.coded or (my.kind == "hash" and (their.kind, their.buckets) != ("hash", my.buckets)):
            raise Refused(
                f"{who} learned column {their.name} as {_spoken(their)}, the data has it as {_spoken(my)}: "
                f"set data.columns.{their.name}={their.kind}"
            )
        if their.coded:
            codes = list(range(my.codes)) if my.kind == "hash" else [0, *(their.code(v) for v in my.values)]
            lookup[j] = torch.tensor(codes)
    return torch.tensor(order), lookup


def _spoken(column: Column) -> str:
    return f"hash of {column.buckets}" if column.kind == "hash" else column.kind
