"""`sftc fuse` where something is wrong: a rule that cannot be fitted, data that changed, fusions without end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from files import make
from problems import config, plain
from sftc import build, report
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused
from sftc.fusion.picks import Greedy
from sftc.fusion.stacking import Stacking
from sftc.lab import Lab, teams
from sftc.store import Run
from test_fuse import copied, fuse, refused

FEW = ("data.eval_limit=64", "optim.lr=0.01")


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> list[Path]:
    home = tmp_path_factory.mktemp("members")
    return [plain(home / str(i), f"seed={i}", *FEW).path for i in range(2)]


def test_a_rule_that_cannot_be_fitted_ends_nothing(tmp_path, members, monkeypatch, capsys):
    """Its row says why, the others are as they would have been."""
    whole = fuse(tmp_path / "whole", members, "fuse=all")

    def refuse(*args):
        raise Refused("fuse=stacking needs more")

    def stumble(*args):
        raise torch.linalg.LinAlgError("the matrix is singular\nsecond line")

    monkeypatch.setattr(Stacking, "fit", refuse)
    monkeypatch.setattr(Greedy, "fit", stumble)
    cfg = config(f"runs=[{members[0]},{members[1]}]", "fuse=all", command="fuse")
    build.fuse(cfg, tmp_path / "some", [], "sftc fuse")
    some = Run(tmp_path / "some")
    rows, others = ({row["name"]: row for row in run.result["team"]} for run in (some, whole))
    assert rows["fuse stacking"] == {"name": "fuse stacking", "failed": "fuse=stacking needs more"}
    assert rows["fuse greedy"]["failed"] == "the matrix is singular"
    assert rows.keys() == others.keys()
    for name in rows.keys() - {"fuse stacking", "fuse greedy"}:
        assert rows[name]["val"] == others[name]["val"]
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("fuse stacking"))
    assert said.endswith("left out: fuse=stacking needs more")
    assert some.pictures == whole.pictures
    with pytest.raises(Refused, match="needs more"):
        fuse(tmp_path / "alone", members, "fuse=stacking")
    assert not (tmp_path / "alone").exists()


def test_of_one_row_of_validation_nothing_is_fitted_and_the_mean_stays(tmp_path, capsys):
    runs = [plain(tmp_path / str(i), f"seed={i}", "data.eval_limit=1", "optim.lr=0.01").path for i in range(2)]
    cfg = config(f"runs=[{runs[0]},{runs[1]}]", "fuse=all", command="fuse")
    build.fuse(cfg, tmp_path / "fused", [], "sftc fuse")
    assert "fewer than two labelled rows: no temperature" in capsys.readouterr().out
    rows = {row["name"]: row for row in Run(tmp_path / "fused").result["team"]}
    assert rows["fuse mean"]["temperature"] == 1
    assert "use fuse=mean" in rows["fuse greedy"]["failed"]
    assert "2 labelled rows" in refused(tmp_path / "none", runs, "fuse=greedy")


def test_if_none_can_be_fitted_that_is_said(tmp_path, members, monkeypatch):
    from sftc.strategies import fusing

    def refuse(*args):
        raise Refused("no row has a label")

    monkeypatch.setattr(fusing, "Outcome", refuse)
    assert "none of the rules can be fitted; fuse=best: no row has a label" in refused(
        tmp_path / "fused", members, "fuse=all"
    )


def test_predictions_of_other_data_than_the_run_learned_are_made_again(tmp_path, members, monkeypatch):
    mine = copied(members, tmp_path)
    p, mark = Run(mine[1]).predictions("val")
    Run(mine[1]).write_predictions("val", type(p)(p.scores.flip(0), p.target, p.row), mark | {"data": "another"})
    asked = []
    inner = Lab.predict
    monkeypatch.setattr(Lab, "predict", lambda lab, model, split, **m: asked.append(split) or inner(lab, model, split))
    run = fuse(tmp_path / "fused", mine, "fuse=mean", "temperature=false")
    assert asked == ["val"]
    mean = (Run(members[0]).predictions("val")[0].scores + Run(members[1]).predictions("val")[0].scores) / 2
    torch.testing.assert_close(run.predictions("val")[0].scores, mean)


def test_data_that_changed_are_refused_naming_whose(tmp_path, members):
    mine = copied(members, tmp_path)
    p, mark = Run(mine[1]).predictions("test")
    Run(mine[1]).write_predictions("test", p, mark | {"split": "another"})
    assert "the data changed between 0 and 1: the same test rows" in refused(tmp_path / "fused", mine)
    (mine[1] / "preds" / "test.safetensors").unlink()
    run = Run(mine[1])
    run.write_rows({s: run.rows_of(s) for s in ("train", "val")}, run.rows_meta() | {"table": "another"})  # type: ignore[misc]
    said = refused(tmp_path / "fused", mine)
    assert said.startswith(f"the data of member {mine[1]} have changed since it was trained")


def test_members_of_other_picture_sizes_read_the_same_data(tmp_path, members):
    """Their fingerprints differ, as pictures of another size do; that is no change."""
    large = plain(tmp_path / "large", "data.size=12", *FEW).path
    assert fuse(tmp_path / "fused", [members[0], large], "fuse=mean").finished


def test_fused_runs_are_fused_again_up_to_a_depth(tmp_path, members):
    run = fuse(tmp_path / "1", members, "fuse=mean")
    for depth in range(2, teams.DEEPEST + 1):
        run = fuse(tmp_path / str(depth), [run.path, members[0]], "fuse=mean")
    home = Bench(Device("cpu")).open(run.path)
    found = home.predict(home.restore(), "test").scores
    torch.testing.assert_close(found, run.predictions("test")[0].scores, rtol=1e-4, atol=1e-6)
    said = refused(tmp_path / "more", [run.path, members[0]], "fuse=mean")
    assert said.startswith(f"{run.path} is fused of fused runs, {teams.DEEPEST} deep")


def _members(run: Run, names: list[str], path: Path, model: str) -> None:
    """Make a fused run name other members."""
    about, _ = run.fusion()
    shutil.rmtree(run.path / "members")
    run.write_json("fusion.json", about | {"members": {n: [model] for n in names}, "taps": [[] for _ in names]})
    for name in names:
        (run.path / "members" / name).mkdir(parents=True)
        node = {"path": str(path.resolve().relative_to("/")), "model": None}
        node["path"] = "/".join([".."] * len((run.path / "members" / name).resolve().parts[1:])) + "/" + node["path"]
        (run.path / "members" / name / "reference.json").write_text(json.dumps(node))


def test_a_chain_without_end_is_one_line(tmp_path, members, capfd):
    one, two = (fuse(tmp_path / name, members, "fuse=mean") for name in ("one", "two"))
    _members(one, ["a"], two.path, two.result["fingerprints"]["model"])
    _members(two, ["b"], one.path, one.result["fingerprints"]["model"])
    for act in (
        lambda: build.evaluate(config(f"run={one.path}", "split=test", command="eval")),
        lambda: fuse(tmp_path / "more", [one.path, members[0]]),
        lambda: build.train(
            config("strategy=kd", f"strategy.teachers=[{one.path}]", "model=mlp", "data.limit=96"),
            tmp_path / "student",
            [],
            "sftc train",
        ),
    ):
        with pytest.raises(Refused, match="is a member of itself, over 2 fused runs") as why:
            act()
        assert "\n" not in str(why.value)


def test_a_tree_that_grows_at_every_level_is_one_line(tmp_path, members):
    """Forty members at each of three levels are 64,000 models; the folders are small."""
    below = members[0]
    for level in range(3):
        run = fuse(tmp_path / f"level{level}", members, "fuse=mean")
        _members(run, [f"m{i}" for i in range(40)], below, Run(below).result["fingerprints"]["model"])
        below = run.path
    with pytest.raises(Refused, match="is made of 64,000 models"):
        Bench(Device("cpu")).open(below).restore()


def test_a_failed_row_is_no_point_in_a_picture_and_no_hindrance_to_a_table():
    rows = [
        {"name": "m", "params": 1, "ms_per_row": 0.1, "val": {"accuracy": 0.5}},
        {"name": "fuse x", "failed": "[bold]why"},
    ]
    table = report.team(rows, "accuracy")
    assert table.row_count == 2


def test_rows_of_a_val_folder_are_not_those_of_train_by_the_same_numbers(tmp_path):
    make(tmp_path / "pets", n=20, size=(8, 8))
    pets = ("data=image_folder", f"data.root={tmp_path / 'pets'}", "data.limit=null", "data.workers=0")
    runs = [plain(tmp_path / str(i), *pets, f"seed={i}", "optim=sgd", "optim.lr=0.5", "epochs=6") for i in range(2)]
    train, val = (runs[0].rows_of(split) for split in ("train", "val"))
    assert set(val.tolist()) & set(train.tolist())  # type: ignore[union-attr]  # numbers of other tables
    fused = fuse(tmp_path / "fused", [run.path for run in runs])
    late = {run.path.name for run in runs if run.result["best"]["epoch"] != run.result["last"]["epoch"]}
    assert fused.result["chosen_on_validation"].keys() == late
