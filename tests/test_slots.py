"""A second model on the command line: `model@strategy.teacher=resnet50`, and lists of models by name."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

from sftc import schema
from sftc.cli import compose, conf, main, options, slots, teachers

DUO = """\
# sftc train strategy=duo  (two models)
name: duo          # fixed: stands in for strategies with more than one model
share: 0.5         # float > 0: an ordinary key
teacher: null      # dict or null: the other model
peer: null         # dict or null: a third one
models: []         # models: a team
extra:
  more: null       # models or null: another team
terms: {}          # dict: free
"""
MODELS = {
    "mine": "# sftc train model=mine\ndefaults: [resnet18, _self_]\nname: resnet26  # fixed: inherits a teacher\n",
    "odd": "# sftc train model=odd\nname: odd\n",
    "seeded": "# sftc train model=seeded\nname: seeded\nrate: ${seed}\nwidth: ${model.rate}\n",
    "half": "# sftc train model=half\nname: ???  # str: of what\n",
    "parent": "# sftc train model=parent\ndefaults: [_self_, mlp]\nhidden: [1]\n",
}
EXPERIMENTS = {
    "duo": "defaults:\n  - override /strategy: duo\n  - override /model: resnet18\n"
    "strategy:\n  teacher: {pretrained: false}\n",
    "other": "defaults:\n  - override /strategy: duo\n  - override /model@strategy.teacher: mlp\n",
    "wrong": "defaults:\n  - override /strategy: duo\n  - override /model@strategy.teacher: mlpp\n",
}
MODELS_SHIPPED = list(conf.groups([conf.conf_dir()])["model"])


@pytest.fixture
def dirs(tmp_path: Path, monkeypatch) -> list[Path]:
    """Our directory, and a user's with a strategy that has slots; the working directory is empty."""
    my = tmp_path / "my"
    for group in ("strategy", "model", "experiment"):
        (my / group).mkdir(parents=True)
    (my / "strategy/duo.yaml").write_text(DUO)
    for name, text in MODELS.items():
        (my / f"model/{name}.yaml").write_text(text)
    for name, text in EXPERIMENTS.items():
        (my / f"experiment/{name}.yaml").write_text(f"# @package _global_\n# sftc train experiment={name}\n{text}")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return conf.conf_dirs(str(my))


def job(dirs: list[Path], *overrides: str) -> compose.Config:
    return compose.check_all("train", list(overrides), dirs, sweep=False)


def strategy(dirs: list[Path], *overrides: str) -> dict:
    return job(dirs, "strategy=duo", *overrides).values["strategy"]


@pytest.fixture
def sftc(dirs, monkeypatch, capsys):
    """`sftc(*args)` -> (code, stdout, stderr, jobs), with the user's directory and a build that only remembers."""
    jobs: list[dict] = []
    build = types.SimpleNamespace(check=lambda cfg: None, train=lambda cfg, *rest: jobs.append(cfg))
    monkeypatch.setitem(sys.modules, "sftc.build", build)

    def run(*args: str):
        jobs.clear()
        code = main([*args, "--config-dir", str(dirs[1])])
        said = capsys.readouterr()
        return code, said.out, said.err, jobs

    return run


# -- what fills a slot --------------------------------------------------------------------------------------


def test_a_strategy_without_slots_has_none(dirs):
    config = job(dirs)
    assert config.values["strategy"] == {"name": "plain"}
    assert config.choices["model@strategy.teacher"] == "none"
    assert "model@strategy.teacher" not in config.values


def test_the_usual_teacher_and_another(dirs):
    assert strategy(dirs)["teacher"]["name"] == "wide_cnn"
    assert strategy(dirs, "model=resnet18")["teacher"]["name"] == "resnet50"
    assert strategy(dirs, "model=resnet18", "model@strategy.teacher=mlp")["teacher"]["name"] == "mlp"
    assert strategy(dirs, "model@strategy.teacher=none")["teacher"] is None
    assert strategy(dirs)["peer"] is None
    both = strategy(dirs, "model@strategy.teacher=mlp", "model@strategy.peer=linear")
    assert (both["teacher"]["name"], both["peer"]["name"]) == ("mlp", "linear")


def test_a_slot_holds_what_the_option_holds(dirs):
    assert strategy(dirs, "model@strategy.teacher=wide_cnn")["teacher"] == job(dirs, "model=wide_cnn").values["model"]


def test_keys_of_the_slot_are_set_and_converted(dirs):
    got = strategy(dirs, "model@strategy.teacher=mlp", "strategy.teacher.hidden=[9]", "strategy.teacher.dropout=0")
    assert got["teacher"]["hidden"] == [9]
    assert type(got["teacher"]["dropout"]) is float


def test_an_experiment_may_choose_all_of_it(dirs):
    teacher = job(dirs, "experiment=duo").values["strategy"]["teacher"]
    assert (teacher["name"], teacher["pretrained"]) == ("resnet50", False)
    assert job(dirs, "experiment=duo", "model=mlp").values["strategy"]["teacher"]["name"] == "wide_mlp"
    assert job(dirs, "experiment=other", "model=resnet18").values["strategy"]["teacher"]["name"] == "mlp"
    assert options.chosen(dirs, "train", ["experiment=duo"])["model@strategy.teacher"] == "resnet50"
    assert options.chosen(dirs, "train", ["experiment=duo", "strategy=plain"])["model@strategy.teacher"] == "none"


@pytest.mark.parametrize("model", MODELS_SHIPPED)
def test_every_model_we_ship_has_a_teacher_that_is_an_option(model, dirs):
    assert teachers.usual(dirs, "duo", model) in MODELS_SHIPPED
    assert teachers.usual(dirs, "plain", model) == "none"


def test_tables_are_taught_by_what_reads_tables():
    table = schema.read(conf.conf_dir() / "model/_teachers.yaml").specs
    readers = {"linear", "mlp", "wide_mlp"}
    assert {table[student].default for student in readers} <= readers


def test_a_model_of_the_user_inherits_its_teacher_or_names_it(dirs):
    assert teachers.usual(dirs, "duo", "mine") == "resnet50"
    assert teachers.usual(dirs, "duo", "odd") == "none"
    assert strategy(dirs, "model=odd")["teacher"] is None
    (dirs[1] / "model/_teachers.yaml").write_text("odd: mine\nresnet18: vgg16\n")
    assert teachers.usual(dirs, "duo", "odd") == "mine"
    assert teachers.usual(dirs, "duo", "resnet18") == "vgg16"
    assert teachers.usual(dirs, "duo", "resnet50") == "convnext_tiny"


# -- mistakes -----------------------------------------------------------------------------------------------

MISTAKES = [
    (["model@strategy.teacher=mpl"], "there is no model@strategy.teacher=mpl; did you mean 'mlp'? (one of: "),
    (["model@strategy.teacher=_timm"], "shared part, not an option (sftc ls model)"),
    (["model@strategy.teacher=null"], "write model@strategy.teacher=none"),
    (["~model@strategy.teacher"], "write model@strategy.teacher=none"),
    (["+model@strategy.teacher=mlp"], "chosen already: write model@strategy.teacher=... without the +"),
    (["model@strategy.techer=mlp"], "nothing reads 'model@strategy.techer'; did you mean 'model@strategy.teacher'?"),
    (["model@teacher=mlp"], "did you mean 'model@strategy.teacher'?"),
    (["+model@teacher=mlp"], "nothing reads 'model@teacher'; did you mean 'model@strategy.teacher'?"),
    (["strategy=plain", "model@strategy.teacher=mlp"], "strategy=plain has no teacher; strategy="),
    (["strategy=plain", "model@strategy.teacher=mpl"], "did you mean 'mlp'?"),
    (["strategy=plain", "strategy.teacher.hidden=[3]"], "with strategy=plain; strategy="),
    (["strategy.teacher=mlp"], "strategy.teacher=mlp: choose it by model@strategy.teacher=mlp"),
    (["strategy.teacher=null"], "take it away by model@strategy.teacher=none"),
    (["strategy.teacher.name=mlp"], "is fixed to wide_cnn here"),
    (["strategy.teacher.name=mlp"], "; choose another model@strategy.teacher="),
    (["strategy.teacher.chanels=[3]"], "model@strategy.teacher=wide_cnn; did you mean 'strategy.teacher.channels'?"),
    (["strategy.teacher.drop_rate=0"], "with model@strategy.teacher=wide_cnn; model@strategy.teacher=convnext_tiny"),
    (["+strategy.teacher.foo=1"], "nothing reads 'strategy.teacher.foo'"),
    (["~strategy.teacher.hidden"], "cannot be taken away"),
    (["strategy.teacher.pretrained=flase"], "did you mean 'false'?"),
    (["strategy.peer.hidden=[3]"], "choose model@strategy.peer=... first (one of: "),
    (["+strategy.peer.hidden=[3]"], "strategy.peer has keys, but no option to set them in"),
    (["model@strategy.peer=mpl", "strategy.peer.hidden=[3]"], "no model@strategy.peer=mpl; did you mean 'mlp'?"),
    (["experiment=wrong"], "there is no model@strategy.teacher=mlpp; did you mean 'mlp'?"),
    (["experiment=duo", "strategy.shaer=2"], "did you mean 'strategy.share'?"),
    (["-m", "model@strategy.teacher=mlp,mpl"], "did you mean 'mlp'?"),
    (["-m", "strategy=duo,plain", "model@strategy.teacher=mlp"], "strategy=plain has no teacher"),
    (["-m", "model@strategy.teacher=mlp,linear", "strategy.teacher.hidden=[3]"], "teacher=linear; model@strategy."),
    (["strategy.models=[mlp,mpl]"], "strategy.models: there is no model=mpl; did you mean 'mlp'? (one of: "),
    (["strategy.models=[_timm]"], "there is no model=_timm"),
    (["strategy.models=mlp"], "strategy.models=mlp is not a list of names of models (a team)"),
    (["strategy.models=[3]"], "is not a list of names of models"),
    (["strategy.models=null"], "is not a list of names of models"),
    (["strategy.models=[{name: mlp}]"], "is not a list of names of models"),
    (["strategy.models=mlp,linear"], "or write 'strategy.models=[mlp,linear]' for a list"),
    (["strategy.models=[mlp,half]"], "strategy.models.half.name=... is missing: str (of what)"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_a_mistake_gives_one_line(sftc, args, says):
    given = [] if any("strategy=" in arg for arg in args) or "experiment=" in args[0] else ["strategy=duo"]
    code, out, err, jobs = sftc("train", *given, *args)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not out
    assert not jobs
    assert os.listdir() == []


def test_the_key_in_the_yaml_opens_nothing_when_a_slot_fills_it(dirs):
    keys = options.declared(dirs, "train", {"strategy": "duo", "model@strategy.teacher": "mlp"})
    assert not keys.is_free("strategy.teacher.foo")
    assert not keys.grows("strategy.teacher.foo")
    assert not keys.grows("strategy.peer.foo")
    assert keys.grows("strategy.terms.foo")


# -- the whole command --------------------------------------------------------------------------------------


def test_a_run_and_its_command(sftc):
    code, _, err, jobs = sftc("train", "strategy=duo", "model@strategy.teacher=timm", "strategy.teacher.kwargs.a=1")
    assert (code, err) == (0, "")
    assert jobs[0]["strategy"]["teacher"]["kwargs"] == {"a": 1}


def test_a_sweep_over_teachers_and_over_students(sftc):
    code, out, _, jobs = sftc("train", "-m", "strategy=duo", "model@strategy.teacher=mlp,linear,none")
    assert code == 0
    assert [(cfg["strategy"]["teacher"] or {}).get("name") for cfg in jobs] == ["mlp", "linear", None]
    assert "model@strategy.teacher=linear" in out
    assert sftc("train", "-m", "strategy=duo", "model=mlp,resnet18", "strategy.teacher.mean=0.5")[0] == 0
    assert [cfg["strategy"]["teacher"]["name"] for cfg in jobs] == ["wide_mlp", "resnet50"]
    assert sftc("train", "-m", "strategy=duo", "model@strategy.teacher=glob(wide*)")[0] == 0
    assert [cfg["strategy"]["teacher"]["name"] for cfg in jobs] == ["wide_cnn", "wide_mlp"]


def test_cfg_job_shows_the_slot(sftc):
    out = sftc("train", "strategy=duo", "model=resnet18", "--cfg", "job")[1]
    assert "  teacher:\n    pretrained: auto\n" in out
    assert "    name: resnet50\n" in out


def test_help_says_a_slot_in_a_line_unless_it_is_asked_for(sftc):
    out = sftc("train", "strategy=duo", "--help")[1]
    assert "  model@strategy.teacher  *wide_cnn, or any of model, or none\n" in out
    assert "  model@strategy.peer     *none, or any of model\n" in out
    assert "  model@strategy.teacher=wide_cnn" in out
    assert "the other model [an option of model, or none]" in out
    assert "strategy.teacher." not in out
    assert (
        "strategy.teacher.hidden=[128, 64]" in sftc("train", "strategy=duo", "model@strategy.teacher=mlp", "--help")[1]
    )
    assert "strategy.teacher.mean=0.4" in sftc("train", "strategy=duo", "strategy.teacher.mean=0.4", "--help")[1]
    assert "strategy.teacher" not in sftc("train", "--help")[1]


def test_ls_names_the_slots_a_group_fits(sftc):
    out = sftc("ls", "model")[1]
    line = next(row for row in out.splitlines() if "model@strategy.teacher=" in row)
    assert "duo" in line
    assert sftc("ls", "model@strategy.teacher")[1] == out
    assert "model@" not in sftc("ls", "data")[1]


COMPLETIONS = [
    ("strategy=duo model@", ["model@strategy.teacher=", "model@strategy.peer="]),
    ("strategy=duo model@strategy.t", ["model@strategy.teacher="]),
    ("model@strategy.teacher=res", ["model@strategy.teacher=resnet18", "model@strategy.teacher=resnet50"]),
    ("model@strategy.peer=no", ["model@strategy.peer=none"]),
    ("strategy=plain model@", []),
]


@pytest.mark.parametrize(("typed", "gives"), COMPLETIONS, ids=[typed for typed, _ in COMPLETIONS])
def test_completion_of_slots(sftc, dirs, monkeypatch, typed, gives):
    monkeypatch.setenv("COMP_LINE", f"sftc train --config-dir {dirs[1]} {typed}")
    assert sftc("-sc", "query=bash")[1].split() == gives


def test_completion_of_keys_in_a_slot(sftc, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "sftc train strategy=duo strategy.teacher.hi")
    assert sftc("-sc", "query=bash")[1].split() == ["strategy.teacher.hidden."]


def test_bash_does_not_split_words_at_the_slot(sftc):
    assert "COMP_WORDBREAKS//@" in sftc("-sc", "install=bash")[1]


# -- lists of models ----------------------------------------------------------------------------------------


def test_names_become_the_nodes_of_their_options(dirs):
    names = ["resnet18", "wide_cnn", "parent", "wide_cnn"]
    got = strategy(dirs, f"strategy.models=[{','.join(names)}]", "strategy.extra.more=[mlp]")
    assert got["models"] == [job(dirs, f"model={name}").values["model"] for name in names]
    assert [node["name"] for node in got["extra"]["more"]] == ["mlp"]
    assert got["models"][2]["hidden"] == [128, 64]  # _self_ comes first there, so that mlp has the last word


def test_no_names_stay_none(dirs):
    got = strategy(dirs)
    assert got["models"] == []
    assert got["extra"]["more"] is None


def test_a_node_may_refer_to_the_config_and_to_itself(dirs):
    (node,) = strategy(dirs, "strategy.models=[seeded]", "seed=7")["models"]
    assert node == {"name": "seeded", "rate": 7, "width": 7}


def test_filling_changes_no_config_in_place(dirs):
    keys = options.declared(dirs, "train", {"strategy": "duo"})
    values = {"strategy": {"models": ["mlp"], "extra": {"more": None}}}
    filled = slots.filled(dirs, values, keys)
    assert values == {"strategy": {"models": ["mlp"], "extra": {"more": None}}}
    assert filled["strategy"]["models"][0]["hidden"] == [128, 64]
