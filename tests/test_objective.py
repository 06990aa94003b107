"""What a step minimises: denominators, peers, teachers, seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sftc.device import Device
from sftc.errors import Refused
from sftc.losses import L1, Truth
from sftc.objective import Learner, Live, Objective, Peer
from sftc.tasks import Classification
from sftc.types import Batch, Term

CPU = Device("cpu", threads=1)
TASK = Classification(["a", "b", "c"])


class Soft(Term):
    """Distance to the mean of all teachers, on every row, labelled or not."""

    def forward(self, view):
        logits = torch.stack([t.logits for t in view.teachers]).mean(0)
        return view.task.distance(view.student.logits, logits, 2.0)


def net(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8) if dropout < 0 else nn.Dropout(dropout), nn.Linear(8, 3))


def batch(n: int = 12, unlabelled: int = 0, weight: torch.Tensor | None = None) -> Batch:
    g = torch.Generator().manual_seed(1)
    target = torch.randint(3, (n,), generator=g)
    target[:unlabelled] = -1
    return Batch(torch.randn(n, 4, generator=g), target, torch.arange(n), weight=weight)


def grads(objective: Objective, whole: Batch, pieces: int = 1) -> tuple[float, list[torch.Tensor]]:
    objective.prepare([whole])
    totals, loss = objective.totals([whole]), 0.0
    objective.zero_grad()
    for i, piece in enumerate(whole.cut(pieces)):
        step = objective([piece], totals, micro=i)
        step.loss.backward()
        loss += step.loss.item()
    return loss, [p.grad.clone() for p in objective.parameters() if p.grad is not None]


def terms(truth: float = 1.0, soft: float = 0.7) -> dict[str, Term]:
    return {"truth": Truth(truth), "soft": Soft(soft)}


def teacher() -> Live:
    return Live(net(9), CPU)


@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_micro_batches_change_nothing_though_labels_and_weights_are_uneven(pieces):
    weight = torch.tensor([1.0, 0, 2, 1, 1, 1, 0.5, 1, 1, 1, 0, 3])
    whole = batch(unlabelled=5, weight=weight)
    learner = Learner(net(), TASK, terms=terms(), teachers=[teacher()], penalties={"l1": L1(0.01)})
    objective = Objective([learner], CPU)
    loss, expected = grads(objective, whole)
    again, got = grads(objective, whole, pieces)
    assert again == pytest.approx(loss, rel=1e-5)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_truth_averages_over_labelled_rows_and_the_teacher_over_all():
    model, whole = net(), batch(unlabelled=8)
    objective = Objective([Learner(model, TASK, terms=terms(), teachers=[teacher()])], CPU)
    objective.prepare([whole])
    parts = objective([whole], objective.totals([whole])).parts
    logits = model(whole.inputs)
    truth = nn.functional.cross_entropy(logits[8:], whole.target[8:])
    soft = TASK.distance(logits, net(9)(whole.inputs), 2.0).mean()
    assert parts["truth"].item() == pytest.approx(truth.item(), rel=1e-5)
    assert parts["soft"].item() == pytest.approx(soft.item(), rel=1e-5)


def test_row_weights_follow_the_row_not_its_place():
    whole, weight = batch(), torch.rand(40, generator=torch.Generator().manual_seed(3))
    whole.index = torch.randperm(40, generator=torch.Generator().manual_seed(4))[:12]
    model = net()
    objective = Objective([Learner(model, TASK, row_weight=weight)], CPU)
    objective.prepare([whole])
    got = objective([whole], objective.totals([whole])).loss
    w = weight[whole.index]
    expected = (nn.functional.cross_entropy(model(whole.inputs), whole.target, reduction="none") * w).sum() / w.sum()
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_row_of_weight_zero_may_be_anything():
    whole = batch(weight=torch.tensor([0.0] + [1.0] * 11))
    whole.inputs[0] = float("inf")
    objective = Objective([Learner(net(), TASK)], CPU)
    objective.prepare([whole])
    assert objective([whole], objective.totals([whole])).loss.isfinite()


def test_a_batch_without_labels_costs_nothing():
    whole = batch(unlabelled=12)
    objective = Objective([Learner(net(), TASK)], CPU)
    objective.prepare([whole])
    assert objective([whole], objective.totals([whole])).loss.item() == 0.0


def test_peers_answer_simultaneously_detached_and_run_once():
    calls = []
    models = [net(0), net(1)]
    for i, m in enumerate(models):
        m.register_forward_hook(lambda *_, i=i: calls.append(i))
    peers = [
        Learner(m, TASK, terms={"soft": Soft()}, teachers=[Peer(f"p{1 - i}")], name=f"p{i}")
        for i, m in enumerate(models)
    ]
    objective, whole = Objective(peers, CPU), batch()
    objective.prepare([whole])
    calls.clear()
    step = objective([whole], objective.totals([whole]))
    assert sorted(calls) == [0, 1]
    a, b = (m(whole.inputs) for m in models)
    assert step.parts["p0/soft"].item() == pytest.approx(TASK.distance(a, b, 2.0).mean().item(), rel=1e-5)
    step.loss.backward()
    alone = Objective([Learner(models[0], TASK, terms={"soft": Soft()}, teachers=[Live(net(1), CPU)])], CPU)
    mine = models[0][0].weight.grad.clone()
    _, expected = grads(alone, whole)
    assert torch.allclose(mine, expected[0], atol=1e-6)  # nothing flowed through the other's loss


def test_a_teacher_stands_still_whatever_happens_around_it():
    model = net(dropout=-1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    taught = Live(model, CPU)
    learner = Learner(net(), TASK, terms=terms(), teachers=[taught])
    objective = Objective([learner], CPU).train()
    model.train()
    grads(objective, batch())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_one_teacher_of_two_learners_runs_once_per_batch():
    taught, calls = teacher(), []
    taught.model.register_forward_hook(lambda *_: calls.append(1))
    learners = [Learner(net(i), TASK, terms=terms(), teachers=[taught], name=f"s{i}") for i in range(2)]
    objective, whole = Objective(learners, CPU), batch()
    objective.prepare([whole])
    calls.clear()
    objective([whole], objective.totals([whole]))
    assert len(calls) == 1


def test_dropout_is_a_function_of_seed_step_and_micro_batch():
    objective, whole = Objective([Learner(net(dropout=0.5), TASK)], CPU, seed=3).train(), batch()
    objective.prepare([whole])
    totals = objective.totals([whole])

    def loss(**at: int) -> float:
        torch.rand(5)  # somebody else draws in between
        return objective([whole], totals, **at).loss.item()

    assert loss(step=4) == loss(step=4)
    assert len({loss(step=4), loss(step=5), loss(step=4, micro=1)}) == 3


def test_the_dry_run_leaves_batchnorm_alone():
    model = net(dropout=-1)
    before = model[1].running_mean.clone()
    objective = Objective([Learner(model, TASK)], CPU).train()
    objective.prepare([batch()])
    assert torch.equal(model[1].running_mean, before)
    assert model.training


def test_a_term_that_needs_what_the_task_lacks_is_refused():
    class NeedsValues(Truth):
        needs = frozenset({"target", "values"})

    with pytest.raises(Refused, match="values"):
        Learner(net(), TASK, terms={"x": NeedsValues()})
