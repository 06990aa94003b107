"""strategy=leader on the architectures of timm and torchvision: small pictures, random weights, no network."""

from __future__ import annotations

import pytest
import torch

from problems import config
from sftc import build
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused
from sftc.models.surgery import blocks
from sftc.store import Run

# family, name, a path in the middle, what an mlp reads there (or of the last block), whether it ends in a map
NETS = [
    ("timm", "test_resnet", "net.layer2", "net.layer3", True),
    ("timm", "test_vit", "net.blocks.2", "net.blocks.4", False),
    ("timm", "convnext_atto", "net.stages.1", "net.stages.2", True),
    ("timm", "mobilenetv3_small_050", "net.blocks.1", "net.blocks.3", True),
    ("torchvision", "mobilenet_v3_small", "net.features.4", "net.features.9", True),
]
HEAVY = [
    ("timm", "resnet18", "net.layer2", "net.layer3", True),
    ("timm", "vgg11", "net.features.6", "net.features.11", True),
    ("timm", "vit_tiny_patch16_224", "net.blocks.5", "net.blocks.8", False),
    ("torchvision", "resnet18", "net.layer2", "net.layer3", True),
    ("torchvision", "vgg11_bn", "net.features.4", "net.features.11", True),
    ("torchvision", "vit_b_32", "net.encoder.layers.encoder_layer_3", "net.encoder.layers.encoder_layer_6", False),
    ("torchvision", "convnext_tiny", "net.features.3", "net.features.5", True),
    ("torchvision", "mobilenet_v2", "net.features.4", "net.features.9", False),
]
QUICK = ("test_resnet", "test_vit")
PLACES = [
    pytest.param(*n, marks=() if n[1] in QUICK else pytest.mark.slow, id="-".join(n[:2])) for n in (*NETS, *HEAVY)
]


def led(out, family, name, *overrides) -> Run:
    """Two steps of each member on few noisy pictures."""
    few = ("data=fake", "data.size=32", "data.count=40", "data.outputs=4", "batch_size=16", "epochs=1", "max_steps=2")
    net = (f"model={family}", f"model.name={name}", "model.pretrained=false", "strategy.source={outputs:3,seed:5}")
    more = (
        "strategy=leader",
        "strategy.baseline=false",
        "quiet=true",
        "device=cpu",
        "device.threads=1",
        "data.workers=0",
    )
    cfg = config(*few, *net, *more, *overrides)
    build.check(cfg)
    build.train(cfg | {"out": str(out)}, out, [], "sftc train")
    return Run.open(out)


@pytest.mark.parametrize("keep_lr", [0, 1])
@pytest.mark.parametrize(("family", "name", "keep", "tap", "maps"), PLACES)
def test_the_first_blocks_are_kept_the_rest_is_new_and_followers_read_a_layer(
    keep_lr, family, name, keep, tap, maps, tmp_path
):
    head = "conv" if maps and keep_lr else "mlp"
    wire = f"strategy.followers=[{{tap:{tap},hidden:[6]}},{{tap:logits}}]"
    keys = (f"strategy.keep={keep}", f"strategy.keep_lr={keep_lr}", f"strategy.head={head}", wire, "optim.lr=1e-4")
    run = led(tmp_path / "run", family, name, *keys)
    leader, source = Run.open(run.member("leader")), Run.open(run.reference("source"))
    home = Bench(Device("cpu")).open(leader.path)
    parts, n = blocks(home.restore()), leader.config["finetune"]["n"]
    assert parts[n - 1][0].startswith(keep) or any(p.startswith(f"{keep}.") for p in parts[n - 1][1])
    assert not any(p.startswith(f"{keep}.") for _, names in parts[n:] for p in names)
    old, now, start = source.weights(), leader.weights("last"), home.model().state_dict()
    kept = [p for _, names in parts[:n] for p in names]
    assert all(torch.equal(now[p], old[p]) for p in kept) == (keep_lr == 0)
    # Two steps of AdamW move a weight by no more than about twice the rate: they began where the source ended.
    assert max((now[p] - old[p]).abs().max() for p in kept) < 1e-3
    fresh = max((p for _, names in parts[n:-1] for p in names), key=lambda p: now[p].numel())
    assert not torch.allclose(now[fresh], old[fresh], atol=1e-3)
    torch.testing.assert_close(now[fresh], start[fresh], atol=1e-3, rtol=0)  # as its own seed grew them
    if keep_lr == 0:  # what stands still keeps its running statistics, too
        still = [k for k in old if "running_mean" in k and k.rpartition(".")[0] + ".weight" in kept]
        assert all(torch.equal(now[k], old[k]) for k in still)
    for member in ("leader", "follower0", "follower1"):
        opened = Bench(Device("cpu")).open(run.member(member))
        told = Run.open(run.member(member)).predictions("val")[0].scores
        torch.testing.assert_close(opened.predict(opened.restore(), "val").scores, told)
    assert Run.open(run.member("follower0")).weights()["net.fc1.0.weight"].shape[0] == 6


@pytest.mark.parametrize(
    ("family", "name"), [("timm", "test_resnet"), pytest.param("torchvision", "resnet18", marks=pytest.mark.slow)]
)
def test_a_small_cnn_follows_on_a_map(family, name, tmp_path):
    wire = "strategy.followers=[{model:simple_cnn,tap:net.layer1,channels:[4],hidden:[6]}]"
    run = led(tmp_path / "run", family, name, "strategy.keep=1", wire)
    maps = {"test_resnet": 32, "resnet18": 64}[name]
    assert Run.open(run.member("follower0")).weights()["net.conv1.0.weight"].shape == (4, maps, 5, 5)


@pytest.mark.parametrize(
    ("family", "name", "tap"), [("timm", "test_vit", "net.blocks.2"), ("timm", "test_resnet", "net.global_pool")]
)
def test_a_small_cnn_on_what_is_no_map_is_refused_in_one_line(family, name, tap, tmp_path):
    wire = f"strategy.followers=[{{model:simple_cnn,tap:{tap}}}]"
    with pytest.raises(Refused, match=r"reads maps of shape \[C, H, W\].*use model=mlp") as e:
        led(tmp_path / "run", family, name, "strategy.keep=1", wire)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keep", ["99", "net.layer7", "net.fc"])
def test_a_block_that_is_not_there_is_refused_in_one_line(keep, tmp_path):
    with pytest.raises(Refused, match=r"1\.\.5|blocks: net\.conv1") as e:
        led(tmp_path / "run", "timm", "test_resnet", f"strategy.keep={keep}")
    assert "\n" not in str(e.value)
