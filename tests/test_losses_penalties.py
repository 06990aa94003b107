"""Penalties against hand-computed values."""

from __future__ import annotations

import pytest
import torch

from sftc.losses import L1, L2SP


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
