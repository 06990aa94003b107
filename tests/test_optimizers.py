"""Update rules by name."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn

from sftc import optim
from sftc.errors import Refused

BASE = {"lr": 0.01, "weight_decay": 0.1, "momentum": None, "betas": None, "eps": None, "kwargs": {}}
CONSTANT, FULL = {"name": "constant", "warmup": 0}, {"name": "full"}


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 36, 3))


def build(model: nn.Module, name: str, **keys) -> torch.optim.Optimizer:
    spec = BASE | {"name": name} | keys
    return optim.optimizer(spec, optim.plain_groups(model, spec["lr"], spec["weight_decay"]))


def update(model: nn.Module, rule: torch.optim.Optimizer) -> None:
    rule.zero_grad()
    generator = torch.Generator().manual_seed(1)
    model(torch.randn(4, 1, 8, 8, generator=generator)).square().mean().backward()
    rule.step()


@pytest.mark.parametrize(
    ("name", "keys", "right"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}, lambda g: torch.optim.SGD(g, momentum=0.9, nesterov=True)),
        ("adam", {"betas": [0.8, 0.99]}, lambda g: torch.optim.Adam(g, betas=(0.8, 0.99), fused=True)),
        ("adamw", {"eps": 1e-6}, lambda g: torch.optim.AdamW(g, eps=1e-6, fused=True)),
        ("adamw", {"kwargs": {"fused": False}}, lambda g: torch.optim.AdamW(g)),
        ("adamw", {"kwargs": {"foreach": True}}, lambda g: torch.optim.AdamW(g, foreach=True)),
        ("rmsprop", {"kwargs": {"alpha": 0.9}}, lambda g: torch.optim.RMSprop(g, alpha=0.9)),
    ],
)
def test_the_same_steps_as_torchs_own(name, keys, right):
    ours, theirs = toy(), toy()
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    others = [p for p in theirs.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "lr": 0.01, "weight_decay": 0.1}, {"params": others, "lr": 0.01, "weight_decay": 0}]
    rule, own = right(groups), build(ours, name, **keys)
    for _ in range(3):
        update(ours, own)
        update(theirs, rule)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "nadamw", "muon", "lookahead_adamw", "adafactorbv"])
def test_a_stored_state_goes_on_exactly(name):
    straight = toy()
    rule = build(straight, name)
    for _ in range(2):
        update(straight, rule)
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optim": rule.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    resumed = toy()
    resumed.load_state_dict(stored["model"])
    again = build(resumed, name)
    again.load_state_dict(stored["optim"])
    for _ in range(2):
        update(straight, rule)
        update(resumed, again)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "adamx"}, "did you mean 'adam"),
        ({"name": "sgd", "betas": [0.9, 0.99]}, "betas=.* has no meaning for sgd .*momentum"),
        ({"name": "adamw", "momentum": 0.9}, "momentum=0.9 has no meaning for adamw .*betas"),
        ({"name": "lion", "eps": 1e-8}, "eps=1e-08 has no meaning for lion"),
        ({"name": "adamw", "betas": [0.9, 1.2]}, r"2 numbers in \[0, 1\)"),
        ({"name": "adamw", "betas": [0.9]}, r"2 numbers in \[0, 1\)"),
        ({"name": "sgd", "nesterov": True, "momentum": 0.0}, "nesterov=true needs momentum"),
        ({"name": "adamw", "kwargs": {"fuzed": True}}, "fuzed=True has no meaning"),
        ({"name": "adahessian"}, "second derivatives"),
        ({"name": "adamw", "lr": -1.0}, "optim.name=adamw: Invalid learning rate"),
    ],
)
def test_contradictions_are_refused_without_data(keys, words):
    with pytest.raises(Refused, match=words) as refused:
        optim.check(BASE | keys, CONSTANT, FULL)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_optimizers())
def test_each_of_timms_rules_works_or_is_refused(name):
    try:
        optim.check(BASE | {"name": name}, CONSTANT, FULL)
    except Refused as refused:
        if not any(words in str(refused) for words in ("second derivatives", "not available")):
            raise


def test_the_commonest_rules_do_not_wait_for_timm():
    code = (
        "import sys; from sftc import optim, models;"
        "optim.check({'name': 'adamw', 'lr': 1, 'weight_decay': 0}, {'name': 'constant'}, {'name': 'full'});"
        "models.check({'family': 'mlp', 'name': 'mlp'}); sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
