"""The command line: what a user types, what comes back, and what is left on the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import hydra
import pytest

from sftc.cli import compose, conf, main
from sftc.errors import Refused, Stopped

OPTIONS = """
model/_base        # sftc ls model
                   input_size: auto  # one of auto, min or int >= 1: of images
model/mlp          # sftc train model=mlp  (fully connected)
                   defaults: [_base, _self_]
                   name: mlp  # fixed: the model
                   hidden: [8]  # list: sizes
model/simple_cnn   # sftc train model=simple_cnn
                   defaults: [_base, _self_]
                   name: simple_cnn  # fixed: the model
data/_base         # sftc ls data
                   limit: null  # int or float > 0 or null: rows
                   eval_limit: null  # int or float > 0 or null: rows
                   workers: 0  # int >= 0: readers
data/digits        # sftc train data=digits
                   defaults: [_base, _self_]
                   name: digits  # fixed: the data
data/fake          # sftc train data=fake
                   defaults: [_base, _self_]
                   name: fake  # fixed: the data
                   kind: classes  # str: of targets
strategy/plain     # sftc train strategy=plain
                   name: plain  # fixed: the strategy
strategy/kd        # sftc train strategy=kd
                   name: kd  # fixed: the strategy
                   temperature: 4.0  # float > 0: softness
                   terms:  # dict: addends of the loss
                     soft:
                       weight: 1.0  # float >= 0: of the teacher
optim/adamw        # sftc train optim=adamw
                   name: adamw  # fixed: the optimizer
                   lr: 1e-3  # float > 0: rate
                   kwargs: {}  # dict: further keywords
semi/none          # sftc train semi=none
                   name: none  # fixed: no more than the labels
schedule/cosine    # sftc train schedule=cosine
                   name: cosine  # fixed: the schedule
finetune/full      # sftc train finetune=full
                   name: full  # fixed: what moves
loss/auto          # sftc train loss=auto
                   name: auto  # fixed: the loss
device/auto        # sftc train device=auto
                   accelerator: auto  # fixed: where
device/cpu         # sftc train device=cpu
                   accelerator: cpu  # fixed: where
tracker/none       # sftc train tracker=none
                   name: none  # fixed: the tracker
experiment/big     # @package _global_
                   # sftc train experiment=big
                   defaults: [{override /model: mlp}, {override /device: auto}]
                   epochs: 77
                   model: {hidden: [99]}
"""


def _write_options(root: Path) -> None:
    for line in OPTIONS.strip().splitlines():
        name, text = line[:19].strip(), line[19:]
        file = root / f"{name}.yaml" if name else file  # noqa: F821 - the first line has a name
        file.parent.mkdir(exist_ok=True)
        with file.open("w" if name else "a") as out:
            out.write(text + "\n")


class Build(types.ModuleType):
    """Stands in for sftc.build: remembers what it was given, and fails when told to."""

    def __init__(self) -> None:
        super().__init__("sftc.build")
        self.jobs: list[dict] = []
        self.commands: list[str] = []
        self.fail: dict[int, BaseException] = {}  # seed -> what happens
        self.make_folder = True

    def check(self, cfg):
        if cfg["seed"] == 13:
            raise Refused("seed=13 contradicts good luck; choose another")

    def train(self, cfg, out, overrides, command):
        self.jobs.append(cfg)
        self.commands.append(command)
        if self.make_folder:
            assert not out.exists() or not any(out.iterdir())
            out.mkdir(parents=True, exist_ok=True)
            (out / "config.yaml").write_text("seed: 0\n")
            (out / "status.json").write_text(json.dumps({"state": "running"}))
        if error := self.fail.get(cfg["seed"]):
            raise error
        if self.make_folder:
            (out / "status.json").write_text(json.dumps({"state": "finished"}))
        return 0.5 + cfg["seed"] / 100

    def evaluate(self, cfg):
        self.jobs.append(cfg)

    def export(self, cfg):
        self.jobs.append(cfg)


@pytest.fixture
def build(monkeypatch) -> Build:
    fake = Build()
    monkeypatch.setitem(sys.modules, "sftc.build", fake)
    return fake


@pytest.fixture
def sftc(tmp_path, monkeypatch, capsys, build):
    """`sftc(*args)` -> (code, stdout, stderr), in an empty directory, over our commands and toy options."""
    root = tmp_path / "conf"
    shutil.copytree(conf.conf_dir(), root, ignore=lambda d, names: [n for n in names if _foreign(Path(d), n)])
    _write_options(root)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(conf, "conf_dir", lambda: root)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.delenv("SFTC_TRACEBACK", raising=False)

    def run(*args: str):
        code = main(list(args))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def _foreign(directory: Path, name: str) -> bool:
    ours = ("debug", "experiment")
    return ((directory / name).is_dir() and name not in ours) or (
        directory.name == "experiment" and name != "none.yaml"
    )


def folders() -> list[Path]:
    return sorted(Path("outputs").glob("*/*"))


# -- one run ------------------------------------------------------------------------------------------------


def test_a_run_gets_a_plain_config_and_a_named_folder(sftc, build):
    assert sftc("train", "seed=3", "optim.lr=1", "model=mlp")[0] == 0
    (cfg,), (folder,) = build.jobs, folders()
    assert (cfg["seed"], cfg["optim"]["lr"], cfg["penalty"]["l1"], cfg["out"]) == (3, 1.0, 0.0, None)
    assert type(cfg) is dict
    assert type(cfg["model"]["hidden"]) is list
    assert "hydra" not in cfg
    assert folder.name.endswith("-plain-digits-mlp")
    assert build.commands == ["sftc train seed=3 optim.lr=1 model=mlp"]
    assert {p.name for p in folder.iterdir()} == {"config.yaml", "status.json"}
    assert os.listdir() == ["outputs"], "Hydra left nothing"


def test_two_runs_in_one_second_do_not_share_a_folder(sftc):
    for _ in range(3):
        assert sftc("train")[0] == 0
    assert len(folders()) == 3


def test_out_chooses_the_folder_and_is_never_overwritten(sftc, build):
    assert sftc("train", "out=here/mine")[0] == 0
    assert Path("here/mine/config.yaml").exists()
    assert not Path("outputs").exists()
    code, _, err = sftc("train", "out=here/mine")
    assert code == 2
    assert "finished run" in err
    assert "resume=" not in err
    Path("here/mine/status.json").write_text(json.dumps({"state": "stopped"}))
    code, _, err = sftc("train", "out=here/mine")
    assert code == 2
    assert "not empty" in err
    assert "resume=here/mine" in err
    assert len(build.jobs) == 1


def test_a_path_with_an_equals_sign_works_once_quoted(sftc, build):
    assert sftc("eval", 'run="a=b"')[0] == 0
    assert build.jobs[0] == {"run": "a=b", "split": "test", "quiet": False, "data": None, "device": None}


def test_an_unexpected_error_is_one_line_and_a_file(sftc, build):
    build.fail[0] = ZeroDivisionError("by\nzero")
    code, _, err = sftc("train", "out=x")
    assert code == 1
    assert err == "sftc train: ZeroDivisionError: by zero (traceback in x/error.txt)\n"
    assert "test_cli.py" in Path("x/error.txt").read_text()


def test_tracebacks_on_request(sftc, build, monkeypatch):
    build.fail[0] = ZeroDivisionError("by zero")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert "Traceback" in sftc("train")[2]
    assert "SFTC_TRACEBACK" not in os.environ


@pytest.mark.parametrize(("error", "code"), [(Refused("no"), 2), (Stopped("time", 75), 75), (KeyboardInterrupt(), 130)])
def test_an_error_that_comes_before_the_folder_leaves_none(sftc, build, error, code):
    build.fail[0], build.make_folder = error, False
    got, _, err = sftc("train")
    assert got == code
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert os.listdir() == []


def test_contradictions_are_refused_before_anything_is_made(sftc):
    code, _, err = sftc("train", "seed=13")
    assert (code, err) == (2, "sftc train: seed=13 contradicts good luck; choose another\n")
    assert os.listdir() == []


def test_resume_takes_the_stored_settings_only(sftc, build):
    assert sftc("train", "out=x")[0] == 0
    code, _, err = sftc("train", "resume=x", "epochs=3", "model=mlp")
    assert code == 2
    assert "leave out epochs=3 model=mlp" in err
    code, _, err = sftc("train", "resume=y")
    assert code == 2
    assert "no run" in err
    build.make_folder = False
    assert sftc("train", "resume=x", "quiet=true")[0] == 0
    assert build.jobs[-1]["resume"] == "x"
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("args", "gives"),
    [
        (["optim.kwargs.foo=1"], {"foo": 1}),
        (["optim.kwargs={foo: 1}", "optim.kwargs.bar.baz=2"], {"foo": 1, "bar": {"baz": 2}}),
        (["+optim.kwargs.foo=1"], {"foo": 1}),
        (["optim.kwargs={}"], {}),
    ],
)
def test_a_free_dict_takes_any_key(sftc, build, args, gives):
    assert sftc("train", *args)[0] == 0
    assert build.jobs[0]["optim"]["kwargs"] == gives


def test_a_free_dict_takes_any_key_in_a_sweep_and_in_help(sftc, build):
    assert sftc("train", "-m", "optim.kwargs.foo=1,2")[0] == 0
    assert [cfg["optim"]["kwargs"] for cfg in build.jobs] == [{"foo": 1}, {"foo": 2}]
    code, out, _ = sftc("train", "optim.kwargs.foo=1", "--help")
    assert code == 0
    assert "foo" in out


# -- mistakes -----------------------------------------------------------------------------------------------

MISTAKES = [
    (["trian"], "sftc: there is no command 'trian'; did you mean 'train'?"),
    (["train", "--multrun"], "did you mean '--multirun'?"),
    (["train", "--cfg"], "--cfg needs a value"),
    (["train", "--cfg", "jbo"], "did you mean 'job'?"),
    (["train", "--config-dir", "nowhere"], "there is no such directory"),
    (["train", "model=mpl"], "there is no model=mpl; did you mean 'mlp'? (one of: mlp, simple_cnn"),
    (["train", "model=_base"], "shared part"),
    (["train", "modle=mlp"], "did you mean 'model'?"),
    (["train", "epohcs=3"], "there is no key 'epohcs'; did you mean 'epochs'?"),
    (["train", "lr=3"], "did you mean 'optim.lr'?"),
    (["train", "strategy=kd", "strategy.temprature=2"], "did you mean 'strategy.temperature'?"),
    (["train", "strategy.temperature=2"], "no key 'strategy.temperature' with strategy=plain"),
    (["train", "strategy.temperature=2"], "with strategy=plain; strategy=kd has it (sftc"),
    (["train", "++model.hidden=[2]"], "nothing reads 'model.hidden'; model=mlp has it (sftc"),
    (["train", "seed=99999999999999999999"], "is not a 0 <= int <= 4294967295"),
    (["train", "micro_batch_size=1"], "micro_batch_size=1 is not an int >= 2 or null"),
    (["train", "optim.lr=inf"], "optim.lr=inf is not a float > 0"),
    (["train", "optim.kwargs=3"], "optim.kwargs=3 is not a dict"),
    (["train", "strategy=kd", "strategy.terms.soft.wieght=2"], "did you mean 'strategy.terms.soft.weight'?"),
    (["train", "epochs=many"], "epochs=many is not an int >= 1 (passes over the training rows)"),
    (["train", "epochs=0"], "not an int >= 1"),
    (["train", "epochs=1.5"], "not an int >= 1"),
    (["train", "epochs="], "epochs= has no value"),
    (["train", "epochs"], "'epochs' needs a value"),
    (["train", "quiet=3"], "true or false"),
    (["train", "ema=1"], "0 <= float < 1"),
    (["train", "model.name=mlp"], "fixed to simple_cnn"),
    (["train", "penalty=3"], "only holds other keys (penalty.l1, penalty.l2_sp)"),
    (["train", "+foo=1"], "nothing reads 'foo'"),
    (["train", "+model.hiden=1", "model=mlp"], "did you mean 'model.hidden'?"),
    (["train", "++optim.momentum=1"], "nothing reads 'optim.momentum'"),
    (["train", "+epochs=3"], "exists already"),
    (["train", "~epochs"], "cannot be taken away"),
    (["train", "~tracker"], "a group cannot be taken away"),
    (["train", "~nothing"], "nothing"),
    (["train", "out=a=b"], "'out=\"a=b\"'"),
    (["train", "seed=0,1"], "add -m"),
    (["train", "seed=range(3)"], "add -m"),
    (["train", "epochs=${nothing}"], "nothing"),
    (["train", "hydra/launcher=jblib", "-m"], "sftc[joblib]"),
    (["eval"], "run=... is missing"),
    (["eval", "run=x", "splt=val"], "did you mean 'split'?"),
    (["eval", "run=x", "split=vla"], "did you mean 'val'?"),
    (["eval", "run=x", "data.limit=3"], "choose data=... first (one of: digits, fake)"),
    (["ls", "modle"], "there is no group 'modle'; did you mean 'model'?"),
    (["train", "-m", "seed=0,1", "epochs=1,x"], "epochs=x is not an int"),
    (["train", "-m", "seed=range(-1,3)"], "seed=-1 is not a 0 <= int"),
    (["train", "-m", "strategy=kd,plain", "strategy.temperature=2"], "with strategy=plain"),
    (["train", "-m", "model=mlp,mpl"], "did you mean 'mlp'?"),
    (["train", "-m", "epohcs=1,2"], "did you mean 'epochs'?"),
    (["train", "-m", "out=a,b"], "folder of the whole sweep"),
    (["train", "-m", "resume=a,b"], "leave out -m"),
    (["train", "-m", "--cfg", "job"], "leave it out to show"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_a_mistake_gives_one_line_and_leaves_nothing(sftc, build, args, says):
    code, out, err = sftc(*args)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert err.startswith("sftc")
    assert not out
    assert not build.jobs
    assert os.listdir() == []


@pytest.mark.parametrize("directory", ["model", "experiment"])
def test_a_broken_yaml_of_the_user_names_file_and_line(sftc, directory):
    file = Path("my/" + directory + "/broken.yaml")
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\na: 1\nb: [1\nc: 2\n")
    code, _, err = sftc("train", "--config-dir", "my", f"{directory}=broken")
    assert code == 2
    assert "broken.yaml, line 4: " in err
    assert err.count("\n") == 1


# -- a user's own files -------------------------------------------------------------------------------------


def test_config_dir_adds_options_with_keys_of_their_own(sftc, build):
    Path("my/model").mkdir(parents=True)
    Path("my/model/mine.yaml").write_text("# sftc train model=mine\ndefaults: [_base, _self_]\nname: mine\ndepth: 3\n")
    assert sftc("train", "--config-dir", "my", "model=mine", "model.depth=4")[0] == 0
    assert build.jobs[0]["model"] == {"input_size": "auto", "name": "mine", "depth": 4}
    assert build.commands == [f"sftc train model=mine model.depth=4 --config-dir {Path('my').resolve()}"]
    code, _, err = sftc("train", "-cd", "my", "model=mine", "model.input_size=0")
    assert code == 2
    assert "model.input_size=0" in err
    assert "mine" in sftc("ls", "model", "-cd", "my")[1]
    assert "model.depth=3" in sftc("train", "model=mine", "-cd", "my", "--help")[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [("- 1\n- 2\n", "mine"), ("defaults: [nowhere]\n", "nowhere"), ("name: ${nowhere}\n", "nowhere")],
)
def test_an_impossible_yaml_of_the_user_is_refused(sftc, text, says):
    Path("my/model").mkdir(parents=True)
    Path("my/model/mine.yaml").write_text(text)
    code, _, err = sftc("train", "-cd", "my", "model=mine")
    assert code == 2
    assert says in err
    assert err.count("\n") == 1


def test_a_mistyped_key_in_an_experiment_is_found(sftc):
    Path("my/experiment").mkdir(parents=True)
    Path("my/experiment/mine.yaml").write_text("# @package _global_\nepohcs: 3\n")
    code, _, err = sftc("train", "-cd", "my", "experiment=mine")
    assert code == 2
    assert "mine.yaml sets 'epohcs', which nothing reads; did you mean 'epochs'?" in err
    Path("my/experiment/lost.yaml").write_text("# sftc train\n# @package _global_\nepochs: 3\n")
    code, _, err = sftc("train", "-cd", "my", "experiment=lost")
    assert code == 2
    assert "line 1 must be" in err


def test_terms_come_and_go(sftc, build):
    args = ["+strategy.terms.hint.weight=2", "~strategy.terms.soft"]
    assert sftc("train", "strategy=kd", *args)[0] == 0
    assert build.jobs[0]["strategy"]["terms"] == {"hint": {"weight": 2}}


def test_an_experiment_sets_groups_and_keys_and_the_line_has_the_last_word(sftc, build):
    assert sftc("train", "experiment=big", "epochs=5")[0] == 0
    cfg = build.jobs[0]
    assert (cfg["epochs"], cfg["model"]["name"], cfg["model"]["hidden"]) == (5, "mlp", [99])


def test_smoke_has_the_last_word_over_an_experiment(sftc, build):
    assert sftc("train", "experiment=big", "debug=smoke", "seed=4")[0] == 0
    cfg = build.jobs[0]
    assert (cfg["epochs"], cfg["device"]["accelerator"], cfg["model"]["hidden"]) == (1, "cpu", [99])
    assert cfg["model"]["input_size"] == "min"
    assert cfg["data"]["limit"] <= 64


CHOICES = [(g, o) for g, options in conf.groups([conf.conf_dir()]).items() for o in options if g != "debug"]


@pytest.mark.parametrize(("group", "option"), CHOICES, ids=lambda word: word)
def test_every_option_we_ship_composes_also_with_smoke(group, option):
    dirs = [conf.conf_dir()]
    needs = [f"model.name={'resnet18'}"] if option in ("timm", "torchvision") and group == "model" else []
    needs += ["optim.name=adamw"] if (group, option) == ("optim", "timm") else []
    place = "fuse@strategy.fuse" if group == "fuse" else group  # there it has no place of its own
    needs += ["strategy=ensemble"] if group == "fuse" else []
    config = compose.check_all("train", [f"{place}={option}", "debug=smoke", *needs], dirs, sweep=False)
    assert config.choices[place] == option
    assert config.values["max_steps"] == 2
    assert config.values["model"]["input_size"] == "min"


# -- sweeps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["-m", "seed=0,1,2"], ["seed=0,1,2", "-m"], ["epochs=1", "-m", "seed=range(3)"]])
def test_a_sweep_ends_with_one_table(sftc, build, args):
    code, out, _ = sftc("train", *args)
    assert code == 0
    assert [cfg["seed"] for cfg in build.jobs] == [0, 1, 2]
    (folder,) = folders()
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"0", "1", "2"}
    assert f"sweep {folder}: 3 jobs, 0 failed" in out
    assert json.loads((folder / "1/status.json").read_text())["value"] == 0.51
    assert "0.5200" in out


def test_a_failing_job_neither_stops_nor_hides_the_others(sftc, build):
    build.fail = {
        1: ZeroDivisionError("by zero"),
        3: Stopped("the time is over", 75),
        4: Refused("no such thing"),
    }
    code, out, _ = sftc("train", "-m", "seed=0,1,2,3,4,13", "out=all")
    assert code == 1
    table = out[out.index("sweep all: 6 jobs, 4 failed") :].splitlines()[2:]
    assert [row.split()[2] for row in table] == [
        "finished",
        "failed",
        "finished",
        "stopped",
        "refused",
        "refused",
    ]
    assert "ZeroDivisionError: by zero" in table[1]
    assert "ZeroDivisionError" in Path("all/1/error.txt").read_text()
    assert not Path("all/0/error.txt").exists()
    assert not Path("all/3/error.txt").exists()
    assert not Path("outputs").exists()


def test_what_a_job_wrote_of_itself_stays(sftc, build):
    def train(cfg, out, overrides, command):
        (out / "status.json").write_text(json.dumps({"state": "failed", "error": "my own words", "value": 1}))
        raise ZeroDivisionError

    build.train = train
    sftc("train", "-m", "seed=5", "out=x")
    status = json.loads(Path("x/0/status.json").read_text())
    assert (status["error"], status["value"], status["overrides"]) == ("my own words", 1, ["seed=5"])


def test_a_signal_ends_the_sweep_and_tells_what_was_done(sftc, build):
    build.fail = {1: Stopped("asked to stop", 143)}
    code, out, _ = sftc("train", "-m", "seed=0,1,2", "out=x")
    assert code == 143
    assert len(build.jobs) == 2
    assert "2 jobs, 1 failed, 1 never started" in out


def test_a_job_of_a_sweep_is_the_single_command(sftc, build):
    sftc("train", "-m", "model=mlp,simple_cnn", "seed=0,1", "debug=smoke")
    assert build.commands[3] == "sftc train model=simple_cnn seed=1 debug=smoke"
    sftc(*build.commands[3].split()[1:])
    assert build.jobs[3] == build.jobs[4]


def test_every_value_of_a_sweep_is_checked_before_the_first_job(sftc, build):
    code, _, err = sftc("train", "-m", "model=mlp,simple_cnn", "seed=0,1,2", "model.input_size=1,2,3,0")
    assert code == 2
    assert "model.input_size=0" in err
    assert not build.jobs


def test_a_pattern_finds_options_and_no_shared_parts(sftc, build):
    assert sftc("train", "-m", "model=glob(*)", "seed=0")[0] == 0
    assert [cfg["model"]["name"] for cfg in build.jobs] == ["mlp", "simple_cnn"]
    code, _, err = sftc("train", "-m", "model=glob(x*)")
    assert code == 2
    assert "fits no option (one of: mlp, simple_cnn)" in err


@pytest.mark.skipif(hydra.__version__ >= "1.4", reason="1.4.0rc3 turns ~key of a sweep into ~key=null")
def test_terms_are_taken_away_in_a_sweep_too(sftc, build):
    args = ["~strategy.terms.soft", "+strategy.terms.hint.weight=2", "seed=0,1"]
    assert sftc("train", "-m", "strategy=kd", *args)[0] == 0
    assert build.jobs[1]["strategy"]["terms"] == {"hint": {"weight": 2}}


def test_a_file_in_the_way_of_the_outputs(sftc):
    Path("outputs").write_text("")
    code, _, err = sftc("train")
    assert code == 2
    assert "choose a folder with out=" in err


def test_eval_sweeps_too(sftc, build):
    assert sftc("eval", "-m", "run=a,b")[0] == 0
    assert [cfg["run"] for cfg in build.jobs] == ["a", "b"]


def test_joblib_runs_a_sweep(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'sftc[joblib]'")
    args = ["train", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", "debug=smoke"]
    done = _subprocess(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 jobs, 0 failed" in done.stdout


# -- help, ls, completion -----------------------------------------------------------------------------------


def test_help_lists_groups_options_and_every_key(sftc):
    code, out, _ = sftc("train", "--help")
    assert code == 0
    assert "model       mlp, *simple_cnn" in out
    assert "_base" not in out
    assert "epochs=10" in out
    assert "passes over the training rows [int >= 1]" in out
    assert "model.input_size=auto" in out
    assert "optim.lr=1e-3" in out
    assert max(map(len, out.splitlines())) <= 112


def test_help_shows_the_keys_and_values_of_what_was_chosen(sftc):
    out = sftc("train", "model=mlp", "experiment=big", "epochs=3", "--help")[1]
    assert "model.hidden=[99]" in out
    assert "epochs=3" in out
    assert "*mlp" in out


def test_help_of_eval_needs_no_run(sftc):
    code, out, _ = sftc("eval", "--help", "data=fake")
    assert code == 0
    assert "run=???" in out
    assert "data.kind=classes" in out
    assert "model.name" not in out


def test_ls(sftc):
    code, out, _ = sftc("ls")
    assert code == 0
    assert "  mlp         fully connected  [sftc train model=mlp]" in out
    out = sftc("ls", "data")[1]
    assert "digits" in out
    assert "mlp" not in out


def test_version_and_usage(sftc):
    assert sftc("--version")[1].startswith("sftc 0.")
    assert "usage: sftc COMMAND" in sftc("--help")[1]
    assert sftc()[0] == 2


def test_cfg_job_prints_the_config(sftc, build):
    code, out, _ = sftc("train", "epochs=3", "--cfg", "job")
    assert code == 0
    assert "epochs: 3" in out
    assert "hydra" not in out
    assert not build.jobs
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("line", "wants", "lacks"),
    [
        ("sftc tr", "train", "eval"),
        ("sftc ", "ls", "outputs"),
        ("sftc ls mo", "model", "data"),
        ("sftc train model=", "model=mlp", "model=_base"),
        ("sftc train strategy=kd strategy.te", "strategy.temperature=", "strategy.name="),
        ("sftc eval ru", "run=", "epochs="),
    ],
)
def test_completion(sftc, monkeypatch, line, wants, lacks):
    monkeypatch.setenv("COMP_LINE", line)
    code, out, _ = sftc("-sc", "query=bash")
    assert code == 0
    assert wants in out.split()
    assert lacks not in out.split()


# -- the real thing -----------------------------------------------------------------------------------------


def _subprocess(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sftc", *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env, check=False)


TORCHLESS = """
--help | --version | ls | ls model | train --help | train seed=1 --help | eval --help | train --cfg job
train epohcs=1 | train epochs=x | train model=nothing | train +foo=1 | train -m seed=0,-1 | eval
"""


@pytest.mark.parametrize("args", [line.split() for line in TORCHLESS.replace("\n", "|").strip("|").split("|")])
def test_torch_is_not_imported(args, tmp_path):
    code = f"import sys; from sftc.cli import main; main({args!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout or done.stderr


def test_what_a_run_may_not_need_is_not_imported_before_it_is(tmp_path):
    """Each of them takes half a second or more; only what needs it pays."""
    heavy = ("torch._dynamo", "torchvision", "timm", "torchmetrics", "transformers", "sklearn", "pandas", "matplotlib")
    code = f"import sys, sftc.build; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_what_was_imported_is_never_looked_through_for_garbage_and_what_jobs_leave_is(tmp_path):
    code = """
import gc
from sftc.cli import main
main(["train", "-m", "seed=0,1", "debug=smoke", "quiet=true"])
frozen = gc.get_freeze_count()
main(["train", "debug=smoke", "quiet=true"])
print(frozen > 100_000, gc.get_freeze_count() <= frozen, gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "True True True", done.stdout + done.stderr
    assert done.stderr == ""  # triton's bindings complain of what is still frozen at the end


def test_a_smoke_run_end_to_end(tmp_path):
    done = _subprocess("train", "debug=smoke", "out=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "finished"
    again = _subprocess("train", "debug=smoke", "out=run", cwd=tmp_path)
    assert again.returncode == 2
    assert "finished run" in again.stderr
    assert _subprocess("eval", "run=run", cwd=tmp_path).returncode == 0


def test_a_smoke_sweep_end_to_end(tmp_path):
    done = _subprocess("train", "-m", "model=mlp,simple_cnn", "seed=0,1", "debug=smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 jobs, 0 failed" in done.stdout
