"""Views for loss terms, made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from sftc.tasks import Classification, MultiLabel, Regression, Segmentation
from sftc.types import Batch, Out, Partner, Task, View

NAMES = tuple("abcde")


def classes(n: int = 3) -> Classification:
    return Classification(NAMES[:n])


def pixels(n: int = 3) -> Segmentation:
    return Segmentation(NAMES[:n])


def labels(n: int = 3) -> MultiLabel:
    return MultiLabel(NAMES[:n])


def values(n: int = 3) -> Regression:
    return Regression(NAMES[:n])


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """float64, so that a formula written down twice agrees to many digits."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def view(
    student: Tensor,
    *teachers: Tensor,
    task: Task | None = None,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    partner: Partner | None = None,
    progress: float = 0.0,
) -> View:
    """What a student and its teachers answered, [N, C, ...] each."""
    n = len(student)
    target = torch.zeros(n, dtype=torch.long) if target is None else target
    batch = Batch(torch.zeros(n, 1), target, torch.arange(n), weight=weight, partner=partner)
    return View(batch, Out(student), tuple(map(Out, teachers)), task or classes(student.shape[1]), progress)


def tapped(student: Tensor, teacher: Tensor, *more: tuple[Tensor, Tensor], weight: Tensor | None = None) -> View:
    """What taps s0, s1, ... of the student and t0, t1, ... of its only teacher gave; `more` are further pairs."""
    n = len(student)
    pairs = [(student, teacher), *more]
    batch = Batch(torch.zeros(n, 1), torch.zeros(n, dtype=torch.long), torch.arange(n), weight=weight)
    logits = torch.zeros(n, 3)
    ours = Out(logits, {f"s{i}": s for i, (s, _) in enumerate(pairs)})
    theirs = Out(logits, {f"t{i}": t for i, (_, t) in enumerate(pairs)})
    return View(batch, ours, (theirs,), classes(), 0.0)
