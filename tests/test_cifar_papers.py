"""The nets of the distillation field have the published sizes, and the arithmetic of the papers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from problems import cifar, stirred
from sftc.build.parts import multiply_adds
from sftc.cli.conf import conf_dir
from sftc.models.cifar import NETS
from sftc.types import Form

# As printed by the field's code for 100 classes, in weights; its papers print millions.
PUBLISHED = {
    "resnet8": 83_892,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
X1, X4 = (16, 16, 32, 64), (32, 64, 128, 256)


def resnet_size(n: int, a: int, b: int, c: int, d: int) -> int:
    """n blocks a stage: 3 x 3 convolutions and 1 x 1 shortcuts without bias, two numbers a map for norms."""
    stages = sum(9 * (i * o + (2 * n - 1) * o * o) + 2 * n * 2 * o for i, o in ((a, b), (b, c), (c, d)))
    shortcuts = sum(i * o + 2 * o for i, o in ((a, b), (b, c), (c, d)) if i != o)
    return 27 * a + 2 * a + stages + shortcuts + (d + 1) * 100


def wrn_size(n: int, k: int) -> int:
    """Norms stand before convolutions: of the input's maps in the first of a stage; shortcuts have none."""
    pairs = ((16, 16 * k), (16 * k, 32 * k), (32 * k, 64 * k))
    stages = sum(9 * (i * o + (2 * n - 1) * o * o) + 2 * i + (2 * n - 1) * 2 * o for i, o in pairs)
    return 27 * 16 + stages + sum(i * o for i, o in pairs if i != o) + 2 * 64 * k + (64 * k + 1) * 100


def vgg_size(widths: list[int]) -> int:
    """Convolutions with a bias: three numbers a map with its norm."""
    return sum(9 * i * o + 3 * o for i, o in zip([3, *widths], widths, strict=False)) + (512 + 1) * 100


def mobilenetv2_size() -> int:
    """i -> t*i (1 x 1), t*i (3 x 3 each map alone), t*i -> o (1 x 1), each with a norm."""
    plan = [(1, 8, 1), (6, 12, 2), (6, 16, 3), (6, 32, 4), (6, 48, 3), (6, 80, 3), (6, 160, 1)]
    total, i = 27 * 16 + 2 * 16, 16
    for t, o, n in plan:
        for _ in range(n):
            total += i * t * i + 2 * t * i + 9 * t * i + 2 * t * i + t * i * o + 2 * o
            i = o
    return total + 160 * 1280 + 2 * 1280 + 1281 * 100


def shufflenetv1_size() -> int:
    """A quarter of the maps inside, 1 x 1 convolutions in three groups; the first of a stage gives only what is new."""
    total = 3 * 24 + 2 * 24
    for i, o, n in ((24, 240, 4), (240, 480, 8), (480, 960, 4)):
        for block in range(n):
            seen, new = (i, o - i) if block == 0 else (o, o)
            inner = new // 4
            total += seen * inner // (1 if seen == 24 else 3) + 9 * inner + inner * new // 3 + 2 * (2 * inner + new)
    return total + 961 * 100


def shufflenetv2_size() -> int:
    total = 3 * 24 + 2 * 24
    for i, o, n in ((24, 116, 3), (116, 232, 7), (232, 464, 3)):
        h = o // 2
        left, right = 9 * i + 2 * i + i * h + 2 * h, i * h + 9 * h + h * h + 3 * 2 * h
        total += left + right + n * (h * h + 9 * h + h * h + 3 * 2 * h)
    return total + 464 * 1024 + 2 * 1024 + 1025 * 100


BY_HAND = {
    **{f"resnet{6 * n + 2}": resnet_size(n, *X1) for n in (1, 3, 5, 7, 9, 18)},
    **{f"resnet{6 * n + 2}x4": resnet_size(n, *X4) for n in (1, 5)},
    **{f"wrn_{6 * n + 4}_{k}": wrn_size(n, k) for n in (2, 6) for k in (1, 2)},
    "vgg8": vgg_size([64, 128, 256, 512, 512]),
    "vgg13": vgg_size([64, 64, 128, 128, 256, 256, 512, 512, 512, 512]),
    "mobilenetv2": mobilenetv2_size(),
    "shufflenetv1": shufflenetv1_size(),
    "shufflenetv2": shufflenetv2_size(),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_the_published_one(name):
    assert cifar(name).facts["params"] == PUBLISHED[name] == BY_HAND[name]


def test_no_net_is_missing_and_the_yaml_names_them_all():
    words = (conf_dir() / "model" / "cifar.yaml").read_text().partition("# one of ")[2].partition(":")[0].split(", ")
    assert list(NETS) == words
    assert set(NETS) == PUBLISHED.keys() == BY_HAND.keys()


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 40.82), ("resnet56", 125.75), ("wrn_40_2", 327.61), ("resnet32x4", 1083.04)]
)
def test_multiply_adds_of_a_picture(name, millions):
    assert multiply_adds(cifar(name), Form((3, 32, 32))) / 1e6 == pytest.approx(millions, abs=0.01)


class Tape:
    """A model's layers in the order they were made, laid to whatever the papers' formulas ask for next."""

    def __init__(self, model: nn.Module) -> None:
        self.layers: Iterator[nn.Module] = (m for m in model.modules() if not any(True for _ in m.children()))

    def next(self, kind: type[nn.Module]) -> dict[str, Tensor]:
        layer = next(m for m in self.layers if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear))
        assert type(layer) is kind
        return layer.state_dict()

    def conv(self, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        w = self.next(nn.Conv2d)
        return F.conv2d(x, w["weight"], w.get("bias"), stride, w["weight"].shape[-1] // 2, groups=groups)

    def norm(self, x: Tensor) -> Tensor:
        w = {k: v.view(-1, 1, 1) for k, v in self.next(nn.BatchNorm2d).items() if v.ndim}
        return (x - w["running_mean"]) / (w["running_var"] + 1e-5).sqrt() * w["weight"] + w["bias"]

    def cn(self, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        return self.norm(self.conv(x, stride, groups))

    def dense(self, x: Tensor) -> Tensor:
        w = self.next(nn.Linear)
        return x.mean((2, 3)) @ w["weight"].T + w["bias"]


def strides(blocks: list[int], first: list[int]) -> Iterator[int]:
    for count, stride in zip(blocks, first, strict=True):
        yield from [stride] + [1] * (count - 1)


def run_resnet(tape: Tape, x: Tensor, n: int) -> Tensor:
    x = tape.cn(x).relu()
    for stride in strides([n] * 3, [1, 2, 2]):
        out = tape.cn(tape.cn(x, stride).relu())
        x = (out + (x if out.shape == x.shape else tape.cn(x, stride))).relu()
    return tape.dense(x)


def run_wrn(tape: Tape, x: Tensor, n: int) -> Tensor:
    x = tape.conv(x)
    for stride in strides([n] * 3, [1, 2, 2]):
        ready = tape.norm(x).relu()
        out = tape.conv(tape.norm(tape.conv(ready, stride)).relu())
        x = out + (x if out.shape == x.shape else tape.conv(ready, stride))
    return tape.dense(tape.norm(x).relu())


def run_vgg(tape: Tape, x: Tensor, n: int) -> Tensor:
    for stage in range(5):
        for _ in range(n):
            x = tape.cn(x).relu()
        x = F.max_pool2d(x, 2) if stage < 3 else x
    return tape.dense(x)


def run_mobilenetv2(tape: Tape, x: Tensor, _n: int) -> Tensor:
    x = tape.cn(x, 2).relu()
    for stride in strides([1, 2, 3, 4, 3, 3, 1], [1, 1, 2, 2, 1, 2, 1]):
        wide = tape.cn(x).relu()
        out = tape.cn(tape.cn(wide, stride, wide.shape[1]).relu())
        x = out + x if out.shape == x.shape else out
    return tape.dense(tape.cn(x).relu())


def dealt(x: Tensor, groups: int) -> Tensor:
    """Map j of the answer is map j // g of group j % g."""
    per = x.shape[1] // groups
    return x[:, [(j % groups) * per + j // groups for j in range(x.shape[1])]]


def run_shufflenetv1(tape: Tape, x: Tensor, _n: int) -> Tensor:
    x = tape.cn(x).relu()
    for stride in strides([4, 8, 4], [2, 2, 2]):
        groups = 1 if x.shape[1] == 24 else 3
        out = dealt(tape.cn(x, groups=groups).relu(), groups)
        out = tape.cn(tape.cn(out, stride, out.shape[1]).relu(), groups=3)
        x = (torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1) if stride == 2 else out + x).relu()
    return tape.dense(x)


def run_shufflenetv2(tape: Tape, x: Tensor, _n: int) -> Tensor:
    x = tape.cn(x).relu()
    for stride in strides([4, 8, 4], [2, 2, 2]):
        half = x.shape[1] // 2
        left = tape.cn(tape.cn(x, 2, x.shape[1])).relu() if stride == 2 else x[:, :half]
        right = tape.cn(x if stride == 2 else x[:, half:]).relu()
        right = tape.cn(tape.cn(right, stride, right.shape[1])).relu()
        x = dealt(torch.cat([left, right], 1), 2)
    return tape.dense(tape.cn(x).relu())


@pytest.mark.parametrize(
    ("name", "formula", "n"),
    [
        ("resnet8x4", run_resnet, 1),
        ("resnet20", run_resnet, 3),
        ("wrn_16_1", run_wrn, 2),
        ("wrn_16_2", run_wrn, 2),
        ("vgg8", run_vgg, 1),
        ("vgg13", run_vgg, 2),
        ("mobilenetv2", run_mobilenetv2, 0),
        ("shufflenetv1", run_shufflenetv1, 0),
        ("shufflenetv2", run_shufflenetv2, 0),
    ],
)
@torch.no_grad()
def test_the_arithmetic_is_the_papers(name: str, formula: Callable[[Tape, Tensor, int], Tensor], n: int):
    model = stirred(cifar(name, out_dim=7))
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    tape = Tape(model)
    right = formula(tape, pictures / 127.5 - 1, n)
    assert not any(isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear) for m in tape.layers)
    assert right.std() > 1e-3
    torch.testing.assert_close(model(pictures), right, atol=1e-4 * float(right.abs().max()), rtol=0)
