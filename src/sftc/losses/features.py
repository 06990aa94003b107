"""Terms that compare what layers of the student give with what layers of a teacher give, row by row.

Features are vectors [N, D], tokens [N, L, D] or maps [N, C, H, W]. Pairs of taps add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftc.errors import Refused
from sftc.losses.ramp import Weight
from sftc.losses.reading import features, grid, pairs, unit
from sftc.types import Term, View


class Hint(Term):
    """Squared error between projected student features and the teacher's, mean over channels and positions
    (Romero et al. 2015, FitNets).

    The projector is a dense layer over channels; on maps that is a 1x1 convolution. It belongs to the term and trains
    with the student.

    Args:
        student, teacher: paths of the modules to compare, as many on both sides.
        of: which teacher, counted from 0.

    Raises:
        Refused: unequal or empty lists; when used: no such teacher, or features of different kinds.
    """

    def __init__(self, weight: Weight = 1.0, *, student: Sequence[str], teacher: Sequence[str], of: int = 0) -> None:
        super().__init__(weight)
        self.student_taps, self.teacher_taps = pairs(student, teacher)
        self.of = of
        self.projectors = nn.ModuleList()

    def prepare(self, view: View) -> None:
        found = [(grid(s).shape[1], grid(t).shape[1]) for s, t in features(self, view, self.of)]
        self.projectors = nn.ModuleList(nn.Linear(*widths) for widths in found).to(view.student.logits.device)

    def forward(self, view: View) -> Tensor:
        parts = []
        for project, pair in zip(self.projectors, features(self, view, self.of), strict=True):
            student, teacher = fitted(*pair)
            error = project(student.movedim(1, -1)) - teacher.movedim(1, -1)
            parts.append((error * error).flatten(1).mean(1))
        return torch.stack(parts).sum(0)


class Attention(Term):
    """Squared difference of attention maps, mean over positions (Zagoruyko & Komodakis 2017).

    A map is the mean over channels of the squared features, at unit length.
    Tokens are positions too; a vector has none.

    Args and errors as of `Hint`.
    """

    def __init__(self, weight: Weight = 1.0, *, student: Sequence[str], teacher: Sequence[str], of: int = 0) -> None:
        super().__init__(weight)
        self.student_taps, self.teacher_taps = pairs(student, teacher)
        self.of = of

    def forward(self, view: View) -> Tensor:
        parts = []
        for pair in features(self, view, self.of):
            student, teacher = (_attention(x) for x in fitted(*pair))
            parts.append(((student - teacher) ** 2).mean(1))
        return torch.stack(parts).sum(0)


def fitted(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with channels second, the larger averaged down to the other's size along each axis.

    Raises:
        Refused: one has more axes than the other.
    """
    student, teacher = grid(student), grid(teacher)
    if student.ndim != teacher.ndim:
        raise Refused(
            f"a student tap gives {tuple(student.shape)}, its teacher tap {tuple(teacher.shape)}: tap two of a kind"
        )
    size = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return _pooled(student, size), _pooled(teacher, size)


def _pooled(x: Tensor, size: list[int]) -> Tensor:
    if list(x.shape[2:]) == size:
        return x
    return F.adaptive_avg_pool1d(x, size[0]) if x.ndim == 3 else F.adaptive_avg_pool2d(x, (size[0], size[1]))


def _attention(x: Tensor) -> Tensor:
    """[N, P]"""
    if x.ndim == 2:
        raise Refused(f"a tap gives {tuple(x.shape)}, which has no positions to attend to; tap maps or tokens")
    return unit((x * x).mean(1).flatten(1), 1)
