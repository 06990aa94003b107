"""Terms about answers at every pixel, seen channel by channel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sftc.losses.ramp import Ramp, Weight, heat
from sftc.losses.reading import exact
from sftc.losses.team import Team
from sftc.types import Term, View


class ChannelWise(Term):
    """T^2 / C * sum over classes of KL(teacher || student) between their maps of the class, each made a distribution
    over the pixels of its row (Shu et al. 2021): it says where a class is, not which class a pixel has.

    Pixels whose label is not known take part: a teacher has something to say of them, too.
    """

    needs = frozenset({"pixels"})

    def __init__(self, weight: Weight = 1.0, *, temperature: float | Ramp = 4.0, team: Team | None = None) -> None:
        super().__init__(weight)
        self.temperature = heat(temperature)
        self.team = (team or Team()).on_logits()

    def forward(self, view: View) -> Tensor:
        """[N]"""
        t = self.temperature(view.progress)
        teacher, factor = self.team(view, t)
        student, teacher = (F.log_softmax(z.flatten(2) / t, 2) for z in (exact(view.student.logits), teacher))
        value = t**2 * (teacher.exp() * (teacher - student)).sum(2).mean(1)
        return value if factor is None else value * factor.flatten(1).mean(1)
