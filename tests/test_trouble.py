"""What a fit does about trouble: values that are not finite, memory that runs out, checkpoints between epochs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from problems import lab
from sftc.errors import Stopped
from sftc.lab import Watch
from sftc.lab.fitting import assemble


class Said(Watch):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def spoiled(home, at):
    """A model whose loss is NaN on the forwards of training numbered in `at`."""
    model, seen = home.model(), {"n": 0}

    def spoil(module, inputs, output):
        if not module.training:
            return output
        seen["n"] += 1
        return output * float("nan") if seen["n"] - 1 in at else output

    model.register_forward_hook(spoil)
    return model


def fit(home, model):
    home.watch = Said()
    (fitted,) = home.fit(model)
    return fitted


OPTIONS = ("model.batch_norm=true", "optim=sgd", "epochs=3")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_step_that_is_not_finite_is_left_out_and_nothing_of_it_stays(policy, tmp_path):
    home = lab(tmp_path / "a", *OPTIONS, f"on_nonfinite={policy}")
    fitted = fit(home, spoiled(home, at={4}))
    assert all(v.isfinite().all() for v in fitted.last_state.values())
    (line,) = home.watch.lines
    assert "step 4" in line
    assert f"from step {4 if policy == 'skip' else 3}" in line
    rows = home.run.rows()
    assert [r["step"] for r in rows] == [3, 6, 9]
    assert "left_out" not in rows[0]
    assert rows[-1]["left_out"] == 1
    # The same as never having met the step: its batch moved neither weights nor running statistics.
    clean = lab(tmp_path / "b", *OPTIONS, "on_nonfinite=skip")
    source = clean.source("train", train=True)
    learners, firsts = [clean.learner(clean.model())], [next(iter(source.epoch(0)))]
    state = assemble(learners, [source], firsts, clean.device, clean.seed, clean.settings)
    state.avoid = [4]
    from sftc import loop

    (other,) = loop.fit(
        state,
        device=clean.device,
        budget=clean.settings.budget,
        care=clean.settings.care,
        score=lambda i, m: {"accuracy": 0.0, "loss": 0.0},
        log=lambda row: None,
        save=lambda state: None,
    )
    assert all(torch.equal(v, fitted.last_state[k]) for k, v in other.last_state.items())


def test_trouble_without_end_is_given_up_on(tmp_path):
    home = lab(tmp_path / "a", *OPTIONS, "epochs=20", "on_nonfinite=skip")
    with pytest.raises(Stopped, match="not finite"):
        fit(home, spoiled(home, at=set(range(2, 99))))
    assert len(home.watch.lines) == 20


def test_stopping_saves_the_statistics_from_before_the_step(tmp_path):
    home = lab(tmp_path / "a", *OPTIONS)
    model = home.model()
    batches = {"n": 0}

    def poison(module, inputs):
        batches["n"] += module.training
        return tuple(x.float() * float("nan") for x in inputs) if batches["n"] == 5 and module.training else None

    model.register_forward_pre_hook(poison)
    with pytest.raises(Stopped):
        fit(home, model)
    state = home.run.checkpoints.read()
    assert state is not None
    assert state["step"] == 4
    assert all(v.isfinite().all() for v in state["objective"].values())


def hungry(home, most):
    """A model that runs out of memory above `most` rows."""
    model = home.model()

    def check(module, inputs):
        if module.training and len(inputs[0]) > most:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB")

    model.register_forward_pre_hook(check)
    return model


def test_out_of_memory_halves_the_forward_and_keeps_the_step(tmp_path):
    a = lab(tmp_path / "a", "optim=sgd")
    b = lab(tmp_path / "b", "optim=sgd")
    whole, halved = fit(a, a.model()), fit(b, hungry(b, 10))
    for k, v in whole.last_state.items():
        assert torch.allclose(halved.last_state[k], v, atol=1e-6)
    assert [line.split(":")[1].split()[0] for line in b.watch.lines] == ["16", "8"]
    assert b.run.rows()[-1]["micro_batch_size"] == 8
    assert "micro_batch_size" not in a.run.rows()[-1]


def test_out_of_memory_says_that_batchnorm_changes_the_result_and_takes_back_what_moved(tmp_path):
    home = lab(tmp_path / "a", *OPTIONS, "micro_batch_size=8")
    model = home.model()
    calls = {"n": 0}

    def check(module, inputs):
        calls["n"] += module.training
        if calls["n"] == 3:  # two pieces of the first batch went well
            calls["n"] += 1
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    model.register_forward_pre_hook(check)
    fit(home, model)
    assert "BatchNorm" in home.watch.lines[0]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    # 9 steps of 32 rows in 8 pieces of 4; the two pieces of the failed try are not counted
    state = home.run.checkpoints.read()
    assert state is not None
    tracked = [v for k, v in state["objective"].items() if k.endswith("num_batches_tracked")]
    assert norms
    assert {int(t) for t in tracked} == {9 * 8}


@pytest.mark.parametrize(("options", "most", "says"), [(("oom=stop",), 10, "micro_batch_size"), ((), 1, "2 rows")])
def test_out_of_memory_gives_up_with_advice(options, most, says, tmp_path):
    home = lab(tmp_path / "a", *options)
    with pytest.raises(Stopped, match=says) as stopped:
        fit(home, hungry(home, most))
    assert stopped.value.code == 1


def test_another_runtime_error_is_not_taken_for_memory(tmp_path):
    home = lab(tmp_path / "a")
    model = home.model()

    def fail(*_):
        if model.training:
            raise RuntimeError("shapes do not match")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes"):
        fit(home, model)


def test_checkpoints_come_as_often_as_asked(tmp_path, monkeypatch):
    from sftc.store.checkpoints import Checkpoints

    steps = []
    write = Checkpoints.write
    monkeypatch.setattr(Checkpoints, "write", lambda self, s: (steps.append(s["step"]), write(self, s)))
    home = lab(tmp_path / "a", "epochs=5", "checkpoint.epochs=2", "checkpoint.steps=4")
    fit(home, home.model())
    assert steps == [4, 6, 8, 12, 15]  # every 4 steps, every 2 epochs of 3, and the end
    assert len(home.run.checkpoints.files()) == 2
    steps.clear()
    home = lab(tmp_path / "b", "checkpoint.epochs=null", "checkpoint.minutes=1e-6")
    fit(home, home.model())
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("ema", [(), ("ema=0.9",)])
def test_the_best_is_written_once_where_it_is_also_the_latest(ema, tmp_path):
    home = lab(tmp_path / "a", *ema)
    fit(home, home.model())
    state = home.run.checkpoints.read()
    assert state is not None
    (trainee,) = state["trainees"]
    assert trainee["best"]["step"] == state["step"], "the last epoch of so short a fit is its best"
    latest = {k.removeprefix("students.0."): v for k, v in state["objective"].items()}
    for k, v in trainee["best_state"].items():
        other = trainee["ema"][k] if ema else latest[k]
        assert torch.equal(other, v)
        assert other.data_ptr() == v.data_ptr(), "one place in the file"


def test_an_ended_fit_is_kept_without_its_optimizer(tmp_path):
    home = lab(tmp_path / "a")
    first = fit(home, home.model())
    state = home.run.checkpoints.read()
    assert state is not None
    assert "optimizer" not in state["trainees"][0]
    again = fit(home, home.model())  # a story replayed: what is stored comes back
    assert all(torch.equal(v, again.last_state[k]) for k, v in first.last_state.items())
    assert again.best == first.best


def test_a_gpus_late_look_masks_the_update_after_clipping():
    from types import SimpleNamespace

    from sftc.loop.finite import Watch, norms

    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([1.0, float("nan"), float("inf")])
    trainee = SimpleNamespace(params=[weight], optimizer=None)
    device = SimpleNamespace(kind="a GPU", scaler=None, unscale=lambda optimizer: None)
    watch = Watch(device)  # type: ignore[arg-type]
    (sizes,) = norms([trainee], device)  # type: ignore[list-item, arg-type]
    torch.nn.utils.clip_grads_with_norm_([weight], 1.0, torch.linalg.vector_norm(sizes))
    watch.mask([trainee])  # type: ignore[list-item]
    assert weight.grad.isfinite().all()


def test_the_mean_loss_is_over_the_steps_that_were_done(tmp_path):
    home = lab(tmp_path / "a", "optim=sgd", "optim.lr=1e-9", "epochs=2", "on_nonfinite=skip")
    fit(home, spoiled(home, at={3, 4}))
    first, second = (r["train/loss"] for r in home.run.rows())
    assert second == pytest.approx(first, rel=0.1)
