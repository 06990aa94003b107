"""Data without a download: what they hold, and that fake data can be learnt."""

from __future__ import annotations

import pytest
import torch

from sftc import data
from sftc.errors import Refused


def arrays(spec: dict, split: str = "train"):
    s = data.build(spec).splits[split]
    return s.table.read(s.rows), s.target[s.rows]


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    table = data.build({"name": "digits"}).splits["train"].table
    pixels = table.read(torch.arange(1797))
    assert pixels.dtype == torch.uint8
    assert pixels.max() == 255
    back = (pixels.double() * 16 / 255).round().view(1797, 64)
    assert torch.equal(back, torch.from_numpy(load_digits().data))
    assert torch.equal(table.target, torch.from_numpy(load_digits().target).long())


def test_diabetes_is_scikit_learns():
    from sklearn.datasets import load_diabetes

    d = data.build({"name": "diabetes"})
    assert (d.kind, d.shape, d.out_dim, d.class_names) == ("values", (10,), 1, ["progression"])
    table = d.splits["train"].table
    torch.testing.assert_close(table.target[:, 0], torch.from_numpy(load_diabetes().target).float())


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_fake_is_deterministic_and_learnable(kind: str):
    spec = {"name": "fake", "kind": kind, "outputs": 3, "channels": 1, "size": 8}
    x, y = arrays(spec)
    again, _ = arrays(spec)
    other, _ = arrays(spec | {"seed": 1})
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    assert x.shape[1:] == (1, 8, 8)
    # Least squares on the pixels explains held-out rows.
    design = torch.cat((x.flatten(1).double() / 255, torch.ones(len(x), 1)), 1)
    goal = torch.nn.functional.one_hot(y).double() if kind == "classes" else y.double()
    weights = torch.linalg.lstsq(design, goal).solution
    vx, vy = arrays(spec, "test")
    guess = torch.cat((vx.flatten(1).double() / 255, torch.ones(len(vx), 1)), 1) @ weights
    if kind == "classes":
        assert (guess.argmax(1) == vy).double().mean() > 0.8
    elif kind == "labels":
        assert ((guess > 0.5) == (vy > 0.5)).double().mean() > 0.85
    else:
        assert 1 - ((guess - vy) ** 2).sum() / ((vy - vy.mean(0)) ** 2).sum() > 0.8


def test_fake_labels_are_several_per_row():
    _, y = arrays({"name": "fake", "kind": "labels"})
    assert y.dtype == torch.float32
    assert set(y.unique().tolist()) == {0, 1}
    assert {0.0, 1.0, 2.0} <= set(y.sum(1).tolist())
    names = data.build({"name": "fake", "kind": "labels"}).class_names
    assert names == ["label0", "label1", "label2", "label3"]


def test_fake_needs_two_classes():
    with pytest.raises(Refused, match="classes need at least 2"):
        data.build({"name": "fake", "outputs": 1})
    with pytest.raises(Refused, match="did you mean 'labels'"):
        data.build({"name": "fake", "kind": "label"})
