"""A run folder from somebody else: nothing of it is executed, nothing outside is written, every harm is one line."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from foreign import edit_json, edit_state, edit_yaml, finished, header, named, newest, sftc, stopped
from problems import lab
from sftc import models
from sftc.errors import Refused
from sftc.store import Run
from sftc.store.reading import read_yaml


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    return {"done": finished(home / "done"), "half": stopped(home / "half")}


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("mine")
    return tmp_path / "outside"


@pytest.fixture
def done(runs, tmp_path, outside):
    shutil.copytree(runs["done"], tmp_path / "done")
    yield tmp_path / "done"
    assert [p.read_text() for p in outside.rglob("*")] == ["mine"]


@pytest.fixture
def half(runs, tmp_path, outside):
    shutil.copytree(runs["half"], tmp_path / "half")
    yield tmp_path / "half"
    assert [p.read_text() for p in outside.rglob("*")] == ["mine"]


def refused(capfd, says: str, name: str, run: Path, **more) -> str:
    said = sftc(capfd, name, run, **more)
    assert said.code == 2, said.err
    assert said.err.count("\n") == 1
    assert re.search(says, said.err), said.err
    assert len(said.err) < 1500
    return said.err


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_folders_are_fine_before_anything_is_done_to_them(done, half, capfd):
    for args in (("eval", done), ("export", done), ("train", done), ("train", half), ("eval", half)):
        assert sftc(capfd, *args, typed=True).code == 0


# -- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["torch", "old torch", "pickle"])
@pytest.mark.parametrize("place", ["checkpoint", "model.safetensors", "data.json"])
def test_a_pickle_is_never_run(form, place, done, half, tmp_path, capfd):
    bomb, victim = tmp_path / "boom", tmp_path / "x.pt"
    if form == "pickle":
        victim.write_bytes(pickle.dumps(Bomb(bomb)))
    else:
        torch.save({"step": 9, "x": Bomb(bomb)}, victim, _use_new_zipfile_serialization=form == "torch")
    if place == "checkpoint":
        for old in (half / "checkpoint").glob("*.pt"):
            old.unlink()
        shutil.copy(victim, half / "checkpoint" / "0000000009-9-x.pt")
        named(half / "checkpoint" / "0000000009-9-x.pt")
        refused(capfd, "no checkpoint in .* can be read back", "train", half)
    else:
        shutil.copy(victim, done / place)
        for args in (("eval", done), ("export", done)):
            refused(capfd, place, *args)
    assert not bomb.exists()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("_target_", "os.system", "nothing reads _target_"),
        ("model___target_", "os.system", r"model\._target_"),
        ("strategy___target_", "os.system", r"strategy\._target_"),
        ("data__augment___target_", "os.system", r"data\.augment\._target_"),
        ("optim__nodes", {"_target_": "os.system"}, r"optim\.nodes"),
        ("model__family", "hf_hub", "did you mean|not known"),
        ("model__family", "../../evil", "no name"),
        ("model__family", "_base", "not known"),
        ("strategy__name", "os.system", "no name"),
        ("out", "/etc/x", "nothing reads out"),
        ("data__root", "/etc", "needs no files"),
        ("data__download", True, None),
        ("model__hidden", "${oc.env:HOME}", "interpolation"),
        ("format", 99, r"config\.yaml has format 99, of another version of sftc \(\d.*\); this is \d.* reads format 1"),
        ("format", [1], "format"),
        ("seed", "x", r"seed=x is not"),
        ("epochs", 10**30, "no number"),
        ("ema", 3.0, "ema=3"),
        ("batch_size", -1, "batch_size=-1"),
        ("data", [], "data=.* holds no keys"),
        ("data__limit", float("nan"), "no number"),
        ("device__threads", 10**9, "threads"),
        ("device__accelerator", "gpu", "accelerator"),
        ("monitor", "x" * 10**6, None),
        ("data__workers", 10**9, None),
    ],
)
def test_a_config_names_entries_of_our_tables_and_nothing_else(key, value, says, done, half, capfd):
    for run, args in ((done, ("eval", done)), (half, ("train", half))):
        edit_yaml(run, **{key: value})
        if says is not None:
            assert str(run) in refused(capfd, says, *args) or key == "data__root"
        else:
            assert sftc(capfd, *args).code in (0, 2)


@pytest.mark.parametrize("name", ["hf_hub:evil/model", "https://evil.example", "../x", "local-dir:/tmp", "a:x"])
@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_a_hubs_model_is_a_name_not_a_place(family, name, done, capfd):
    keys = {"name": name, "family": family, "kwargs": {}, "pretrained": "true", "checkpoint": None, "input_size": 32}
    more = {"drop_rate": None, "drop_path_rate": None} if family == "timm" else {}
    edit_yaml(done, model=keys | more | {"mean": [0.5], "std": [0.5]})
    refused(capfd, "is a place|is not in torchvision", "eval", done)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: !!python/object/apply:os.system ['touch x']\n", "tags"),
        ("a: &a [x, x]\nb: [*a, *a]\n", "anchors"),
        ("a: " + "[" * 100_000, "too deep"),
        ("? [1, 2]\n: 3\n", "YAML"),
        ("1: 2\n", "no text"),
        ("a: 2020-01-01\n", "date"),
        ("a: \x00\n", "YAML"),
        ("a: \xff\n".encode("latin1"), "YAML"),
        ("", "no keys"),
        ("x" * (17 << 20), "bytes"),
        ("a: .inf\n", "no number"),
        ("a: " + "9" * 5000, "YAML"),
    ],
)
def test_yaml_is_plain(text, says, done, capfd):
    (done / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for args in (("eval", done), ("export", done)):
        assert "config.yaml" in refused(capfd, says, *args)


def test_laughs_are_cheap_to_refuse(done):
    text = 'a: &a ["lol","lol"]\n' + "".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghi")
    )
    (done / "config.yaml").write_text(text)
    with pytest.raises(Exception, match="aliases"):
        read_yaml(done / "config.yaml")


# -- places -----------------------------------------------------------------------------------------------------------

READ = [
    "config.yaml",
    "data.json",
    "model.safetensors",
    "status.json",
    "result.json",
    "preds/test.safetensors",
    "preds",
]


@pytest.mark.parametrize("name", READ)
def test_a_link_out_of_the_folder_is_not_followed(name, done, tmp_path, capfd):
    (done / name).rename(tmp_path / "elsewhere")
    (done / name).symlink_to(tmp_path / "elsewhere")
    refused(capfd, "link out of its run folder", "eval", done)


def test_a_link_within_the_folder_and_to_the_folder_is_followed(done, tmp_path, capfd):
    (done / "model.safetensors").rename(done / "best.safetensors")
    (done / "model.safetensors").symlink_to("best.safetensors")
    (tmp_path / "latest").symlink_to(done)
    assert sftc(capfd, "eval", tmp_path / "latest").code == 0


@pytest.mark.parametrize(
    "name", ["export", "checkpoint", "metrics.jsonl", ".lock", "README.md", "status.json", "preds"]
)
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_nothing_is_written_through_a_link(name, kind, done, half, outside, capfd):
    folder = name in ("export", "checkpoint", "preds")
    if kind == "hard" and folder:
        pytest.skip("folders have no hard links")
    for run, args in ((done, ("export", done)), (half, ("train", half)), (done, ("train", done))):
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        target = outside / ("" if folder else "secret")
        path.symlink_to(target) if kind == "symbolic" else os.link(target, path)
        assert sftc(capfd, *args).code in (0, 1, 2)
    assert sorted(p.name for p in outside.iterdir()) == ["secret"]


def test_an_error_is_not_written_through_a_link(half, outside, capfd, monkeypatch):
    (half / "error.txt").symlink_to(outside / "secret")
    monkeypatch.setattr("sftc.lab.Lab.fit", lambda *a, **k: 1 / 0)
    assert sftc(capfd, "train", half, typed=True).code == 1
    assert "ZeroDivisionError" in (half / "error.txt").read_text()


@pytest.mark.parametrize(
    "name", [*READ, *["rows.safetensors", "environment.json", "metrics.jsonl", ".lock", "checkpoint"]]
)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_without_waiting(name, kind, done, half, capfd):
    for run, args in ((done, ("eval", done)), (half, ("train", half))):
        path = run / name
        path.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        assert sftc(capfd, *args).code in (0, 1, 2)


def test_a_checkpoint_that_is_a_pipe_is_passed_over(half, capfd):
    for file in (half / "checkpoint").glob("*.pt"):
        file.unlink()
        os.mkfifo(file)
    refused(capfd, "can be read back", "train", half)


def test_a_run_that_is_referred_to_is_read_and_never_written_to(tmp_path, outside):
    (outside / "secret").rename(tmp_path / "secret")
    home = lab(tmp_path / "run")
    for place in (outside, tmp_path / "new"):
        Run(tmp_path / "run").refer("teacher", place)
        with pytest.raises(Refused, match="there is no finished run"):
            home.share("teacher", model=home.run.config["model"])
    assert outside.is_dir()
    assert not (tmp_path / "new").exists()
    assert not list(outside.iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rule": "os.system", "members": {}, "taps": []}, "os.system"),
        ({"options": {"_target_": "os.system"}, "members": {}, "taps": []}, "_target_"),
        ({"options": []}, "fusion.json"),
        ({"members": {"../../outside": ["x"]}}, "link out"),
        ({"members": {"m": []}}, "does not fit"),
        ({"members": 3}, "fusion.json"),
        ({"temperature": "1"}, "temperature"),
        ({"taps": [3]}, "taps"),
    ],
)
def test_a_fusion_is_held_to_its_form(change, says, done, capfd):
    about = {"rule": "mean", "options": {}, "temperature": 1.0, "taps": [[]], "members": {"itself": ["x"]}}
    (done / "members" / "itself").mkdir(parents=True)
    (done / "members" / "itself" / "reference.json").write_text(json.dumps({"path": "../..", "model": None}))
    (done / "fusion.json").write_text(json.dumps(about | change))
    refused(capfd, says, "eval", done)


def test_a_fusion_of_itself_ends(done, capfd):
    hashes = json.loads((done / "result.json").read_text())["fingerprints"]["model"]
    about = {"rule": "mean", "options": {}, "temperature": 1.0, "taps": [[], []]}
    about["members"] = {"a": [hashes], "b": [hashes]}
    for name in "ab":
        (done / "members" / name).mkdir(parents=True)
        (done / "members" / name / "reference.json").write_text(json.dumps({"path": "../..", "model": None}))
    (done / "fusion.json").write_text(json.dumps(about))
    refused(capfd, "itself|cannot be used", "eval", done)
    refused(capfd, "itself|cannot be used", "export", done)


def test_only_a_run_is_ever_taken_away(outside):
    Run(outside).discard()
    assert (outside / "secret").exists()


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model__hidden": [10**12]}, "more weights than"),
        ({"model__hidden": [8] * 1_000}, "more weights than"),
        ({"model__hidden": [9]}, r"fc1\.0\.weight is float32 8 x 64 in the file and float32 9 x 64 by the config"),
        ({"model__batch_norm": True}, "absent in the file"),
        ({"model__hidden": []}, "3 x 64 by the config"),
        ({"model__input_size": 10**9}, "room"),
        ({"model__input_size": [10**9, 1]}, "room"),
        ({"data__size": 10**9}, r"data\.size"),
        ({"model__mean": [0.5] * 10}, "channels"),
    ],
)
def test_a_config_cannot_ask_for_what_the_file_does_not_hold(changes, says, done, half, capfd):
    edit_yaml(done, **changes)
    for args in (("eval", done), ("export", done)):
        refused(capfd, says, *args)
    edit_yaml(half, **changes)
    refused(capfd, "config|room|channels", "train", half)


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 10**12},
        {"size": 10**8},
        {"channels": 10**9},
        {"outputs": 10**6},
    ],
)
def test_made_up_data_stay_small(changes, done, capfd):
    node = yaml.safe_load((done / "config.yaml").read_text())["data"]
    fake = {"name": "fake", "kind": "classes", "count": 600, "channels": 1, "outputs": 3, "seed": 0, "size": 8}
    edit_yaml(done, data=node | fake | {"classes": None} | changes)
    refused(capfd, r"data=fake|data\.size", "eval", done)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shape": [1, 10**9, 10**9]}, "shape"),
        ({"shape": [1, 10**6, 10**6]}, "room"),
        ({"shape": [1, -8, 8]}, "shape"),
        ({"shape": [8, 8]}, "shape"),
        ({"shape": "18"}, "shape"),
        ({"shape": [1, 8, 8.5]}, "shape"),
        ({"shape": [True, 8, 8]}, "shape"),
        ({"class_names": [str(i) for i in range(10**6)]}, "more weights|3 x 8 in the file"),
        ({"class_names": ["1", "3", "7"]}, "other classes"),
        ({"class_names": ["1", "1", "1"]}, "classes"),
        ({"class_names": {"1": 1}}, "class_names"),
        ({"class_names": []}, "classes"),
        ({"kind": "values"}, "target_mean"),
        ({"kind": "__class__"}, "kind"),
        ({"class_weights": [1, 2]}, "class_weights"),
        ({"class_weights": [[1], [2], [3]]}, "no list"),
        ({"class_weights": "abc"}, "data.json"),
        ({"input_mean": [0.5]}, "input_mean"),
    ],
)
def test_data_json_is_held_against_the_rest(changes, says, done, capfd):
    edit_json(done / "data.json", **changes)
    refused(capfd, says, "eval", done)


@pytest.mark.parametrize(
    "keywords",
    [{"depth": 10**9}, {"layers": [10**9]}, {"x": {"_target_": "os.system"}}, {"_target_": "x"}, {"x": [1] * 99}],
)
def test_keywords_of_a_hub_are_numbers_and_words(keywords, done, capfd):
    node = {"family": "timm", "name": "resnet10t", "drop_rate": None, "drop_path_rate": None, "pretrained": "false"}
    rest = {"checkpoint": None, "input_size": 32, "mean": [0.5], "std": [0.5]}
    edit_yaml(done, model={**node, **rest, "kwargs": keywords})
    refused(capfd, r"model\.kwargs", "eval", done)
    edit_yaml(done, model={**node, **rest, "kwargs": {}, "_target_": 3})
    refused(capfd, "_target_", "eval", done)


def test_a_wide_hubs_model_is_refused_before_it_is_made(done, capfd):
    edit_yaml(
        done,
        model={
            "family": "timm",
            "name": "vit_tiny_patch16_224",
            "drop_rate": None,
            "drop_path_rate": None,
            "pretrained": "false",
            "checkpoint": None,
            "input_size": 32,
            "mean": [0.5],
            "std": [0.5],
            "kwargs": {"depth": 90_000, "embed_dim": 96_000},
        },
    )
    refused(capfd, "more weights than model.safetensors holds", "eval", done)


# -- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: {},
        lambda h: h | {"x" * 100: next(v for k, v in h.items() if k != "__metadata__")},
        lambda h: {k: v if k == "__metadata__" else v | {"shape": [10**12]} for k, v in h.items()},
        lambda h: {k: v if k == "__metadata__" else v | {"shape": [2**63, 2**63]} for k, v in h.items()},
        lambda h: {k: v if k == "__metadata__" else v | {"shape": v["shape"][::-1]} for k, v in h.items()},
        lambda h: {k: v if k == "__metadata__" else v | {"dtype": "I32"} for k, v in h.items()},
        lambda h: {k: v if k == "__metadata__" else v | {"data_offsets": [0, 2**62]} for k, v in h.items()},
        lambda h: {k.replace("head", "../head"): v for k, v in h.items()},
        lambda h: [],
    ],
)
def test_an_edited_header_is_refused(edit, done, capfd):
    header(done, edit)
    for args in (("eval", done), ("export", done)):
        refused(capfd, "model.safetensors", *args)


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
@pytest.mark.parametrize("name", [f"{x}.safetensors" for x in ("model", "last", "preds/test", "rows")])
def test_a_cut_file_is_refused(name, size, done, half, capfd):
    more = {"weights": "last"} if name.startswith("last") else {}
    args = ("export", done) if name.startswith("last") else ("eval", done)
    if name.startswith("rows"):
        done, args = half, ("train", half)
    content = (done / name).read_bytes()
    (done / name).write_bytes(content[:size])
    refused(capfd, f"{name} is not a whole safetensors file", *args, **more)
    (done / name).write_bytes(struct.pack("<Q", 2**62) + content[8:])
    refused(capfd, f"{name} is not a whole safetensors file", *args, **more)


READ_NOT = [  # what a command has no use for may hold anything
    *[("eval", "environment.json"), ("export", "environment.json"), ("export", "status.json")],
    *[("train", "data.json"), ("train", "environment.json"), ("train", "result.json")],
]


@pytest.mark.parametrize(
    "text",
    [
        *["[]", "3", "null", "{", '{"state": NaN}', '{"state": 1e999}', '{"state": "\\ud800"}', "[" * 10**6, "\xff"],
        *['{"state": ' + "9" * 5000 + "}", '{"a":' * 900 + "1" + "}" * 900, "{" + " " * (17 << 20) + "}"],
    ],
    ids=range(12),
)
@pytest.mark.parametrize("name", ["status.json", "data.json", "result.json", "environment.json"])
def test_json_of_another_form_is_refused(name, text, done, half, capfd):
    for run, does in ((done, "eval"), (done, "train"), (done, "export"), (half, "train")):
        (run / name).write_bytes(text.encode("latin1"))
        said = sftc(capfd, does, run)
        assert said.code in (0, 2)
        assert (name in said.err) == bool(said.code)
        assert said.code or (does, name) in READ_NOT
        shutil.rmtree(run / "export", ignore_errors=True)


@pytest.mark.parametrize("state", ["weird", 3, None, ["finished"], "\x1b[31mfinished"])
def test_a_status_of_no_known_state_is_refused(state, done, half, capfd):
    for run, args in ((done, ("eval", done)), (half, ("train", half))):
        edit_json(run / "status.json", state=state)
        refused(capfd, r"status\.json", *args)


@pytest.mark.parametrize(
    "key", ["monitor", "val", "best", "last", "params", "seconds", "ended", "model", "fingerprints"]
)
def test_a_result_that_lacks_something_is_refused(key, done, capfd):
    result = json.loads((done / "result.json").read_text())
    (done / "result.json").write_text(json.dumps({k: v for k, v in result.items() if k != key}))
    for args in (("eval", done), ("export", done), ("train", done)):
        refused(capfd, f"result.json lacks {key}", *args)
    for wrong in (3, [], {"x": {}}, "x", True):
        edit_json(done / "result.json", **{key: wrong})
        for args in (("export", done), ("train", done)):
            assert sftc(capfd, *args).code in (0, 2)
        shutil.rmtree(done / "export", ignore_errors=True)


def test_lines_of_metrics_that_are_none_are_left_out(half, capfd):
    junk = ['{"step": 99', "[]", "3", '{"step": "x"}', "\x00\x1b[2J", "[" * 100_000, '{"epoch": 1}', "\udcff"]
    with (half / "metrics.jsonl").open("a", errors="surrogateescape") as file:
        file.write("\n".join(junk) + "\n")
    assert sftc(capfd, "train", half).code == 0
    assert [row["epoch"] for row in Run.open(half).rows()] == [0, 1]
    assert len((half / "metrics.jsonl").read_text().splitlines()) == 2


# -- checkpoints ------------------------------------------------------------------------------------------------------


def first(state):
    return state["trainees"][0]


def moments(state):
    return next(iter(first(state)["optimizer"]["state"].values()))


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.clear(),
        lambda s: s.update(step=10**15),
        lambda s: s.update(step=-1),
        lambda s: s.update(epoch=10**15, step=10**15),
        lambda s: s.update(ended="weird"),
        lambda s: s.update(sums={"steps": 0}),
        lambda s: s.update(sums=[1]),
        lambda s: s.update(micro=0),
        lambda s: s.update(avoid="x"),
        lambda s: s.update(trainees=[]),
        lambda s: s.update(trainees=[1]),
        lambda s: s.update(objective={}),
        lambda s: s["objective"].update({next(iter(s["objective"])): torch.zeros(3)}),
        lambda s: moments(s).update(exp_avg=torch.zeros(1)),
        lambda s: moments(s).update(exp_avg=torch.zeros(10**6)),
        lambda s: moments(s).update(exp_avg="x"),
        lambda s: moments(s).update(step=torch.zeros(50)),
        lambda s: moments(s).clear(),
        lambda s: first(s)["optimizer"]["state"].update({99: {}}),
        lambda s: first(s)["optimizer"]["param_groups"][0].update(fused=None),
        lambda s: first(s)["optimizer"]["param_groups"][0].update(lr="x"),
        lambda s: first(s)["optimizer"]["param_groups"][0].update(betas=0.5),
        lambda s: first(s)["optimizer"]["param_groups"][0].update(params=[0]),
        lambda s: first(s)["optimizer"].update(param_groups=[]),
        lambda s: first(s)["schedule"].update(updates=10**12),
        lambda s: first(s)["schedule"].update(shape={"last_epoch": -(10**12)}),
        lambda s: first(s).update(best={}),
        lambda s: first(s).update(best_state={"x": torch.zeros(1).expand(10**12)}),
        lambda s: first(s).update(best_state={}),
        lambda s: first(s).update(ema={}),
        lambda s: first(s).update(last=3),
        lambda s: first(s).update(stale=-1),
    ],
)
def test_a_state_of_another_fit_is_refused(edit, half, capfd):
    edit_state(half, edit)
    refused(capfd, "does not fit its own config", "train", half)
    assert Run.open(half).status["state"] in ("failed", "stopped")


def test_a_moment_with_less_memory_than_it_shows_is_given_all_of_it(runs, tmp_path, half, capfd):
    def expand(state):
        held = moments(state)
        held["exp_avg"] = held["exp_avg"].new_zeros(1).expand(held["exp_avg"].shape)

    edit_state(half, expand)
    assert sftc(capfd, "train", half).code == 0


def test_a_state_that_unfolds_to_more_than_its_file_is_passed_over(half, capfd):
    file = newest(half)
    torch.save(torch.load(file, weights_only=True), file)  # with checksums, which zipfile looks at
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    for other in set((half / "checkpoint").glob("*.pt")) - {file}:
        other.unlink()
    named(file)
    refused(capfd, "can be read back", "train", half)


# -- terminals --------------------------------------------------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07\x1b[2J[bold red]x[/] :cat: \u202e\n"


def test_what_is_stored_reaches_the_terminal_as_plain_text(done, capfd):
    edit_json(done / "environment.json", notes=[ESCAPE], command=ESCAPE)
    result = json.loads((done / "result.json").read_text())
    result["val"][ESCAPE] = result["val"][result["monitor"]]
    (done / "result.json").write_text(json.dumps(result | {"monitor": ESCAPE}))
    (done / "README.md").unlink()
    said = sftc(capfd, "train", done)
    assert said.code == 0
    assert "[bold red]x[/] :cat:" in said.out
    assert r"\x1b]0;owned\x07" in said.out


def test_class_names_of_a_table_are_plain_text(capsys):
    from sftc import report

    report.show(report.per_class({ESCAPE: dict.fromkeys(("precision", "recall", "f1", "rows"), 0.5)}), ESCAPE)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert out.count("[bold red]x[/] :cat:") == 2


def test_a_refusal_names_a_strange_folder_as_plain_text(done, tmp_path, capfd):
    strange = tmp_path / "a\n\x1b[31mb"
    done.rename(strange)
    (strange / "model.safetensors").unlink()
    done.mkdir()
    assert r"\x1b[31mb" in refused(capfd, "its model.safetensors is gone", "eval", strange, typed=True)


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_a_lock_left_by_somebody_is_taken_over(half, capfd):
    (half / ".lock").write_text("process 1 on \x1b[31melsewhere")
    assert sftc(capfd, "train", half).code == 0


def test_a_finished_run_gets_the_card_it_lacks_and_loses_its_checkpoints(done, half, capfd):
    card = (done / "README.md").read_text()
    (done / "README.md").unlink()
    shutil.copytree(half / "checkpoint", done / "checkpoint")
    assert sftc(capfd, "train", done).code == 0
    assert (done / "README.md").read_text().splitlines()[:10] == card.splitlines()[:10]
    assert not (done / "checkpoint").exists()
    assert not (done / ".lock").exists()
    before = (done / "README.md").stat().st_mtime_ns
    assert sftc(capfd, "train", done).code == 0
    assert (done / "README.md").stat().st_mtime_ns == before


def test_a_stored_model_checkpoint_is_not_looked_at_by_eval(done, capfd):
    edit_yaml(done, model__checkpoint="/dev/zero", model__pretrained="true")
    assert sftc(capfd, "eval", done).code == 0
    assert sftc(capfd, "export", done).code == 0


def test_a_run_to_be_opened_as_a_teacher_is_held_to_the_same(done):
    from sftc.build.bench import Bench
    from sftc.device import Device

    bench = Bench(Device("cpu", threads=1))
    assert bench.open(done).restore().facts["name"] == "simple_cnn"
    edit_yaml(done, model__hidden=[10**12])
    with pytest.raises(Refused, match="more weights than"):
        bench.open(done)


def test_a_limit_on_weights_ends_with_its_block():
    node = {"family": "mlp", "name": "mlp", "hidden": [64]}
    with pytest.raises(Refused), models.bounds.no_more_than(4, 100, "this"):
        models.build(node, out_dim=2, form=(10,))
    models.build(node, out_dim=2, form=(10,))
