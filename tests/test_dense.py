"""Nets that answer at every pixel, and what is counted of their answers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sftc import models
from sftc.errors import Refused
from sftc.models.surgery import blocks, keep_first, replace_head
from sftc.tasks import Segmentation
from sftc.types import Form

NAMES = ["a", "b", "c"]
FORM = Form((3, 17, 21), about={"pixels": True})
FCN = {"family": "fcn", "name": "fcn"}
UNET = {"family": "unet", "name": "unet", "decoder": [16, 12, 8, 8, 8], "pretrained": "false"}
LRASPP = {"family": "torchvision_segmentation", "name": "lraspp_mobilenet_v3_large", "pretrained": "false"}
NETS = [FCN, {**UNET, "backbone": "resnet10t"}, {**UNET, "backbone": "convnext_atto"}, LRASPP]


def build(spec, out_dim=3, form=FORM):
    models.check(spec)
    torch.manual_seed(0)
    return models.build(spec, out_dim=out_dim, form=form)


@pytest.mark.parametrize("spec", NETS, ids=lambda s: f"{s['family']}-{s.get('backbone', '')}")
def test_any_size_comes_back_and_a_new_head_answers_other_classes(spec):
    model = build(spec).eval()
    for size in ((17, 21), (32, 40), (9, 50)):
        assert model(torch.zeros(2, 3, *size, dtype=torch.uint8)).shape == (2, 3, *size)
    named = [name for _, names in blocks(model) for name in names]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    assert replace_head(model, 5)(torch.zeros(2, 3, 17, 21)).shape == (2, 5, 17, 21)


@pytest.mark.parametrize("backbone", ["resnet10t", "convnext_atto", "efficientnet_b0"])
def test_the_blocks_of_a_classifier_are_those_of_the_encoder(backbone):
    whole = build({"family": "timm", "name": backbone, "pretrained": "false"}, form=Form((3, 32, 32)))
    dense = build({**UNET, "backbone": backbone})
    theirs, ours = blocks(whole), blocks(dense)
    n = len(theirs) - 2
    for (_, a), (_, b) in zip(theirs[:n], ours[:n], strict=True):
        assert [dense.aliases[name] for name in a] == b
    before = {k: v.clone() for k, v in dense.state_dict().items()}
    keep_first(whole, dense, 2)
    give, now = whole.state_dict(), dense.state_dict()
    kept = [name for _, names in theirs[:2] for name in names]
    assert all(torch.equal(give[name], now[dense.aliases[name]]) for name in kept)
    rest = [name for _, names in ours[2:] for name in names]
    assert all(torch.equal(before[name], now[name]) for name in rest)


@pytest.mark.parametrize(
    ("dense", "backbone"),
    [
        ("lraspp_mobilenet_v3_large", "mobilenet_v3_large"),
        ("fcn_resnet50", "resnet50"),
        ("deeplabv3_resnet50", "resnet50"),
    ],
)
def test_the_blocks_of_torchvisions_classifiers_are_those_of_its_dense_nets(dense, backbone):
    """torchvision's own names of the parts are the independent answer."""
    with torch.device("meta"):
        whole = build({"family": "torchvision", "name": backbone, "pretrained": "false"}, form=Form((3, 32, 32)))
        net = build({"family": "torchvision_segmentation", "name": dense, "pretrained": "false"})
    assert {"fcn_resnet50": "FCN", "deeplabv3_resnet50": "DeepLabV3"}.get(dense, "LRASPP") == type(net.net).__name__
    theirs, ours = blocks(whole), blocks(net)
    n = 17
    assert [[net.aliases[name] for name in names] for _, names in theirs[:n]] == [names for _, names in ours[:n]]
    assert not [name for _, names in ours[n:] for name in names if "backbone" in name]
    assert len(net.aliases) == sum("backbone." in key for key in net.state_dict())


def test_a_classifiers_weights_are_a_checkpoint_of_the_encoder(tmp_path):
    from safetensors.torch import save_file

    whole = build({"family": "timm", "name": "convnext_atto", "pretrained": "false"}, form=Form((3, 32, 32)))
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    dense = build({**UNET, "backbone": "convnext_atto", "checkpoint": str(tmp_path / "model.safetensors")})
    assert torch.equal(
        dense.net.encoder.stages_1.blocks[0].mlp.fc1.weight, whole.net.stages[1].blocks[0].mlp.fc1.weight
    )
    assert "net.encoder.stem_0.weight" in dense.loaded
    assert "net.head.weight" not in dense.loaded


def test_what_does_not_go_together():
    with pytest.raises(Refused, match="use model=unet"):
        build({"family": "timm", "name": "resnet10t", "pretrained": "false"})
    with pytest.raises(Refused, match="answers at every pixel"):
        build(FCN, form=Form((3, 16, 16)))
    for spec, says in (
        ({**UNET, "backbone": "vit_tiny_patch16_224"}, "gives no maps"),
        ({**UNET, "backbone": "resnet10t", "input_size": 16}, "no less than 32 pixels"),
        ({**UNET, "backbone": "resnet19"}, "did you mean"),
        ({**UNET, "backbone": "resnet10t", "decoder": [8]}, "there must be 4 widths"),
        ({**FCN, "channels": []}, "not a list of widths"),
        ({**FCN, "width": 3}, "no key of fcn"),
        ({**LRASPP, "name": "lraspp"}, "one of: deeplabv3"),
    ):
        with pytest.raises(Refused, match=says):
            build(spec)


def test_metrics_by_hand():
    """Two rows of 1 x 3: true a a b / c ? b, said a b b / a c b."""
    target = torch.tensor([[[0, 0, 1]], [[2, -1, 1]]])
    said = torch.tensor([[[0, 1, 1]], [[0, 2, 1]]])
    logits = 4 * F.one_hot(said, 3).movedim(-1, 1).float()
    task = Segmentation(NAMES)
    meter = task.meter()
    meter.update(logits[:1], target[:1])
    meter.update(logits[1:], target[1:])
    # a: 1 of 3; b: 2 of 3; c, true once and never said where it counts: 0 of 1.
    got, classes = meter.compute(), meter.per_class()
    assert got["miou"] == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert got["accuracy"] == pytest.approx(3 / 5)
    assert got["nll"] == pytest.approx(float(F.cross_entropy(logits, target, ignore_index=-1)), rel=1e-6)
    assert classes["b"] == pytest.approx({"iou": 2 / 3, "precision": 2 / 3, "recall": 1.0, "pixels": 2})
    flat = task.meter()
    scores, kept, row = task.flat(logits, target, torch.tensor([7, 9]))
    flat.update(task.logits(scores), kept)
    assert flat.compute() == pytest.approx(got)
    assert row.tolist() == [7, 7, 7, 9, 9]


def test_a_class_nobody_saw_or_said_does_not_count():
    meter = Segmentation([*NAMES, "never"]).meter()
    target = torch.tensor([[[0, 1, 2]]])
    meter.update(F.one_hot(target, 4).movedim(-1, 1).float(), target)
    assert meter.compute()["miou"] == 1


def test_miou_is_that_of_torchmetrics():
    from torchmetrics.classification import MulticlassJaccardIndex

    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(4, 5, 6, 7, generator=g), torch.randint(-1, 5, (4, 6, 7), generator=g)
    meter = Segmentation("abcde").meter()
    meter.update(logits, target)
    theirs = MulticlassJaccardIndex(5, ignore_index=-1)(logits.argmax(1), target)
    assert meter.compute()["miou"] == pytest.approx(float(theirs), rel=1e-6)


def test_rows_without_weight_count_nothing():
    target, weight = torch.tensor([[[0, 1]], [[2, 2]]]), torch.tensor([1.0, 0.0])
    meter = Segmentation(NAMES).meter()
    meter.update(torch.zeros(2, 3, 1, 2), target, weight)
    assert int(meter.table.sum()) == 2


def test_the_loss_weighs_classes_and_smooths_and_the_nll_does_neither():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, 6, generator=draw)
    target = torch.randint(-1, 3, (4, 5, 6), generator=draw)
    weight = torch.tensor([1.0, 5.0, 0.2])
    meter = Segmentation(NAMES, smoothing=0.1, class_weight=weight).meter()
    for i in range(0, 4, 2):
        meter.update(logits[i : i + 2], target[i : i + 2])
    found = meter.compute()
    each = F.cross_entropy(logits, target, reduction="none", ignore_index=-1, label_smoothing=0.1)
    counts = torch.where(target >= 0, weight[target.clamp_min(0)], 0)
    assert found["loss"] == pytest.approx(float((each * counts).sum() / counts.sum()), rel=1e-6)
    assert found["nll"] == pytest.approx(float(F.cross_entropy(logits, target, ignore_index=-1)), rel=1e-6)
