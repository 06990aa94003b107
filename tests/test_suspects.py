"""Likely wrong labels: the rule by hand, on noise that was put in, and in a run of folds."""

from __future__ import annotations

import csv

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from problems import config
from sftc import build
from sftc.fusion.suspects import suspects
from sftc.store import Run


def test_a_row_is_suspected_where_another_class_is_believed():
    scores = torch.tensor(
        [
            [0.9, 0.1, 0.0],
            [0.7, 0.3, 0.0],  # class 0 is believed from 0.8 on
            [0.3, 0.7, 0.0],  # labelled 0; class 1 is believed from 0.6 on
            [0.2, 0.8, 0.0],
            [0.5, 0.4, 0.1],  # labelled 1, more probably 0, but not believed to be
            [0.0, 0.0, 1.0],  # no row is labelled 2
            [0.1, 0.9, 0.0],  # no label at all
        ]
    )
    target = torch.tensor([0, 0, 0, 1, 1, 1, -1])
    scores[0, 0] = 1.4  # the mean of class 0 is then (1.4 + 0.7 + 0.3) / 3 = 0.8
    scores[3, 1], scores[4, 1], scores[5, 1] = 0.8, 0.4, 0.6
    found = suspects(scores, target)
    assert found.row.tolist() == [2]
    assert found.label.tolist() == [0]
    assert found.likely.tolist() == [1]
    assert found.given.tolist() == pytest.approx([0.3])
    assert found.other.tolist() == pytest.approx([0.7])


def test_the_least_believed_comes_first():
    scores = torch.tensor([[0.1, 0.9], [0.01, 0.99], [0.8, 0.2], [0.3, 0.7], [0.9, 0.1], [0.95, 0.05]])
    target = torch.tensor([0, 0, 0, 1, 0, 0])
    assert suspects(scores, target).row.tolist() == [1, 0]


def test_labels_that_were_made_wrong_are_found():
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(4, (2000,), generator=generator)
    logits = 3 * torch.nn.functional.one_hot(true, 4) + torch.randn(2000, 4, generator=generator)
    noisy = torch.rand(2000, generator=generator) < 0.1
    target = torch.where(noisy, (true + 1) % 4, true)
    found = suspects(logits.softmax(1), target)
    hit = noisy[found.row].double()
    assert float(hit.mean()) > 0.75
    assert float(hit.sum() / noisy.sum()) > 0.7
    assert bool(hit[:50].all())


def test_an_ensemble_of_folds_names_the_pictures(tmp_path, capfd):
    """Some ones lie in the folder of zeros."""
    digits = load_digits()
    for name, number in (("zero", 0), ("one", 1)):
        for i, pixels in enumerate(digits.images[digits.target == number][:60]):
            wrong = name == "one" and i % 5 == 0
            file = tmp_path / "data" / ("zero" if wrong else name) / f"{name}-{i:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).save(file)
    own = ("data=image_folder", f"data.root={tmp_path / 'data'}", "data.size=8", "model=mlp", "epochs=25")
    team = ("strategy=ensemble", "strategy.members=folds", "strategy.n=4", "optim.lr=0.01")
    build.train(config(*own, *team, "device=cpu", "device.threads=1"), tmp_path / "run", [], "sftc train")
    said = capfd.readouterr().out
    run = Run.open(tmp_path / "run")
    with open(run.path / "suspects.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    moved = [r for r in rows if "one-" in r["what"] and r["label"] == "zero"]
    assert rows[0].keys() == {"row", "what", "label", "likely", "p_label", "p_likely"}
    assert len(moved) >= 4  # of twelve, less those that validation and test hold
    assert rows[: len(moved)] == moved
    assert all(r["likely"] == "one" and float(r["p_likely"]) > float(r["p_label"]) for r in moved)
    assert f"{len(rows)} of" in said
    assert "suspects.csv" in said
    assert "suspects.csv" in (run.path / "README.md").read_text()
    assert run.finished
