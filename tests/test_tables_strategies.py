"""Every strategy and rule on tables: words, gaps, values of several outputs, quantiles."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from files import write_table
from problems import After, config, same, told
from sftc import build
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused, Stopped
from sftc.store import Run

NUMBER = ("data.target=value", "data.drop=[word,hot,dry]", "data.limit=null", "epochs=6", "optim.lr=0.01")
WORD = ("data.target=word", "data.drop=[value,hot,dry]", "data.limit=null", "epochs=6", "optim.lr=0.01")
BOTH = (*NUMBER, "data.target=[value,hot]", "data.drop=[word,dry]", "data.kind=values", "loss=mae")
QUANTILES = (*NUMBER, "loss=quantile")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> str:
    return f"data.root={write_table(tmp_path_factory.mktemp('table') / 'a.csv')}"


@pytest.fixture(scope="module")
def teacher(table, tmp_path_factory) -> Run:
    return told(tmp_path_factory.mktemp("teacher") / "run", "data=tabular", table, *NUMBER, "epochs=25")


def trained(out: Path, table: str, *more: str, **how) -> Run:
    return told(out, "data=tabular", table, *more, **how)


def fused(out: Path, runs: list[Path], rule: str) -> Run:
    cfg = config(f"runs=[{','.join(map(str, runs))}]", f"fuse={rule}", "quiet=true", command="fuse")
    build.fuse(cfg, out, [], "sftc fuse")
    return Run.open(out)


@pytest.mark.parametrize("how", [NUMBER, WORD, QUANTILES, BOTH])
@pytest.mark.parametrize("model", ["mlp", "tab_resnet"])
def test_a_table_is_learned_and_its_run_opens_alone(how, model, table, tmp_path):
    run = trained(tmp_path / "run", table, *how, "epochs=20", f"model={model}")
    test = run.result["test"]
    assert test.get("r2", test.get("accuracy")) > 0.5
    if "loss=quantile" in how:
        assert run.result["per_class"]["test"].keys() == {"value q0.1", "value q0.5", "value q0.9"}
        assert 0 < test["coverage"] <= 1
    if "loss=mae" in how:
        rows = run.result["per_class"]["test"]
        assert rows["value"]["r2"] + rows["hot"]["r2"] == pytest.approx(2 * test["r2"])
    lab = Bench(Device("cpu")).open(run.path)
    assert lab.measure(lab.restore(), "test")[1] == pytest.approx(test, abs=0)


def test_a_teacher_of_other_columns_answers_as_itself(teacher, table, tmp_path):
    """The student's file has the columns in another order, one more, and fewer rows: so other codes and scales."""
    lines = [line.split(",") for line in Path(table.removeprefix("data.root=")).read_text().splitlines()]
    turned = [[*reversed(line), str(i % 5)] for i, line in enumerate(lines)]
    turned[0][-1] = "more"
    (tmp_path / "b.csv").write_text("\n".join(",".join(line) for line in turned[:200]) + "\n")
    more = ("strategy=kd", f"strategy.teachers=[{teacher.path}]", "strategy.alpha=0.3", "epochs=2")
    run = trained(tmp_path / "run", f"data.root={tmp_path / 'b.csv'}", *NUMBER, *more)
    lab = Bench(Device("cpu")).resume(run) if not run.finished else Bench(Device("cpu")).open(run.path)
    live, home = lab.teacher(str(teacher.path)), lab.open(str(teacher.path))
    assert lab.facts.form.about != home.facts.form.about
    own = home.data.splits["train"].table
    for batch in lab.source("val").epoch(0):
        rows = own.read(batch.index)
        assert home.facts.input_mean is not None
        inputs = (rows - home.facts.input_mean) / home.facts.input_std
        there = home.task.scores(home.restore()(inputs))
        torch.testing.assert_close(lab.task.scores(live(batch).logits), there, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        ("strategy=kd", "strategy.peers=2", "strategy.teacher_epochs=1"),
        ("strategy=kd", "strategy.teachers=[{teacher}]", "data.unlabeled=0.5"),
        ("strategy=kd", "model@strategy.teacher=tab_resnet", "loss=quantile"),
        ("strategy=kd", "model@strategy.teacher=wide_mlp", "loss=quantile", "strategy.terms.soft.form=quantile"),
        ("data.unlabeled=0.5", "semi=mean_teacher"),
        ("strategy=ensemble", "strategy.n=2", "strategy.members=boosting", "fuse@strategy.fuse=weighted_median"),
        ("strategy=ensemble", "strategy.n=3", "strategy.members=bagging"),
        ("strategy=ensemble", "strategy.n=3", "strategy.members=folds", "fuse@strategy.fuse=stacking"),
        ("strategy=ensemble", "strategy.n=2", "strategy.lockstep=true", "fuse@strategy.fuse=greedy", "loss=quantile"),
        ("strategy=ensemble", "strategy.members=models", "strategy.models=[mlp,fm]", "fuse@strategy.fuse=median"),
        ("strategy=ensemble", "strategy.n=2", "strategy.members=snapshot"),
    ],
    ids=lambda more: " ".join(more).replace("strategy.", ""),
)
def test_strategies_learn_values_of_a_table(more, teacher, table, tmp_path):
    run = trained(tmp_path / "run", table, *NUMBER, *(m.format(teacher=teacher.path) for m in more))
    assert run.finished
    assert run.result["test"]["r2"] > 0


def test_quantiles_are_taught_by_quantiles(teacher, table, tmp_path):
    more = ("strategy=kd", "strategy.alpha=0.5", f"strategy.teachers=[{teacher.path}]")
    with pytest.raises(Refused, match=r"form=quantile compares quantiles.*loss=quantile"):
        trained(tmp_path / "run", table, *NUMBER, *more, "strategy.terms.soft.form=quantile")
    with pytest.raises(Refused, match=r"does not know value q0\.1.* the student's data.target and loss"):
        trained(tmp_path / "other", table, *QUANTILES, *more)


def test_followers_on_the_embedding_of_a_table_leader(teacher, table, tmp_path):
    """Two targets on one leader: its own, and classes."""
    more = ("strategy=leader", f"strategy.source={teacher.path}", "strategy.keep=1")
    run = trained(tmp_path / "run", table, *NUMBER, *more, "strategy.followers=[{tap:net.fc2},{tap:logits}]")
    assert run.finished
    assert {p.name for p in (run.path / "members").iterdir()} >= {"leader", "follower0", "follower1"}
    more = ("strategy=leader", f"strategy.source={teacher.path}", "strategy.keep=1")
    run = trained(tmp_path / "other", table, *WORD, *more, "strategy.followers=[{tap:net.fc2}]")
    assert run.finished
    assert run.result["test"]["accuracy"] > 0.4


def test_a_source_of_other_columns_is_refused(teacher, table, tmp_path):
    more = ("strategy=leader", f"strategy.source={teacher.path}", "strategy.keep=1", "+data.columns.city=hash")
    with pytest.raises(Refused, match="column city"):
        trained(tmp_path / "run", table, *NUMBER, *more)


def test_rules_for_values_and_what_makes_no_sense(teacher, table, tmp_path):
    two = trained(tmp_path / "two", table, *NUMBER, "model=fm", "seed=3")
    runs = [teacher.path, two.path]
    for rule in ("mean", "weighted_median", "stacking", "greedy"):
        assert math.isfinite(fused(tmp_path / rule, runs, rule).result["val"]["rmse"])
    with pytest.raises(Refused, match=r"value.*(mean|median)"):
        fused(tmp_path / "vote", runs, "vote")


def test_a_killed_run_ends_the_same(table, tmp_path):
    more = (*QUANTILES, "model=ft_transformer", "model.width=8", "model.heads=2", "epochs=2", "checkpoint.steps=1")
    whole = trained(tmp_path / "whole", table, *more)
    with pytest.raises(Stopped):
        trained(tmp_path / "cut", table, *more, stop=After(5))
    again = trained(tmp_path / "cut", table, *more)
    assert same(whole, again)
    assert torch.equal(whole.predictions("test")[0].scores, again.predictions("test")[0].scores)
