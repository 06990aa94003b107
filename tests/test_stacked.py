"""Models run as one say, learn and count what each of them does alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftc import models
from sftc.errors import Refused
from sftc.models.stacked import Stacked


def nets(node: dict, form: tuple[int, ...] = (1, 8, 8), count: int = 3) -> list[nn.Module]:
    torch.manual_seed(0)
    return [models.build(node, out_dim=4, form=form).double().train() for _ in range(count)]


@pytest.mark.parametrize(
    "node",
    [
        {"family": "mlp", "name": "mlp"},
        {"family": "simple_cnn", "name": "simple_cnn", "batch_norm": True},
        {"family": "cifar", "name": "resnet8"},
        {"family": "timm", "name": "vit_tiny_patch16_224", "depth": 1, "input_size": 32, "pretrained": False},
    ],
    ids=lambda node: node["name"],
)
def test_answers_gradients_and_running_statistics_are_each_ones_own(node):
    together = nets(node)
    alone = copy.deepcopy(together)
    pictures, target = torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 3, 0, 1])
    which = [0, 2]
    loss = torch.zeros((), dtype=torch.float64)
    for i, logits in zip(which, Stacked(together)(which, pictures), strict=True):
        expected = alone[i](pictures)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
        F.cross_entropy(expected, target).backward()
        loss = loss + F.cross_entropy(logits, target)
    loss.backward()
    for mine, theirs in zip(together, alone, strict=True):
        for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None and q.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-11)
        for b, c in zip(mine.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(b, c, rtol=0, atol=1e-12)


def test_in_eval_mode_statistics_stay_and_frozen_weights_get_no_gradient():
    stack = Stacked(nets({"family": "simple_cnn", "name": "simple_cnn", "batch_norm": True}))
    for model in stack.models:
        model.eval()
        next(model.parameters()).requires_grad_(False)
    before = [b.clone() for model in stack.models for b in model.buffers()]
    torch.cat(stack(range(3), torch.randint(256, (6, 1, 8, 8)))).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (b for m in stack.models for b in m.buffers()), strict=True))
    for model in stack.models:
        first, second, *_ = model.parameters()
        assert first.grad is None
        assert second.grad is not None


def test_the_trial_leaves_no_trace():
    stack = Stacked(nets({"family": "simple_cnn", "name": "simple_cnn", "batch_norm": True}))
    stack.models[1].eval()
    before = [copy.deepcopy(m.state_dict()) for m in stack.models]
    stack.check(torch.randint(256, (4, 1, 8, 8)))
    for model, held in zip(stack.models, before, strict=True):
        assert all(torch.equal(v, held[k]) for k, v in model.state_dict().items())
    assert [m.training for m in stack.models] == [True, False, True]


class Drawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.fc(x), 0.5, self.training)


class Deciding(Drawing):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.fc(x)
        return out if out.sum() > 0 else -out


@pytest.mark.parametrize(("kind", "said"), [(Drawing, "random"), (Deciding, "data-dependent")])
def test_what_cannot_be_done_for_all_at_once_is_one_line(kind, said):
    with pytest.raises(Refused, match=f"{said}.*set strategy.lockstep=true") as why:
        Stacked([kind(), kind()]).check(torch.randn(3, 4))
    assert "\n" not in str(why.value)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ((nn.Linear(4, 2), nn.Linear(4, 3)), "member 1 differs from member 0 in kind"),
        ((nn.Sequential(nn.Linear(4, 2), nn.ReLU()), nn.Sequential(nn.Linear(4, 2), nn.GELU())), "in 1;"),
        ((nn.Sequential(nn.Dropout(0.1)), nn.Sequential(nn.Dropout(0.1))), "0 is dropout"),
    ],
)
def test_models_that_are_no_stack_are_refused(pair, said):
    with pytest.raises(Refused, match=said):
        Stacked(pair)
