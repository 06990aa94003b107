"""Tables in files: a column or some are to be predicted, the others are what is known.

How columns are told as numbers is settled on the training rows before data.limit and data.classes, and kept in the run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftc.columns import CODED, KINDS, LARGEST, PARTS, Column, told
from sftc.columns import read as read_columns
from sftc.data.apart import Apart, groups_of, order_of
from sftc.data.cells import Cells, ordered
from sftc.data.frames import SEPARATORS, frame, is_table
from sftc.data.goal import Goal, some
from sftc.data.leaks import leaks
from sftc.data.rows import ArrayTable
from sftc.data.split import Raw
from sftc.errors import Refused, choose, nearest

TARGETS = ("target", "label", "class", "y")  # what is predicted where nobody says
_FRACTION = re.compile(r"-?\d*[.,]\d+(e[-+]?\d+)?")
SPLITS = ("train", "val", "test")


def locate(root: str | None) -> dict[str, Path]:
    """The file of each split: one file is all rows, a folder holds train.csv and perhaps val.csv and test.csv.

    Raises:
        Refused: there is none.
    """
    if root is None:
        raise Refused("data=tabular needs data.root=FILE, a csv or parquet file, or a folder with train.csv in it")
    path = Path(root).expanduser()
    if path.is_file():
        if not is_table(path):
            raise Refused(f"data.root={root} is no table: its name should end in .csv, .tsv, .txt (.gz) or .parquet")
        return {"train": path}
    if not path.is_dir():
        raise Refused(f"data.root={root} is neither a file nor a folder")
    files = {f.name.partition(".")[0]: f for f in sorted(path.iterdir()) if f.is_file() and is_table(f)}
    found = {split: files[split] for split in SPLITS if split in files}
    if "train" not in found:
        some = f"; it holds {', '.join(sorted(f.name for f in files.values()))[:80]}: name one of them" if files else ""
        raise Refused(f"data.root={root} has no train.csv{some}")
    return found


def check(own: Mapping[str, Any]) -> None:
    """What can be refused without a file. Raises Refused: a kind that is none."""
    choose("data.kind", own.get("kind", "auto"), ("auto", "classes", "labels", "values"))
    for part in own.get("date_parts") or ():
        choose("data.date_parts", str(part), PARTS)
    choose("data.separator", own.get("separator", "auto"), ("auto", *SEPARATORS))
    if own.get("order_by") is not None and own.get("groups") is not None:
        raise Refused("data.order_by and data.groups are two ways to hold rows out: choose one")
    for name, kind in (own.get("columns") or {}).items():
        choose(f"data.columns.{name}", str(kind), (*KINDS, "drop"))


def tabular(
    *,
    root: str,
    target: str | Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    kind: str = "auto",
    columns: Mapping[str, str] = {},
    separator: str = "auto",
    categories: int = 1000,
    buckets: int = 1024,
    date_parts: Sequence[str] = PARTS,
    order_by: str | None = None,
    groups: str | None = None,
    like: Any = None,
) -> Raw:
    """A table of mixed columns; see conf/data/tabular.yaml for the keys.

    Args:
        like: facts of a run (`kind`, `class_names`, `form`): rows and targets are told as that run learned them.

    Raises:
        Refused: a column that is not there, that mixes numbers and words, or targets that are none.
    """
    apart = None if order_by is None else (order_by, order_of)
    apart = apart if groups is None else (groups, groups_of)
    files, columns = locate(root), dict(columns)
    if order_by is not None and {"val", "test"} <= files.keys():
        raise Refused(f"data.order_by holds the last rows out, and {root} has val and test of its own: leave it out")
    read = {"train": frame(files["train"], separator)}
    names = list(read["train"].columns)
    listed = [target] if isinstance(target, str) else list(target or [])
    if not listed and like is not None:
        listed = list(like.form.about.get("target", []))
    notes: list[str] = []
    if odd := [n for n in names if _FRACTION.fullmatch(n)]:
        notes.append(f"warning: {files['train']} begins with a row, not with names of columns ({some(odd)})?")
    if not listed:
        listed = [next((n for n in names if n.lower() in TARGETS), names[-1])]
        notes.append(f"target: column {listed[0]} (data.target says another)")
    told_apart = {"order_by": [order_by] if order_by else [], "groups": [groups] if groups else []}
    for key, wanted in {"target": listed, "drop": drop or [], "columns": columns, **told_apart}.items():
        for name in wanted:
            if name not in names and not (like is not None and key not in ("target", "order_by", "groups")):
                raise Refused(f"data.{key}: no column {name}{nearest(name, names)} (columns: {some(names)})")
    if apart is not None and apart[0] in listed:
        raise Refused(
            f"data.{'groups' if groups else 'order_by'}={apart[0]} is the target, which splits must not go by"
        )
    goal = Goal.found({n: Cells(n, read["train"][n]) for n in listed}, kind, like, notes)
    # Who a row is about says nothing of whom the model has never met.
    plan = Plan(
        [n for n in names if n not in (*listed, *(drop or []), groups)],
        columns,
        categories,
        buckets,
        date_parts,
        notes,
        like,
    )

    def load(split: str) -> Table:
        table = read.pop(split, None)
        table = frame(files[split], separator) if table is None else table
        if lacking := [n for n in listed if n not in table.columns]:
            raise Refused(f"{files[split]} has no column {lacking[0]}, which is the target")
        cells = {str(n): Cells(str(n), table[n]) for n in table.columns}
        table = Table(cells, goal, plan, files[split])
        table.apart = apart[1](cells[apart[0]]) if apart is not None and split == "train" else None
        return table

    first = load("train")
    tables: dict[str, Callable[[], Any]] = {"train": lambda: first}
    tables |= {split: lambda split=split: load(split) for split in files if split != "train"}
    return Raw(goal.kind, goal.names, tables, notes)


class Plan:
    """How the columns of a table are told as numbers, once it has seen the training rows."""

    def __init__(
        self,
        names: list[str],
        kinds: dict[str, str],
        categories: int,
        buckets: int,
        parts: Sequence[str],
        notes: list[str],
        like: Any,
    ) -> None:
        self.parts = parts
        self.names, self.kinds, self.categories, self.buckets, self.notes = names, kinds, categories, buckets, notes
        self.columns: list[Column] = read_columns(like.form.about, like.form.shape[0]) if like is not None else []
        self.fixed = like is not None
        if self.fixed and not self.columns:
            raise Refused("the run did not learn from a table with named columns: data=tabular cannot be read its way")

    def fit(self, table: Table, rows: np.ndarray) -> None:
        """Settle it by these rows. Raises Refused: a column mixes numbers and words, or none is left."""
        if self.fixed:
            names = {c.source for c in self.columns}
            if more := [n for n in self.names if n not in names]:
                self.notes.append(f"columns the run never saw, ignored: {some(more)}")
            return
        left: dict[str, list[str]] = {}
        for name in self.names:
            column = self._column(table.cells[name], rows, left)
            if column is not None:
                self.columns.append(column)
                self.columns += self._parts(column, table.cells[name], rows)
        for why, those in left.items():
            self.notes.append(f"columns {why}: {some(those)}")
        if not self.columns:
            raise Refused("no column is left to predict from")
        target = table.target[rows]
        if unknown := int((target < 0).sum() if target.ndim == 1 else target.isnan().any(1).sum()):
            self.notes.append(f"{unknown} of {len(rows)} training rows do not say the target: they count as unlabelled")
        self.notes += leaks(table.encoded(self.columns, rows), self.columns, target)

    def _column(self, cells: Cells, rows: np.ndarray, left: dict[str, list[str]]) -> Column | None:
        """The column, or None if it is left out; `left` takes why, for a note."""
        said = self.kinds.get(cells.name)
        kind = said or cells.kind(rows, self.categories)
        there = rows[cells.known[rows]]
        if kind in ("drop", "empty", "label"):
            why = {"empty": "without a value, left out", "label": "with another word in every row, left out"}
            if kind != "drop":
                left.setdefault(why[kind], []).append(cells.name)
            return None
        missing = len(there) < len(rows)
        if kind not in CODED:
            values = cells.read_as(kind)[rows]
            if np.isnan(values).all():
                raise Refused(f"data.columns.{cells.name}={kind}: no training row holds one")
            if said is None and (values == np.rint(values)).all() and (values - values[0] == rows - rows[0]).all():
                left.setdefault("that only count rows, left out", []).append(cells.name)
                return None
            if np.nanmin(values) == np.nanmax(values):
                left.setdefault("with one value in all training rows, which tell nothing", []).append(cells.name)
            return Column(cells.name, kind, bool(np.isnan(values).any()))
        if kind == "hash":
            left.setdefault(f"of many different words, hashed to {self.buckets} numbers", []).append(cells.name)
            return Column(cells.name, kind, missing, buckets=self.buckets)
        words = ordered(cells.words[there])
        if len(words) >= LARGEST:
            raise Refused(f"column {cells.name} has {len(words):,} categories, more than memory has room for: =hash")
        if len(words) == 1:
            left.setdefault("with one value in all training rows, which tell nothing", []).append(cells.name)
        return Column(cells.name, kind, missing, words)

    def _parts(self, column: Column, cells: Cells, rows: np.ndarray) -> list[Column]:
        """What else a date says, where that is not always the same."""
        out = []
        for part in self.parts if column.kind == "date" else ():
            words = cells.part(part)[rows]
            seen = ordered(w for w in words if w is not None)
            if len(seen) > 1 and (name := f"{column.name} {part}") not in self.names:
                out.append(Column(name, "categorical", column.missing, seen, part=part, of=column.name))
        if out:
            self.notes.append(f"column {column.name}: its {', '.join(c.part for c in out)} beside it (data.date_parts)")
        return out


class Table(ArrayTable):
    """A table whose rows are float32 [D]: numbers, days, 0 and 1 (NaN: missing), and codes (0: missing or unseen)."""

    def __init__(self, cells: dict[str, Cells], goal: Goal, plan: Plan, path: Path) -> None:
        self.cells, self.goal, self.plan, self.path = cells, goal, plan, path
        self.target = goal.read(cells)
        self.apart: Apart | None = None
        self._inputs: Tensor | None = None
        self._fingerprint = None

    def fit(self, rows: Tensor) -> None:
        """Settle how columns are told by these training rows; called once, before anything is read."""
        self.plan.fit(self, rows.numpy())

    @property
    def about(self) -> dict[str, Any]:
        return told(self.plan.columns, self.goal.columns)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.plan.columns),)

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return 4 * len(self.target) * len(self.plan.columns)

    @property
    def inputs(self) -> Tensor:  # type: ignore[override]
        if self._inputs is None:
            self._inputs = self.encoded(self.plan.columns)
            self.cells = {}  # the words are no longer needed
        return self._inputs

    def encoded(self, columns: list[Column], rows: np.ndarray | None = None) -> Tensor:
        """[n, D] float32. Raises Refused: a column is missing."""
        out = np.empty((len(self.target), len(columns)), dtype=np.float32)
        for j, column in enumerate(columns):
            if column.source not in self.cells:
                near = nearest(column.source, list(self.cells))
                raise Refused(f"{self.path} has no column {column.source}, which the model reads{near}")
            cells = self.cells[column.source]
            out[:, j] = cells.coded(column) if column.coded else cells.read_as(column.kind)
            self._note_odd(column, cells, out[:, j])
        return torch.from_numpy(out if rows is None else out[rows])

    def _note_odd(self, column: Column, cells: Cells, values: np.ndarray) -> None:
        odd = np.flatnonzero(np.isnan(values) & cells.known) if not column.coded else []
        if len(odd):
            said = f"column {column.name}: {len(odd)} cells are not {column.kind} and count as missing "
            note = said + f"(row {odd[0]}: {str(cells.words[odd[0]])[:40]!r})"
            if note not in self.plan.notes:
                self.plan.notes.append(note)
