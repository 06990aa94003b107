"""Weights from files: what is loaded, what is said, what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sftc import models
from sftc.errors import Refused
from sftc.models import weights

SPEC = {"family": "mlp", "name": "mlp", "hidden": [6], "batch_norm": True, "checkpoint": None}


def mlp(out_dim=3, **changes):
    return models.build(SPEC | changes, out_dim=out_dim, form=(4,))


def same(one: nn.Module, other: nn.Module, skip: str = "-") -> bool:
    theirs = other.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in one.state_dict().items() if skip not in k)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}},
        lambda state: {k.removeprefix("net."): v for k, v in state.items()},
        lambda state: {f"_orig_mod.student.{k}": v for k, v in state.items()},
        lambda state: {f"backbone.{k.removeprefix('net.')}": v for k, v in state.items()},
    ],
)
def test_nests_and_prefixes_of_wrappers(wrap, tmp_path):
    source = mlp()
    source.net.fc1[1].running_mean.fill_(2.0)
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    target = mlp(checkpoint=str(tmp_path / "w.pt"))
    assert same(source, target)
    said = target.facts["checkpoint"]
    assert said == {
        "path": str(tmp_path / "w.pt"),
        "matched": len(source.state_dict()),
        "missing": [],
        "unexpected": [],
        "shape_mismatch": [],
        "summary": f"{len(source.state_dict())} of {len(source.state_dict())} matched",
    }
    assert target.loaded == {name for name, _ in target.named_parameters()}
    assert target.facts["pretrained"] == "checkpoint"


def test_a_run_folder(tmp_path):
    source = mlp()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    assert same(source, mlp(checkpoint=str(tmp_path)))


def test_what_did_not_match_is_listed(tmp_path):
    source = mlp(out_dim=5)
    state = source.state_dict() | {"net.extra.weight": torch.ones(2)}
    del state["net.fc1.1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    target = mlp(out_dim=3)
    head = target.net.head.weight.clone()
    said = weights.load(target, tmp_path / "w.safetensors")
    assert said["shape_mismatch"] == ["net.head.weight", "net.head.bias"]
    assert said["missing"] == ["net.fc1.1.weight"]
    assert said["unexpected"] == ["net.extra.weight"]
    assert said["matched"] == len(state) - 3
    assert said["summary"] == (
        f"{len(state) - 3} of {len(state)} matched; missing net.fc1.*; skipped net.head.* (2) (shape); "
        "unused net.extra.*"
    )
    assert torch.equal(target.net.head.weight, head)
    built = mlp(out_dim=3, checkpoint=str(tmp_path / "w.safetensors"))
    assert built.loaded == {"net.fc1.0.weight", "net.fc1.0.bias", "net.fc1.1.bias"}
    assert mlp().loaded == set()
    assert torch.equal(target.net.fc1[0].weight, source.net.fc1[0].weight)


def test_another_architecture_is_refused(tmp_path):
    save_file(nn.Sequential(nn.Conv2d(1, 2, 3)).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(Refused, match="another architecture"):
        mlp(checkpoint=str(tmp_path / "w.safetensors"))
    lone = {k: v for k, v in mlp(hidden=[7]).state_dict().items() if k.startswith("net.head")}
    save_file(lone, tmp_path / "w.safetensors")  # its bias fits by chance
    with pytest.raises(Refused, match="another architecture"):
        mlp(checkpoint=str(tmp_path / "w.safetensors"))


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/sftc-was-here"),))


def broken(path: Path, kind: str) -> Path:
    torch.save(mlp().state_dict(), path / "whole.pt")
    save_file(mlp().state_dict(), path / "whole.safetensors")
    if kind == "missing":
        return path / "no.pt"
    if kind == "empty folder":
        return path
    if kind == "torn.pt":
        (path / kind).write_bytes((path / "whole.pt").read_bytes()[:700])
    elif kind == "torn.safetensors":
        (path / kind).write_bytes((path / "whole.safetensors").read_bytes()[:300])
    elif kind == "empty.pt":
        (path / kind).touch()
    elif kind == "text.pt":
        (path / kind).write_text("not weights")
    elif kind == "code.pt":
        torch.save({"state_dict": mlp().state_dict(), "hook": Evil()}, path / kind)
    elif kind == "config.pt":
        torch.save({"state_dict": mlp().state_dict(), "args": argparse.Namespace(lr=1)}, path / kind)
    elif kind == "nothing.pt":
        torch.save({"epoch": 3}, path / kind)
    return path / kind


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "there is no file"),
        ("empty folder", "there is no file"),
        ("torn.pt", "damaged"),
        ("torn.safetensors", "damaged"),
        ("empty.pt", "damaged"),
        ("text.pt", "damaged"),
        ("code.pt", "save model.state_dict\\(\\) alone"),
        ("config.pt", "save model.state_dict\\(\\) alone"),
        ("nothing.pt", "holds no tensors"),
    ],
)
def test_files_that_are_refused_in_one_line(kind, words, tmp_path):
    path = broken(tmp_path, kind)
    Path("/tmp/sftc-was-here").unlink(missing_ok=True)
    with pytest.raises(Refused, match=words) as refused:
        models.check(SPEC | {"checkpoint": str(path)})
    assert "\n" not in str(refused.value)
    assert not Path("/tmp/sftc-was-here").exists()


def test_a_server_that_does_not_answer_is_given_up_soon():
    assert not weights.reachable("http://127.0.0.1:9")  # the discard port: refused at once


def test_offline_by_choice(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "reachable", None)
    with pytest.raises(weights.Unavailable, match="not in the local cache"):
        weights.from_hub("timm/test_resnet.r160_in1k", None, download=True)
