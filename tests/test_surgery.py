"""Taps, heads, blocks and frozen parts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sftc import models
from sftc.errors import Refused
from sftc.models import surgery

BLOCKS = {  # family, name -> number of blocks, first, last but one
    ("mlp", "mlp"): (3, "net.fc1", "net.fc2"),
    ("simple_cnn", "simple_cnn"): (5, "net.conv1", "net.fc2"),
    ("linear", "linear"): (1, "net.head", None),
    ("timm", "resnet18"): (10, "net.conv1", "net.layer4.1"),
    ("timm", "test_resnet"): (6, "net.conv1", "net.layer4.0"),
    ("timm", "test_vit"): (8, "net.cls_token", "net.blocks.5"),
    ("timm", "mobilenetv3_small_050"): (15, "net.conv_stem", "net.conv_head"),
    ("timm", "convnext_atto"): (14, "net.stem", "net.stages.3.blocks.1"),
    ("timm", "deit_tiny_distilled_patch16_224"): (14, "net.cls_token", "net.blocks.11"),
    ("torchvision", "resnet18"): (10, "net.conv1", "net.layer4.1"),
    ("torchvision", "squeezenet1_1"): (10, "net.features.0", "net.features.12"),
    ("torchvision", "mobilenet_v3_small"): (15, "net.features.0", "net.classifier.0"),
}
HEAVY = {
    ("timm", "vgg16"): (15, "net.features.0", "net.pre_logits"),
    ("timm", "inception_v3"): (14, "net.Conv2d_1a_3x3", "net.Mixed_7c"),
    ("timm", "vit_tiny_patch16_224"): (14, "net.cls_token", "net.blocks.11"),
    ("torchvision", "vit_b_32"): (14, "net.conv_proj", "net.encoder.layers.encoder_layer_11"),
    ("torchvision", "vgg11_bn"): (11, "net.features.0", "net.classifier.3"),
}


def build(family: str, name: str, out_dim: int = 5, **keys) -> models.Vision:
    return models.build(
        {"family": family, "name": name, "pretrained": False, **keys}, out_dim=out_dim, form=(3, 32, 32)
    )


@pytest.mark.parametrize(
    ("which", "expected"),
    [*BLOCKS.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in HEAVY.items())],
)
def test_blocks_part_the_model_stem_first_head_last(which, expected):
    model = build(*which)
    found = surgery.blocks(model)
    names = [name for _, inside in found for name in inside]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    count, first, last = expected
    assert (len(found), found[0][0]) == (count, first)
    assert last is None or found[-2][0] == last
    assert all(name.startswith(tuple(f"{h}." for h in model.heads)) for name in found[-1][1])
    assert len({name for name, _ in found}) == count


def test_taps_give_what_the_module_gave():
    model = build("simple_cnn", "simple_cnn").eval()
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    tapped = surgery.Tapped(model, ["net.conv2", "net.fc1"])
    out = tapped(pictures)
    assert torch.equal(out.logits, model(pictures))
    assert torch.equal(model.net[-2:](out.features["net.fc1"]), out.logits)
    assert out.features["net.conv2"].shape == (4, 16, 10, 10)
    other = tapped(pictures[:2])
    assert (len(other.features["net.fc1"]), len(out.features["net.fc1"])) == (2, 4)
    tapped.close()
    assert not tapped(pictures).features


def test_a_copy_of_a_tapped_model_keeps_silent():
    model = build("mlp", "mlp").eval()
    tapped = surgery.Tapped(model, ["net.fc1"])
    twin = copy.deepcopy(model)
    twin(torch.zeros(3, 3, 32, 32))
    assert not tapped._seen
    assert surgery.Tapped(twin, ["net.fc1"])(torch.zeros(3, 3, 32, 32)).features
    assert not tapped._seen


def test_logits_come_as_float32():
    model = build("mlp", "mlp")
    model.net.to(torch.bfloat16)
    model.prepare.to(torch.bfloat16)
    assert surgery.Tapped(model)(torch.zeros(2, 3, 32, 32)).logits.dtype == torch.float32


def test_a_mistyped_tap_names_the_nearest():
    with pytest.raises(Refused, match=r"did you mean 'net\.conv2'"):
        surgery.Tapped(build("simple_cnn", "simple_cnn"), ["net.conv22"])


@pytest.mark.parametrize("which", [("mlp", "mlp"), ("timm", "test_vit"), ("torchvision", "squeezenet1_1")])
def test_replace_head(which):
    model = build(*which)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    surgery.replace_head(model, 9)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 9)
    body = [k for k in before if not k.startswith(tuple(model.heads))]
    assert body
    assert all(torch.equal(model.state_dict()[k], before[k]) for k in body)


def test_a_model_from_elsewhere_has_a_head_too():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(1))
    assert surgery.head_names(model) == ["2"]
    assert [name for name, _ in surgery.blocks(model)] == ["0", "2"]
    with pytest.raises(Refused, match="no dense"):
        surgery.head_names(nn.ReLU())


@pytest.mark.parametrize("which", [("timm", "test_resnet"), ("torchvision", "resnet18"), ("simple_cnn", "simple_cnn")])
def test_keep_first_takes_weights_and_statistics_of_those_blocks_alone(which):
    source, target = build(*which), build(*which, out_dim=2)
    for buffer in source.buffers():
        if buffer.is_floating_point():
            buffer.add_(1.0)
    fresh = {k: v.clone() for k, v in target.state_dict().items()}
    surgery.keep_first(source, target, 2)
    kept = [name for _, names in surgery.blocks(source)[:2] for name in names]
    owners = {name.rpartition(".")[0] for name in kept}
    for key, value in target.state_dict().items():
        wanted = source.state_dict() if key.rpartition(".")[0] in owners else fresh
        assert torch.equal(value, wanted[key]), key


def test_keep_first_in_range_and_alike():
    source = build("mlp", "mlp")
    for n in (0, 3):
        with pytest.raises(Refused, match="the model has 3 blocks"):
            surgery.keep_first(source, build("mlp", "mlp"), n)
    with pytest.raises(Refused, match=r"no net.fc1.0.weight of shape \[128, 3072\]"):
        surgery.keep_first(source, build("mlp", "mlp", hidden=[9]), 1)


def test_a_model_that_is_only_a_head_has_no_block_to_keep():
    with pytest.raises(Refused, match=r"finetune\.n=1 .* nothing but its head"):
        surgery.in_range(1, 1, "finetune.n")


def test_frozen_parts_stay_in_eval_mode():
    model = build("timm", "test_resnet")
    for _, names in surgery.blocks(model)[:3]:
        for name in names:
            model.get_parameter(name).requires_grad_(False)
    surgery.train_mode(model)
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    model(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    after = model.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved
    assert moved == {k for k in before if "layer3" in k or "layer4" in k}
    assert model.training
    for p in model.parameters():
        p.requires_grad_(True)
    assert all(m.training for m in surgery.train_mode(model).modules())
