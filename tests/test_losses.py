"""Terms and penalties against hand-computed values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sftc.losses import L1, L2SP, Truth
from sftc.tasks import Classification
from sftc.types import Batch, Out, Partner, View


def _view(logits, target, partner=None, task=None):
    n = len(target)
    batch = Batch(torch.zeros(n, 1), target, torch.arange(n), partner=partner)
    return View(batch, Out(logits), (), task or Classification(["a", "b", "c"]), 0.0)


def test_truth_of_mixed_rows_is_cross_entropy_against_soft_targets():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, generator=g), torch.tensor([0, 1, 2, 0, 1, 2])
    lam = torch.rand(6, generator=g)
    partner = Partner(torch.arange(6).flip(0), torch.zeros(6), y.flip(0), lam)
    soft = lam[:, None] * F.one_hot(y, 3) + (1 - lam[:, None]) * F.one_hot(y.flip(0), 3)
    assert torch.allclose(Truth()(_view(x, y, partner)), F.cross_entropy(x, soft, reduction="none"), atol=1e-6)


def test_truth_of_a_row_mixed_with_an_unlabelled_one_is_its_own_label():
    x, y = torch.randn(2, 3), torch.tensor([1, -1])
    partner = Partner(torch.tensor([1, 0]), torch.zeros(2), y.flip(0), torch.tensor([0.3, 0.3]))
    assert torch.allclose(Truth()(_view(x, y, partner)), F.cross_entropy(x, torch.tensor([1, 1]), reduction="none"))


def test_penalties_leave_norms_biases_and_frozen_weights_alone():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    net[0].requires_grad_(False)
    assert float(L1(0.5)(net).detach()) == pytest.approx(0.5 * float(net[2].weight.detach().abs().sum()))
    L1(0.5)(net).backward()
    assert net[1].weight.grad is None
    assert net[2].bias.grad is None


def test_l2_sp_pulls_to_where_training_started():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    penalty = L2SP(2.0, {"0.weight": net[0].weight})
    head = float((net[1].weight.detach() ** 2).sum())
    assert float(penalty(net).detach()) == pytest.approx(head)  # not in `start`: pulled to zero
    with torch.no_grad():
        net[0].weight += 1.0
    assert float(penalty(net).detach()) == pytest.approx(head + 4.0)
