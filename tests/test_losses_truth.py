"""The truth against hand-computed values."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sftc.losses import Truth
from sftc.types import Partner
from views import view


def test_truth_of_mixed_rows_is_cross_entropy_against_soft_targets():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, generator=g), torch.tensor([0, 1, 2, 0, 1, 2])
    lam = torch.rand(6, generator=g)
    partner = Partner(torch.arange(6).flip(0), torch.zeros(6), y.flip(0), lam)
    soft = lam[:, None] * F.one_hot(y, 3) + (1 - lam[:, None]) * F.one_hot(y.flip(0), 3)
    assert torch.allclose(
        Truth()(view(x, target=y, partner=partner)), F.cross_entropy(x, soft, reduction="none"), atol=1e-6
    )


def test_truth_of_a_row_mixed_with_an_unlabelled_one_is_its_own_label():
    x, y = torch.randn(2, 3), torch.tensor([1, -1])
    partner = Partner(torch.tensor([1, 0]), torch.zeros(2), y.flip(0), torch.tensor([0.3, 0.3]))
    assert torch.allclose(
        Truth()(view(x, target=y, partner=partner)), F.cross_entropy(x, torch.tensor([1, 1]), reduction="none")
    )
