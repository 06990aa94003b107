"""Architectures of timm and torchvision: head, size, facts, weights."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torchvision import models as tv

from sftc import models
from sftc.errors import Refused
from sftc.models import weights


def spec(family: str, name: str, **changes):
    common = {"pretrained": False, "checkpoint": None, "input_size": "auto", "mean": "auto", "std": "auto"}
    return {"family": family, "name": name, "kwargs": {}} | common | changes


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(weights, "reachable", lambda address: False)


@pytest.fixture
def cached(monkeypatch, tmp_path) -> Path:
    """A hub cache that holds weights of timm's smallest ResNet."""
    repo = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("abc")
    (repo / "snapshots/abc").mkdir(parents=True)
    save_file(timm.create_model("test_resnet").state_dict(), repo / "snapshots/abc/model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return repo / "snapshots/abc/model.safetensors"


@pytest.mark.parametrize(
    ("family", "name", "side", "heads"),
    [
        ("timm", "test_resnet", 28, ["net.fc"]),
        ("timm", "test_vit", 32, ["net.head"]),
        ("timm", "resnet10t", 28, ["net.fc"]),
        ("timm", "resnet18", 28, ["net.fc"]),
        ("timm", "mobilenetv3_small_050", 28, ["net.classifier"]),
        ("timm", "convnext_atto", 32, ["net.head.fc"]),
        ("timm", "deit_tiny_distilled_patch16_224", 32, ["net.head", "net.head_dist"]),
        ("torchvision", "resnet18", 28, ["net.fc"]),
        ("torchvision", "squeezenet1_1", 28, ["net.classifier.1"]),
        ("torchvision", "mobilenet_v3_small", 28, ["net.classifier.3"]),
        slow("timm", "vit_tiny_patch16_224", 32, ["net.head"]),
        slow("timm", "convnext_tiny", 32, ["net.head.fc"]),
        slow("timm", "mobilenetv3_large_100", 28, ["net.classifier"]),
        slow("timm", "efficientnet_b0", 28, ["net.classifier"]),
        slow("timm", "resnet50", 28, ["net.fc"]),
        slow("timm", "vgg16", 32, ["net.head.fc"]),
        slow("timm", "inception_v3", 75, ["net.fc"]),
        slow("timm", "levit_128s", 32, ["net.head.linear", "net.head_dist.linear"]),
        slow("timm", "swin_tiny_patch4_window7_224", 28, ["net.head.fc"]),
        slow("torchvision", "inception_v3", 75, ["net.fc"]),
        slow("torchvision", "googlenet", 28, ["net.fc"]),
        slow("torchvision", "vit_b_32", 32, ["net.heads.head"]),
        slow("torchvision", "vgg11_bn", 32, ["net.classifier.6"]),
        slow("torchvision", "regnet_y_400mf", 28, ["net.fc"]),
        slow("torchvision", "swin_t", 28, ["net.head"]),
    ],
)
@pytest.mark.parametrize("out_dim", [1, 7])
def test_the_head_fits_the_task_and_the_size_the_data(family, name, side, heads, out_dim):
    model = models.build(spec(family, name), out_dim=out_dim, form=(1, 28, 28))
    assert model.facts["input_size"] == side
    assert model.heads == heads
    pictures = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    out = model.train()(pictures.contiguous(memory_format=torch.channels_last))
    assert out.shape == (2, out_dim)
    out.sum().backward()
    for path in heads:
        assert model.get_submodule(path).weight.grad is not None


def test_facts_are_plain_and_rebuild_the_model():
    model = models.build(spec("timm", "test_vit", input_size="min", mean=0.4), out_dim=3, form=(3, 28, 28))
    facts = model.facts
    assert (facts["family"], facts["name"], facts["pretrained"]) == ("timm", "test_vit", "no")
    assert (facts["input_size"], facts["mean"], facts["std"]) == (16, [0.4] * 3, [0.5] * 3)
    assert facts["params"] == sum(p.numel() for p in model.parameters())
    stored = {k: facts[k] for k in ("input_size", "mean", "std")}
    again = models.build(spec("timm", "test_vit", **stored), out_dim=3, form=(3, 28, 28))
    again.load_state_dict(model.state_dict())
    pictures = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    assert torch.equal(again.eval()(pictures), model.eval()(pictures))
    assert again.facts == facts


def test_the_callers_seed_decides_the_weights():
    def draw():
        torch.manual_seed(3)
        return models.build(spec("timm", "test_vit"), out_dim=3, form=(3, 28, 28)).state_dict()

    first, second = draw(), draw()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_keywords_reach_the_architecture_and_copies_work():
    model = models.build(spec("timm", "test_vit", drop_path_rate=0.4, kwargs={"depth": 2}), out_dim=3, form=(3, 32, 32))
    assert len(model.net.blocks) == 2
    assert copy.deepcopy(model).net.blocks[1].drop_path1.drop_prob == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("family", "name", "change", "words"),
    [
        ("timm", "resnet81", {}, "not in timm; did you mean 'resnet"),
        ("timm", "resnet18.a9_in1k", {}, r"did you mean 'a._in1k'\?"),
        ("timm", "hf-hub:me/mine", {}, "model.checkpoint=PATH"),
        ("timm", "test_vit", {"kwargs": {"widht": 3}}, "does not take"),
        ("timm", "test_vit", {"kwargs": {"num_classes": 3}}, "not yours to set"),
        ("timm", "test_vit", {"kwargs": {"features_only": True}}, "not yours to set"),
        ("torchvision", "resnet81", {}, "not in torchvision; did you mean 'resnet"),
        ("torchvision", "fcn_resnet50", {}, "not in torchvision"),
        ("torchvision", "resnet18", {"kwargs": {"weights": "DEFAULT"}}, "not yours to set"),
        ("torchvision", "resnet18", {"kwargs": {"widht": 3}}, "does not take"),
    ],
)
def test_mistakes_are_named_without_data(family, name, change, words):
    with pytest.raises(Refused, match=words) as refused:
        models.check(spec(family, name, **change))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("shape", "words"), [((5,), "model=mlp"), ((4, 32, 32), "4 channels")])
def test_data_it_cannot_read(shape, words):
    with pytest.raises(Refused, match=words):
        models.build(spec("timm", "test_resnet"), out_dim=2, form=shape)


@pytest.mark.parametrize(("family", "name"), [("timm", "test_resnet"), ("torchvision", "resnet18")])
def test_without_weights_to_be_had(family, name, no_network, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    start = time.perf_counter()
    for ask in (models.check, lambda node: models.build(node, out_dim=2, form=(3, 32, 32))):
        with pytest.raises(Refused, match=r"model\.checkpoint=PATH"):
            ask(spec(family, name, pretrained=True))
    models.check(spec(family, name, pretrained="auto"))
    model = models.build(spec(family, name, pretrained="auto"), out_dim=2, form=(3, 32, 32))
    assert model.facts["pretrained"].startswith("unavailable: ")
    assert model.facts["input_size"] == 32
    assert time.perf_counter() - start < 10  # the hub's own client takes most of a minute


def test_an_architecture_nobody_trained(no_network):
    with pytest.raises(Refused, match="nobody published weights"):
        models.check(spec("timm", "convnext_atto_rms", pretrained=True))


def test_cached_weights_bring_their_size_and_colours(cached, no_network):
    stored = timm.models.load_state_dict(str(cached))
    model = models.build(spec("timm", "test_resnet", pretrained=True), out_dim=7, form=(1, 28, 28))
    assert model.facts["pretrained"] == "loaded"
    assert model.facts["input_size"] == 160
    assert model.facts["mean"] == list(timm.get_pretrained_cfg("test_resnet").mean)
    own = model.net.state_dict()
    assert torch.equal(own["layer1.0.conv1.weight"], stored["layer1.0.conv1.weight"])
    assert own["fc.weight"].shape == (7, stored["fc.weight"].shape[1])
    assert model.loaded == {n for n, _ in model.named_parameters()} - {"net.fc.weight", "net.fc.bias"}
    small = models.build(spec("timm", "test_resnet", pretrained="auto", input_size=32), out_dim=7, form=(1, 28, 28))
    assert small.facts["input_size"] == 32
    assert torch.equal(small.net.state_dict()["conv1.0.weight"], stored["conv1.0.weight"])


def test_damaged_weights_in_the_cache(cached, no_network):
    cached.write_bytes(cached.read_bytes()[:1000])
    with pytest.raises(Refused, match="cannot be loaded"):
        models.build(spec("timm", "test_resnet", pretrained=True), out_dim=2, form=(3, 32, 32))
    model = models.build(spec("timm", "test_resnet", pretrained="auto"), out_dim=2, form=(3, 32, 32))
    assert model.facts["pretrained"].startswith("unavailable: ")
    assert model.facts["input_size"] == 32
    assert model.loaded == set()


def test_torchvisions_cached_weights(no_network, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    url = tv.get_model_weights("squeezenet1_1").DEFAULT.url
    theirs = tv.squeezenet1_1()
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / url.rsplit("/", 1)[1])
    model = models.build(spec("torchvision", "squeezenet1_1", pretrained=True), out_dim=7, form=(3, 32, 32))
    assert (model.facts["pretrained"], model.facts["input_size"]) == ("loaded", 224)
    assert model.facts["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert torch.equal(model.net.features[0].weight, theirs.features[0].weight)
    assert model.loaded == {n for n, _ in model.named_parameters() if not n.startswith("net.classifier")}


def test_a_checkpoint_stands_in_for_published_weights(no_network, tmp_path):
    name = "mobilenetv3_small_050"
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    node = spec("timm", name, checkpoint=str(tmp_path / "w.safetensors"))
    models.check(node | {"pretrained": True})
    model = models.build(node | {"pretrained": True}, out_dim=7, form=(3, 28, 28))
    assert (model.facts["pretrained"], model.facts["input_size"]) == ("checkpoint", 224)
    assert model.facts["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert model.facts["checkpoint"]["shape_mismatch"] == ["net.classifier.weight", "net.classifier.bias"]
    own = models.build(node | {"pretrained": "auto"}, out_dim=7, form=(3, 28, 28))
    assert own.facts["input_size"] == 28
    assert own.facts["mean"] == [0.5] * 3
