"""`sftc fuse`: finished runs in, a run out that opens like any other; and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from problems import config, plain, told
from sftc import build
from sftc.build import parts
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused
from sftc.lab import Lab
from sftc.store import Run
from sftc.store.reading import read_meta, read_tensors

FEW = ("data.eval_limit=64", "optim.lr=0.01")
RULES = (
    *("vote", "mean", "mean_logit", "rank", "median", "trimmed", "best"),
    *("weighted", "greedy", "stacking", "cascade", "features", "all", "auto"),
)
FITTED = {"weighted", "greedy", "stacking", "cascade", "features", "all", "best"}
MORE = {"features": ("fuse.taps=[net.fc1,net.fc1,net.head]",), "stacking": ("fuse.taps=[net.fc1,null,null]",)}


@pytest.fixture(scope="session")
def members(tmp_path_factory) -> list[Path]:
    """Two like each other and one unlike, on the same rows; in a folder as a sweep leaves it."""
    home = tmp_path_factory.mktemp("members")
    kinds = ("model=mlp", "model=mlp", "model=linear")
    return [plain(home / str(i), m, f"seed={i}", *FEW).path for i, m in enumerate(kinds)]


@pytest.fixture(scope="session")
def values(tmp_path_factory) -> list[Path]:
    home = tmp_path_factory.mktemp("values")
    return [plain(home / str(i), "data=diabetes", f"seed={i}", "optim.lr=0.01").path for i in range(3)]


@pytest.fixture(scope="session")
def labels(tmp_path_factory) -> list[Path]:
    home = tmp_path_factory.mktemp("labels")
    return [plain(home / str(i), "data=fake", "data.kind=labels", f"seed={i}").path for i in range(3)]


def fuse(out: Path, runs: list[Path] | str, *overrides: str) -> Run:
    named = runs if isinstance(runs, str) else ",".join(map(str, runs))
    cfg = config(f"runs=[{named}]", "quiet=true", *overrides, command="fuse")
    build.fuse(cfg, out, list(overrides), "sftc fuse ...")
    return Run(out)


def opened(run: Run) -> Lab:
    return Bench(Device("cpu")).open(run.path)


def scores(run: Run, split: str) -> torch.Tensor:
    """As `sftc eval` finds them, from the members' weights."""
    home = opened(run)
    return home.predict(home.restore(), split).scores


def copied(members: list[Path], to: Path) -> list[Path]:
    return [Path(shutil.copytree(path, to / path.name)) for path in members]


def refused(out: Path, runs: list[Path] | str, *overrides: str) -> str:
    with pytest.raises(Refused) as why:
        fuse(out, runs, *overrides)
    assert not out.exists()
    assert "\n" not in str(why.value)
    return str(why.value)


@pytest.mark.parametrize("rule", RULES)
def test_a_fused_run_is_scored_again_from_the_weights_of_its_members(tmp_path, members, rule):
    unfitted = rule not in FITTED  # only then what is printed for validation is what the kept rule says there
    own = ("temperature=false",) if unfitted else ()
    run = fuse(tmp_path / "fused", members, f"fuse={rule}", *own, *MORE.get(rule, ()))
    assert run.fused
    home = opened(run)
    for split in ("val", "test") if unfitted else ("test",):
        stored = run.predictions(split)[0]
        metrics = home.measure(home.restore(), split)[1]
        torch.testing.assert_close(scores(run, split), stored.scores, rtol=1e-4, atol=1e-6)
        assert {k: metrics[k] for k in ("accuracy", "f1")} == {k: run.result[split][k] for k in ("accuracy", "f1")}
        assert metrics["nll"] == pytest.approx(run.result[split]["nll"], rel=1e-5)


@pytest.mark.parametrize("rule", ["mean", "median", "weighted", "greedy", "stacking", "weighted_median", "all"])
def test_values_are_fused(tmp_path, values, rule):
    run = fuse(tmp_path / "fused", values, f"fuse={rule}")
    torch.testing.assert_close(scores(run, "test"), run.predictions("test")[0].scores, rtol=1e-4, atol=1e-5)
    assert {"r2", "mae", "rmse"} <= run.result["test"].keys()


@pytest.mark.parametrize("rule", ["vote", "mean", "stacking", "cascade"])
def test_several_labels_a_row_are_fused(tmp_path, labels, rule):
    run = fuse(tmp_path / "fused", labels, f"fuse={rule}")
    torch.testing.assert_close(scores(run, "test"), run.predictions("test")[0].scores, rtol=1e-4, atol=1e-6)


def test_the_commands_take_a_fused_run(tmp_path, members, capsys):
    run = fuse(tmp_path / "fused", members, "fuse=greedy")
    build.evaluate(config(f"run={run.path}", "split=test", command="eval"))
    said = capsys.readouterr().out
    line = next(line.split() for line in said.splitlines() if line.startswith("accuracy"))
    assert line[1] == line[2]  # found and stored
    build.export(config(f"run={run.path}", f"out={tmp_path / 'export'}", command="export"))
    about = json.loads((tmp_path / "export" / "config.json").read_text())
    state = read_tensors(tmp_path / "export" / "model.safetensors")
    assert about["fusion"]["rule"] == "greedy"
    assert about["members"]["2"]["name"] == "linear"
    assert torch.equal(state["members.0.net.head.weight"], Run(members[0]).weights()["net.head.weight"])


def test_members_are_named_by_folder_pattern_and_sweep(members):
    sweep = members[0].parent
    named = list(map(str, members))
    assert parts.found_runs([sweep]) == parts.found_runs([f"{sweep}/*"]) == parts.found_runs(named) == named
    assert parts.found_runs([f"{sweep}/[01]", members[2], members[0]]) == named
    with pytest.raises(Refused, match="does not exist"):
        parts.found_runs([f"{sweep}/x*"])


def test_what_is_fused_is_fused_again_and_teaches(tmp_path, members):
    one = fuse(tmp_path / "one", members[:2], "fuse=mean")
    two = fuse(tmp_path / "two", [one.path, members[2]], "fuse=weighted")
    torch.testing.assert_close(scores(two, "test"), two.predictions("test")[0].scores, rtol=1e-4, atol=1e-6)
    students = []
    for outputs in ("live", "cached"):
        how = (
            "strategy=kd",
            f"strategy.teachers=[{two.path}]",
            f"strategy.teacher_outputs={outputs}",
            "epochs=1",
            "optim=sgd",
        )
        students.append(told(tmp_path / outputs, *how, *FEW))
    live, cached = (s.weights() for s in students)
    torch.testing.assert_close(live, cached, rtol=0.01, atol=1e-3)  # fp16 answers


def test_other_weights_than_those_fused_are_refused(tmp_path, members):
    mine = copied(members, tmp_path)
    run = fuse(tmp_path / "fused", mine, "fuse=mean")
    mine_model = Run(mine[1]).weights()
    Run(mine[1]).write_weights("model", {k: v + 1e-3 for k, v in mine_model.items()})
    with pytest.raises(Refused, match=r"1 is no longer the member"):
        opened(run).restore()
    shutil.rmtree(mine[1])
    shutil.copytree(mine[0], mine[1])  # another run altogether
    with pytest.raises(Refused, match="no longer the run"):
        opened(run).restore()


def test_stored_predictions_are_used_missing_and_foreign_ones_made_again(tmp_path, members, monkeypatch):
    mine = copied(members, tmp_path)
    asked = []
    inner = Lab.predict
    monkeypatch.setattr(Lab, "predict", lambda lab, model, split, **m: asked.append(split) or inner(lab, model, split))
    whole = fuse(tmp_path / "whole", mine, "fuse=mean")
    assert asked == []
    (mine[0] / "preds" / "val.safetensors").unlink()
    foreign = mine[1] / "preds" / "test.safetensors"
    old, mark = Run(mine[1]).predictions("test")
    old.scores.zero_()
    Run(mine[1]).write_predictions("test", old, mark | {"model": "another"})
    again = fuse(tmp_path / "again", mine, "fuse=mean")
    assert sorted(asked) == ["test", "val"]
    assert read_meta(foreign)["model"] == "another"  # a member is never written to
    for split in ("val", "test"):
        torch.testing.assert_close(again.predictions(split)[0].scores, whole.predictions(split)[0].scores)


def test_what_cannot_be_fused_is_refused_by_name(tmp_path, members, values, labels):
    out = tmp_path / "fused"
    other = plain(tmp_path / "other", "data.classes=[0,1,2,3,4,5,6,7,8]", *FEW).path
    assert f"{other} has other classes" in refused(out, [members[0], other])
    turned = plain(tmp_path / "turned", "data.classes=[1,0,2,3,4,5,6,7,8,9]", *FEW).path
    assert f"{turned} has other classes" in refused(out, [members[0], turned])
    apart = plain(tmp_path / "apart", "data.split_seed=1", *FEW).path
    assert f"{apart} was trained on" in refused(out, [members[0], apart])
    assert "apart has scores of other val rows" in refused(out, [members[0], apart], "leaks=true")
    assert "learned values" in refused(out, [members[0], values[0]])
    assert "fuse=vote makes no sense for values" in refused(out, values, "fuse=vote")
    half = copied(members[:1], tmp_path / "half")[0]
    Run(half).mark("stopped")
    assert f"{half} is not finished (stopped)" in refused(out, [members[1], half])
    assert "did you mean 'net.fc1.1'" in refused(out, members[:2], "fuse=stacking", "fuse.taps=[net.fc1.9]")
    assert "must hold one module path" in refused(out, members, "fuse=stacking", "fuse.taps=[net.fc1,net.fc1]")
    assert "no one architecture" in refused(out, members, "fuse=soup")
    assert "fuse=features needs" in refused(out, members, "fuse=features")
    assert "runs=[] names no run" in refused(out, [])
    given = ("fuse=weighted", "fuse.how=given", "fuse.weights=[1,2]")
    assert "one number for each of 2 members, and 3 came" in refused(out, members, *given)


def test_other_targets_are_refused(tmp_path, members):
    mine = copied(members[:2], tmp_path)
    p, mark = Run(mine[1]).predictions("val")
    p.target[0] = (p.target[0] + 1) % 10
    Run(mine[1]).write_predictions("val", p, mark)
    assert "1 has other targets in val" in refused(tmp_path / "fused", mine)


def test_one_member_is_fused_with_a_warning(tmp_path, members, capsys):
    cfg = config(f"runs=[{members[0]}]", command="fuse")
    build.fuse(cfg, tmp_path / "fused", [], "sftc fuse ...")
    assert "one member only (0)" in capsys.readouterr().out
    assert Run(tmp_path / "fused").result["test"]["accuracy"] == Run(members[0]).result["test"]["accuracy"]


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, members):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Refused, match="not empty"):
        fuse(tmp_path, members)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_rule_that_memorises_gains_nothing_in_what_is_printed(tmp_path, members):
    """Members that know nothing: a head on their scores can only learn the rows by heart."""
    mine = copied(members, tmp_path)
    for i, path in enumerate(mine):
        for split in ("val", "test"):
            p, mark = Run(path).predictions(split)
            torch.manual_seed(i)
            Run(path).write_predictions(split, type(p)(torch.rand_like(p.scores).softmax(1), p.target, p.row), mark)
    run = fuse(tmp_path / "fused", mine, "fuse=stacking", "fuse.model=mlp")
    val, test = run.result["val"], run.result["test"]
    assert val["accuracy"] < 0.3
    assert test["accuracy"] < 0.3
    assert val["nll"] > 2.25  # of ten classes, ln 10 is 2.30


def test_nothing_is_fitted_on_test(tmp_path, members):
    mine = copied(members, tmp_path)
    before = fuse(tmp_path / "before", mine, "fuse=all")
    for path in mine:
        p, mark = Run(path).predictions("test")
        Run(path).write_predictions("test", type(p)(p.scores.flip(0), p.target, p.row), mark)
    after = fuse(tmp_path / "after", mine, "fuse=all")
    one, two = before.fusion(), after.fusion()
    assert one[0] == two[0]
    assert all(torch.equal(one[1][k], two[1][k]) for k in one[1])
    assert before.result["test"] != after.result["test"]


def test_a_soup_is_a_plain_run_and_far_members_make_none(tmp_path, members):
    start = f"model.checkpoint={members[0] / 'model.safetensors'}"
    near = [plain(tmp_path / f"near{i}", start, f"seed={i}", "optim.lr=0.001", "data.eval_limit=64") for i in (5, 6)]
    paths = [run.path for run in near]
    for how in ("greedy", "uniform"):
        run = fuse(tmp_path / how, paths, "fuse=soup", f"fuse.how={how}")
        assert not run.fused
        assert run.result["params"] == near[0].result["params"]
        torch.testing.assert_close(scores(run, "test"), run.predictions("test")[0].scores)
    mean = {k: (near[0].weights()[k].double() + near[1].weights()[k].double()) / 2 for k in run.weights()}
    assert all(torch.equal(run.weights()[k], mean[k].float()) for k in mean)
    far = [plain(tmp_path / f"far{i}", f"seed={i}", "epochs=12", *FEW).path for i in (1, 2)]
    assert "did not start from the same weights" in refused(tmp_path / "far", far, "fuse=soup", "fuse.how=uniform")


def test_members_of_other_scaling_are_fused_and_tapped(tmp_path, members):
    other = plain(tmp_path / "other", "model.mean=0.1", "model.std=0.3", "seed=4", *FEW).path
    run = fuse(tmp_path / "fused", [members[0], other], "fuse=features", "fuse.taps=[net.fc1]")
    torch.testing.assert_close(scores(run, "test"), run.predictions("test")[0].scores, rtol=1e-4, atol=1e-6)


def test_the_device_is_chosen_as_in_every_command():
    assert config("runs=[a]", "device=cpu", command="fuse")["device"]["accelerator"] == "cpu"
    assert config("runs=[a]", command="fuse").get("device") is None


def test_tapped_features_stand_beside_the_labels_of_their_own_rows(tmp_path, members):
    """Validation is fused in another order than it is stored in; a head on features of other rows knows nothing."""
    run = fuse(tmp_path / "fused", members[:2], "fuse=features", "fuse.taps=[net.fc1]")
    assert run.result["val"]["accuracy"] > 0.5
