"""What terms read from a view: features in pairs, which rows are real, and lengths that are safe at zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.types import Batch, Term, View


def exact(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def pairs(student: Sequence[str], teacher: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tap paths of student and teacher, to be compared one by one; a lone path is a list of one.

    Raises:
        Refused: none, or not as many on both sides.
    """
    student, teacher = ([x] if isinstance(x, str) else list(x) for x in (student, teacher))
    if not student or len(student) != len(teacher):
        raise Refused(f"taps go in pairs: student={student} and teacher={teacher} must be as many, and not none")
    return tuple(student), tuple(teacher)


def features(term: Term, view: View, of: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What the pairs of taps of a term gave, student first, of the teacher at place `of`.

    Raises:
        Refused: there is no such teacher.
    """
    if not 0 <= of < len(view.teachers):
        raise Refused(f"of={of} names no teacher: there are {len(view.teachers)}, counted from 0")
    teacher = view.teachers[of]
    for a, b in zip(term.student_taps, term.teacher_taps, strict=True):
        yield exact(view.student.features[a]), exact(teacher.features[b])


def grid(x: Tensor) -> Tensor:
    """[N, D] as it is, maps [N, C, H, W] as they are, tokens [N, L, D] as [N, D, L]: channels second.

    Raises:
        Refused: another shape.
    """
    if not 2 <= x.ndim <= 4:
        raise Refused(f"a tap gives {tuple(x.shape)}; only [N, D], tokens [N, L, D] and maps [N, C, H, W] are compared")
    return x.transpose(1, 2) if x.ndim == 3 else x


def vectors(x: Tensor) -> Tensor:
    """[N, D]: features averaged over their positions."""
    x = grid(x)
    return x if x.ndim == 2 else x.flatten(2).mean(2)


def real(batch: Batch, shape: Sequence[int]) -> Tensor:
    """bool of `shape`, [N] or [N, *positions]: False for padding and skipped rows, which nobody may learn from."""
    if batch.weight is None:
        return torch.ones(tuple(shape), dtype=torch.bool, device=batch.index.device)
    counts = batch.weight > 0
    if counts.ndim > len(shape):
        counts = counts.flatten(1).any(1)
    return counts.view(*counts.shape, *[1] * (len(shape) - counts.ndim)).expand(tuple(shape))


def length(x: Tensor, dim: int) -> Tensor:
    """|x| along `dim`, whose gradient at zero is zero; the root alone gives NaN there."""
    square = (x * x).sum(dim)
    some = square > 0
    return torch.where(some, torch.where(some, square, 1.0).sqrt(), 0.0)


def unit(x: Tensor, dim: int, least: float = 1e-12) -> Tensor:
    """x / |x| along `dim`. What is shorter than `least` has no direction: it gives zeros, and no gradient."""
    square = (x * x).sum(dim, keepdim=True)
    some = square > least**2
    return x * torch.where(some, torch.where(some, square, 1.0).rsqrt(), 0.0)
