"""Every YAML of these groups is a node its builder takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sftc import models, optim
from sftc.models import weights
from texts import bert

CONF = Path(__file__).parents[1] / "conf"
SGD, CONSTANT, FULL = {"name": "sgd", "lr": 0.1, "weight_decay": 0}, {"name": "constant"}, {"name": "full"}


def options(group: str) -> list[str]:
    return sorted(f.stem for f in (CONF / group).glob("*.yaml") if not f.stem.startswith("_"))


def node(group: str, name: str) -> dict:
    content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    inherited = [entry for entry in content.pop("defaults", []) if entry != "_self_"]
    return {k: v for base in inherited for k, v in node(group, base).items()} | content


@pytest.mark.parametrize("name", options("model"))
def test_models(name, monkeypatch):
    monkeypatch.setattr(weights, "reachable", lambda address: False)
    models.check(node("model", name) | ({"path": bert()} if name == "hf" else {}))


@pytest.mark.parametrize("name", options("optim"))
def test_optimizers(name):
    optim.check(node("optim", name), CONSTANT, FULL)


@pytest.mark.parametrize("name", options("schedule"))
def test_schedules(name):
    optim.check(SGD, node("schedule", name), FULL)


@pytest.mark.parametrize("name", options("finetune"))
def test_finetuning(name):
    model = models.build({"family": "mlp", "name": "mlp"}, out_dim=2, form=(3,))
    way = optim.finetune(node("finetune", name))
    way.begin(model)
    assert way.groups(model, 0.1, 0.1)
    optim.check(SGD, CONSTANT, node("finetune", name))


def test_the_names_the_issue_asks_for_are_there():
    wanted = "mlp simple_cnn linear timm torchvision resnet18 resnet50 vgg16 inception_v3 vit_tiny convnext_tiny"
    assert set(wanted.split()) <= set(options("model"))
    assert {"cosine", "step", "plateau", "constant", "onecycle"} == set(options("schedule"))
    assert {"full", "head", "first_n", "gradual", "layerwise", "lora"} == set(options("finetune"))
    assert {"sgd", "adam", "adamw", "rmsprop", "lamb", "lion", "timm"} <= set(options("optim"))
