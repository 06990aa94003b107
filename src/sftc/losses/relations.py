"""Terms that compare how rows of a batch lie to each other. Their mean over real rows is the published loss.

Rows of weight 0 (padding, skipped) have no value and are nobody's neighbours. Cutting a batch into micro-batches
changes these terms: neighbours are those of the same micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftc.errors import Refused
from sftc.losses.ramp import Weight, heat
from sftc.losses.reading import features, length, pairs, real, unit, vectors
from sftc.types import Term, View


class Similarity(Term):
    """Squared difference of the rows' similarities (Tung & Mori 2019): F F^T with each row at unit length.

    Args:
        student, teacher: paths of the modules to compare, as many on both sides; whole features, flattened.
        of: which teacher, counted from 0.

    Raises:
        Refused: unequal or empty lists; when used: no such teacher.
    """

    couples_rows = True

    def __init__(self, weight: Weight = 1.0, *, student: Sequence[str], teacher: Sequence[str], of: int = 0) -> None:
        super().__init__(weight)
        self.student_taps, self.teacher_taps = pairs(student, teacher)
        self.of = of

    def forward(self, view: View) -> Tensor:
        keep = real(view.batch, (len(view.batch),))
        parts = []
        for s, t in _kept(self, view, keep, self.of, lambda x: x.flatten(1)):
            student, teacher = (unit(x @ x.T, 1) for x in (s, t))
            parts.append(((student - teacher) ** 2).sum(1) / keep.sum().clamp_min(1))
        return torch.stack(parts).sum(0)


class Relational(Term):
    """Huber loss between distances of rows (over their mean) and between the angles of all triples (Park et al. 2019).

    Features are averaged over positions first. Angles take N^2 D + N^3 numbers of N rows: keep micro-batches small.

    Args:
        distance, angle: weights of the two parts, the paper's by default; 0 leaves one out.
        student, teacher, of: as of `Similarity`, errors too.

    Raises:
        Refused: both weights are 0.
    """

    couples_rows = True

    def __init__(
        self,
        weight: Weight = 1.0,
        *,
        student: Sequence[str],
        teacher: Sequence[str],
        of: int = 0,
        distance: float = 25.0,
        angle: float = 50.0,
    ) -> None:
        super().__init__(weight)
        self.student_taps, self.teacher_taps = pairs(student, teacher)
        self.of = of
        self.distance, self.angle = distance, angle
        if not (distance or angle):
            raise Refused("distance=0 and angle=0 leave nothing to compare; drop the term")

    def forward(self, view: View) -> Tensor:
        keep = real(view.batch, (len(view.batch),))
        n = keep.sum().clamp_min(1)
        parts = []
        for s, t in _kept(self, view, keep, self.of, vectors):
            student, teacher = _differences(s, keep), _differences(t, keep)
            if self.distance:
                part = F.smooth_l1_loss(_distances(student, n), _distances(teacher, n), reduction="none")
                parts.append(self.distance * part.sum(1) / n)
            if self.angle:
                part = F.smooth_l1_loss(_angles(student), _angles(teacher), reduction="none")
                parts.append(self.angle * part.sum((1, 2)) / n**2)
        return torch.stack(parts).sum(0)


class Contrastive(Term):
    """Student and teacher of the same row attract, of different rows repel: InfoNCE over the batch, mean of both ways.

    In the manner of Tian et al. 2020 (CRD), but with the other rows of the batch as negatives in place of a memory bank
    of the whole data set: it wants large batches. Both sides have a projection head that belongs to the term and trains
    with the student; features are averaged over positions first.

    Args:
        dim: width of the common space.
        temperature: what cosines are divided by.
        student, teacher, of: as of `Similarity`, errors too.
    """

    couples_rows = True

    def __init__(
        self,
        weight: Weight = 1.0,
        *,
        student: Sequence[str],
        teacher: Sequence[str],
        of: int = 0,
        dim: int = 128,
        temperature: float = 0.07,
    ) -> None:
        super().__init__(weight)
        self.student_taps, self.teacher_taps = pairs(student, teacher)
        self.of = of
        self.dim = dim
        self.temperature = heat(temperature)
        self.students, self.teachers = nn.ModuleList(), nn.ModuleList()

    def prepare(self, view: View) -> None:
        found = [(vectors(s).shape[1], vectors(t).shape[1]) for s, t in features(self, view, self.of)]
        device = view.student.logits.device
        self.students = nn.ModuleList(nn.Linear(width, self.dim) for width, _ in found).to(device)
        self.teachers = nn.ModuleList(nn.Linear(width, self.dim) for _, width in found).to(device)

    def forward(self, view: View) -> Tensor:
        keep = real(view.batch, (len(view.batch),))
        own = torch.arange(len(keep), device=keep.device)
        # Its own partner stays even to a row that does not count, whose value would else be infinite.
        strange = ~keep & (own != own.unsqueeze(1))
        parts = []
        found = _kept(self, view, keep, self.of, vectors)
        for to_s, to_t, (s, t) in zip(self.students, self.teachers, found, strict=True):
            near = unit(to_s(s), 1) @ unit(to_t(t), 1).T / self.temperature(view.progress)
            ways = [F.cross_entropy(x.masked_fill(strange, -torch.inf), own, reduction="none") for x in (near, near.T)]
            parts.append(torch.where(keep, (ways[0] + ways[1]) / 2, 0.0))
        return torch.stack(parts).sum(0)


def _kept(
    term: Term, view: View, keep: Tensor, of: int, shape: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of features as [N, D], with zeros for rows that do not count, whatever they hold."""
    for s, t in features(term, view, of):
        yield tuple(torch.where(keep.unsqueeze(1), shape(x), 0.0) for x in (s, t))  # type: ignore[misc]


def _differences(x: Tensor, keep: Tensor) -> Tensor:
    """[N, N, D]: from row i to row j."""
    return (x.unsqueeze(0) - x.unsqueeze(1)) * (keep & keep.unsqueeze(1)).unsqueeze(2)


def _distances(between: Tensor, n: Tensor) -> Tensor:
    """[N, N], over the mean of different rows."""
    far = length(between, 2)
    mean = far.sum() / (n * (n - 1)).clamp_min(1)
    return far / mean.clamp_min(1e-12)


def _angles(between: Tensor) -> Tensor:
    """[N, N, N]: the cosine at row i between the ways to j and to k."""
    ways = unit(between, 2)
    return ways @ ways.transpose(1, 2)
