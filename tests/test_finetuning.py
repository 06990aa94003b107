"""Which weights move, and how fast."""

from __future__ import annotations

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from sftc import models, optim
from sftc.errors import Refused
from sftc.models import surgery


def build(family: str = "timm", name: str = "test_resnet") -> models.Vision:
    return models.build({"family": family, "name": name, "pretrained": False}, out_dim=3, form=(3, 32, 32))


def moving(model: nn.Module) -> list[bool]:
    """For each block, whether it moves; a block must not be torn."""
    flags = []
    for _, names in surgery.blocks(model):
        seen = {model.get_parameter(name).requires_grad for name in names}
        assert len(seen) == 1
        flags.append(seen.pop())
    return flags


def by_param(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    """Name -> (rate, decay)."""
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups)
    return found


@pytest.mark.parametrize(
    ("spec", "flags"),
    [
        ({"name": "full"}, [True] * 6),
        ({"name": "head"}, [False] * 5 + [True]),
        ({"name": "first_n", "n": 2, "keep_lr": 0}, [False] * 2 + [True] * 4),
        ({"name": "first_n", "n": 2, "keep_lr": 0.1}, [True] * 6),
        ({"name": "gradual", "start": 2, "every": 1}, [False] * 4 + [True] * 2),
        ({"name": "layerwise", "decay": 0.5}, [True] * 6),
    ],
)
def test_what_moves_in_the_first_epoch(spec, flags):
    model = build()
    optim.finetune(spec).begin(model)
    assert moving(model) == flags


def test_gradual_wakes_block_after_block_and_a_late_start_knows_its_place():
    model, way = build(), optim.finetune({"name": "gradual", "start": 1, "every": 2})
    way.begin(model)
    counts = []
    for epoch in range(14):
        changed = way.epoch(model, epoch)
        counts.append(sum(moving(model)))
        assert changed == (epoch > 0 and counts[-1] != counts[-2])
        assert moving(model) == sorted(moving(model))
    assert counts == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6, 6]
    resumed = build()
    way.begin(resumed)
    way.epoch(resumed, 7)
    assert sum(moving(resumed)) == 4


def test_gradual_hands_every_weight_to_the_optimizer_at_once():
    model, way = build(), optim.finetune({"name": "gradual", "start": 1, "every": 1})
    way.begin(model)
    groups = way.groups(model, 0.1, 0.5)
    assert len(by_param(model, groups)) == len(list(model.parameters()))
    rule = torch.optim.SGD(groups, lr=0.1)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    model(torch.rand(4, 3, 32, 32) * 255).sum().backward()
    rule.step()
    assert frozen
    assert all(torch.equal(model.get_parameter(n), p) for n, p in frozen.items())


def test_frozen_weights_and_statistics_do_not_move():
    model, way = build(), optim.finetune({"name": "first_n", "n": 3, "keep_lr": 0.0})
    way.begin(model)
    rule = torch.optim.SGD(way.groups(model, 0.1, 0.1), lr=0.1, momentum=0.9)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(2):
        surgery.train_mode(model)
        model(torch.rand(4, 3, 32, 32) * 255).square().mean().backward()
        rule.step()
    same = {k for k, v in model.state_dict().items() if torch.equal(v, before[k])}
    body = ("net.conv1", "net.bn1", "net.layer1", "net.layer2")
    assert {k for k in before if k.startswith(body)} == same


def test_decay_spares_norms_and_biases_and_what_timm_names():
    model = build("timm", "test_vit")
    for spec in ({"name": "full"}, {"name": "layerwise", "decay": 0.5}):
        found = by_param(model, optim.finetune(spec).groups(model, 0.1, 0.5))
        for name, p in model.named_parameters():
            spared = p.ndim == 1 or name in ("net.pos_embed", "net.cls_token")
            assert found[name][1] == (0.0 if spared else 0.5), name


def test_kept_layers_at_a_multiple_of_the_rate():
    model = build()
    found = by_param(model, optim.finetune({"name": "first_n", "n": 1, "keep_lr": 0.1}).groups(model, 0.2, 0))
    stem = surgery.blocks(model)[0][1]
    assert {name for name, (rate, _) in found.items() if rate == pytest.approx(0.02)} == set(stem)
    assert {rate for name, (rate, _) in found.items() if name not in stem} == {0.2}
    alike = optim.finetune({"name": "first_n", "n": 1, "keep_lr": 1}).groups(model, 0.2, 0)
    assert by_param(model, alike) == by_param(model, optim.finetune({"name": "full"}).groups(model, 0.2, 0))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "resnet18", "vit_tiny_patch16_224"])
def test_layerwise_is_timms_layer_decay(name):
    model = build("timm", name)
    skip = getattr(model.net, "no_weight_decay", set)()
    theirs = param_groups_layer_decay(model.net, 0.5, no_weight_decay_list=skip, layer_decay=0.65)
    names = {id(p): f"net.{n}" for n, p in model.net.named_parameters()}
    right = {names[id(p)]: (0.1 * g["lr_scale"], g["weight_decay"]) for g in theirs for p in g["params"]}
    ours = by_param(model, optim.finetune({"name": "layerwise", "decay": 0.65}).groups(model, 0.1, 0.5))
    assert ours.keys() == right.keys()
    for key, (rate, decay) in right.items():
        assert ours[key] == (pytest.approx(rate), decay), key


def test_full_leaves_frozen_what_a_builder_froze():
    model = build("mlp", "mlp")
    model.net.fc1.requires_grad_(False)
    way = optim.finetune({"name": "full"})
    way.begin(model)
    assert moving(model) == [False, True, True]
    assert not any("fc1" in name for name in by_param(model, way.groups(model, 0.1, 0)))


def test_projectors_get_plain_groups():
    projector = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    found = by_param(projector, optim.plain_groups(projector, 0.3, 0.2))
    assert found == {"0.weight": (0.3, 0.2), "0.bias": (0.3, 0), "1.weight": (0.3, 0), "1.bias": (0.3, 0)}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "first"}, "did you mean 'first_n'"),
        ({"name": "gradual", "start": 0, "every": 1}, "start=0"),
        ({"name": "gradual", "start": 1, "every": 0}, "every=0"),
        ({"name": "layerwise", "decay": 1.5}, r"decay=1.5 must lie in \(0, 1\]"),
        ({"name": "first_n", "n": 1, "keep_lr": -1}, "keep_lr=-1"),
    ],
)
def test_mistakes_are_named_without_a_model(spec, words):
    with pytest.raises(Refused, match=words):
        optim.finetune(spec)


@pytest.mark.parametrize("n", [0, 6, 99])
def test_more_blocks_than_there_are(n):
    with pytest.raises(Refused, match="the model has 6 blocks"):
        optim.finetune({"name": "first_n", "n": n, "keep_lr": 0}).begin(build())
