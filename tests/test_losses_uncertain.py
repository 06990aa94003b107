"""Losses weighted by uncertainty against the formula, and where it comes to rest."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sftc.losses import Uncertain
from views import values, view


def test_of_classes_it_is_the_papers_formula():
    x, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    term = Uncertain()
    term.log_variance.data.fill_(0.7)
    expected = torch.exp(torch.tensor(-0.7)) * F.cross_entropy(x, y, reduction="none") + 0.35
    torch.testing.assert_close(term(view(x, target=y)).detach(), expected)


def test_of_values_it_comes_to_rest_at_the_variance():
    """exp(-s) L / 2 + s / 2 is least where exp(s) = L."""
    x, y, task = torch.randn(50, 2), torch.randn(50, 2), values(2)
    term = Uncertain()
    look = view(x, target=y, task=task)
    optimizer = torch.optim.SGD(term.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        term(look).mean().backward()
        optimizer.step()
    torch.testing.assert_close(term.log_variance.exp().detach(), task.loss(x, y).mean(), rtol=1e-3, atol=1e-3)
