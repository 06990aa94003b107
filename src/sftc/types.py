"""The nouns every other file speaks: what passes through a model, and the protocols around it.

Plain classes with slots, not dataclasses or dicts: Lightning Fabric walks containers that pass a wrapped module and
casts the floats in them, which would round regression targets under mixed precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

Inputs = Tensor | dict[str, Tensor]
Metrics = dict[str, float]


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: _map(v, change) for k, v in value.items()}
    return value


class Form:
    """What a row of inputs is, as far as a model must know it before it is built.

    Args:
        shape: of one row: (C, H, W) of a picture, (D,) of a table, (1, T) of a sound; () of a text.
        kind: picture, table, text or sound; by default what a shape of its length is.
        about: more that models of this kind read, in plain types; a run keeps it.
        corpus: () -> the training rows as text, for a vocabulary; None where a stored model is built again.
    """

    __slots__ = ("about", "corpus", "kind", "shape")

    KINDS: ClassVar = {3: "picture", 1: "table", 0: "text", 2: "sound"}  # by the length of the shape

    def __init__(
        self,
        shape: Sequence[int],
        kind: str | None = None,
        about: Mapping[str, Any] | None = None,
        corpus: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self.kind = self.KINDS[len(self.shape)] if kind is None else kind
        self.about = dict(about or {})
        self.corpus = corpus

    @classmethod
    def of(cls, form: Form | Sequence[int]) -> Form:
        """A bare shape is a form that says no more."""
        return form if isinstance(form, Form) else cls(form)

    def blank(self, rows: int = 1) -> Tensor:
        """Rows that say nothing, as a batch holds them: for a dry run."""
        if self.kind == "text":
            return torch.full((rows, 4), ord("a"), dtype=torch.uint8)
        return torch.zeros(rows, *self.shape)

    def fits(self, other: Form) -> bool:
        """Whether a model made for the one reads the other: pictures of as many channels, sounds of one rate."""
        mine, theirs = ((f.kind, f.shape[:1], f.about.get("words"), f.about.get("rate")) for f in (self, other))
        return mine == theirs

    def __str__(self) -> str:
        more = (
            " of words" if self.about.get("words") else f" at {self.about['rate']} Hz" if "rate" in self.about else ""
        )
        return f"{self.kind} {'x'.join(map(str, self.shape))}{more}".strip()

    def plain(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "form": self.kind, "about": self.about}


class Partner:
    """Who a row was mixed with: mixup and cutmix."""

    __slots__ = ("index", "lam", "target", "view")

    def __init__(self, index: Tensor, view: Tensor, target: Tensor, lam: Tensor) -> None:
        self.index = index  # [N] row number of the partner
        self.view = view  # [N] its view
        self.target = target  # [N, ...] its own label
        self.lam = lam  # [N] share of the row itself, in [0, 1]

    def map(self, change: Callable[[Tensor], Tensor]) -> Partner:
        return Partner(change(self.index), change(self.view), change(self.target), change(self.lam))


class Batch:
    """Some rows, ready for a model: labels stay hard, and every row knows where it came from."""

    __slots__ = ("extra", "index", "inputs", "partner", "target", "view", "weight")

    def __init__(
        self,
        inputs: Inputs,
        target: Tensor,
        index: Tensor,
        view: Tensor | None = None,
        weight: Tensor | None = None,
        partner: Partner | None = None,
        extra: dict[str, Tensor] | None = None,
    ) -> None:
        self.inputs = inputs  # [N, ...] or a dict of such
        self.target = target  # [N, *positions] classes (-1: unlabelled), or floats (NaN: unlabelled)
        self.index = index  # [N] row number in the source, before split, limit and classes
        self.view = torch.zeros_like(index) if view is None else view  # [N] which augmentation of the row
        self.weight = weight  # [N] or [N, *positions]; 0 for padding and skipped rows; None: all ones
        self.partner = partner
        self.extra = {} if extra is None else extra  # "second": another view of the same rows, for terms that read it

    def __len__(self) -> int:
        return self.index.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `change` applied to every tensor."""
        return Batch(
            _map(self.inputs, change),
            change(self.target),
            change(self.index),
            change(self.view),
            None if self.weight is None else change(self.weight),
            None if self.partner is None else self.partner.map(change),
            _map(self.extra, change),
        )

    def to(self, device: torch.device) -> Batch:
        return self.map(lambda t: t.to(device, non_blocking=True))

    def cut(self, pieces: int) -> list[Batch]:
        """Micro-batches of nearly equal size, none of a single row (BatchNorm) if that can be helped."""
        n = len(self)
        pieces = max(1, min(pieces, n // 2))
        if pieces == 1:
            return [self]
        ends = [n * i // pieces for i in range(pieces + 1)]
        return [self.map(lambda t, a=a, b=b: t[a:b]) for a, b in itertools.pairwise(ends)]


class Out:
    """What one model said about one batch."""

    __slots__ = ("features", "logits")

    def __init__(self, logits: Tensor, features: dict[str, Tensor] | None = None) -> None:
        self.logits = logits  # [N, C] or [N, C, *positions], float32
        self.features = {} if features is None else features  # tapped submodules by path

    def detach(self) -> Out:
        return Out(self.logits.detach(), {k: v.detach() for k, v in self.features.items()})


class View:
    """All a loss term may look at."""

    __slots__ = ("average", "batch", "progress", "second", "student", "task", "teachers")

    def __init__(
        self,
        batch: Batch,
        student: Out,
        teachers: tuple[Out, ...],
        task: Task,
        progress: float,
        second: Out | None = None,
        average: Out | None = None,
    ) -> None:
        self.batch = batch
        self.student = student
        self.second = second  # the student on batch.extra["second"], for terms that read it
        self.average = average  # the average of the student's weights, on the second view if there is one
        self.teachers = teachers
        self.task = task
        self.progress = progress  # share of the planned steps done, in [0, 1]: for schedules of alpha and temperature


class Step:
    """What one forward of the objective gave."""

    __slots__ = ("loss", "parts", "rows")

    def __init__(self, loss: Tensor, parts: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
        self.loss = loss  # scalar; micro-batches of one effective batch add up
        self.parts = parts  # name -> detached scalar, each already divided by its own denominator
        self.rows = rows  # name -> [N, ...] detached values per row: to name the rows of a non-finite loss


class Predictions:
    """What a model said about a split, one line per scored position, in source order: all that fusion may see."""

    __slots__ = ("row", "scores", "target")

    def __init__(self, scores: Tensor, target: Tensor, row: Tensor) -> None:
        self.scores = scores  # [P, C] float32 on the CPU
        self.target = target  # [P] or [P, C]
        self.row = row  # [P] source row each position belongs to


class Meter(Protocol):
    """Metrics of a stream of batches; or of stored scores [P, C], of which `row` [P] says which belong together."""

    def update(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, row: Tensor | None = None
    ) -> None: ...
    def compute(self) -> Metrics: ...


class Task(Protocol):
    """A kind of problem. Knows no model, no strategy, no file."""

    out_dim: int
    monitor: str  # metrics[monitor] is what "best" means
    maximize: bool  # whether a larger monitor is better
    offers: frozenset[str]  # what terms may need: "classes", "values", "probabilities", ...

    def loss(self, logits: Tensor, target: Tensor) -> Tensor: ...
    def distance(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor: ...
    def labelled(self, target: Tensor) -> Tensor: ...
    def weight(self, target: Tensor) -> Tensor: ...  # 0 where unlabelled, else 1 or the class weight
    def scores(self, logits: Tensor) -> Tensor: ...
    def logits(self, scores: Tensor) -> Tensor: ...
    def hard(self, scores: Tensor) -> Tensor: ...
    def miss(self, scores: Tensor, target: Tensor) -> Tensor: ...
    def agreement(self, scores: Tensor, other: Tensor) -> Tensor: ...
    def constant(self, target: Tensor) -> Tensor: ...
    def flat(self, logits: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...
    def meter(self, full: bool = True) -> Meter: ...


class Term(nn.Module):
    """One addend of the training loss: a number per row, which the objective weights and averages.

    Subclasses set the class attributes they need and write `forward`; nothing else is overridden.
    """

    student_taps: tuple[str, ...] = ()  # module paths whose outputs it wants in view.student.features
    teacher_taps: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()  # "target": labelled rows only; "unlabelled": others only; else of task.offers
    reads_second = False  # wants view.second
    reads_average = False  # wants view.average
    couples_rows: bool = False  # a row's value depends on its neighbours in the batch

    def __init__(self, weight: float | Callable[[float], float] = 1.0) -> None:
        super().__init__()
        self.weight = weight  # a number, or a schedule over progress

    def share(self, progress: float) -> float:
        """What the term counts now, at `progress` in [0, 1]."""
        return self.weight(progress) if callable(self.weight) else self.weight

    def prepare(self, view: View) -> None:
        """Build parts whose shape only a real batch shows (projectors). Called once."""

    def forward(self, view: View) -> Tensor:
        """Values [N] or [N, *positions]."""
        raise TypeError(f"{type(self).__name__} has no forward")


class Penalty(nn.Module):
    """A cost of the student itself, once a step: L1, L2-SP. `forward(student)` is a scalar."""

    def forward(self, student: nn.Module) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no forward")


class Teacher(Protocol):
    """Answers a batch: a live frozen model, or a table of cached logits."""

    def __call__(self, batch: Batch) -> Out: ...


class Source(Protocol):
    """Batches of one split. Epoch e is a pure function of (seed, e): it can be entered at any step."""

    steps: int  # batches in an epoch
    rows: Tensor  # [n] source rows an epoch visits; repeats allowed

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


class Strategy(Protocol):
    """A short story over a Lab: which fits happen, in which order, and what the run finally predicts."""

    def run(self, lab: Any) -> None: ...


class Fuser(Protocol):
    """Members' scores in, one set of scores out. Rows a member has no prediction for are NaN."""

    def fit(self, scores: Tensor, target: Tensor, features: Sequence[Tensor] = ()) -> None: ...
    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor: ...
    def state(self) -> Mapping[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...
