"""Budgets, non-finite values, EMA, accumulation: what ends a fit and what it leaves."""

from __future__ import annotations

import math

import pytest
import torch

from problems import lab
from sftc.errors import Stopped
from sftc.loop import Budget, Trainee
from sftc.loop.steps import _micro
from sftc.objective import Learner
from sftc.strategies.plain import Plain
from sftc.tasks import Classification
from sftc.types import Batch


def run(path, *overrides):
    home = lab(path, *overrides)
    Plain().run(home)
    return home.run


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_fit_is_the_loop_everybody_writes(optimizer, tmp_path):
    """Same first weights, same batches: the very same last weights, to the bit."""
    home = lab(tmp_path / "a", f"optim={optimizer}", "optim.weight_decay=0", "schedule=constant", "schedule.warmup=0")
    (fitted,) = home.fit(home.model())
    model = home.model().train()
    rule = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    more = {"momentum": 0.9} if optimizer == "sgd" else {"fused": True}
    update = rule(model.parameters(), home.settings.optim["lr"], weight_decay=0, **more)
    source = home.source("train", train=True)
    for epoch in range(2):
        for batch in source.epoch(epoch):
            loss = torch.nn.functional.cross_entropy(model(batch.inputs), batch.target)
            update.zero_grad()
            loss.backward()
            update.step()
    assert all(torch.equal(v, fitted.last_state[k]) for k, v in model.state_dict().items())


def test_max_steps_ends_in_mid_epoch_with_metrics_and_a_whole_schedule(tmp_path):
    done = run(tmp_path / "a", "max_steps=4", "epochs=50", "schedule.warmup=0")
    assert [r["step"] for r in done.rows()] == [3, 4]
    assert done.result["ended"] == "budget"
    assert done.result["last"]["step"] == 4
    assert done.rows()[-1]["lr"] == 0  # the cosine spans the steps there are, not 50 epochs


def test_target_means_until_good_enough(tmp_path):
    done = run(tmp_path / "a", "target=0.3", "epochs=50", "optim.lr=0.01")
    assert done.result["ended"] == "target"
    assert done.result["last"]["val"]["accuracy"] >= 0.3
    assert len(done.rows()) < 50
    assert all(r["val/accuracy"] < 0.3 for r in done.rows()[:-1])


def test_patience_means_until_it_converges_and_best_is_kept_beside_last(tmp_path):
    done = run(tmp_path / "a", "patience=2", "epochs=50", "optim=sgd", "optim.lr=1e-9")
    assert done.result["ended"] == "patience"
    assert len(done.rows()) == 3
    assert done.result["best"]["epoch"] == 0
    assert done.result["last"]["epoch"] == 2
    model, last = done.weights("model"), done.weights("last")
    assert not all(torch.equal(model[k], last[k]) for k in model)


def test_a_minimised_monitor_keeps_the_lowest(tmp_path):
    done = run(tmp_path / "a", "monitor=nll", "epochs=4", "optim.lr=0.01")
    assert done.result["best"]["val"]["nll"] == min(r["val/nll"] for r in done.rows())


def test_nan_is_never_best():
    trainee = Trainee(
        Learner(torch.nn.Linear(1, 2), Classification("ab")), torch.optim.SGD([torch.zeros(1)], 1), None, None
    )
    trainee.judge({"accuracy": math.nan}, 0, 1)
    assert trainee.judge({"accuracy": 0.1}, 1, 2)
    assert not trainee.judge({"accuracy": math.nan}, 2, 3)
    assert not trainee.judge({"accuracy": 0.1}, 3, 4)
    assert trainee.stale == 2
    assert trainee.best is not None
    assert trainee.best["epoch"] == 1


def test_equal_monitors_are_told_apart_by_loss_but_do_not_buy_patience():
    learner = Learner(torch.nn.Linear(1, 2), Classification("ab"))
    trainee = Trainee(learner, torch.optim.SGD([torch.zeros(1)], 1), None, None)
    trainee.judge({"accuracy": 0.9, "loss": 0.5}, 0, 1)
    assert trainee.judge({"accuracy": 0.9, "loss": 0.4}, 1, 2)
    assert not trainee.judge({"accuracy": 0.9, "loss": 0.6}, 2, 3)
    assert trainee.best is not None
    assert trainee.best["epoch"] == 1
    assert trainee.stale == 2


def test_micro_batches_give_the_same_weights(tmp_path):
    a, b = run(tmp_path / "a", "optim=sgd"), run(tmp_path / "b", "optim=sgd", "micro_batch_size=10")
    for k, v in a.weights().items():
        assert torch.allclose(b.weights()[k], v, atol=1e-6)


def test_pieces_of_several_sources_stay_parallel():
    def batch(n):
        return Batch(torch.zeros(n, 1), torch.zeros(n), torch.arange(n))

    for sizes, limit in (((10, 10), 4), ((33, 7), 8), ((9, 2), 4)):
        pieces = _micro([batch(n) for n in sizes], limit)
        assert all(len(p) == 2 for p in pieces)
        for i, n in enumerate(sizes):
            assert torch.cat([p[i].index for p in pieces]).tolist() == list(range(n))


@pytest.mark.parametrize(("rows", "pieces", "sizes"), [(9, 2, [4, 5]), (9, 8, [2, 2, 2, 3]), (3, 3, [3]), (1, 2, [1])])
def test_pieces_are_even_and_never_a_single_row(rows, pieces, sizes):
    batch = Batch(torch.zeros(rows, 1), torch.zeros(rows), torch.arange(rows))
    assert [len(p) for p in batch.cut(pieces)] == sizes


def test_ema_scores_and_keeps_the_average(tmp_path):
    home = lab(tmp_path / "a", "ema=0.99", "epochs=3")
    student = home.model()
    (fitted,) = home.fit(student)
    raw = home.run.checkpoints.read()["objective"]  # type: ignore[index]
    assert any(not torch.equal(raw[f"students.0.{k}"], v) for k, v in fitted.last_state.items())
    assert fitted.last["val"] == home.run.checkpoints.read()["trainees"][0]["last"]  # type: ignore[index]


def test_clipping_bounds_the_step(tmp_path):
    a = lab(
        tmp_path / "a",
        "clip=1e-6",
        "optim=sgd",
        "optim.lr=1",
        "optim.momentum=0",
        "optim.weight_decay=0",
        "max_steps=1",
    )
    model = a.model()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    (fitted,) = a.fit(model)
    after = torch.cat([p.detach().flatten() for p in fitted.model.parameters()])
    assert 0 < (after - before).norm() < 1.01e-6


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_is_named_and_all_before_it_is_saved(where, tmp_path):
    home = lab(tmp_path / "a", "epochs=3", "optim=sgd")
    model = home.model()
    rows = home.data.splits["train"].rows
    steps = {"n": 0}

    def spoil(module, inputs, output):
        if not module.training:
            return output
        steps["n"] += 1
        if steps["n"] < 5:
            return output
        if where == "loss":
            return output.index_fill(0, torch.tensor([2]), float("nan"))
        return output + torch.sqrt(output * 0).nan_to_num()  # the value is fine, its gradient is 0 * inf

    model.register_forward_hook(spoil)
    with pytest.raises(Stopped) as stopped:
        home.fit(model)
    text = str(stopped.value)
    assert stopped.value.code == 1
    assert "step 4" in text
    if where == "gradient":
        assert "gradient of net.fc1.0.weight" in text
    else:
        named = int(text.split("rows ")[1].split()[0])
        assert named in rows.tolist()
    state = home.run.checkpoints.read()
    assert state is not None
    assert state["step"] == 4
    assert all(v.isfinite().all() for v in state["objective"].values())
    assert len(home.run.rows()) == 1


def test_the_budget_counts_steps():
    assert Budget(3).steps(10) == 30
    assert Budget(3, max_steps=25).steps(10) == 25


def test_a_fit_is_written_in_plain_types(tmp_path):
    home = lab(tmp_path / "a", "ema=0.9", "schedule=onecycle")
    home.fit(home.model())
    state = home.run.checkpoints.read()  # reads with weights_only
    assert state is not None
    assert state["ended"] == "budget"
