"""Other heads: dense layers in the place of the last one, convolutions on the last map."""

from __future__ import annotations

import json

import pytest
import torch

from problems import config, lab, plain
from sftc import build, models
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused
from sftc.models.surgery import blocks, keep_first
from sftc.store import Run
from sftc.store.reading import read_meta, read_tensors

HUBS = [
    ("timm", "test_resnet"),
    ("timm", "convnext_atto"),
    ("timm", "mobilenetv3_small_050"),
    ("torchvision", "resnet18"),
    ("torchvision", "mobilenet_v3_small"),
]
HEAVY = [("timm", "vgg11"), ("timm", "inception_v3"), ("torchvision", "vgg11_bn"), ("torchvision", "convnext_tiny")]
HEAVY += [("torchvision", "googlenet"), ("torchvision", "efficientnet_b0")]
MAPS = [
    ("simple_cnn", "simple_cnn"),
    ("cifar", "resnet8x4"),
    *HUBS,
    *(pytest.param(*h, marks=pytest.mark.slow) for h in HEAVY),
]
ROWS = [("mlp", "mlp"), ("timm", "test_vit"), ("torchvision", "squeezenet1_1"), ("torchvision", "mobilenet_v2")]


def made(family, name, side=32, **keys):
    torch.manual_seed(0)
    node = {"family": family, "name": name, "head_hidden": [12], "head_channels": [8, 6], **keys}
    return models.build(node, out_dim=5, form=(3, side, side)).eval()


def pictures(side=32, n=2):
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(("family", "name"), [*MAPS, *ROWS])
def test_dense_layers_stand_where_the_last_one_stood(family, name):
    plain, model = made(family, name), made(family, name, head="mlp")
    assert model.heads == plain.heads
    for path in model.heads:
        old, new = plain.get_submodule(path), [m for m in model.get_submodule(path).modules() if hasattr(m, "weight")]
        assert [m.weight.shape[:2] for m in new] == [(12, old.weight.shape[1]), (5, 12)]
    x = pictures(model.facts["input_size"])
    assert model(x).shape == (2, 5)
    # All below it is as it was: the same weights give the head the same.
    keep_first(plain, model, len(blocks(plain)) - 1)
    read = [_read(m, x) for m in (plain, model)]
    torch.testing.assert_close(*read)


@pytest.mark.parametrize(("family", "name"), MAPS)
@torch.no_grad()
def test_convolutions_read_the_last_map_that_is_then_averaged(family, name):
    plain, model = made(family, name), made(family, name, head="conv")
    side = max(model.facts["input_size"], 64) if family != "simple_cnn" else 32
    plain, model = made(family, name, side), made(family, name, side, head="conv")
    assert model.heads == ["head"]
    x = pictures(side)
    assert model(x).shape == (2, 5)
    body = {k: v for k, v in plain.state_dict().items() if k in model.state_dict()}
    model.load_state_dict(body, strict=False)
    maps = model.net(model.prepare(x))
    wanted = model.head.conv1[0].in_channels
    if maps.ndim == 2:
        maps = model.head.unflatten(maps)
    assert maps.shape[1] == wanted
    assert maps.shape[-1] > 1 or family == "timm"
    if name in ("test_resnet", "resnet18", "resnet8x4", "googlenet"):  # which read the mean of that very map
        torch.testing.assert_close(maps.mean((2, 3)), _read(plain, x))
    # No weight is left that nothing reads.
    model.train()
    with torch.enable_grad():
        model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def _read(model, x):
    """What the head reads."""
    seen = []
    hook = model.get_submodule(model.heads[0]).register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(x)
    hook.remove()
    return seen[-1]


@pytest.mark.parametrize(("family", "name"), ROWS)
def test_where_there_is_no_map_convolutions_are_refused_in_one_line(family, name):
    with pytest.raises(Refused, match=r"model.head=conv.*; use model.head=mlp$") as e:
        made(family, name, head="conv")
    assert "\n" not in str(e.value)


def test_tables_take_dense_heads_alone():
    node = {"family": "linear", "name": "linear", "head": "mlp", "head_hidden": [3], "head_channels": [1]}
    assert models.build(node, out_dim=2, form=(7,))(torch.zeros(4, 7)).shape == (4, 2)
    with pytest.raises(Refused, match=r"use model\.head=mlp"):
        models.build({**node, "head": "conv"}, out_dim=2, form=(7,))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_blocks_do_not_depend_on_the_head_or_the_number_of_classes(head):
    for family, name in [*HUBS, ("timm", "test_vit")]:
        few = [(n, p) for n, p in blocks(made(family, name))[:-1]]
        node = {"family": family, "name": name, "head": head, "head_hidden": [9000], "head_channels": [1]}
        many = models.build(node, out_dim=4000, form=(3, 32, 32))
        assert blocks(many)[:-1] == few
        assert all(n.startswith(tuple(f"{h}." for h in many.heads)) for n in blocks(many)[-1][1])


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("model.head=dense", "one of linear, mlp, conv"),
        ("model.head_hidden=[0]", "not a list of widths"),
        ("model.head_channels=[a]", "not a list of widths"),
        (["model.head=mlp", "model.head_hidden=[]"], "use model.head=linear"),
        (["model=mlp", "model.head=conv"], "use model.head=mlp"),
    ],
)
def test_what_is_no_head_is_refused(key, says, tmp_path):
    with pytest.raises(Refused, match=says) as e:
        lab(tmp_path / "run", "model=simple_cnn", *([key] if isinstance(key, str) else key))
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("head", ["mlp", "conv"])
def test_a_run_with_such_a_head_opens_exports_and_finetunes_its_head(head, tmp_path):
    keys = ("model=simple_cnn", f"model.head={head}", "model.head_hidden=[9]", "model.head_channels=[7]")
    run = plain(tmp_path / "run", *keys, "finetune=head")
    home = Bench(Device("cpu")).open(run.path)
    assert torch.equal(home.predict(home.restore(), "val").scores, run.predictions("val")[0].scores)
    heads = tuple(f"{h}." for h in home.model().heads)
    first = lab(tmp_path / "again", *keys, "finetune=head").model().state_dict()
    moved = {k for k, v in run.weights("last").items() if not torch.equal(v, first[k])}
    assert moved == {k for k in first if k.startswith(heads)}
    build.export({"run": str(run.path), "weights": "model", "out": str(tmp_path / "out"), "quiet": True})
    about = json.loads(read_meta(tmp_path / "out" / "model.safetensors")["sftc"])
    model = models.build(about["model"], out_dim=len(about["class_names"]), form=tuple(about["shape"])).eval()
    model.load_state_dict(read_tensors(tmp_path / "out" / "model.safetensors"))
    x = torch.zeros(1, *about["shape"])
    assert torch.equal(model(x), home.restore()(x))


def test_a_checkpoint_without_the_head_fills_the_rest(tmp_path):
    run = plain(tmp_path / "run", "model=simple_cnn")
    home = lab(tmp_path / "next", "model=simple_cnn", "model.head=mlp", f"model.checkpoint={run.path}")
    model = home.model()
    assert torch.equal(model.net.conv1[0].weight, run.weights()["net.conv1.0.weight"])
    assert not any(name.startswith("net.head.") for name in model.loaded)
    assert "net.fc2.0.weight" in model.loaded


def stored(run: Run, **changes):
    """The run with other keys in its model node; None takes one away."""
    cfg = run.config
    node = {k: v for k, v in (cfg["model"] | changes).items() if k not in changes or v is not None}
    run.write_config({**cfg, "model": node})
    return run


def test_a_run_folder_from_before_heads_could_be_chosen_opens(tmp_path):
    run = plain(tmp_path / "run", "model=simple_cnn")
    stored(run, head=None, head_hidden=None, head_channels=None)
    assert "head" not in Run.open(run.path).config["model"]
    home = Bench(Device("cpu")).open(run.path)
    assert torch.equal(home.predict(home.restore(), "val").scores, run.predictions("val")[0].scores)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "mlp"},
        {"head": "conv"},
        {"head": "mlp", "head_hidden": [1 << 40]},
        {"head": "conv", "head_channels": [1 << 20, 1 << 20]},
        {"head": "mlp", "head_hidden": [1] * 5000},
        {"head": "mlp", "head_hidden": "9"},
        {"head": {"a": 1}},
        {"head_hidden": [-1], "head": "mlp"},
    ],
)
@pytest.mark.parametrize("name", ["simple_cnn", "timm model.name=test_resnet"])
def test_a_folder_whose_head_is_not_that_of_its_weights_is_refused_in_one_line(name, changes, tmp_path):
    cfg = config("device=cpu", "quiet=true", *f"model={name}".split(), "data.limit=20", "epochs=1", "device.threads=1")
    build.train(cfg | {"out": str(tmp_path / "run")}, tmp_path / "run", [], "sftc train")
    stored(Run.open(tmp_path / "run"), **changes)
    with pytest.raises(Refused, match=str(tmp_path)) as e:
        Bench(Device("cpu")).open(tmp_path / "run").restore()
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_net_that_lost_more_than_it_has_left_opens(tmp_path):
    keys = ("model=torchvision", "model.name=vgg11", "model.pretrained=false", "model.head=conv", "max_steps=1")
    run = plain(tmp_path / "run", *keys, "data.limit=8", "data.eval_limit=8", "batch_size=8")
    assert sum(t.numel() for t in run.weights().values()) < 10e6  # of 129 million
    home = Bench(Device("cpu")).open(run.path)
    assert torch.equal(home.predict(home.restore(), "val").scores, run.predictions("val")[0].scores)
