"""The nouns of a data set: a Table of raw rows, Splits that name some, Data that hands out batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from sftc.columns import coded
from sftc.data import source as sources
from sftc.data.audio_augment import Changes
from sftc.data.augment import VERSION
from sftc.data.plan import Plan
from sftc.data.skips import Lost, Skips
from sftc.errors import Refused, choose
from sftc.types import Form, Source


class Table(Protocol):
    """Raw rows by number. Reading the same row twice gives the same bytes.

    A table may have more: `describe(row)`, what a person knows a row by; `about`, what models must know of it besides
    the shape (types.Form); `corpus(rows)`, those rows as text. One whose rows differ in length holds them in memory,
    says `lengths` [n], and pads what it reads to the longest row asked for; `host` then keeps batches on the CPU,
    wherever the model is. Where a row has an answer at each of several positions, and not all rows as many, `extent`
    [n] says how many: the others weigh nothing. `cut(rows)` takes off what is read only for augmentation to move.
    `apart` (data.apart) says which rows are held out together.
    """

    # [n] or [n, *positions] long classes (-1: unlabelled), or [n, L] 0/1 labels, [n, K] values (NaN: unlabelled)
    target: Tensor
    shape: tuple[int, ...]  # of one row: (C, H, W) or (D,)
    nbytes: int  # of all rows, decoded

    def read(self, rows: Tensor, lost: Lost | None = None) -> Tensor:
        """Row numbers [k] -> uint8 [k, C, H, W] or float32 [k, D], on the CPU.

        Args:
            lost: takes the rows that cannot be read, and why; what is returned in their place says nothing.

        Raises:
            Refused: a row cannot be read, and there is no `lost`.
        """
        ...

    def fingerprint(self) -> str:
        """A hash of the rows and their targets."""
        ...


class ArrayTable:
    """Rows that already lie in memory: `inputs` uint8 [n, C, H, W] or float32 [n, D]."""

    def __init__(self, inputs: Tensor, target: Tensor) -> None:
        self.inputs = inputs.contiguous()
        self.target = target
        self.shape = tuple(inputs.shape[1:])
        self.nbytes = inputs.numel() * inputs.element_size()
        self.about: dict[str, Any] = {}
        self._fingerprint: str | None = None

    def read(self, rows: Tensor, lost: Lost | None = None) -> Tensor:
        return self.inputs.index_select(0, rows)

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = digest(self.shape, self.inputs, self.target)
        return self._fingerprint


def digest(*parts: object) -> str:
    """A short hash of tensors (their bytes) and anything else (its repr)."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            h.update(f"{part.dtype}{tuple(part.shape)}".encode())
            h.update(part.contiguous().numpy().data)
        else:
            h.update(repr(part).encode())
        h.update(b"\0")
    return h.hexdigest()


class Split:
    """Some rows of a table. Loaded when first looked at: the test split stays unread until asked for."""

    def __init__(self, name: str, load: Callable[[], tuple[Table, Tensor, Tensor]]) -> None:
        self.name = name
        self._load = load
        self._loaded: tuple[Table, Tensor, Tensor] | None = None
        self._fingerprint: str | None = None

    def _get(self) -> tuple[Table, Tensor, Tensor]:
        if self._loaded is None:
            self._loaded = self._load()
            if len(self._loaded[1]) == 0:
                raise Refused(f"the {self.name} split has no rows; look at data.classes and the shares")
        return self._loaded

    @property
    def table(self) -> Table:
        return self._get()[0]

    @property
    def rows(self) -> Tensor:
        """Row numbers of the table, sorted, after split, limit and classes: long [n]."""
        return self._get()[1]

    @property
    def target(self) -> Tensor:
        """By row number of the table, relabelled by data.classes; what is hidden is -1 or NaN."""
        return self._get()[2]

    def fingerprint(self) -> str:
        """Identifies the labelled content of exactly these rows."""
        if self._fingerprint is None:
            rows = self.rows
            self._fingerprint = digest(self.table.fingerprint(), rows, self.target[rows])
        return self._fingerprint


class Data:
    """A data set ready for training: splits, what a row looks like, and sources of batches.

    Attributes:
        kind: "classes", "labels" (several per row), "values" or "tags" (a class for each word).
        class_names: names of the classes, labels or values; as many as `out_dim`.
        form: of one row as batches hold it: (C, H, W) uint8 images, (D,) float32 tables, texts, sounds.
        shape: of one row, from its form.
        splits: "train", "val" and, unless data.test_share=0 left none, "test".
        class_counts: [out_dim] labelled training rows per class or label, words per tag; None for values.
        class_weights: [out_dim] float32 or None: what the task multiplies a row of that class by.
        target_mean, target_std: [K] over the labelled training rows for "values", else None.
        input_mean, input_std: [D] for tables (None for images): what sources standardise inputs by. A run
            evaluated on another data set sets them to those it was trained with, before the first `source`.
        skipped: rows that could not be read so far.
        notes: choices that were made and why, one line each; sources add theirs.
    """

    def __init__(
        self,
        *,
        name: str,
        kind: str,
        class_names: list[str],
        splits: dict[str, Split],
        augment: Changes,
        split_seed: int = 0,
        cache: str = "auto",
        workers: int | None = None,
        views: int | None = None,
        on_error: str = "fail",
        notes: list[str] | None = None,
    ) -> None:
        self.name, self.kind, self.class_names, self.splits = name, kind, class_names, splits
        self.augment, self.split_seed, self.views = augment, split_seed, views
        self.cache, self.workers, self.on_error = cache, workers, on_error
        self.notes = [] if notes is None else notes
        train = splits["train"]
        table = train.table
        corpus = getattr(table, "corpus", None)
        training = None if corpus is None else lambda: corpus(train.rows)
        self.form = Form(table.shape, about=getattr(table, "about", None), corpus=training)
        self.shape = self.form.shape
        self.out_dim = len(class_names)
        self.class_weights: Tensor | None = None
        self._skips: dict[str, Skips] = {}
        self._held: dict[tuple[str, str], sources.Resident] = {}
        self._fingerprint: str | None = None
        self._measure(train.table, train.rows, train.target[train.rows])

    def _measure(self, table: Table, rows: Tensor, target: Tensor) -> None:
        self.class_counts = self.target_mean = self.target_std = self.input_mean = self.input_std = None
        if self.kind == "pixels":  # counted where somebody asks: that reads every mask
            return
        if not target.is_floating_point():
            self.class_counts = torch.bincount(target[target >= 0], minlength=self.out_dim)
        elif self.kind == "labels":
            self.class_counts = torch.nan_to_num(target).sum(0).long()
        else:
            self.target_mean, self.target_std = _moments(target)
        if len(self.shape) == 1:
            mean, std = _moments(table.read(rows))
            codes = coded(self.form.about, len(mean))
            self.input_mean, self.input_std = mean.masked_fill(codes, 0.0), std.masked_fill(codes, 1.0)

    @property
    def fingerprint(self) -> str:
        """Identifies the labelled training and validation rows, whatever the run's seed and augmentation."""
        if self._fingerprint is None:
            parts = [self.splits[s].fingerprint() for s in ("train", "val")]
            self._fingerprint = digest(*parts, self.kind, self.class_names, self.split_seed, VERSION)
        return self._fingerprint

    @property
    def skipped(self) -> dict[str, Any]:
        """What could not be read so far under data.on_error=skip: {split: {"of": rows, "rows": {path: why}}}."""
        return {split: skips.plain() for split, skips in self._skips.items() if skips.found}

    def source(
        self,
        split: str,
        batch_size: int,
        *,
        train: bool,
        seed: int,
        device: torch.device,
        rows: Tensor | None = None,
        free_bytes: int | None = None,
        view: int | None = None,
        second: Changes | None = None,
    ) -> Source:
        """Batches of a split on `device`: shuffled and augmented if `train`, else in order, as they are.

        Args:
            rows: source row numbers within the split, repeats allowed (bagging); None: all of it.
            view: in order, whatever `train` says, each row in this one view: the picture that training shows when it
                comes to that view of the row, to the bit, before any mixing with a partner.
            second: batches also hold another view of each row, made like this.
            free_bytes: memory free on `device` if it is not the host: what data.cache=auto decides by.

        Raises:
            Refused: the data set has no such split.
            ValueError: `rows` are not of this split, or there is no such view.
        """
        part = self.splits[choose("split", split, self.splits)]
        rows = part.rows if rows is None else rows.long().cpu()
        if len(rows) == 0 or not torch.isin(rows, part.rows).all():
            raise ValueError(f"rows must be some of the {len(part.rows)} rows of the {split} split")
        if view is not None and not 0 <= view < (math.inf if self.views is None else self.views):
            raise ValueError(f"view {view} is not one of data.views={self.views}")
        device = torch.empty(0, device=device).device  # with its number, as tensors name it
        augment = self.augment if view is None else self.augment.unmixed()
        changes = augment.active and (train or view is not None)
        reuse = self.views is not None
        plan = Plan(
            rows,
            batch_size,
            shuffle=train and view is None,
            seed=seed,
            views=self.views if train else None,
            view_seed=self.split_seed,
            view=view or 0,
            lengths=None if (lengths := getattr(part.table, "lengths", None)) is None else lengths[rows],
        )
        return sources.Batches(
            plan,
            self._reader(part, device, free_bytes),
            part.target,
            device,
            augment=augment if changes else None,
            augment_seed=self.split_seed if reuse else seed,
            moments=None if self.input_mean is None or self.input_std is None else (self.input_mean, self.input_std),
            second=second,
            extent=getattr(part.table, "extent", None),
            cut=getattr(part.table, "cut", None),
            masked=getattr(part.table, "masked", False),
        )

    def _reader(
        self, part: Split, device: torch.device, free_bytes: int | None
    ) -> sources.Resident | sources.Held | sources.Streaming:
        key = (part.name, str(device))
        if key in self._held:
            return self._held[key]
        table, rows = part.table, part.rows
        if getattr(table, "lengths", None) is not None:
            return sources.Held(table, device)
        inputs = getattr(table, "inputs", None)
        nbytes = table.nbytes * len(rows) // max(1, len(table.target))
        where, why = sources.place(nbytes, self.cache, device, free_bytes, in_memory=inputs is not None)
        note = f"{part.name}: {why}"
        if note not in self.notes:
            self.notes.append(note)
        skips = None
        if self.on_error == "skip":
            skips = self._skips.setdefault(part.name, Skips(part.name, len(rows)))
        if where == "none":
            return sources.Streaming(table, self.workers, device, skips)
        home = device if where == "device" else torch.device("cpu")
        if inputs is not None and home.type == "cpu":
            held = sources.Resident(inputs, None, device)
        else:
            held = sources.hold(table, rows, self.workers, home, device, skips)
        self._held[key] = held
        return held


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the first dimension, float32, of what is there: NaN counts nothing.

    A constant column has deviation 1, an empty one mean 0 and deviation 1.
    """
    x = x.double()
    mean = torch.nan_to_num(x.nanmean(0))
    std = torch.nan_to_num((x - mean).square().nanmean(0)).sqrt()
    tiny = std <= 1e-12 * mean.abs()  # a constant whose mean was rounded
    return mean.float(), torch.where((std > 0) & ~tiny, std, 1.0).float()
