"""`strategy=kd` from its config: what is minimised, who stands still, and each of its stories."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from problems import config, lab, plain, told, untimed
from sftc.build import parts
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused
from sftc.store import Run, hash_tensors
from sftc.store.reading import read_tensors

KD = ("strategy=kd", "optim.lr=0.01", "data.eval_limit=64")
LEARNS = ("epochs=6", "optim.lr=0.01", "data.eval_limit=64")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Run:
    return plain(tmp_path_factory.mktemp("one") / "teacher", "model=wide_mlp", "seed=5", *LEARNS)


@pytest.fixture(scope="session")
def other(tmp_path_factory) -> Run:
    """A teacher with BatchNorm, pictures of another size and another normalisation."""
    own = ("model=simple_cnn", "model.batch_norm=true", "model.input_size=16", "model.mean=0.1", "model.std=0.3")
    return plain(tmp_path_factory.mktemp("other") / "teacher", *own, "seed=6", *LEARNS)


def of(*runs: Run) -> str:
    return f"strategy.teachers=[{','.join(str(run.path) for run in runs)}]"


def bare_kd(home, teacher: torch.nn.Module, alpha: float, heat: float, steps: int) -> dict[str, torch.Tensor]:
    """Ten lines of plain torch."""
    student, source = home.model(), home.source("train", train=True)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    batches = [batch for epoch in range(steps) for batch in source.epoch(epoch)][:steps]
    for batch in batches:
        with torch.no_grad():
            p = F.softmax(teacher.eval()(batch.inputs) / heat, 1)
        logits = student.train()(batch.inputs)
        soft = (p * (p.log() - F.log_softmax(logits / heat, 1))).sum(1).mean() * heat**2
        optimizer.zero_grad()
        (alpha * F.cross_entropy(logits, batch.target) + (1 - alpha) * soft).backward()
        optimizer.step()
    return student.state_dict()


@pytest.mark.parametrize(("alpha", "heat"), [(0.5, 2.0), (0.0, 4.0), (0.9, 1.0)])
@pytest.mark.parametrize(("outputs", "near"), [("live", 1e-6), ("cached", 1e-4)])  # fp16 answers
def test_the_student_is_that_of_a_bare_loop(tmp_path, other, alpha, heat, outputs, near):
    steps = ("optim=sgd", "optim.lr=0.05", "optim.momentum=0", "optim.weight_decay=0", "schedule=constant")
    say = (f"strategy.alpha={alpha}", f"strategy.temperature={heat}", f"strategy.teacher_outputs={outputs}")
    run = told(tmp_path / "run", *KD, of(other), *steps, *say, "epochs=9", "max_steps=20")
    home = Bench(Device("cpu", threads=1)).open(run.path)
    expected = bare_kd(home, home.open(str(other.path)).restore(), alpha, heat, 20)
    got = run.weights("last")
    assert run.result["last"]["step"] == 20
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.allclose(got[name].float(), value.float(), atol=near), name


def test_a_teacher_stands_still_and_the_artifact_is_the_student_alone(tmp_path, other, monkeypatch):
    before = hash_tensors(other.weights())
    home = lab(tmp_path / "run", *KD, of(other), "model.batch_norm=true", "strategy.teacher_outputs=live")
    seen: list = []
    model = home.model

    def watched():
        student = model()
        student.register_forward_hook(lambda m, *_: seen.append((m.training, torch.is_grad_enabled())))
        return student

    monkeypatch.setattr(home, "model", watched)
    story = parts.strategy(home.run.config)
    story.run(home)
    (live,) = story._asked.values()
    assert hash_tensors(live.model.state_dict()) == before == hash_tensors(other.weights())
    assert not any(p.requires_grad or p.grad is not None for p in live.model.parameters())
    # Six steps over two epochs, each in train mode; all else, with and without gradients, in eval mode.
    trains = [grads for training, grads in seen if training]
    assert trains == [True] * 6
    student = Bench(Device("cpu", threads=1)).open(home.run.path).model().state_dict()
    assert home.run.weights().keys() == home.run.weights("last").keys() == student.keys()


def test_projectors_train_and_are_not_in_the_artifact(tmp_path, other):
    taps = [
        "strategy.terms.hint.weight=1",
        "strategy.terms.hint.student=[net.fc1]",
        "strategy.terms.hint.teacher=[net.fc1]",
    ]
    run = told(tmp_path / "run", *KD, of(other), *taps)
    student = Bench(Device("cpu", threads=1)).open(run.path).model()
    assert run.weights().keys() == run.weights("last").keys() == student.state_dict().keys()


FEATURES = {"hint": "fc1", "attention": "conv1", "similarity": "conv2", "relational": "fc1", "contrastive": "fc2"}


@pytest.mark.parametrize("name", FEATURES)
def test_each_term_on_features_takes_part_and_its_share_is_logged(tmp_path, other, name):
    tap = f"net.{FEATURES[name]}"
    node = f"strategy.terms.{name}"
    say = [f"{node}.weight=1", f"{node}.student=[{tap}]", f"{node}.teacher=[{tap}]"]
    run = told(tmp_path / "run", *KD, "model=simple_cnn", of(other), *say)
    for row in run.rows():
        shares = {k.removeprefix("share/"): v for k, v in row.items() if k.startswith("share/")}
        assert shares.keys() == {"truth", "soft", name}
        assert sum(shares.values()) == pytest.approx(1)
        assert shares[name] > 0
        assert row[f"train/{name}"] > 0


@pytest.mark.parametrize("name", ["decoupled", "correlation", "mean_squared"])
def test_each_term_on_logits_takes_part(tmp_path, teacher, name):
    run = told(tmp_path / "run", *KD, of(teacher), f"strategy.terms.{name}.weight=1", "epochs=1")
    assert run.rows()[0][f"share/{name}"] > 0


def test_agreement_is_what_the_predictions_say(tmp_path, teacher, other):
    run = told(tmp_path / "run", *KD, of(teacher, other))
    home = Bench(Device("cpu", threads=1)).open(run.path)
    said = [home.predict(home.teacher(str(t.path)).model, "val").scores for t in (teacher, other)]
    student, _ = run.predictions("val")
    agreed = (student.scores.argmax(1) == torch.stack(said).mean(0).argmax(1)).double().mean()
    assert run.result["disagreement"]["agreement"] == pytest.approx(float(agreed))
    best = run.rows()[run.result["best"]["epoch"]]
    assert best["val/agreement"] == pytest.approx(float(agreed))
    assert best["beside/teacher wide_mlp"] == pytest.approx(teacher.result["val"]["accuracy"])


def test_two_teachers_of_one_name_are_told_apart(tmp_path, teacher):
    twin = plain(tmp_path / "twin", "model=wide_mlp", "seed=8", *LEARNS)
    run = told(tmp_path / "run", *KD, of(teacher, twin), "epochs=1")
    assert {k for k in run.rows()[0] if k.startswith("beside/")} == {
        "beside/teacher wide_mlp 0",
        "beside/teacher wide_mlp 1",
    }
    assert [row["name"] for row in run.result["team"]] == ["teacher wide_mlp 0", "teacher wide_mlp 1", "student"]
    assert [Run.open(run.path / row["run"]).finished for row in run.result["team"]] == [True] * 3


TEAMS = [
    *(
        f"strategy.team={team} strategy.space={space}"
        for team in ("mean", "confidence")
        for space in ("probability", "logit")
    ),
    "strategy.team=weighted",
    "strategy.team=weighted strategy.weights=[1,3]",
    *(f"strategy.team=agree strategy.conflict={conflict}" for conflict in ("vote", "mean", "skip")),
]


@pytest.mark.parametrize("team", TEAMS)
def test_teams_of_teachers(tmp_path, teacher, other, team):
    run = told(tmp_path / "run", *KD, of(teacher, other), *team.split(), "epochs=1")
    alone = told(tmp_path / "alone", *KD, of(teacher), "epochs=1")
    assert run.finished
    assert hash_tensors(run.weights()) != hash_tensors(alone.weights())


def test_of_candidates_the_best_on_validation_teaches(tmp_path, teacher, capsys):
    worse = plain(tmp_path / "worse", "model=linear", "epochs=1", "optim.lr=0.003", "data.eval_limit=64")
    assert worse.result["val"]["accuracy"] < teacher.result["val"]["accuracy"]
    lines: list[str] = []
    home = lab(tmp_path / "run", *KD, of(worse, teacher), "strategy.choose=best", "strategy.allow_weak=true")
    home.watch.say = lines.append
    parts.strategy(home.run.config).run(home)
    alone = told(tmp_path / "alone", *KD, of(teacher))
    assert hash_tensors(home.run.weights()) == hash_tensors(alone.weights())
    (table,) = [line for line in lines if line.startswith("teachers by accuracy")]
    assert [line.split()[2] for line in table.splitlines()[1:]] == ["wide_mlp", "linear"]


def test_alpha_and_temperature_move(tmp_path, teacher):
    """At lr=0 parts stay what they are, so all that changes is what they count and the temperature."""
    still = ("optim=sgd", "optim.lr=1e-30", "schedule=constant", "epochs=4", "data.workers=0")
    ramp = ("strategy.alpha=0", "strategy.alpha_end=1")
    rows = told(tmp_path / "run", *KD, of(teacher), *ramp, *still).rows()
    shares = [row["share/truth"] for row in rows]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    # The loss is summed as the weights were when each step was done: 12 steps at progress 0/12 to 11/12.
    for e, row in enumerate(rows):
        alpha = sum(step / 12 for step in range(3 * e, 3 * e + 3)) / 3
        expected = alpha * row["train/truth"] + (1 - alpha) * row["train/soft"]
        assert row["train/loss"] == pytest.approx(expected, rel=0.05)
    hot = told(
        tmp_path / "hot", *KD, of(teacher), *still, "strategy.temperature=1", "strategy.temperature_end=8"
    ).rows()
    cold = told(tmp_path / "cold", *KD, of(teacher), *still, "strategy.temperature=1").rows()
    assert abs(hot[0]["train/soft"] / cold[0]["train/soft"] - 1) < abs(
        hot[-1]["train/soft"] / cold[-1]["train/soft"] - 1
    )


def test_hidden_labels_are_not_learned_and_teachers_are_asked_about_all_rows(tmp_path, teacher):
    home = lab(tmp_path / "run", *KD, of(teacher), "data.unlabeled=0.5", "strategy.teacher_outputs=cached", "epochs=1")
    target = home.data.splits["train"].target[home.data.splits["train"].rows]
    assert int((target < 0).sum()) == 48
    parts.strategy(home.run.config).run(home)
    row = home.run.rows()[0]
    assert row["train/truth"] > 0
    assert row["train/soft"] > 0
    answered = [read_tensors(file)["row"] for file in teacher.path.glob("answers/*/*.safetensors")]
    assert any(torch.equal(rows, home.data.splits["train"].rows) for rows in answered)


@pytest.mark.parametrize("peers", [2, 3])
def test_peers_are_runs_of_their_own(tmp_path, peers):
    run = told(tmp_path / "run", *KD, f"strategy.peers={peers}", "model@strategy.peer=simple_cnn")
    bench = Bench(Device("cpu", threads=1))
    for n in range(1, peers):
        home = bench.open(run.path / "members" / f"peer{n}")
        assert home.run.config["model"]["name"] == "simple_cnn"
        assert home.run.config["seed"] == n
        assert home.measure(home.restore(), "val")[1] == pytest.approx(home.run.result["val"])
    assert run.config["model"]["name"] == "mlp"
    assert [row["name"] for row in run.result["team"]] == ["student", *(f"peer{n}" for n in range(1, peers))]
    assert "train/peer1/soft" in run.rows()[0]


def test_peers_and_a_teacher_with_one_forward_each(tmp_path, teacher):
    run = told(tmp_path / "run", *KD, "strategy.peers=2", of(teacher))
    assert [row["name"] for row in run.result["team"]] == ["teacher wide_mlp", "student", "peer1"]


def test_generations_follow_one_another(tmp_path, teacher):
    run = told(tmp_path / "run", *KD, of(teacher), "strategy.generations=3")
    members = [Run.open(run.path / "members" / f"generation{n}") for n in (1, 2)]
    assert [m.config["seed"] for m in members] == [1, 2]
    taught = [m.config["strategy"]["teachers"] for m in members]
    assert taught == [[str(teacher.path)], [str(members[0].path.resolve())]]
    assert run.result["teachers"][0]["model"] == members[1].result["fingerprints"]["model"]


def test_rounds_go_on_from_the_student_until_the_target(tmp_path, teacher):
    run = told(tmp_path / "run", *KD, of(teacher), "strategy.rounds=3", "epochs=1")
    rounds = [Run.open(run.path / "members" / f"round{n}") for n in range(3)]
    assert [len(r.config["strategy"]["teachers"]) for r in rounds] == [1, 2, 3]
    assert rounds[1].config["model"]["checkpoint"] == str(rounds[0].path.resolve())
    best = max(rounds, key=lambda r: r.result["val"]["accuracy"])
    assert hash_tensors(run.weights()) == best.result["fingerprints"]["model"]
    early = told(tmp_path / "early", *KD, of(teacher), "strategy.rounds=3", "epochs=1", "target=0.01")
    assert [p.name for p in sorted(early.path.glob("members/round*"))] == ["round0"]


def test_the_baseline_is_the_plain_run_of_the_same_seed(tmp_path, teacher):
    run = told(tmp_path / "run", *KD, of(teacher), "strategy.baseline=true", "seed=3")
    alone = plain(tmp_path / "alone", *KD[1:], "seed=3")
    member = Run.open(run.path / "members" / "baseline")
    for which in ("model", "last"):
        assert hash_tensors(member.weights(which)) == hash_tensors(alone.weights(which))
    assert untimed(member) == untimed(alone)
    assert run.result["team"][-1]["val"] == alone.result["val"]


@pytest.mark.parametrize("data", ["data=diabetes", "data=fake data.kind=labels", "data=fake data.kind=values"])
@pytest.mark.parametrize("outputs", ["live", "cached"])
def test_values_and_labels_are_taught_too(tmp_path, data, outputs):
    say = (*KD, *data.split(), f"strategy.teacher_outputs={outputs}", "model@strategy.teacher=wide_mlp")
    run = told(tmp_path / "run", *say)
    assert run.finished
    assert run.rows()[-1]["share/soft"] > 0
    assert "agreement" in run.result["disagreement"]


def test_a_model_that_ends_in_log_softmax_has_a_teacher_that_does_not(tmp_path):
    run = told(tmp_path / "run", *KD, "loss=nll", "model.log_softmax=true")
    made = Run.open(
        run.path
        / "members"
        / "teacher0"
        / json.loads((run.path / "members/teacher0/reference.json").read_text())["path"]
    )
    assert made.config["loss"]["name"] == "cross_entropy"
    assert made.rows()[-1]["train/loss"] > 0


def test_a_config_is_never_changed_in_place(tmp_path, teacher):
    cfg = config("strategy=kd", of(teacher))
    before = deepcopy(cfg)
    story = parts.strategy(cfg)
    home = lab(tmp_path / "run", *KD, of(teacher), "strategy.generations=2", "strategy.baseline=true")
    kept = deepcopy(home.run.config)
    story = parts.strategy(home.run.config)
    node = deepcopy(story.node)
    story.run(home)
    assert (story.node, home.run.config, cfg) == (node, kept, before)


CONTRADICTIONS = {
    "strategy.alpha=1": "no term of strategy.terms learns from a teacher",
    "strategy.peers=2 strategy.rounds=2": "three ways",
    "model@strategy.peer=mlp": "strategy.peers=2",
    "strategy.weights=[1]": "strategy.team=weighted",
    "strategy.weights=[1,1] strategy.team=weighted": "as many numbers",
    "strategy.weights=[1] strategy.team=weighted strategy.rounds=2": "leave it at null",
    "strategy.team=weighted strategy.peers=2": "peers have no score",
    "strategy.cache_topk=3 strategy.temperature_end=1": "re-tempered",
    "strategy.cache_topk=3 strategy.teacher_outputs=live": "stored answers",
    "strategy.terms.hint.weight=1": "taps go in pairs",
    "strategy.terms.hint.weight=1 strategy.terms.hint.student=[net.fc1] strategy.terms.hint.teacher=[net.fc1] "
    "strategy.teacher_outputs=cached": "looks at layers",
    "strategy.terms.hint.weight=1 strategy.terms.hint.student=[net.fc1] strategy.terms.hint.teacher=[net.fc1] "
    "strategy.choose=best": "any teacher",
    "strategy.terms.hint.weight=1 strategy.terms.hint.student=[net.fc1] strategy.terms.hint.teacher=[net.fc1] "
    "strategy.peers=2 strategy.teachers=[]": "logits only",
}


@pytest.mark.parametrize("say", CONTRADICTIONS)
def test_contradictions_are_seen_before_data_is_read(say):
    with pytest.raises(Refused, match=CONTRADICTIONS[say]) as error:
        parts.check(config("strategy=kd", "strategy.teachers=[somewhere]", *say.split()))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_newcomers_pictures(tmp_path, real_data: Path):
    pictures = ("data=image_folder", f"data.root={real_data / 'cifar10_subset'}", "debug=smoke", "model=resnet18")
    run = told(tmp_path / "run", "strategy=kd", *pictures)
    assert run.finished
    assert Run.open(next(tmp_path.glob("shared/teacher-*"))).config["model"]["name"].startswith("resnet50")
