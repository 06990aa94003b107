"""Our own small nets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftc import models
from sftc.errors import Refused

MLP = {"family": "mlp", "name": "mlp", "hidden": [128, 64]}
CNN = {"family": "simple_cnn", "name": "simple_cnn"}


class Tutorial(nn.Module):
    """The net of PyTorch's "Training a classifier", as written there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def test_simple_cnn_at_32_pixels_is_the_tutorials():
    ours, theirs = models.build(CNN, out_dim=10, form=(3, 32, 32)), Tutorial()
    weights = list(theirs.parameters())
    assert [p.shape for p in ours.parameters()] == [p.shape for p in weights]
    with torch.no_grad():
        for mine, given in zip(ours.parameters(), weights, strict=True):
            mine.copy_(given)
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(ours(pictures), theirs(pictures / 127.5 - 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "features"), [(8, 64), (28, 400), (32, 400), (64, 400), (100, 400)])
def test_simple_cnn_reads_any_size(side, features):
    model = models.build(CNN, out_dim=10, form=(1, side, side))
    assert model(torch.zeros(2, 1, side, side, dtype=torch.uint8)).shape == (2, 10)
    assert model.net.fc1[0].in_features == features


def test_simple_cnn_keeps_a_picture_that_is_not_square():
    model = models.build(CNN, out_dim=2, form=(3, 20, 40))
    assert model.facts["input_size"] == [20, 40]
    assert model(torch.zeros(2, 3, 20, 40, dtype=torch.uint8)).shape == (2, 2)


def test_many_convolutions_do_not_run_out_of_picture():
    spec = CNN | {"channels": [4, 4, 4, 4, 4], "batch_norm": True}
    assert models.build(spec, out_dim=3, form=(1, 8, 8)).eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_mlp_is_784_128_64_10():
    model = models.build(MLP, out_dim=10, form=(1, 28, 28))
    assert [tuple(p.shape) for p in model.parameters() if p.ndim == 2] == [(128, 784), (64, 128), (10, 64)]
    assert model.facts["params"] == 784 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10


def test_mlp_reads_tables_as_they_are():
    model = models.build(MLP, out_dim=1, form=(13,))
    table = torch.randn(5, 13)
    assert model(table).shape == (5, 1)
    assert torch.equal(model(table), model.net(table))


def test_dropout_and_batch_norm_are_there_when_asked_for():
    model = models.build(MLP | {"dropout": 0.3, "batch_norm": True}, out_dim=2, form=(4,))
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(nn.BatchNorm1d) == 2
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3]


@pytest.mark.parametrize("spec", [MLP, CNN, {"family": "linear", "name": "linear"}])
def test_log_softmax_makes_nll_the_cross_entropy(spec):
    pictures, target = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), torch.arange(6) % 3
    plain = models.build(spec, out_dim=3, form=(1, 8, 8))
    ending = models.build(spec | {"log_softmax": True}, out_dim=3, form=(1, 8, 8))
    ending.load_state_dict(plain.state_dict())
    torch.testing.assert_close(F.nll_loss(ending(pictures), target), F.cross_entropy(plain(pictures), target))


def test_the_least_input_is_eight_pixels():
    model = models.build(MLP | {"input_size": "min"}, out_dim=2, form=(1, 28, 28))
    assert model.facts["input_size"] == 8
    assert model(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": "128"}, "list of widths"),
        ({"hidden": [0]}, "list of widths"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"hiden": [3]}, "did you mean 'hidden'"),
        ({"pretrained": True}, "model.checkpoint=PATH"),
        ({"input_size": "large"}, "input_size=large"),
        ({"std": [0.0]}, "above zero"),
        ({"mean": "grey"}, "mean=grey"),
        ({"family": "mpl"}, "did you mean 'mlp'"),
        ({"checkpoint": "/nowhere.safetensors"}, "no file"),
    ],
)
def test_mistakes_are_named_without_data(change, words):
    with pytest.raises(Refused, match=words) as refused:
        models.check(MLP | change)
    assert "\n" not in str(refused.value)


def test_a_cnn_reads_no_table():
    with pytest.raises(Refused, match="model=mlp"):
        models.build(CNN, out_dim=2, form=(5,))
