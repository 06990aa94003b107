"""What members have of their own, on the command line and in a stored config."""

from __future__ import annotations

import pytest
import yaml

from problems import SMALL, config
from sftc import build
from sftc.errors import Refused
from sftc.store import Run

TEAM = ("strategy=ensemble", "strategy.n=3")


def each(*changes: str) -> list[dict]:
    return config(*SMALL, *TEAM, f"strategy.each=[{','.join(changes)}]")["strategy"]["each"]


def test_a_change_is_the_whole_of_what_it_replaces():
    whole = config(*SMALL, *TEAM)
    one, two, three = each("{optim.lr:1e-2}", "{optim:sgd,optim.momentum:0.5,clip:1}", "{}")
    assert one == {"optim": {**whole["optim"], "lr": 0.01}}
    assert two["optim"] == {**config(*SMALL, "optim=sgd")["optim"], "momentum": 0.5}
    assert two["clip"] == 1.0
    assert isinstance(two["clip"], float)
    assert three == {}
    assert whole["optim"]["lr"] == 0.001  # what members change leaves the run's own alone


def test_nested_and_dotted_are_the_same():
    assert each("{optim:{lr:0.5},penalty:{l1:1}}") == each("{optim.lr:0.5,penalty.l1:1}")
    (node,) = each("{model:vit_tiny,model.kwargs:{qkv_bias:false}}")
    assert node["model"]["kwargs"] == {"qkv_bias": False}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("{lr:0.1}", "strategy.each[0]: nothing reads 'lr'; did you mean 'optim.lr'?"),
        ("{optim.rl:0.1}", "nothing reads 'optim.rl'; did you mean 'optim.lr'?"),
        ("{epoch:3}", "nothing reads 'epoch'; did you mean 'epochs'?"),
        ("{epochs:0}", "strategy.each[0]: epochs=0 is not an int >= 1"),
        ("{epochs:many}", "epochs=many is not an int >= 1"),
        ("{model:lineer}", "there is no model=lineer; did you mean 'linear'?"),
        ("{schedule.gamma:0.5}", "its schedule has no 'schedule.gamma'; {schedule:"),
        ("{data.limit:10}", "data.limit belongs to the whole team; a member may have its own model, optim"),
        ("{device:cpu}", "device belongs to the whole team"),
        ("{strategy.n:4}", "strategy.n belongs to the whole team"),
        ("{model.name:other}", "model.name is fixed to mlp"),
        ("{model:3}", "model needs an option or keys: {model:NAME} (sftc ls model)"),
        ("{model:null}", "model needs an option or keys"),
        ("{model:_base}", "there is no model=_base"),
        ("mlp", "is not a list of {key:value}"),
    ],
)
def test_a_wrong_change_is_refused_naming_the_nearest(change, says):
    with pytest.raises(Refused) as why:
        each(change)
    assert says in str(why.value)
    assert "\n" not in str(why.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": {"name": "digits"}}, "data is nothing that a member has of its own"),
        ({"optim": {"name": "sgd", "lr": 1, "evil": 1}}, "nothing reads optim.evil"),
        ({"optim": {"lr": 1}}, "optim.name=None is no name"),
        ({"model": 3}, "model=3 holds no keys"),
        ({"epochs": "x"}, "epochs=x is not an int"),
        ("x", "x is nothing that a member has of its own"),
    ],
)
def test_a_stored_change_is_held_to_the_same(tmp_path, change, says):
    cfg = config(*SMALL, *TEAM, "epochs=1", "strategy.each=[{optim.lr:0.1}]")
    build.train(cfg, tmp_path / "run", [], "sftc train")
    path = tmp_path / "run" / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    stored["strategy"]["each"] = [change]
    path.write_text(yaml.safe_dump(stored))
    Run(tmp_path / "run").mark("stopped")
    with pytest.raises(Refused) as why:
        build.train({**cfg, "resume": str(tmp_path / "run")}, tmp_path / "run", [], "sftc train")
    assert says in str(why.value)
    assert "config.yaml: strategy.each" in str(why.value)
    assert "\n" not in str(why.value)


def test_a_members_file_of_weights_is_named_by_its_full_path(tmp_path, monkeypatch):
    cfg = config(*SMALL, *TEAM, "epochs=1")
    build.train(cfg, tmp_path / "first", [], "sftc train")
    (tmp_path / "first" / "members" / "member0").rename(tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    cfg = config(*SMALL, *TEAM, "epochs=1", "strategy.each=[{model.checkpoint:start/model.safetensors}]")
    build.train(cfg, tmp_path / "run", [], "sftc train")
    stored = Run(tmp_path / "run").config["strategy"]["each"]
    assert stored[0]["model"]["checkpoint"] == str(tmp_path / "start" / "model.safetensors")
