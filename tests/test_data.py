"""`data.check` and `data.build`: keys, contradictions, and that YAML and code tell the same story."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import yaml

from sftc import data
from sftc.errors import Refused

CONF = Path(data.__file__).resolve().parents[3] / "conf" / "data"
OFFLINE = {"digits": {}, "diabetes": {}, "fake": {}}


def group(name: str) -> dict:
    """The data group as the command line would hand it over."""
    own = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    if name == "_base":
        return own
    (parent, itself) = own.pop("defaults")
    assert itself == "_self_"
    merged = group(parent)
    merged["augment"] |= own.pop("augment", {})
    return merged | own


def test_every_reader_has_a_yaml_and_the_other_way_round():
    assert {p.stem for p in CONF.glob("[!_]*.yaml")} == set(data.READERS)
    for name, reader in data.READERS.items():
        keys = group(name)
        assert keys["name"] == name
        own = set(inspect.signature(reader.open).parameters) - {"model_size", "like"}
        assert own <= keys.keys()
        assert keys.keys() == own | data.COMMON.keys() | {"name"}
        for key, value in inspect.signature(reader.open).parameters.items():
            if key in own - data.COMMON.keys():
                assert keys[key] == (list(value.default) if isinstance(value.default, tuple) else value.default)


def test_defaults_in_yaml_and_code_agree():
    base = yaml.safe_load((CONF / "_base.yaml").read_text())
    augment = base.pop("augment")
    assert base == {k: v for k, v in data.COMMON.items() if k != "augment"}
    assert augment == {k: p.default for k, p in inspect.signature(data.Augment).parameters.items()}
    sounds = inspect.signature(data.SoundAugment).parameters.items()
    assert group("_audio")["augment"] == augment | {k: p.default for k, p in sounds if k != "rate"}


@pytest.mark.parametrize("name", OFFLINE)
def test_yaml_defaults_build(name: str):
    d = data.build(group(name))
    batch = next(iter(d.source("train", 8, train=True, seed=0, device=torch.device("cpu")).epoch(0)))
    assert tuple(batch.inputs.shape) == (8, *d.shape)
    assert d.name == name


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "data.name is missing"),
        ({"name": "digit"}, "data=digit is not known; did you mean 'digits'"),
        ({"limitt": 3}, r"data\.limitt is not known for data=digits; did you mean 'limit'"),
        ({"kind": "labels"}, r"data\.kind is not known"),
        ({"root": "x"}, "data=digits needs no files"),
        ({"download": True}, "data=digits needs no files"),
        ({"size": "big"}, "must be auto or a number"),
        ({"size": 0}, "must be auto or a number"),
        ({"name": "diabetes", "size": 8}, "holds tables, not images"),
        ({"cache": "gpu"}, r"data\.cache=gpu is not known"),
        ({"limit": 1.5}, r"data\.limit=1\.5 must be a number of rows, or a share below 1"),
        ({"limit": 0}, r"data\.limit=0"),
        ({"eval_limit": -1}, r"data\.eval_limit=-1"),
        ({"val_share": 0}, r"data\.val_share=0"),
        ({"test_share": 1}, r"data\.test_share=1"),
        ({"unlabeled": 1.0}, r"data\.unlabeled=1\.0"),
        ({"class_weights": "equal"}, r"data\.class_weights=equal is not known"),
        ({"class_weights": ["a", "b"]}, "must be finite numbers above 0"),
        ({"class_weights": [1, 0]}, r"data\.class_weights=\[1, 0\] .* data\.classes leaves classes out"),
        ({"class_weights": [1, float("inf")]}, "must be finite"),
        ({"class_weights": [1, float("nan")]}, "must be finite"),
        ({"class_weights": [1, True]}, "must be finite"),
        ({"name": "diabetes", "class_weights": "balanced"}, "needs classes or labels"),
        ({"name": "diabetes", "classes": [0]}, "chooses among classes or labels"),
        ({"name": "fake", "kind": "values", "classes": [0]}, "chooses among classes or labels"),
        ({"name": "diabetes", "augment": {"flip": 0.5, "crop": 0}}, r"data\.augment\.flip changes images"),
        ({"name": "fake", "kind": "values", "augment": {"mixup": 0.2}}, "mix classes"),
        ({"augment": {"flipp": 0.5}}, r"data\.augment\.flipp is not known; did you mean 'flip'"),
        ({"augment": {"flip": 2}}, r"data\.augment\.flip=2"),
    ],
)
def test_refused_before_any_data_is_read(spec: dict, words: str, monkeypatch):
    monkeypatch.setattr(data.bundled, "digits", lambda: pytest.fail("read"))
    spec = spec if "name" in spec or not spec else {"name": "digits"} | spec
    with pytest.raises(Refused, match=words) as error:
        data.check(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "fake", "channels": 2, "augment": {"randaugment": 1}}, "need 1 or 3 channels, not 2"),
        ({"name": "digits", "augment": {"crop": 9}}, "crop=9 is more than the images' 8 pixels"),
    ],
)
def test_refused_once_the_images_are_known(spec: dict, words: str):
    with pytest.raises(Refused, match=words):
        data.build(spec)


def test_size_resizes_what_lies_in_memory():
    d = data.build({"name": "digits", "size": 16, "augment": {"crop": 9}})
    assert d.shape == (1, 16, 16)
    whole = data.build({"name": "digits"}).splits["train"].table.read(torch.arange(3))
    want = torch.nn.functional.interpolate(whole.float(), (16, 16), mode="bilinear", antialias=True)
    assert (d.splits["test"].table.read(torch.arange(3)).float() - want).abs().max() <= 1


def test_the_spec_is_left_alone():
    spec = group("digits")
    before = repr(spec)
    data.build(spec)
    assert repr(spec) == before
