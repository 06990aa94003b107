"""What members say of rows they did not learn from, and which were chosen on the rows they are judged by."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import BaggingRegressor
from sklearn.metrics import r2_score

from problems import config, plain, told
from sftc import build
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.objective import mix
from sftc.store import Run
from sftc.strategies import heldout

TEAM = ("strategy=ensemble", "strategy.n=3", "strategy.members=bagging", "data.eval_limit=64", "optim.lr=0.01")


@pytest.fixture(scope="module")
def bags(tmp_path_factory) -> Run:
    return told(tmp_path_factory.mktemp("bags") / "run", *TEAM)


def alone(*runs: Run) -> Any:
    """Each as a voice of its own."""
    homes = [Bench(Device("cpu")).open(run.path) for run in runs]
    return [SimpleNamespace(name=h.run.path.name, homes=[h], folds=None) for h in homes]


def test_out_of_bag_is_the_mean_of_those_that_did_not_draw_a_row(bags):
    """Counted again by hand: the draws from the seed, the scores from the weights of the members."""
    lab = Bench(Device("cpu")).open(bags.path)
    split = lab.data.splits["train"]
    rows, target = split.rows, split.target[split.rows]
    total, count = torch.zeros(len(rows), 10), torch.zeros(len(rows))
    for i in range(3):
        drawn = np.random.default_rng(mix(0, 11, i)).multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
        out = torch.from_numpy(drawn == 0)
        home = Bench(Device("cpu")).open(bags.member(f"member{i}"))
        p = home.predict(home.restore(), "train")
        place = {int(r): k for k, r in enumerate(p.row)}
        scores = p.scores[[place[int(r)] for r in rows]]
        said = bags.result["out_of_bag"]["members"][f"member{i}"]
        assert said["rows"] == int(out.sum())
        assert said["accuracy"] == pytest.approx(float((scores.argmax(1) == target)[out].float().mean()))
        total += scores * out[:, None]
        count += out
    there = count > 0
    bag = bags.result["out_of_bag"]["bag"]
    mean = total[there] / count[there, None]
    assert 0 < int(there.sum()) == bag["rows"] < len(rows)
    assert bag["accuracy"] == pytest.approx(float((mean.argmax(1) == target[there]).float().mean()))
    assert bag["nll"] == pytest.approx(float(-mean[torch.arange(len(mean)), target[there]].log().mean()), rel=1e-4)


def test_it_is_printed_and_only_of_bags(tmp_path, bags, capsys):
    overrides = ["data.limit=96", "device.threads=1", "model=mlp", "epochs=3", "patience=1", *TEAM]
    build.train(config(*overrides), tmp_path / "run", overrides, "sftc train")
    said, result = capsys.readouterr().out, Run(tmp_path / "run").result
    assert f"out of bag: accuracy {result['out_of_bag']['bag']['accuracy']:.4f} on the" in said
    assert f"{result['out_of_bag']['members']['member1']['accuracy']:.4f}\n" in said
    assert "out_of_bag" not in told(tmp_path / "seeds", *TEAM, "strategy.members=seeds").result


def test_out_of_bag_of_values_is_what_scikit_learn_counts(tmp_path):
    """BaggingRegressor's own count, over the same draws and members."""
    run = told(tmp_path / "run", *TEAM, "data=diabetes", "optim.lr=0.01")
    lab = Bench(Device("cpu")).open(run.path)
    split = lab.data.splits["train"]
    rows, truth = split.rows, split.target[split.rows, 0].numpy()

    class Member:
        def __init__(self, i: int) -> None:
            home = Bench(Device("cpu")).open(run.member(f"member{i}"))
            self.said = home.predict(home.restore(), "train", rows=rows).scores[:, 0].numpy()

        def predict(self, x: np.ndarray) -> np.ndarray:
            return self.said[x[:, 0]]

    class Bags(BaggingRegressor):
        estimators_ = [Member(i) for i in range(3)]  # noqa: RUF012
        estimators_features_ = [np.array([0])] * 3
        n_features_in_ = 1

        @property
        def estimators_samples_(self) -> list[np.ndarray]:
            draws = (np.random.default_rng(mix(0, 11, i)) for i in range(3))
            return [
                np.repeat(np.arange(len(rows)), d.multinomial(len(rows), [1 / len(rows)] * len(rows))) for d in draws
            ]

    bags = Bags(n_estimators=3)
    place = np.arange(len(rows))[:, None]
    never = [set(range(len(rows))) - set(drawn) for drawn in bags.estimators_samples_]
    there = sorted(set.union(*never))  # scikit-learn takes 0 for a row that all members drew; we leave it out
    assert 0 < len(there) < len(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of those rows
        bags._set_oob_score(place, truth)
    said = run.result["out_of_bag"]["bag"]
    assert said["rows"] == len(there)
    assert said["r2"] == pytest.approx(r2_score(truth[there], bags.oob_prediction_[there]), rel=1e-5)
    assert said["rmse"] == pytest.approx(float(np.sqrt(((truth - bags.oob_prediction_)[there] ** 2).mean())), rel=1e-5)


def test_who_was_chosen_on_the_validation_rows_is_named(tmp_path, capsys):
    few = ("data.eval_limit=64", "optim.lr=0.3", "optim=sgd")  # so fast that it goes up and down
    early = plain(tmp_path / "early", *few, "epochs=30", "patience=1")
    fixed = plain(tmp_path / "fixed", *few, "epochs=1", "seed=1")
    elsewhere = plain(tmp_path / "elsewhere", *few, "epochs=30", "patience=1", "data.split_seed=1", "data.eval_limit=4")
    paths = ",".join(str(r.path) for r in (early, fixed))
    build.fuse(config(f"runs=[{paths}]", command="fuse"), tmp_path / "fused", [], "sftc fuse")
    assert early.result["ended"] == "patience"
    epochs = early.result["last"]["epoch"] + 1
    best = early.result["best"]["epoch"] + 1
    found = Run(tmp_path / "fused").result["chosen_on_validation"]
    assert found == {"early": f"best epoch {best} of {epochs}, ended by patience"}
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("chosen on the rows"))
    assert f"early (best epoch {best} of {epochs}, ended by patience)" in line
    assert "fixed" not in line
    again = tmp_path / "again"
    cfg = config(f"runs=[{tmp_path / 'fused'},{fixed.path}]", "quiet=true", command="fuse")
    build.fuse(cfg, again, [], "sftc fuse")
    assert Run(again).result["chosen_on_validation"] == {"fused": "as its early"}
    val, other = (set(run.rows_of("val").tolist()) for run in (fixed, elsewhere))  # type: ignore[union-attr]
    assert val.isdisjoint(other)
    assert elsewhere.result["ended"] == "patience"
    assert heldout.chosen(alone(fixed, elsewhere)) == {}
    assert list(heldout.chosen(alone(elsewhere, fixed))) == ["elsewhere"]  # the rows of the first are fused on


def test_folds_are_chosen_on_the_rows_that_stacking_is_fitted_on(tmp_path):
    run = told(
        tmp_path / "run",
        *TEAM,
        "strategy.members=folds",
        "fuse@strategy.fuse=auto",
        "optim=sgd",
        "optim.lr=0.3",
        "epochs=12",
    )
    expected = {}
    for k in range(3):
        result = Run(run.member(f"model0-fold{k}")).result
        if result["best"]["epoch"] != result["last"]["epoch"]:
            expected[f"model0-fold{k}"] = f"best epoch {result['best']['epoch'] + 1} of 12"
    assert run.result["chosen_on_validation"] == expected
    assert expected
    # Fused as runs like any other, the validation split is what they are judged by; no fold was chosen on that.
    assert heldout.chosen(alone(*(Run(run.member(f"model0-fold{k}")) for k in range(3)))) == {}
