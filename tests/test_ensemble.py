"""`strategy=ensemble`: every way to make members, told again from where it was stopped, and in lockstep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from problems import After, config, lab, told, untimed
from sftc import build
from sftc.build import parts
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused, Stopped
from sftc.lab import Lab
from sftc.store import Run

TEAM = ("strategy=ensemble", "strategy.n=3", "data.eval_limit=64", "optim.lr=0.01")
BEST = "fuse@strategy.fuse=auto"
WAYS = {
    "seeds": (),
    "models": ("strategy.members=models", "strategy.models=[mlp,linear]"),
    "bagging": ("strategy.members=bagging",),
    "boosting": ("strategy.members=boosting", BEST),
    "boosting of values": ("strategy.members=boosting", BEST, "data=diabetes"),
    "snapshot": ("strategy.members=snapshot", "epochs=6"),
    "folds": ("strategy.members=folds", BEST),
    "folds of two": ("strategy.members=folds", "strategy.models=[mlp,linear]", BEST),
    "lockstep": ("strategy.lockstep=true", "model.dropout=0.2"),
    "bagging in lockstep": ("strategy.members=bagging", "strategy.lockstep=true"),
}


class InSecond(After):
    """Rises in the second step after the first member has ended, or in lockstep, after all have begun."""

    def __init__(self, run: Path, way: str) -> None:
        super().__init__(2)
        self.run, self.file = run, "config.yaml" if "lockstep" in way else "result.json"

    def __call__(self) -> Stopped | None:
        return super().__call__() if any(self.run.glob(f"members/*/{self.file}")) else None


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """way -> a run of it that nobody disturbed."""
    home, made = tmp_path_factory.mktemp("whole"), {}

    def make(way: str) -> Run:
        if way not in made:
            made[way] = told(home / way.replace(" ", "-"), *TEAM, *WAYS[way])
        return made[way]

    return make


def members(run: Run) -> list[Run]:
    return [Run(path) for path in sorted((run.path / "members").iterdir())]


def equal(a: Run, b: Run) -> bool:
    """The same members, rule and predictions, to the bit."""
    pairs = list(zip(members(a), members(b), strict=True))
    states = [(x.weights(w), y.weights(w)) for x, y in pairs for w in ("model", "last")]
    states += [(a.fusion()[1], b.fusion()[1])]
    states += [({s: a.predictions(s)[0].scores}, {s: b.predictions(s)[0].scores}) for s in ("val", "test")]
    same = all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in states)
    return same and a.fusion()[0] == b.fusion()[0] and all(untimed(x) == untimed(y) for x, y in [(a, b), *pairs])


def _train_rows(run: Run) -> list[int]:
    rows = run.rows_of("train")
    assert rows is not None
    return rows.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_members_are_runs_and_the_team_opens_as_one(whole, way, capsys):
    run = whole(way)
    assert run.finished
    assert run.fused
    assert not run.checkpoints.folder.exists()
    for member in members(run):
        assert member.finished
        assert member.config["strategy"] == {"name": "plain"}
    build.evaluate(config(f"run={members(run)[1].path}", "split=test", "quiet=true", command="eval"))
    monitor = run.result["monitor"]
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(said[monitor]) == pytest.approx(members(run)[1].result["test"][monitor], abs=1e-5)
    home = Bench(Device("cpu")).open(run.path)
    found = home.predict(home.restore(), "test").scores
    torch.testing.assert_close(found, run.predictions("test")[0].scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_stopped_in_the_second_member_it_goes_on_to_the_same_bits(tmp_path, whole, way, monkeypatch):
    with pytest.raises(Stopped):
        told(tmp_path / "run", *TEAM, *WAYS[way], stop=InSecond(tmp_path / "run", way))
    done = [m for m in members(Run(tmp_path / "run")) if m.finished]
    fitted: list[Path] = []
    inner = Lab.fit
    monkeypatch.setattr(Lab, "fit", lambda lab, *a, **k: fitted.append(lab.run.path) or inner(lab, *a, **k))
    run = told(tmp_path / "run")
    assert len(done) == (0 if "lockstep" in way else 1)
    assert not {m.path for m in done} & set(fitted)
    assert equal(run, whole(way))
    fitted.clear()
    run.mark("running")
    told(tmp_path / "run")
    assert fitted == []


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("strategy.members=bagging",),
        ("model.dropout=0.3", "model.batch_norm=true"),
        ("clip=0.1", "ema=0.9"),
        ("patience=1", "epochs=6", "optim.lr=0.1"),
        ("strategy.each=[{optim.lr:0.1},{optim:sgd,clip:0.1},{model:linear,ema:0.9}]",),
        ("strategy.members=models", "strategy.models=[mlp,linear,wide_mlp]"),
    ],
)
def test_lockstep_is_one_after_another(tmp_path, more):
    """To the bit: each member has its own optimizer, average, dropout and rest."""
    one = told(tmp_path / "one", *TEAM, *more)
    two = told(tmp_path / "two", *TEAM, *more, "strategy.lockstep=true")
    for a, b in zip(members(one), members(two), strict=True):
        for which in ("model", "last"):
            x, y = a.weights(which), b.weights(which)
            assert all(torch.equal(x[k], y[k]) for k in x)
        assert (a.result["best"], a.result["ended"]) == (b.result["best"], b.result["ended"])
        assert a.result["last"] == b.result["last"]


def test_members_start_fresh_and_see_the_same_order(whole):
    configs = [m.config for m in members(whole("seeds"))]
    assert [c["seed"] for c in configs] == [0, 1, 2]
    assert {c["data_seed"] for c in configs} == {0}
    first = [m.weights()["net.fc1.0.weight"] for m in members(whole("seeds"))]
    assert not torch.allclose(first[0], first[1], atol=0.01)


def test_a_bag_is_a_draw_of_as_many_rows(tmp_path, monkeypatch):
    weights = []
    inner = Lab.learner
    monkeypatch.setattr(Lab, "learner", lambda lab, m, **k: weights.append(k["row_weight"]) or inner(lab, m, **k))
    home = lab(tmp_path / "run", *TEAM, *WAYS["bagging"])
    parts.strategy(home.run.config).run(home)
    rows = home.data.splits["train"].rows
    assert [w.sum() for w in weights] == [len(rows)] * 3
    assert not torch.equal(weights[0], weights[1])
    assert 0.2 < float((weights[0][rows] == 0).float().mean()) < 0.55  # 1/e of the rows are out of the bag


def test_a_row_is_predicted_by_the_fold_that_did_not_learn_it(whole, tmp_path, monkeypatch):
    run = whole("folds of two")
    rows: Any = run.rows_of("train")
    for model in ("model0", "model1"):
        learned: Any = [Run(run.member(f"{model}-fold{k}")).rows_of("train") for k in range(3)]
        left_out = torch.cat([rows[~torch.isin(rows, each)] for each in learned])
        assert sorted(left_out.tolist()) == sorted(rows.tolist())
    asked = []
    inner = Lab.predict

    def predict(home, model, split, rows=None, meter=None, **more):
        asked.append((split, rows))
        return inner(home, model, split, rows, meter, **more)

    monkeypatch.setattr(Lab, "predict", predict)
    told(tmp_path / "run", *TEAM, *WAYS["folds of two"])
    held = [set(rows.tolist()) for split, rows in asked if split == "train" and rows is not None]
    learned = [set(_train_rows(m)) for m in members(Run(tmp_path / "run"))]
    assert [h & own for h, own in zip(held, learned, strict=True)] == [set()] * 6


def test_snapshots_go_on_from_each_other(whole):
    run = whole("snapshot")
    assert [m.config["epochs"] for m in members(run)] == [2, 2, 2]
    second = members(run)[1].config
    assert second["model"]["checkpoint"] == str(run.member("member0").resolve() / "last.safetensors")
    assert second["schedule"]["name"] == "cosine"


def test_what_is_set_for_a_member(tmp_path):
    each = "strategy.each=[{optim.lr:0.1,epochs:1,model.hidden:[8]},{model:linear,seed:7,penalty.l1:0.1}]"
    run = told(tmp_path / "run", *TEAM, each)
    one, two, three = (m.config for m in members(run))
    assert (one["optim"]["lr"], one["epochs"], one["model"]["hidden"], one["seed"]) == (0.1, 1, [8], 0)
    assert (two["optim"]["lr"], two["model"]["name"], two["seed"], two["penalty"]) == (
        0.01,
        "linear",
        7,
        {"l1": 0.1, "l2_sp": 0},
    )
    rest = ("optim", "epochs", "model", "penalty")
    assert {k: three[k] for k in rest} == {k: run.config[k] for k in rest}
    assert three["seed"] == 2
    assert told(tmp_path / "run").finished  # what is stored is trusted again
    some = told(tmp_path / "some", *TEAM, *WAYS["models"], "strategy.each=[{model.hidden:[8]},{}]")
    assert [m.config["model"]["name"] for m in members(some)] == ["mlp", "linear"]
    assert members(some)[0].config["model"]["hidden"] == [8]


def test_finished_runs_are_members_too(tmp_path, whole):
    runs = ",".join(str(m.path) for m in members(whole("seeds")))
    run = told(tmp_path / "run", *TEAM, "strategy.members=runs", f"strategy.runs=[{runs}]")
    assert torch.equal(run.predictions("test")[0].scores, whole("seeds").predictions("test")[0].scores)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("strategy.members=runs",), "needs finished runs"),
        (("strategy.runs=[x]",), "is for members=runs"),
        (("strategy.models=[mlp,linear]",), "is for members=models"),
        (("strategy.members=folds", "strategy.lockstep=true"), "follow one another"),
        (("strategy.each=[{epochs:1,clip:1}]", "strategy.lockstep=true"), "have the same epochs; leave"),
        (("strategy.each=[{},{},{},{}]",), "entries for 4 members, and there are 3"),
        (("strategy.members=folds", "strategy.each=[{},{}]"), "entries for 2 models, and there are 1"),
        (("strategy.members=snapshot", "strategy.each=[{model:linear}]"), "leave model out"),
        (("strategy.members=runs", "strategy.runs=[x]", "strategy.each=[{}]"), "not for finished runs"),
        (("strategy.members=models", "strategy.models=[mlp]"), "two or more"),
        (("strategy.members=boosting", "data=fake", "data.kind=labels"), "classes or values"),
        (("data=diabetes", "fuse@strategy.fuse=vote"), "makes no sense for values"),
        (("fuse@strategy.fuse=features",), "needs tapped features"),
        (("fuse@strategy.fuse=stacking", "strategy.fuse.taps=[a,b]"), "one for each of 3 members"),
        (
            ("fuse@strategy.fuse=weighted", "strategy.fuse.how=given", "strategy.fuse.weights=[1,2]"),
            "2 weights for 3 members",
        ),
    ],
)
def test_contradictions_are_refused(tmp_path, more, what):
    out = tmp_path / "run"
    overrides = ("data.limit=96", "device.threads=1", "quiet=true", "model=mlp", *TEAM, *more)
    cfg = config(*overrides)
    with pytest.raises(Refused, match=what) as why:
        build.train(cfg, out, list(overrides), "sftc train")
    assert "\n" not in str(why.value)
    assert not out.exists()


@pytest.mark.slow
def test_the_recipe_of_two_nets_that_vote(tmp_path, real_data):
    """Both are as published, only fewer rows, smaller pictures and one epoch; nothing is downloaded."""
    pictures = ("data=image_folder", f"data.root={real_data / 'cifar10_subset'}", "data.limit=40", "data.eval_limit=40")
    small = ("epochs=1", "device=cpu", "device.threads=1", "quiet=true", "model.pretrained=false")
    overrides = [
        "experiment=fusion_cifar10_resnet_vgg",
        *pictures,
        *small,
        "strategy.each=[{model.pretrained:false,model.input_size:32},{model.pretrained:false,model.input_size:32}]",
    ]
    cfg = config(*overrides)
    assert (cfg["optim"]["name"], cfg["optim"]["lr"], cfg["optim"]["momentum"]) == ("sgd", 0.001, 0.9)
    assert cfg["batch_size"] == 100
    assert config("experiment=fusion_cifar10_resnet_vgg")["epochs"] == 10
    build.check(cfg)
    build.train(cfg, tmp_path / "run", overrides, "sftc train ...")
    run = Run(tmp_path / "run")
    assert run.fusion()[0]["rule"] == "vote"
    assert [m.config["model"]["name"] for m in members(run)] == ["resnet18", "vgg16"]
    assert [m.result["params"] > 1e7 for m in members(run)] == [True, True]
    assert run.result["val"]["accuracy"] > 0
