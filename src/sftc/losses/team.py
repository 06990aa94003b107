"""How several teachers become one opinion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sftc.errors import Refused, choose
from sftc.losses.reading import exact
from sftc.types import Task, View

RULES = ("mean", "weighted", "confidence", "agree")
SPACES = ("probability", "logit")
CONFLICTS = ("vote", "mean", "skip")


class Team:
    """Pools the teachers of a view. M teachers, N rows, C outputs; one teacher is passed on untouched.

    Args:
        rule: how much each teacher counts. mean: all the same. weighted: by `weights`. confidence: in each row by its
            highest probability at temperature 1, of labels by the mean of 2 |p - 1/2|; that needs no label, unlike
            the cross-entropy of Zhang et al. 2022 (CA-MKD). agree: all the same where every teacher names the same
            class, or the same labels; else what `conflict` says.
        space: what is averaged: probability (at the temperature of the term) or logit. Of values there is but one.
        weights: one number per teacher, of rule=weighted.
        conflict: vote: the mean over those who named the class that most did, or label by label; ties go to the larger
            summed probability. mean: of all. skip: such a row gives 0.

    Raises:
        Refused: no such rule, space or conflict; weights that are lacking, not wanted, negative or all zero.
    """

    def __init__(
        self,
        rule: str = "mean",
        space: str = "probability",
        weights: Sequence[float] | None = None,
        conflict: str = "vote",
    ) -> None:
        self.rule = choose("rule", rule, RULES)
        self.space = choose("space", space, SPACES)
        self.conflict = choose("conflict", conflict, CONFLICTS)
        self.weights = None if weights is None else [float(w) for w in weights]
        if (self.weights is None) == (self.rule == "weighted"):
            raise Refused("rule=weighted and weights=[one number per teacher] go together; give both or neither")
        if self.weights is not None and not (min(self.weights, default=-1) >= 0 and sum(self.weights) > 0):
            raise Refused(f"weights={self.weights} must not be negative, and not all zero")

    def on_logits(self) -> Team:
        """The same, but it averages logits: log-probabilities have lost their level."""
        return Team(self.rule, "logit", self.weights, self.conflict)

    def __call__(self, view: View, temperature: float) -> tuple[Tensor, Tensor | None]:
        """The teachers' logits [N, C, *positions], to be used at `temperature`, and what each row counts.

        Returns:
            The factor is [N, *positions], 0 or 1, or None where all rows count.

        Raises:
            Refused: no teacher, not as many as weights, answers of another shape than the student's, or values with
                a rule that needs probabilities.
        """
        answers = self._answers(view)
        if len(answers) == 1:
            return answers[0], None
        z = torch.stack(answers)
        share, factor = self._shares(view.task, z)
        return self._pool(view.task, z, share, temperature), factor

    def _answers(self, view: View) -> list[Tensor]:
        answers = [exact(t.logits) for t in view.teachers]
        if not answers:
            raise Refused("a term that compares with teachers has none: name a teacher, or drop the term")
        if self.weights is not None and len(self.weights) != len(answers):
            raise Refused(f"weights={self.weights} must hold one number for each of {len(answers)} teachers")
        if self.rule in ("confidence", "agree") and "probabilities" not in view.task.offers:
            raise Refused(f"rule={self.rule} needs probabilities, which values do not have; use mean or weighted")
        shape = view.student.logits.shape
        for i, z in enumerate(answers):
            if z.shape != shape:
                raise Refused(f"teacher {i} answers {tuple(z.shape)}, the student {tuple(shape)}: they must agree")
        return answers

    def _shares(self, task: Task, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """What each teacher counts: sums to 1 over the first dimension of z [M, N, C, *positions]; and the factor."""
        if self.rule == "confidence":
            sure = _confidence(task, _scores(task, z)).clamp_min(1e-12)  # nobody sure of anything: all the same
            return sure / sure.sum(0), None
        if self.rule == "agree":
            scores = _scores(task, z)
            votes = torch.stack([task.hard(s) for s in scores])
            if self.conflict == "vote":
                followers = _followers(task, scores, votes)
                return followers / followers.sum(0), None
            if self.conflict == "skip":
                return _same(z), (votes == votes[:1]).all(2).all(0).to(z.dtype)
        if self.weights is None:
            return _same(z), None
        weights = z.new_tensor(self.weights)
        return (weights / weights.sum()).view(-1, *[1] * (z.ndim - 1)), None

    def _pool(self, task: Task, z: Tensor, share: Tensor, temperature: float) -> Tensor:
        if self.space == "logit" or "probabilities" not in task.offers:
            return (share * z).sum(0)
        # T * log of the mean probability is the logit that has this very probability at T. In logs nothing underflows.
        if "classes" in task.offers:
            return temperature * torch.logsumexp(F.log_softmax(z / temperature, 2) + share.log(), 0)
        yes = torch.logsumexp(F.logsigmoid(z / temperature) + share.log(), 0)
        no = torch.logsumexp(F.logsigmoid(-z / temperature) + share.log(), 0)
        return temperature * (yes - no)


def _same(z: Tensor) -> Tensor:
    return z.new_full((len(z), *[1] * (z.ndim - 1)), 1 / len(z))


def _scores(task: Task, z: Tensor) -> Tensor:
    return torch.stack([task.scores(one) for one in z])


def _confidence(task: Task, scores: Tensor) -> Tensor:
    """[M, N, 1, *positions]: how sure each teacher is of each row."""
    if "classes" in task.offers:
        return scores.amax(2, keepdim=True)
    return (2 * scores - 1).abs().mean(2, keepdim=True)


def _followers(task: Task, scores: Tensor, votes: Tensor) -> Tensor:
    """[M, N, 1, *positions], or of labels [M, N, L]: 1 for whom voted as most did, else 0."""
    count, sums = votes.sum(0), scores.sum(0)
    if "classes" in task.offers:
        first = torch.where(count == count.amax(1, keepdim=True), sums, -1.0).argmax(1, keepdim=True)
        return votes.gather(2, first.expand(len(votes), *first.shape))
    most = torch.where(2 * count == len(votes), 2 * sums >= len(votes), 2 * count > len(votes))
    return (votes == most).to(scores.dtype)
