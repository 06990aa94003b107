"""Runs of texts, and of sounds named by a pattern, from somebody else: one line each, no memory, no waiting."""

from __future__ import annotations

import base64
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clips import digits
from foreign import edit_yaml, sftc
from problems import After, plain
from sftc.data import names
from sftc.errors import Refused, Stopped
from sftc.models.text import growth
from texts import bert, write_csv

LETTERS = "x " * 10**5


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("made")
    words = ("data=text_csv", f"data.root={write_csv(home / 'csv')}", "data.limit=null", "epochs=1")
    cnn = ("model=text_cnn", "model.min_count=1", "model.dim=8", "model.channels=4")
    hf = ("model=hf", f"model.path={bert()}", "model.max_length=64")
    with pytest.raises(Stopped):
        plain(home / "half", *words, *hf, stop=After(2))
    return {
        "words": plain(home / "words", *words, *cnn).path,
        "pieces": plain(home / "pieces", *words, *hf).path,
        "half": home / "half",
    }


@pytest.fixture
def copy(made, tmp_path):
    def copied(kind: str) -> Path:
        return Path(shutil.copytree(made[kind], tmp_path / kind))

    return copied


def carry(run: Path, data: bytes) -> None:
    """Put other bytes in place of the tokeniser, and say so wherever its size is told."""
    held = load_file(run / "model.safetensors")
    held["prepare.vocabulary"] = torch.tensor(list(data), dtype=torch.uint8)
    save_file(held, run / "model.safetensors")
    edit_yaml(run, model__vocabulary=[tokens(held), len(data)])


def tokens(held: dict[str, torch.Tensor]) -> int:
    """How many tokens the net has embeddings for."""
    return next(v for k, v in held.items() if "embed" in k and v.ndim == 2).shape[0]


def described(run: Path) -> dict[str, Any]:
    return json.loads(load_file(run / "model.safetensors")["prepare.vocabulary"].numpy().tobytes())


def refused(capfd, run: Path, says: str, name: str = "eval") -> None:
    began = time.monotonic()
    said = sftc(capfd, name, run, **({"split": "val", "quiet": True} if name == "eval" else {}))
    assert said.code == 2, said.out
    assert said.err.count("\n") == 1
    assert says in said.err
    assert len(said.err) < 1500
    assert time.monotonic() - began < 60


def test_the_runs_are_fine_before_anything_is_done_to_them(copy, capfd):
    for kind in ("words", "pieces"):
        run = copy(kind)
        assert sftc(capfd, "eval", run, split="val", quiet=True).code == 0
        if kind == "pieces":
            carry(run, json.dumps(described(run)).encode())
            assert sftc(capfd, "eval", run, split="val", quiet=True).code == 0


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        ("words", b"\xff\xfe" * 10, "is no text"),
        ("words", b"", "neither auto nor"),
        ("words", b"\nthe" * 9**4, "the tokeniser does not fit the model"),
        ("pieces", b"{", "cannot be read"),
        ("pieces", b"null", "cannot be read"),
        ("pieces", b"a\nb", "cannot be read"),
        ("pieces", b"[" * 100_000, "cannot be read"),
        ("pieces", b'{"normalizer": 3}', "cannot be read"),
    ],
)
def test_bytes_that_are_no_tokeniser(kind, data, says, copy, capfd):
    run = copy(kind)
    carry(run, data)
    refused(capfd, run, says)


def sequence(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(rules)}


def replaced(found: dict[str, str], by: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": found, "content": by}


CHARSMAP = base64.b64encode((4).to_bytes(4, "little") + b"\0" * 4 + b"a" * 10**6 + b"\0").decode()
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"normalizer": replaced({"String": "e"}, LETTERS)}, "times as long"),
        ({"normalizer": sequence(*[replaced({"String": "e"}, "e" * 100)] * 6)}, "times as long"),
        ({"normalizer": replaced({"Regex": "q*"}, LETTERS)}, "times as long"),
        ({"normalizer": {"type": "Prepend", "prepend": LETTERS}}, "times as long"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}}, "times as long"),
        ({"normalizer": sequence(*[{"type": "ByteLevel"}] * 30)}, "times as long"),
        ({"normalizer": sequence(*[{"type": "Lowercase"}] * 99)}, "100 rules"),
        ({"normalizer": {"type": "os.system"}}, "cannot be read"),
        ({"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(((("}}}, "cannot be read"),
    ],
)
def test_a_tokenisers_rules_are_bounded(change, says, copy, capfd):
    run = copy("pieces")
    carry(run, json.dumps(described(run) | change).encode())
    refused(capfd, run, says)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda j: j["model"]["vocab"].update(the=(1 << 32) - 1), "does not fit"),
        (lambda j: j["model"]["vocab"].update(the=100_000), "it gives token 100000, the model knows 120"),
        (lambda j: j["post_processor"]["special_tokens"]["[CLS]"].update(ids=[0] * 10**5), "leaves no room beside"),
    ],
)
def test_a_tokeniser_of_another_net(edit, says, copy, capfd):
    run = copy("pieces")
    node = described(run)
    edit(node)
    carry(run, json.dumps(node).encode())
    refused(capfd, run, says)


def test_an_expression_that_never_ends_ends(copy, capfd):
    """The library's own engine gives up by itself."""
    run = copy("pieces")
    carry(run, json.dumps(described(run) | {"pre_tokenizer": SPLIT | {"pattern": {"Regex": r"(\w*\s*)*x$"}}}).encode())
    assert sftc(capfd, "eval", run, split="val", quiet=True).code == 0


@pytest.mark.parametrize(
    ("kind", "key", "value", "says"),
    [
        ("words", "vocabulary", [10**8, 100], "more weights than"),
        ("words", "vocabulary", [100, 10**8], "more weights than"),
        ("words", "vocabulary", [-1, 5], "neither auto nor"),
        ("words", "vocabulary", "auto", "it needs its data"),
        ("words", "dim", 10**9, "more weights than"),
        ("words", "widths", [10**9], "model.widths"),
        ("words", "family", "bilstm", "nothing reads model.channels"),
        ("pieces", "vocabulary", [120, 10**8], "more weights than"),
        ("pieces", "config", {}, "model.path is not set"),
        ("pieces", "config__vocab_size", 10**6, "more weights than"),
        ("pieces", "config__hidden_size", 10**6, "more weights than"),
        ("pieces", "config__hidden_size", -5, "cannot be built"),
        ("pieces", "config__num_hidden_layers", 199, "more weights than"),
        ("pieces", "config__num_hidden_layers", 10**9, "num_hidden_layers"),
        ("pieces", "config__num_attention_heads", 7, "cannot be built"),
        ("pieces", "config__model_type", "llama", "no text encoder known"),
        ("pieces", "config__hidden_act", "os.system", "cannot be built"),
        ("pieces", "config__auto_map", {"AutoModel": "evil--x.Y"}, "no setting of an encoder"),
        ("pieces", "config__attn_implementation", "evil/kernel", "no setting of an encoder"),
        ("pieces", "config___attn_implementation", "evil/kernel", "no setting of an encoder"),
        ("pieces", "config__quantization_config", {"quant_method": "gptq"}, "no setting of an encoder"),
        ("pieces", "config__chunk_size_feed_forward", 7, "does not fit"),
        ("pieces", "pooling", "evil", "model.pooling"),
        ("pieces", "max_length", 10**9, "positions"),
    ],
)
def test_a_config_of_another_net(kind, key, value, says, copy, capfd):
    run = copy(kind)
    edit_yaml(run, **{f"model__{key}": value})
    refused(capfd, run, says)


@pytest.mark.parametrize("place", ["evil/model", "/etc", "../x"])
def test_where_an_encoder_came_from_is_not_asked_again(place, copy, capfd, monkeypatch):
    import transformers

    asked = []
    for kind in ("AutoConfig", "AutoModel", "AutoTokenizer"):
        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", lambda *args, **more: asked.append(args))
    for run, name in ((copy("pieces"), "eval"), (copy("half"), "train")):
        edit_yaml(run, model__path=place)
        assert sftc(capfd, name, run, **({"split": "val"} if name == "eval" else {})).code == 0
    assert not asked


def test_published_tokenisers_are_within_the_bounds():
    """Rules as those of XLM-RoBERTa, ALBERT and Llama have."""
    charsmap = base64.b64encode((4).to_bytes(4, "little") + b"\0" * 4 + "صلى الله عليه وسلم".encode() + b"\0").decode()
    small = [{"type": kind} for kind in ("NFKD", "StripAccents", "Lowercase", "Nmt")]
    for rules in (
        [{"type": "Precompiled", "precompiled_charsmap": charsmap}, replaced({"Regex": " {2,}"}, "▁")],
        [replaced({"String": "``"}, '"'), replaced({"String": "''"}, '"'), *small],
        [{"type": "Prepend", "prepend": "▁"}, replaced({"String": " "}, "▁")],
    ):
        growth.check(json.dumps({"normalizer": sequence(*rules), "pre_tokenizer": {"type": "ByteLevel"}}).encode())
    with pytest.raises(Refused, match="times as long"):
        growth.check(json.dumps({"normalizer": sequence(*[replaced({"String": "a"}, "b" * 600)])}).encode())


def test_a_pattern_that_never_ends_is_given_up(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(names, "PATIENCE", 1.0)
    root = digits(tmp_path / "tones")
    sound = ("data=audio_folder", f"data.root={root}", "model=audio_cnn", "epochs=1", "data.limit=null")
    run = plain(tmp_path / "run", *sound, r"data.pattern='(?P<label>\d)_.*'").path
    assert sftc(capfd, "eval", run, split="val", quiet=True).code == 0
    (root / "0" / "0_ann_0.wav").rename(root / "0" / f"0_{'ann' * 20}.wav")
    edit_yaml(run, data__pattern=r"(?P<label>\d)(_|\w|\d)*(\w+)*(\w+)*!")
    refused(capfd, run, "takes more than 1 s")
    edit_yaml(run, data__pattern="(?P<label>" + "(" * 900)
    refused(capfd, run, "is no regular expression")
    edit_yaml(run, data__pattern="(?P<label>a)" * 900)
    refused(capfd, run, "1,000 is the most")
