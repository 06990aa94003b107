"""The nets of the distillation field at work: taps, blocks, first weights, sizes, a run, and the published recipe."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from problems import SMALL, cifar, config, stirred
from sftc import build, models, optim
from sftc.errors import Refused
from sftc.models import surgery
from sftc.models.cifar import NETS
from sftc.store import Run

SHAPES = {  # of stem, layer1, layer2, ..., flatten
    "resnet20": [(16, 32), (16, 32), (32, 16), (64, 8), (64,)],
    "resnet8x4": [(32, 32), (64, 32), (128, 16), (256, 8), (256,)],
    "wrn_16_2": [(16, 32), (32, 32), (64, 16), (128, 8), (128,)],
    "vgg13": [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4), (512,)],
    "mobilenetv2": [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2), (1280,)],
    "shufflenetv1": [(24, 32), (240, 16), (480, 8), (960, 4), (960,)],
    "shufflenetv2": [(24, 32), (116, 16), (232, 8), (464, 4), (1024,)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_taps_see_the_features_that_the_field_matches(name):
    model = cifar(name).eval()
    paths = ["net.stem", *(f"net.layer{i}" for i in range(1, len(SHAPES[name]) - 1)), "net.flatten"]
    out = surgery.Tapped(model, paths)(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert [(t.shape[1], *t.shape[3:]) for t in out.features.values()] == SHAPES[name]
    torch.testing.assert_close(model.net.head(out.features["net.flatten"]), out.logits)


@pytest.mark.parametrize("name", NETS)
def test_what_a_tap_saw_is_not_written_over(name):
    model = cifar(name).eval()
    norms = [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    seen = surgery.Tapped(model, norms)(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)).features
    assert len(seen) == len(norms)
    assert all((t < 0).any() for t in seen.values())


BLOCKS = {  # name -> number of blocks, first, last but one
    "resnet8": (5, "net.stem", "net.layer3"),
    "resnet110": (56, "net.stem", "net.layer3.17"),
    "resnet32x4": (17, "net.stem", "net.layer3.4"),
    "wrn_16_2": (8, "net.stem", "net.layer3.1"),
    "vgg8": (6, "net.stem", "net.layer4"),
    "vgg13": (11, "net.stem.conv1", "net.layer4.conv2"),
    "mobilenetv2": (20, "net.stem", "net.last"),
    "shufflenetv1": (18, "net.stem", "net.layer3.3"),
    "shufflenetv2": (19, "net.stem", "net.last"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_part_the_net(name):
    model = cifar(name)
    parts = surgery.blocks(model)
    assert sorted(n for _, names in parts for n in names) == sorted(n for n, _ in model.named_parameters())
    assert (len(parts), parts[0][0], parts[-2][0]) == BLOCKS[name]
    assert parts[-1] == ("net.head", ["net.head.weight", "net.head.bias"])


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_1", "vgg13", "shufflenetv2"])
def test_the_first_blocks_can_be_kept_and_the_head_replaced(name):
    source, target = stirred(cifar(name)), cifar(name, out_dim=3)
    count = len(surgery.blocks(source))
    surgery.keep_first(source, target, count - 1)
    surgery.replace_head(source, 3).load_state_dict(target.state_dict())
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(source(pictures), target.eval()(pictures))
    assert target(pictures).shape == (2, 3)


@pytest.mark.parametrize("name", NETS)
def test_every_weight_learns_at_the_least_size_and_grey_pictures_will_do(name):
    model = cifar(name, shape=(1, 28, 28), input_size="min")
    assert (model.facts["input_size"], model.heads) == (8, ["net.head"])
    model(torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_any_picture_size_from_eight_pixels_on():
    for shape, size in (((3, 64, 64), 64), ((3, 20, 40), [20, 40]), ((1, 5, 5), 8)):
        model = cifar("resnet8", shape=shape)
        assert model.facts["input_size"] == size
        assert model.eval()(torch.zeros(2, *shape, dtype=torch.uint8)).shape == (2, 100)


@pytest.mark.parametrize("name", ["resnet32x4", "wrn_40_2", "vgg13", "mobilenetv2"])
def test_first_weights_keep_the_variance_of_gradients(name):
    torch.manual_seed(0)
    model = cifar(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            spread = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert float(module.weight.detach().std()) == pytest.approx(
                spread, rel=5 / math.sqrt(module.weight.numel())
            )
            assert module.bias is None or not module.bias.any()
    head = model.net.head
    assert bool(head.bias.any()) == name.startswith("resnet")
    small = pytest.approx(0.01, rel=0.05)
    assert (float(head.weight.detach().std()) == small) == (name in ("vgg13", "mobilenetv2"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "resnet8x"}, "did you mean 'resnet8x4'.*one of: resnet8, resnet20"),
        ({"name": "wrn-40-2"}, "did you mean 'wrn_40_2'"),
        ({"family": "cifer"}, "did you mean 'cifar'"),
        ({"input_sise": 3}, "input_sise is no key of model=cifar; did you mean 'input_size'"),
        ({"pretrained": True}, "no weights of resnet8 to fetch; give model.checkpoint=PATH"),
    ],
)
def test_mistakes_are_named_without_data(change, words):
    with pytest.raises(Refused, match=words):
        models.check({"family": "cifar", "name": "resnet8"} | change)


@pytest.mark.parametrize(
    ("shape", "keys", "words"),
    [
        ((13,), {}, "rows of numbers; use model=mlp"),
        ((5, 32, 32), {}, "5 channels; use model=simple_cnn"),
        ((3, 32, 32), {"input_size": 4}, "input_size=4 is not a size resnet8 can read; 8 is"),
    ],
)
def test_data_that_it_cannot_read(shape, keys, words):
    with pytest.raises(Refused, match=words):
        cifar("resnet8", shape=shape, **keys)


def fields_names(name: str) -> list[str]:
    """The state dict of the field's own nets, in its order; `*` stands for a norm, `+` for a layer with a bias."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    if name == "resnet8x4":
        block = ("conv1", "bn1*", "conv2", "bn2*", "downsample.0", "downsample.1*")
        layers = ["conv1", "bn1*", *(f"layer{i}.0.{n}" for i in (1, 2, 3) for n in block), "fc+"]
    elif name == "wrn_16_1":
        block, wider = ("bn1*", "conv1", "bn2*", "conv2"), ("convShortcut",)
        blocks = [(i, j, n) for i in (1, 2, 3) for j in (0, 1) for n in (*block, *(wider if i > 1 and j == 0 else ()))]
        layers = ["conv1", *(f"block{i}.layer.{j}.{n}" for i, j, n in blocks), "bn1*", "fc+"]
    else:
        layers = [*(f"block{i}.{n}" for i in range(5) for n in ("0+", "1*", "3+", "4*")), "classifier+"]
    kinds = {"*": norm, "+": ("weight", "bias")}
    return [f"{layer.rstrip('*+')}.{n}" for layer in layers for n in kinds.get(layer[-1], ("weight",))]


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_1", "vgg13"])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_weights_from_the_fields_own_code_load(name, wrapper, tmp_path):
    theirs = stirred(cifar(name))
    tensors = dict(zip(fields_names(name), theirs.state_dict().values(), strict=True))
    file = tmp_path / "ckpt_epoch_240.pth"
    saved = {wrapper + k: v for k, v in tensors.items()}
    torch.save({"epoch": 240, "model": saved, "accuracy": torch.tensor(79.42), "optimizer": {"state": {}}}, file)
    model = cifar(name, checkpoint=str(file)).eval()
    assert model.facts["checkpoint"]["summary"] == f"{len(tensors)} of {len(tensors)} matched"
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model(pictures), theirs(pictures))


def test_a_run_is_trained_scored_again_exported_and_started_from(tmp_path, capsys):
    def train(out: str, *more: str) -> Run:
        overrides = (*SMALL, "model=cifar", "model.name=resnet8", "model.input_size=min", "data=digits", *more)
        cfg = config(*overrides)
        build.check(cfg)
        build.train(cfg, tmp_path / out, list(overrides), "sftc train")
        return Run.open(tmp_path / out)

    run = train("run")
    assert run.result["params"] == 83_892 - 65 * 90  # 10 classes instead of 100
    build.evaluate(config(f"run={run.path}", command="eval"))
    table = capsys.readouterr().out.split("\n\n")[1]
    assert all(now == stored for _, now, stored in (line.split() for line in table.splitlines()[1:]))
    build.export(config(f"run={run.path}", f"out={tmp_path / 'file'}", command="export"))
    model = cifar("resnet8", 10, (1, 8, 8), checkpoint=str(tmp_path / "file"))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in run.weights().items())
    assert len(model.loaded) == len(list(model.parameters()))
    again = train("again", f"model.checkpoint={run.path}", "finetune=head", "epochs=1")
    assert torch.equal(again.weights()["net.stem.conv.weight"], run.weights()["net.stem.conv.weight"])


def test_the_recipe_of_the_teachers_is_the_published_one():
    cfg = config("experiment=sft_cifar100", "model.name=resnet32x4")
    assert (cfg["model"]["family"], cfg["data"]["name"]) == ("cifar", "cifar100")
    assert (cfg["epochs"], cfg["batch_size"], cfg["clip"], cfg["ema"]) == (240, 64, None, None)
    assert (cfg["model"]["mean"], cfg["model"]["std"]) == ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761])
    on = {k: v for k, v in cfg["data"]["augment"].items() if v not in (0, "none")}
    assert on == {"crop": 4, "flip": 0.5, "resized_crop": 1.0, "magnitude": 9}
    moves = optim.optimizer(cfg["optim"], [{"params": [nn.Parameter(torch.zeros(1))], "lr": cfg["optim"]["lr"]}])
    assert type(moves) is torch.optim.SGD
    assert [moves.defaults[k] for k in ("lr", "momentum", "weight_decay", "nesterov")] == [0.05, 0.9, 5e-4, False]
    pace = optim.schedule(cfg["schedule"], moves, updates_per_epoch=10, epochs=240)
    rates = []
    for update in range(2400):
        rates.append(moves.param_groups[0]["lr"])
        moves.step()
        pace.step(update + 1)
    assert rates == pytest.approx([0.05] * 1500 + [5e-3] * 300 + [5e-4] * 300 + [5e-5] * 300)
