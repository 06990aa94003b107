"""Rows without a label: the terms against values by hand, which rows they read, and whole runs that are resumed."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from problems import config
from sftc import build, data
from sftc.build.bench import Bench
from sftc.data import Augment
from sftc.device import Device
from sftc.errors import Refused, Stopped
from sftc.lab import semi
from sftc.losses import Agreeing, Climb, Consistent, Pseudo
from sftc.objective import Learner, Objective
from sftc.stop import Stopper
from sftc.store import Run
from sftc.tasks import Classification, Regression
from sftc.types import Batch, Out, View

CPU = torch.device("cpu")
TASK = Classification(["a", "b", "c"])
SURE = torch.tensor([[9.0, 0, 0], [0, 0.5, 0], [0, 0, 9.0], [0, 9.0, 0]])
OTHER = torch.tensor([[1.0, 2, 0], [0, 0, 1], [3.0, 0, 1], [0, 1, 0]])
TARGET = torch.tensor([-1, -1, -1, 1])
SMALL = ("data=digits", "model=mlp", "model.hidden=[16]", "data.unlabeled=0.9", "epochs=2", "data.limit=300")


def view(**more) -> View:
    batch = Batch(torch.zeros(4, 2), TARGET, torch.arange(4))
    return View(batch, Out(SURE.clone().requires_grad_()), (), TASK, 0.5, **more)


def test_pseudo_labels_are_the_students_own_where_it_is_sure():
    seen = view()
    values = Pseudo(threshold=0.95)(seen)
    expected = F.cross_entropy(SURE, torch.tensor([0, 1, 2, 1]), reduction="none")
    assert torch.allclose(values, expected * torch.tensor([1.0, 0, 1, 1]))
    values.sum().backward()
    gradient = seen.student.logits.grad
    assert torch.allclose(gradient[0], SURE[0].softmax(0) - torch.tensor([1.0, 0, 0]))
    assert not gradient[1].any()


def test_fixmatch_teaches_the_second_view_what_the_first_is_sure_of():
    second = OTHER.clone().requires_grad_()
    seen = view(second=Out(second))
    values = Agreeing(threshold=0.95)(seen)
    expected = F.cross_entropy(OTHER, torch.tensor([0, 1, 2, 1]), reduction="none") * torch.tensor([1.0, 0, 1, 1])
    assert torch.allclose(values, expected)
    values.sum().backward()
    assert seen.student.logits.grad is None  # no gradient reaches the answer that is the label
    assert torch.allclose(second.grad[0], OTHER[0].softmax(0) - torch.tensor([1.0, 0, 0]))


def test_consistency_is_the_squared_distance_of_probabilities():
    values = Consistent()(view(average=Out(OTHER)))
    assert torch.allclose(values, ((SURE.softmax(1) - OTHER.softmax(1)) ** 2).sum(1))


def test_consistency_of_values_is_their_squared_distance_in_standard_units():
    task = Regression(["a", "b", "c"], mean=torch.full((3,), 50.0), std=torch.full((3,), 10.0))
    seen = View(Batch(torch.zeros(4, 2), TARGET, torch.arange(4)), Out(SURE), (), task, 0.5, average=Out(OTHER))
    assert torch.allclose(Consistent()(seen), ((SURE - OTHER) ** 2).sum(1) / 3)


def test_a_weight_climbs_as_in_the_paper():
    climb = Climb(2.0, 0.4)
    assert climb(0.0) == pytest.approx(2 * math.exp(-5))
    assert climb(0.2) == pytest.approx(2 * math.exp(-5 / 4))
    assert climb(0.4) == climb(1.0) == 2.0
    assert Climb(1.0, 0.0)(0.0) == 1.0


def objective(term, model) -> Objective:
    device = Device("cpu", threads=1)
    learner = Learner(model, TASK, terms={"term": term})
    made = Objective([learner], device)
    made.averages = {"student": torch.nn.Linear(2, 3)}
    return made


def mean(made: Objective, batch: Batch) -> float:
    made.prepare([batch])
    made.train()
    return made([batch], made.totals([batch])).loss.item()


def test_only_rows_without_a_label_count_and_each_the_same():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 3)
    batch = Batch(torch.randn(4, 2), TARGET, torch.arange(4))
    logits = model(batch.inputs)
    own = F.cross_entropy(logits, logits.argmax(1), reduction="none")
    assert mean(objective(Pseudo(threshold=0.0), model), batch) == pytest.approx(own[:3].mean().item())
    labelled = Batch(batch.inputs, torch.zeros(4).long(), batch.index)
    assert mean(objective(Pseudo(threshold=0.0), model), labelled) == 0


def test_both_views_go_through_the_model_together_and_the_average_sees_the_second():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 3)
    extra = {"second": torch.randn(4, 2)}
    batch = Batch(torch.randn(4, 2), TARGET, torch.arange(4), extra=extra)
    label = model(batch.inputs).argmax(1)
    expected = F.cross_entropy(model(extra["second"]), label, reduction="none")[:3].mean()
    assert mean(objective(Agreeing(threshold=0.0), model), batch) == pytest.approx(expected.item())
    made = objective(Consistent(), model)
    average = made.averages["student"](extra["second"]).softmax(1)
    expected = ((model(batch.inputs).softmax(1) - average) ** 2).sum(1).mean()
    assert mean(made, batch) == pytest.approx(expected.item(), rel=1e-5)


FAKE = {"name": "fake", "count": 300, "size": 12, "val_share": 0.2, "augment": {"flip": 0.5, "crop": 2}}


def batches(second, start: int = 0, **more):
    source = data.build(FAKE | more).source("train", 16, train=True, seed=0, device=CPU, second=second)
    return list(source.epoch(1, start))


def test_the_second_view_is_another_picture_of_the_row_and_changes_nothing_else():
    plain = batches(None)
    seconds = batches(Augment(flip=0.5, crop=2))
    assert all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.index, b.index) for a, b in zip(plain, seconds, strict=True)
    )
    differing = [not torch.equal(x, y) for b in seconds for x, y in zip(b.inputs, b.extra["second"], strict=True)]
    assert sum(differing) > 0.9 * len(differing)
    again = batches(Augment(flip=0.5, crop=2), start=3, cache="none", workers=2)
    assert all(torch.equal(a.extra["second"], b.extra["second"]) for a, b in zip(seconds[3:], again, strict=True))
    assert not any(b.extra for b in plain)


def test_labelled_rows_are_repeated_up_to_their_share():
    values = data.build({"name": "diabetes", "unlabeled": 0.9})
    goal = values.splits["train"].target
    drawn = semi.rows({"name": "mean_teacher", "labelled_share": 0.25}, values, None)
    assert float((~goal[drawn, 0].isnan()).double().mean()) == pytest.approx(0.25, abs=0.002)
    known = data.build({"name": "digits", "unlabeled": 0.9})
    node = {"name": "pseudo", "labelled_share": 0.25}
    train = known.splits["train"]
    labelled = train.target[train.rows] >= 0
    drawn = semi.rows(node, known, None)
    share = (train.target[drawn] >= 0).double().mean()
    assert float(share) == pytest.approx(0.25, abs=0.001)
    assert set(drawn.tolist()) == set(train.rows.tolist())
    counts = torch.bincount(drawn)[train.rows[labelled]]
    assert counts.max() - counts.min() <= 1
    assert semi.rows({"name": "none"}, known, None) is None
    assert semi.rows(node | {"labelled_share": None}, known, train.rows) is train.rows
    assert semi.rows(node | {"labelled_share": 0.05}, known, None) is None  # there are more of them already


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("data.unlabeled=null", "semi=pseudo"), "set data.unlabeled"),
        (("data=diabetes", "semi=pseudo"), "semi=pseudo is for classes.*use semi=mean_teacher"),
        (("data=diabetes", "data.unlabeled=null", "semi=mean_teacher"), "set data.unlabeled"),
        (("data.augment.mixup=0.4", "semi=fixmatch"), "unmixed pictures"),
        (("semi.labelled_share=1.0", "semi=fixmatch"), "labelled_share"),
        (("semi=fixmach",), "fixmatch"),
    ],
)
def test_what_makes_no_sense_is_refused_before_there_is_a_folder(tmp_path, overrides, said):
    with pytest.raises(Refused, match=said):
        build.train(config(*SMALL, "quiet=true", *overrides), tmp_path / "run", [], "sftc train")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["pseudo", "fixmatch", "mean_teacher"])
def test_a_run_that_is_stopped_goes_on_to_the_same_weights(tmp_path, method):
    overrides = (*SMALL, "quiet=true", f"semi={method}", "data.augment.crop=1", "micro_batch_size=24")
    cfg = config(*overrides)

    def start(out, stop=None) -> Run:
        lab = Bench(Device("cpu", threads=1), stop=stop).start(cfg, out, "sftc train", [])
        (fitted,) = lab.fit(lab.model())
        lab.keep(fitted)
        return lab.run

    class After(Stopper):
        """Stops at the seventh question."""

        asked = 0

        def __call__(self):
            self.asked += 1
            return Stopped("enough", 143, "stopped") if self.asked == 7 else None

    whole = start(tmp_path / "whole")
    with pytest.raises(Stopped):
        start(tmp_path / "cut", After())
    again = Bench(Device("cpu", threads=1)).resume(Run.open(tmp_path / "cut"))
    (fitted,) = again.fit(again.model())
    again.keep(fitted)
    for name in ("model", "last"):
        a, b = whole.weights(name), again.run.weights(name)
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert f"train/{method}" in whole.rows()[0]


def test_unlabelled_rows_help_where_labels_are_few(tmp_path):
    """100 labels of digits: the mean over three seeds is better with what the other rows say."""

    def accuracy(name: str, seed: int) -> float:
        out = tmp_path / f"{name}{seed}"
        more = ("data.limit=null", "epochs=8", f"semi={name}", f"seed={seed}", f"data.split_seed={seed}")
        build.train(config(*SMALL, *more, "data.unlabeled=0.97", "quiet=true"), out, [], "sftc train")
        return Run.open(out).result["test"]["accuracy"]

    plain, helped = (sum(accuracy(name, seed) for seed in range(3)) / 3 for name in ("none", "mean_teacher"))
    assert helped > plain + 0.02
