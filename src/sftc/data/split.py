"""From what a reader found to splits: carve what is missing, keep some classes, limit, hide labels.

All of it is a pure function of (split_seed, source row): teams of different run seeds share their validation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from sftc.data import random
from sftc.data.rows import Split, Table
from sftc.errors import Refused, nearest


class Raw:
    """What a reader found: a way to open the table of each split the source has, at least "train"."""

    __slots__ = ("class_names", "kind", "notes", "tables")

    def __init__(
        self,
        kind: str,
        class_names: list[str],
        tables: Mapping[str, Callable[[], Table]],
        notes: list[str] | None = None,
    ) -> None:
        self.kind = kind  # "classes", "labels", "values", "tags" or "pixels"
        self.class_names = class_names
        self.tables = dict(tables)
        self.notes = [] if notes is None else notes


def spread(rows: Tensor, stratum: Tensor, total: int, seed: int, stream: int) -> Tensor:
    """`total` of `rows` [n] by hash, evenly from every stratum [n], sorted. Fewer are some of the same."""
    key = random.bits(seed, rows.numpy(), 0, (stream,))[:, 0]
    strata = stratum.numpy()
    order = np.lexsort((key, strata))
    first = np.r_[True, strata[order][1:] != strata[order][:-1]]
    starts = np.flatnonzero(first)
    counts = np.diff(np.r_[starts, len(order)])
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    place = (rank + 0.5) / np.repeat(counts, counts)  # the share of its stratum that comes before the row
    taken = order[np.lexsort((key[order], place))[:total]]
    return rows[torch.from_numpy(np.sort(taken))]


def strata(target: Tensor, rows: Tensor) -> Tensor:
    """The class of each row; one stratum for several labels, values and classes of many positions."""
    return target[rows] if target.dim() == 1 else torch.zeros_like(rows)


def carve(rows: Tensor, table: Table, share: float, seed: int, stream: int, *, what: str) -> tuple[Tensor, Tensor, str]:
    """What is left of `rows`, the `share` taken out of every class, and a note. The `apart` that a table may have takes
    out the last rows, or whole groups.
    """
    apart = getattr(table, "apart", None)
    if apart is None:
        taken = spread(rows, strata(table.target, rows), round(share * len(rows)), seed, stream)
        whose = "source's training" if what == "test" else "training"
        note = f"{what}: {share:g} of the {whose} rows, by split_seed={seed}"
    else:
        taken = apart.taken(rows, share, seed, stream)
        note = apart.said(what, taken)
    rest = rows[~torch.isin(rows, taken)]
    if len(taken) == 0 or len(rest) == 0:
        raise Refused(f"data.{what}_share={share} of {len(rows)} rows leaves a split with no rows; change the share")
    return rest, taken, note


def limited(rows: Tensor, target: Tensor, limit: float | None, seed: int) -> Tensor:
    """The first `limit` rows, or that share of them, evenly from every class; all if there are fewer."""
    if limit is None:
        return rows
    total = max(1, round(limit * len(rows))) if limit < 1 else int(limit)
    return spread(rows, strata(target, rows), total, seed, random.LIMIT) if total < len(rows) else rows


def hidden(target: Tensor, rows: Tensor, share: float | None, seed: int) -> Tensor:
    """The targets with those of a `share` of `rows` hidden: -1 or NaN.

    As many rows keep theirs as `limited` would have kept, and the same ones: whoever learns from few rows, and whoever
    also has the others without labels, know the same labels.
    """
    if not share:
        return target
    target = target.clone()
    seen = spread(rows, strata(target, rows), len(rows) - round(share * len(rows)), seed, random.LIMIT)
    target[rows[~torch.isin(rows, seen)]] = -1 if target.dtype == torch.long else torch.nan
    return target


def chosen(kind: str, names: list[str], classes: list | None) -> list[int] | None:
    """The numbers of data.classes, which gives names or numbers, in its order; None for all.

    Raises:
        Refused: an unknown class (with the nearest), one given twice, fewer than two, or no classes at all.
    """
    if classes is None:
        return None
    if kind in ("values", "tags"):
        raise Refused(f"data.classes chooses among classes or labels; this data set has {kind}")
    numbers = [_number(c, names) for c in classes]
    if len(set(numbers)) < len(numbers):
        raise Refused(f"data.classes={classes} names a class twice")
    if len(numbers) < (2 if kind in ("classes", "pixels") else 1):
        raise Refused(f"data.classes={classes} leaves nothing to tell apart; give two or more")
    return numbers


def _number(wanted: object, names: list[str]) -> int:
    if str(wanted) in names:
        return names.index(str(wanted))
    if isinstance(wanted, int) and 0 <= wanted < len(names):
        return wanted
    few = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise Refused(f"data.classes: no class {wanted}{nearest(str(wanted), names)} (classes: {few})")


def relabelled(target: Tensor, rows: Tensor, kind: str, numbers: list[int] | None, n: int) -> tuple[Tensor, Tensor]:
    """Targets in the numbering of the chosen classes, and the rows that belong to one of them."""
    if numbers is None or kind == "pixels":  # there the masks are relabelled as they are read
        return target, rows
    if kind == "labels":
        return target[:, numbers], rows
    new = torch.full((n + 1,), -2)  # -2: another class
    new[numbers] = torch.arange(len(numbers))
    new[n] = -1
    target = new[torch.where(target < 0, n, target)]
    rows = rows[target[rows] != -2]
    return target.clamp(min=-1), rows


def _check_targets(name: str, table: Table, raw: Raw) -> None:
    """Raises Refused: a row has a target that the data set cannot have."""
    target = table.target
    if not target.is_floating_point():
        wrong, may = (
            (target < -1) | (target >= len(raw.class_names)),
            f"one of {len(raw.class_names)} classes from 0 on",
        )
    elif raw.kind == "labels":
        wrong, may = ~((target == 0) | (target == 1) | target.isnan()), "0, 1 or unknown"
    else:
        wrong, may = target.isinf(), "finite or unknown"
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        value, n = target[tuple(at)].item(), int(wrong.sum())
        raise Refused(f"the {name} split has {n} targets out of range: row {at[0]} says {value:g}, which is not {may}")


def splits(
    raw: Raw,
    *,
    numbers: list[int] | None,
    limit: float | None,
    eval_limit: float | None,
    val_share: float,
    test_share: float,
    split_seed: int,
    unlabeled: float | None,
) -> dict[str, Split]:
    """Train, val and test. A test table that the source has is not opened before somebody looks at it.

    Carving comes before classes and limit: those never move a row from one split to another.
    """
    train = raw.tables["train"]()
    _check_targets("train", train, raw)
    rows = {"train": torch.arange(len(train.target))}
    if len(train.target) == 0:
        raise Refused("the train split has no rows")
    if "test" not in raw.tables and test_share:
        rows["train"], rows["test"], note = carve(
            rows["train"], train, test_share, split_seed, random.SPLIT_TEST, what="test"
        )
        raw.notes.append(note)
    if "val" not in raw.tables:
        rows["train"], rows["val"], note = carve(
            rows["train"], train, val_share, split_seed, random.SPLIT_VAL, what="val"
        )
        raw.notes.append(note)
    if (fit := getattr(train, "fit", None)) is not None:  # before classes and limit: it is the same for all of them
        fit(rows["train"])

    def load(name: str) -> tuple[Table, Tensor, Tensor]:
        table = train if name in rows else raw.tables[name]()
        if name not in rows:
            _check_targets(name, table, raw)
        mine = rows[name] if name in rows else torch.arange(len(table.target))
        target, mine = relabelled(table.target, mine, raw.kind, numbers, len(raw.class_names))
        mine = limited(mine, target, limit if name == "train" else eval_limit, split_seed)
        if name == "train":
            target = hidden(target, mine, unlabeled, split_seed)
        return table, mine, target

    names = [n for n in ("train", "val", "test") if n in rows or n in raw.tables]
    return {n: Split(n, lambda n=n: load(n)) for n in names}


def repeated(split: Split, times: int) -> Split:
    """The same rows, each column of the target so many times: [n, K * times]."""
    return Split(split.name, lambda: (split.table, split.rows, split.target.repeat_interleave(times, 1)))


def weights(class_weights: str | list | None, counts: Tensor | None, kind: str, rows: int | Tensor) -> Tensor | None:
    """data.class_weights as float32 [C], or None.

    Balanced: rows / (classes * rows of the class); for labels, rows without it / rows with it. `rows`
    are those with a label (for each, if a tensor): what is hidden is neither.
    """
    if class_weights is None or class_weights == "none":
        return None
    if counts is None:
        raise Refused("data.class_weights needs classes or labels; set data.class_weights=none")
    if class_weights == "balanced":
        some = counts.clamp(min=1)
        return ((rows - counts) / some if kind == "labels" else counts.sum() / (len(counts) * some)).float()
    given = torch.tensor([float(w) for w in class_weights])
    if len(given) != len(counts):
        raise Refused(f"data.class_weights has {len(given)} numbers for {len(counts)} classes")
    return given
