"""Learners x teachers x terms -> one scalar.

The denominator: each term is the sum of value x weight over its rows, divided by the total weight of the *effective*
batch. Cutting a batch into micro-batches, hiding labels or padding rows therefore never changes what is minimised.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sftc.device import Device
from sftc.errors import Refused
from sftc.losses import Truth
from sftc.models.adapt import Adapted
from sftc.models.stacked import Stacked
from sftc.models.surgery import Tapped, evaluating
from sftc.types import Batch, Inputs, Metrics, Out, Penalty, Step, Task, Teacher, Term, View

Totals = dict[tuple[str, str], tuple[Tensor, Batch, Tensor]]  # the sum of the weights of a batch, it, and they


def mix(*numbers: int) -> int:
    """A seed below 2^63 out of several numbers: near ones give unrelated seeds, on every machine the same."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class Peer:
    """Another learner of the same objective as a teacher: what it said this very step, detached."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, batch: Batch) -> Out:
        raise TypeError("a peer is answered by the objective, not by itself")


class Live:
    """A frozen model as a teacher: in eval mode and without gradients, whatever anybody does around it."""

    def __init__(self, model: nn.Module, device: Device, taps: Sequence[str] = ()) -> None:
        self.device = device
        self.model = device.place(model).requires_grad_(False).eval()
        self.own = model.model if isinstance(model, Adapted) else model  # as it learned, before it was adapted
        self.inner = "model." if isinstance(model, Adapted) else ""
        self.tapped = Tapped(self.model, [self.inner + path for path in taps])

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Out:
        self.model.eval()
        with self.device.autocast():
            out = self.tapped(self.device.inputs(batch.inputs))
        features = {k.removeprefix(self.inner): v.float() for k, v in out.features.items()}
        return Out(out.logits.float(), features).detach()


class Learner:
    """One student: what it learns, from whom, on which rows.

    Args:
        student: `student(batch.inputs)` gives logits.
        task: the problem it solves.
        terms: name -> term; the truth alone by default.
        teachers: each term sees their answers, in this order.
        penalties: name -> cost of the student itself.
        row_weight: [n] weight of each source row (boosting), or None.
        source: which of the fit's sources it reads, by position.
        through: names of earlier learners whose outputs it reads instead of the inputs; gradients reach them. Its
            student is a `Follower`.
        along: name of an earlier learner whose best epoch is its best, too, and with which it ends.
        reference: [n, C] scores somebody else gives its validation rows, in their order: agreement with them is logged.
        settings: on how it is stepped (optimizer, schedule, average, clipping), where they are not the fit's.
        beside: constants written into every row of its log, such as what its teachers reach.
        seed: of its dropout, where it is not the fit's: the same whoever learns beside it.
        stacked: its student is run as one with those of the other learners that say so. They read the same source.
        name: prefixes what it logs when there is more than one.
    """

    def __init__(
        self,
        student: nn.Module,
        task: Task,
        *,
        terms: Mapping[str, Term] | None = None,
        teachers: Sequence[Teacher] = (),
        penalties: Mapping[str, Penalty] | None = None,
        row_weight: Tensor | None = None,
        source: int = 0,
        through: Sequence[str] = (),
        along: str | None = None,
        reference: Tensor | None = None,
        settings: Any = None,
        beside: Metrics | None = None,
        seed: int | None = None,
        stacked: bool = False,
        name: str = "student",
    ) -> None:
        self.student = student
        self.task = task
        self.terms = dict(terms) if terms is not None else {"truth": Truth()}
        self.teachers = tuple(teachers)
        self.penalties = dict(penalties or {})
        self.row_weight = row_weight
        self.source = source
        self.through = tuple(through)
        self.along = along
        self.reference = reference
        self.settings = settings
        self.beside = dict(beside or {})
        self.seed = seed
        self.stacked = stacked
        self.resting = False  # it has learned enough: it answers its peers, and nothing of it moves any more
        self.name = name
        for term_name, term in self.terms.items():
            lacking = term.needs - {"target", "unlabelled"} - task.offers
            if lacking:
                raise Refused(f"term {term_name} needs {', '.join(sorted(lacking))}, which this task does not have")


class Objective(nn.Module):
    """What one training step minimises: the sum over learners and their terms."""

    def __init__(self, learners: Sequence[Learner], device: Device, seed: int = 0) -> None:
        super().__init__()
        names = [x.name for x in learners]
        if len(set(names)) < len(names):
            raise ValueError(f"learners need different names, not {names}")
        self.learners = list(learners)
        self.device = device
        self.seed = seed
        self.students = nn.ModuleList(x.student for x in learners)
        self.terms = nn.ModuleList(nn.ModuleDict(dict(x.terms)) for x in learners)
        self.penalties = nn.ModuleList(nn.ModuleDict(dict(x.penalties)) for x in learners)
        self._tapped = [Tapped(x.student, sorted(self._wanted(x))) for x in learners]
        self._together = [i for i, x in enumerate(learners) if x.stacked]
        self._stack = Stacked([learners[i].student for i in self._together]) if self._together else None
        self.averages: dict[str, nn.Module] = {}  # by learner: the average of its weights, which its terms may read
        self._dims: dict[tuple[str, str], int] = {}  # of each term's values: 1 per row, more per position
        self.penalties.to(device.torch)
        for x in self.learners:
            if x.row_weight is not None:
                x.row_weight = x.row_weight.to(device.torch, torch.float32)

    def _label(self, learner: Learner, name: str) -> str:
        return name if len(self.learners) == 1 else f"{learner.name}/{name}"

    def _seed(self, i: int) -> tuple[int, int]:
        own = self.learners[i].seed
        return (self.seed, i) if own is None else (own, 0)

    def _wanted(self, learner: Learner) -> set[str]:
        """Module paths of its student that a term looks at, or a follower reads."""
        own = {tap for term in learner.terms.values() for tap in term.student_taps}
        for follower in self.learners:
            student: Any = follower.student
            own.update(*(student.wanted(i) for i, name in enumerate(follower.through) if name == learner.name))
        return own

    def _outs(self, batches: Sequence[Batch], step: int, micro: int) -> tuple[list[Out], dict[int, Out]]:
        """What each learner says, and those whose terms read it say of the second views."""
        seconds: dict[int, Out] = {}
        outs: dict[tuple[str, int], Out] = {}  # by learner and source: a leader runs once per batch for all followers
        named = {x.name: i for i, x in enumerate(self.learners)}
        stacked: dict[int, Out] = {}  # what those say that are run as one, once the first of them is asked

        def say(i: int, inputs: Inputs) -> Out:
            if self._stack is None or not self.learners[i].stacked or self.learners[i].resting:
                return self._tapped[i](inputs)
            if not stacked:
                which = [k for k, j in enumerate(self._together) if not self.learners[j].resting]
                said = self._stack(which, inputs)
                stacked.update((self._together[k], Out(logits.float())) for k, logits in zip(which, said, strict=True))
            return stacked[i]

        def out(i: int, source: int) -> Out:
            learner = self.learners[i]
            if (learner.name, source) not in outs:
                inputs = self.device.inputs(batches[source].inputs)
                if learner.through:
                    student: Any = learner.student
                    inputs = {student.key: student.heard([out(named[name], source) for name in learner.through])}
                # Dropout is a function of (seed, learner, step, micro-batch): no generator state to save.
                self.device.reseed(mix(*self._seed(i), step, micro))
                with self.device.autocast(), torch.set_grad_enabled(torch.is_grad_enabled() and not learner.resting):
                    if any(term.reads_second for term in learner.terms.values()) and source == learner.source:
                        # In one forward, as the paper does: BatchNorm sees both views together.
                        second = self.device.inputs(batches[source].extra["second"])
                        assert isinstance(inputs, Tensor)
                        assert isinstance(second, Tensor)
                        said, seconds[i] = _halves(say(i, torch.cat([inputs, second])))
                    else:
                        said = say(i, inputs)
                features = {k: v.float() for k, v in said.features.items()}
                outs[learner.name, source] = Out(said.logits.float(), features)
            return outs[learner.name, source]

        return [out(i, x.source) for i, x in enumerate(self.learners)], seconds

    @torch.no_grad()
    def _average(self, learner: Learner, batch: Batch) -> Out | None:
        """What the average of its weights says, in eval mode: of the second views if there are any."""
        if not any(term.reads_average for term in learner.terms.values()):
            return None
        model = self.averages[learner.name].eval()
        with self.device.autocast():
            logits = model(self.device.inputs(batch.extra.get("second", batch.inputs)))
        return Out(logits.float())

    def _views(self, batches: Sequence[Batch], progress: float, step: int, micro: int) -> list[View]:
        outs, seconds = self._outs(batches, step, micro)
        said: dict[tuple[int, int], Out] = {}  # a teacher shared by learners runs once per batch

        def answer(teacher: Teacher, source: int) -> Out:
            if isinstance(teacher, Peer):
                return next(o for x, o in zip(self.learners, outs, strict=True) if x.name == teacher.name).detach()
            key = id(teacher), source
            if key not in said:
                said[key] = teacher(batches[source])
            return said[key]

        return [
            View(
                batches[x.source],
                out,
                tuple(answer(t, x.source) for t in x.teachers),
                x.task,
                progress,
                seconds.get(i),
                self._average(x, batches[x.source]),
            )
            for i, (x, out) in enumerate(zip(self.learners, outs, strict=True))
        ]

    def prepare(self, batches: Sequence[Batch]) -> None:
        """One dry run on real rows: terms build their projectors, and the shape of their values is noted."""
        # Eval mode, or the dry run itself would move BatchNorm statistics.
        with evaluating(self.students), torch.no_grad():
            views = self._views(batches, 0.0, 0, 0)
            for i, (learner, view) in enumerate(zip(self.learners, views, strict=True)):
                for j, (name, term) in enumerate(learner.terms.items()):
                    self.device.reseed(mix(*self._seed(i), j))
                    term.prepare(view)
                    term.to(self.device.torch)
                    self._dims[learner.name, name] = term(view).ndim

    def shares(self, batches: Sequence[Batch], progress: float) -> dict[str, float]:
        """How much of the gradient on these rows each term makes: its norm over the sum of all terms' norms.

        Looked at in eval mode, so that running statistics stay; learners with a single term have nothing to share.
        """
        out: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluating(self.students))
            totals = self.totals(batches)
            views = self._views(batches, progress, 0, 0)
            stack.enter_context(self.device.exact())
            for learner, view in zip(self.learners, views, strict=True):
                params = [p for p in learner.student.parameters() if p.requires_grad]
                if len(learner.terms) < 2 or not params or learner.resting:
                    continue
                norms = {}
                for name, term in learner.terms.items():
                    part = self._part(learner, name, view, totals)[0] * term.share(progress)
                    norms[name] = _norm(part, params)
                for name, norm in norms.items():
                    out[self._label(learner, name)] = norm / max(sum(norms.values()), 1e-30)
        return out

    def _part(self, learner: Learner, name: str, view: View, totals: Totals) -> tuple[Tensor, Tensor]:
        """One term's share of its mean over the effective batch, and its values per row."""
        values = learner.terms[name](view)
        total, whole, weight = totals[learner.name, name]
        if view.batch is not whole:
            weight = self._weight(learner, name, view.batch)
        # where: a row of weight 0 may hold inf, and 0 * inf would be NaN
        return torch.where(weight > 0, values * weight, 0.0).sum() / total, values

    def _weight(self, learner: Learner, name: str, batch: Batch) -> Tensor:
        """[N] or [N, *positions]: what each value of a term counts."""
        term = learner.terms[name]
        known = learner.task.weight(batch.target)
        if batch.partner is not None and "target" in term.needs:
            lam = batch.partner.lam.view(-1, *[1] * (known.ndim - 1))
            known = lam * known + (1 - lam) * learner.task.weight(batch.partner.target)
        weight = known if "target" in term.needs else torch.ones_like(known)
        if "unlabelled" in term.needs:
            weight = 1 - learner.task.labelled(batch.target).to(known.dtype)
        for extra in (batch.weight, None if learner.row_weight is None else learner.row_weight[batch.index]):
            if extra is not None:
                weight = weight * extra.view(*extra.shape, *[1] * (weight.ndim - extra.ndim))
        if self._dims.get((learner.name, name), 1) == 1 and weight.ndim > 1:
            weight = weight.flatten(1).mean(1)
        return weight

    def totals(self, batches: Sequence[Batch]) -> Totals:
        """Total weight of an effective batch, per learner and term: the denominators of its micro-batches."""
        out: Totals = {}
        for x in self.learners:
            for name in x.terms:
                weight = self._weight(x, name, batches[x.source])
                out[x.name, name] = weight.sum().clamp_min(torch.finfo(torch.float32).tiny), batches[x.source], weight
        return out

    def forward(
        self, batches: Sequence[Batch], totals: Totals, progress: float = 0.0, step: int = 0, micro: int = 0
    ) -> Step:
        views = self._views(batches, progress, step, micro)
        parts: dict[str, Tensor] = {}
        rows: dict[str, Tensor] = {}
        total: Tensor | None = None
        with self.device.exact():
            for learner, view in zip(self.learners, views, strict=True):
                if learner.resting:
                    continue
                for name, term in learner.terms.items():
                    part, values = self._part(learner, name, view, totals)
                    label = self._label(learner, name)
                    parts[label], rows[label] = part.detach(), values.detach()
                    share = term.share(view.progress)
                    part = part if share == 1 else share * part
                    total = part if total is None else total + part
                for name, penalty in learner.penalties.items() if micro == 0 else ():
                    part = penalty(learner.student)
                    parts[self._label(learner, name)] = part.detach()
                    total = part if total is None else total + part
        assert total is not None
        return Step(total, parts, rows)


def _halves(out: Out) -> tuple[Out, Out]:
    """Of one forward through both views: what was said of the first, and of the second."""
    n = len(out.logits) // 2
    first = Out(out.logits[:n], {k: v[:n] for k, v in out.features.items()})
    return first, Out(out.logits[n:].float(), {k: v[n:] for k, v in out.features.items()})


def _norm(part: Tensor, params: Sequence[Tensor]) -> float:
    if not part.requires_grad:
        return 0.0
    grads = torch.autograd.grad(part, params, retain_graph=True, allow_unused=True)
    return float(torch.stack([g.float().norm() for g in grads if g is not None] or [torch.zeros(())]).norm())
