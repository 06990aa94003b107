"""Keys, types and ranges, as the comments beside them say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftc import schema
from sftc.cli import conf
from sftc.errors import Refused

YAML = """\
# sftc train model=toy
defaults: [_base, _self_]
name: toy                  # fixed: the network
hidden: [128, 64]          # list: sizes of the layers
"quoted": "a # b"          # str: a text with a hash
empty:                     # int or null: nothing written
rate: 1e-3                 # float > 0: a rate
share: null                # int or float > 0 or null: rows, or a share
mode: auto                 # one of auto, true, false or int >= 1: a choice
precision: "32"            # one of 32, 16-mixed: text
inner:
  decay: 0                 # 0 <= float < 1: inside
terms:                     # dict: free to grow
  soft:
    weight: 0.5            # 0 <= float <= 1: of the soft labels
team: [a]                  # models or null: names
plain: 3
"""


@pytest.fixture
def keys(tmp_path: Path) -> schema.Keys:
    (tmp_path / "toy.yaml").write_text(YAML)
    return schema.read(tmp_path / "toy.yaml", "model")


@pytest.mark.parametrize(
    ("key", "value", "gives"),
    [
        ("rate", 1, 1.0),
        ("rate", 0.5, 0.5),
        ("share", 1, 1),
        ("share", 1.0, 1.0),
        ("share", None, None),
        ("empty", 1e3, 1000),
        ("empty", None, None),
        ("hidden", [1], [1]),
        ("mode", "true", True),
        ("mode", False, False),
        ("mode", 4, 4),
        ("precision", 32, "32"),
        ("quoted", 2024, "2024"),
        ("name", "toy", "toy"),
        ("plain", "anything", "anything"),
        ("inner.decay", 0, 0.0),
        ("team", [], []),
        ("team", ["a", "b"], ["a", "b"]),
        ("team", None, None),
    ],
)
def test_a_value_is_converted_to_what_its_key_holds(keys, key, value, gives):
    got = keys.specs[f"model.{key}"].check(value)
    assert got == gives
    assert type(got) is type(gives)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rate", 0, "model.rate=0 is not a float > 0 (a rate)"),
        ("rate", "fast", "not a float"),
        ("rate", True, "model.rate=true"),
        ("rate", float("nan"), "nan"),
        ("rate", float("inf"), "model.rate=inf is not a float > 0"),
        pytest.param("rate", 10**400, "is not a float > 0", id="huge"),
        ("rate", None, "model.rate=null"),
        ("rate", "", "has no value"),
        ("share", -1, "int or float > 0"),
        ("empty", 1.5, "not an int"),
        ("hidden", 3, "not a list"),
        ("mode", "atuo", "did you mean 'auto'"),
        ("mode", 0, "one of auto, true, false or int >= 1"),
        ("inner.decay", 1, "0 <= float < 1"),
        ("inner.decay", -0.1, "0 <= float < 1"),
        ("name", "other", "fixed to toy"),
        ("quoted", "???", "is missing"),
        ("team", "a", "model.team=a is not a list of names of models or null (names)"),
        ("team", [1], "is not a list of names"),
        ("team", [{"name": "a"}], "is not a list of names"),
        ("quoted", 1.5, "not a str"),
    ],
)
def test_what_is_not_allowed_is_refused_with_the_rule(keys, key, value, says):
    with pytest.raises(Refused) as refused:
        keys.specs[f"model.{key}"].check(value)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_default_and_meaning_are_read_from_the_line(keys):
    spec = keys.specs["model.hidden"]
    assert (spec.default, spec.rule, spec.about) == ("[128, 64]", "list", "sizes of the layers")
    assert keys.specs["model.quoted"].about == "a text with a hash"
    assert keys.specs["model.empty"].default == "null"
    assert keys.specs["model.plain"].rule == "any"
    assert "model.defaults" not in keys.specs


def _config(**changes):
    inner = {"decay": 0}
    terms = {"soft": {"weight": 0.5}}
    config = {
        "name": "toy",
        "hidden": [1],
        "quoted": "q",
        "empty": None,
        "rate": 1,
        "share": None,
        "mode": "auto",
    }
    return {"model": config | {"precision": "32", "inner": inner, "terms": terms, "team": [], "plain": 3} | changes}


def test_keys_that_no_file_declares_are_found(keys):
    keys.nodes.add("model")
    assert keys.unknown(_config()) == []
    assert keys.unknown(_config(rat=1)) == ["model.rat"]
    assert keys.unknown(_config(inner={"decay": 0, "decoy": 1})) == ["model.inner.decoy"]
    assert keys.unknown(_config(plain={"x": 1})) == []


def test_keys_below_a_dict_come_and_go_but_keep_their_types(keys):
    keys.nodes.add("model")
    assert keys.unknown(_config(terms={"hint": {"weight": 1}})) == []
    assert keys.removed(_config(terms={})) == []
    with pytest.raises(Refused, match=r"model\.terms\.soft\.weight=2"):
        keys.check(_config(terms={"soft": {"weight": 2}}))


def test_a_removed_key_and_a_flattened_node_are_found(keys):
    keys.nodes.add("model")
    config = _config()
    del config["model"]["rate"]
    assert keys.removed(config) == ["model.rate"]
    with pytest.raises(Refused, match=r"model\.inner only holds other keys \(model\.inner\.decay\)"):
        keys.check(_config(inner=3))


def test_a_slot_takes_an_options_node_and_only_where_one_was_chosen(tmp_path):
    (tmp_path / "toy.yaml").write_text("teacher: null  # dict or null: the other\n")
    inner = schema.Keys()
    inner.update(schema.read(tmp_path / "toy.yaml", "strategy"))
    spec = inner.specs["strategy.teacher"]
    full, empty = spec.as_slot("model@strategy.teacher", "mlp"), spec.as_slot("model@strategy.teacher", "none")
    assert full.check({"name": "mlp"}) == {"name": "mlp"}
    assert empty.check(None) is None
    assert not full.open
    with pytest.raises(Refused, match=r"take it away by model@strategy.teacher=none"):
        full.check(None)
    with pytest.raises(Refused, match=r"strategy.teacher=3: choose it by model@strategy.teacher=3"):
        full.check(3)
    with pytest.raises(Refused, match=r"no option to set them in: choose one, model@strategy.teacher="):
        empty.check({"name": "mlp"})
    inner.nodes.add("strategy")
    inner.specs["strategy.teacher"] = full
    inner.nodes.add("strategy.teacher")
    assert inner.unknown({"strategy": {"teacher": {"name": "mlp"}}}) == ["strategy.teacher.name"]


def test_checking_leaves_the_config_as_it_was(keys):
    config = _config(rate=1)
    assert type(keys.check(config)["model"]["rate"]) is float
    assert type(config["model"]["rate"]) is int


def test_a_file_that_only_sets_an_inherited_key_inherits_its_rule(tmp_path):
    (tmp_path / "base.yaml").write_text("rate: 1  # float > 0: a rate\n")
    (tmp_path / "mine.yaml").write_text("rate: 2\n")
    keys = schema.Keys()
    keys.update(schema.read(tmp_path / "base.yaml", "optim"))
    keys.update(schema.read(tmp_path / "mine.yaml", "optim"))
    assert keys.specs["optim.rate"].default == "2"
    with pytest.raises(Refused, match="float > 0"):
        keys.specs["optim.rate"].check(-1)


@pytest.mark.parametrize("rule", ["integer", "int => 3", "float >", "one of", "int or nul", "0 < int < x"])
def test_a_rule_that_does_not_exist_is_an_error_for_us_and_a_remark_for_users(rule, tmp_path):
    (tmp_path / "bad.yaml").write_text(f"# a comment\nkey: 1  # {rule}: what\n")
    with pytest.raises(ValueError, match=r"bad\.yaml: the comment beside key"):
        schema.read(tmp_path / "bad.yaml", strict=True)
    assert schema.read(tmp_path / "bad.yaml").specs["key"].check("anything") == "anything"


def test_broken_yaml_names_file_and_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("# a comment\nkey: [1\nother: 2\n")
    with pytest.raises(Refused, match=r"bad\.yaml, line 3: "):
        schema.read(tmp_path / "bad.yaml")


def test_a_near_name_may_stand_anywhere():
    names = ["epochs", "optim.lr", "model.name", "data.name"]
    assert schema.suggest("epohcs", names) == "; did you mean 'epochs'?"
    assert schema.suggest("lr", names) == "; did you mean 'optim.lr'?"
    assert schema.suggest("model.nmae", names) == "; did you mean 'model.name'?"
    assert schema.suggest("xyzzy", names) == ""


YAMLS = sorted(conf.conf_dir().rglob("*.yaml"))


@pytest.mark.parametrize("file", YAMLS, ids=lambda f: f.relative_to(conf.conf_dir()).as_posix())
def test_every_key_we_ship_states_its_rule_and_every_file_its_command(file):
    assert "sftc " in schema.first_comment(file), "line 1 is a command that uses the file"
    if schema.is_global(file):
        return
    for spec in schema.read(file, "x", strict=True).specs.values():
        assert spec.about, f"{file}: {spec.path} is not described"


@pytest.mark.parametrize("file", YAMLS, ids=lambda f: f.relative_to(conf.conf_dir()).as_posix())
def test_every_default_we_ship_obeys_its_own_rule(file):
    from omegaconf import OmegaConf

    values = OmegaConf.load(file)
    for path, spec in schema.read(file).specs.items() if not schema.is_global(file) else ():
        value = OmegaConf.select(values, path, throw_on_missing=False)
        if not OmegaConf.is_missing(values, path) and "${" not in spec.default:
            spec.check(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
