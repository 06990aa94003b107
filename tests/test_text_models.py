"""Models of texts: they carry their tokeniser, read any batch alike, and are rebuilt from numbers."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from torch import nn

from sftc import data, models
from sftc.device import Device
from sftc.errors import Refused
from sftc.fusion import soup
from sftc.models import surgery
from sftc.models.text import tokens
from sftc.types import Form
from texts import bert, write_conll, write_csv

CPU = torch.device("cpu")
OWN = ("bag_of_embeddings", "text_cnn", "bilstm")
KINDS = ("bert", "distilbert", "gpt2", "deberta-v2")


def node(name, **more):
    own = {"min_count": 1} if name in OWN else {"path": bert(name), "max_length": 64}
    return {"family": name if name in OWN else "hf", "name": name, **own, **more}


@pytest.fixture(scope="module")
def topics(tmp_path_factory):
    return data.build({"name": "text_csv", "root": str(write_csv(tmp_path_factory.mktemp("csv")))})


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    return data.build({"name": "conll", "root": str(write_conll(tmp_path_factory.mktemp("conll")))})


def build(spec, d, seed=0):
    torch.manual_seed(seed)
    return models.build(spec, out_dim=d.out_dim, form=d.form).eval()


def batch(d, size=12):
    return next(iter(d.source("train", size, train=True, seed=0, device=CPU).epoch(0)))


def stored(model, spec):
    """The node as config.yaml has it."""
    more = {k: model.facts[k] for k in ("vocabulary", "config") if k in model.facts}
    return {**spec, **more, "pretrained": False, "checkpoint": None}


@pytest.mark.parametrize("name", [*OWN, *KINDS])
def test_a_text_gets_the_same_answer_in_every_batch(name, topics):
    model, b = build(node(name), topics), batch(topics)
    whole = model(b.inputs)
    assert whole.shape == (12, 3)
    alone = torch.cat([model(row[None, : int((row > 0).sum())]) for row in b.inputs])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(whole[0], whole[1])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_a_compiled_net_leaves_reading_to_python(topics):
    model, b = build(node("text_cnn"), topics), batch(topics)
    whole = model(b.inputs)
    compiled = Device("cpu", compile=True).place(model)
    torch.testing.assert_close(compiled(b.inputs), whole, atol=1e-5, rtol=1e-4)
    reads = [m for m in copy.deepcopy(compiled).modules() if isinstance(m, tokens.Tokens)]
    assert reads
    assert not any("forward" in vars(m) for m in reads)  # a copy would read by the tokeniser of the first


@pytest.mark.parametrize("name", [*OWN, *KINDS])
def test_words_have_an_answer_each_wherever_they_stand(name, names):
    model, b = build(node(name), names), batch(names)
    whole = model(b.inputs)
    assert whole.shape == (12, 4, b.target.shape[1])
    row = int(b.weight.sum(1).argmin())
    words = bytes(b.inputs[row].numpy()).rstrip(b"\0\x1f")
    alone = model(torch.frombuffer(bytearray(words), dtype=torch.uint8)[None])
    n = alone.shape[2]
    assert n == int(b.weight[row].sum())
    torch.testing.assert_close(alone[0], whole[row, :, :n], atol=1e-5, rtol=1e-4)
    assert (whole[row, :, n:] == whole[row, :, -1:]).all()  # where there is no word, the head's bias
    assert (whole[row, :, 0] != whole[row, :, -1]).all()


@pytest.mark.parametrize("name", ["text_cnn", "bert"])
def test_a_stored_node_and_its_weights_need_nothing_else(name, topics, tmp_path):
    spec = node(name)
    if name == "bert":
        spec["path"] = str(shutil.copytree(spec["path"], tmp_path / "gone"))
    model, inputs = build(spec, topics), batch(topics).inputs
    spec = stored(model, spec)
    shutil.rmtree(tmp_path / "gone", ignore_errors=True)
    again = models.build(spec, out_dim=3, form=Form(()))
    assert again.eval()(inputs).shape == (12, 3)  # a dry run, before weights are there
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(inputs), model(inputs))
    with torch.device("meta"):
        ghost = models.build(spec, out_dim=3, form=Form(()))
    assert {k: v.shape for k, v in ghost.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_tokeniser_that_was_never_loaded_trains_nothing(topics):
    model = models.build(node("text_cnn", vocabulary=[100, 700]), out_dim=3, form=topics.form)
    with pytest.raises(Refused, match="never loaded"):
        model.train()(batch(topics).inputs)


def test_weights_bring_their_own_words(topics, names, tmp_path):
    from safetensors.torch import save_file

    first = build(node("text_cnn"), topics)
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    other = build(node("text_cnn", checkpoint=str(tmp_path)), names)
    assert torch.equal(other.prepare.vocabulary, first.prepare.vocabulary)
    assert torch.equal(other.net.body.embedding.weight, first.net.body.embedding.weight)


def test_words_are_the_commonest_of_the_corpus():
    corpus = ["b a a", "A c, b", "a ,"]
    assert tokens.vocabulary(corpus, False, 10, 1) == b"a\n,\nb\nc"
    assert tokens.vocabulary(corpus, False, 2, 1) == b"a\n,"
    assert tokens.vocabulary(corpus, False, 10, 2) == b"a\n,\nb"
    read = tokens.Tokens("words", b"a\nb", limit=4, longest=3, windows=False, words=False, padding=0)
    said = read(torch.tensor([list(b"b a ?"), list(b"a\0\0\0\0")], dtype=torch.uint8))
    assert said.ids.tolist() == [[3, 2, 1], [2, 0, 0]]
    assert said.mask.tolist() == [[True, True, True], [True, False, False]]


def test_each_text_is_tokenised_once(topics, monkeypatch):
    model, b = build(node("text_cnn"), topics), batch(topics)
    met: list[str] = []
    inner = tokens.Words.texts
    monkeypatch.setattr(tokens.Words, "texts", lambda self, texts: inner(self, met.extend(texts) or texts))
    model(b.inputs)
    copy.deepcopy(model)(b.inputs)
    assert met == []  # they are training rows: all of them were met when their lengths were looked at
    model(torch.tensor([list(b"never seen before")], dtype=torch.uint8))
    assert met == ["never seen before"]


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(tokens.Memory, "room", 60)
    memory = tokens.Memory(tokens.Words(b"a\nb"))
    rows = [f"a b {i}".encode() for i in range(9)]
    first = [t.ids.tolist() for t in memory(rows, False)]
    assert len(memory.held) == 2
    assert [t.ids.tolist() for t in memory(rows, False)] == first


@pytest.mark.parametrize("name", ["text_cnn", "bert"])
def test_long_texts_are_cut_or_read_in_windows(name, topics):
    b = batch(topics)
    cut = build(node(name, max_length=8), topics)
    windows = build(node(name, max_length=8, long="window"), topics)
    assert "more than 8 tokens: cut" in cut.facts["texts"]
    read = windows.prepare(b.inputs)
    assert read.ids.shape[1] == 8
    assert int(read.owner.max()) == 11
    said = windows.net.pool(windows.net.body(read), read)
    every = windows.net.pool._window(windows.net.body(read), read)
    for i in range(12):
        torch.testing.assert_close(said[i], every[read.owner == i].mean(0))
    text = bytes(b.inputs[0].numpy()).rstrip(b"\0")
    longer = torch.frombuffer(bytearray(text + b" goal match team"), dtype=torch.uint8)[None]
    assert torch.equal(cut(longer), cut(b.inputs[:1]))
    assert not torch.equal(windows(longer), windows(b.inputs[:1]))


def test_words_in_windows_keep_their_places(names):
    b = batch(names)
    read = build(node("bert", max_length=5, long="window"), names).prepare(b.inputs)
    whole = build(node("bert", max_length=60), names).prepare(b.inputs)
    seen, all_ids = read.ids.flatten()[read.at.clamp_min(0)], whole.ids.flatten()[whole.at.clamp_min(0)]
    assert torch.equal(read.at >= 0, b.weight > 0)
    assert torch.equal(seen[read.at >= 0], all_ids[whole.at >= 0])
    cut = build(node("bert", max_length=5), names).prepare(b.inputs)
    assert 0 < int((cut.at >= 0).sum()) < int((read.at >= 0).sum())


def test_the_first_piece_of_each_word_answers_for_it(names):
    from tokenizers import Tokenizer

    made, b = Tokenizer.from_file(f"{bert('bert')}/tokenizer.json"), batch(names)
    read = build(node("bert"), names).prepare(b.inputs)
    for i, row in enumerate(b.inputs):
        words = bytes(row.numpy()).rstrip(b"\0\x1f").decode().split("\x1f")
        expected = [made.encode(w, add_special_tokens=False).ids[0] for w in words]
        assert read.ids.flatten()[read.at[i, : len(words)]].tolist() == expected


@pytest.mark.parametrize(("name", "pooling"), [("bert", "pooler"), ("bert", "cls"), ("bert", "max"), ("gpt2", "auto")])
def test_pooling_is_as_transformers_has_it(name, pooling, topics):
    import transformers

    model, b = build(node(name, pooling=pooling), topics), batch(topics)
    encoder = transformers.AutoModel.from_pretrained(bert(name)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert(name))
    text = bytes(b.inputs[3].numpy()).rstrip(b"\0").decode()
    out = encoder(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))
    hidden = out.last_hidden_state[0]
    way = {"cls": lambda: hidden[0], "max": lambda: hidden.amax(0), "auto": lambda: hidden[-1]}
    expected = out.pooler_output[0] if pooling == "pooler" else way[pooling]()
    tapped = surgery.Tapped(model, ["net.pool"])(b.inputs)
    torch.testing.assert_close(tapped.features["net.pool"][3], expected, atol=1e-5, rtol=1e-4)


def test_blocks_of_an_encoder_are_its_layers(topics):
    for name in ("bert", "gpt2", "distilbert", "deberta-v2"):
        model = build(node(name), topics)
        found = surgery.blocks(model)
        assert len(found) == 4, (name, [b for b, _ in found])  # embeddings, two layers, head
        assert sorted(n for _, names in found for n in names) == sorted(n for n, _ in model.named_parameters())
        assert all("embedding" in n or "wte" in n or "wpe" in n for n in found[0][1])
        assert found[-1] == ("net.head", ["net.head.weight", "net.head.bias"])
    assert surgery.blocks(build(node("text_cnn"), topics))[0][0] == "net.body.embedding"


def test_pretrained_weights_are_loaded_and_a_fresh_one_differs(topics):
    one, two = (build(node("bert"), topics, seed) for seed in (0, 1))
    assert one.facts["pretrained"] == "loaded"
    path = "net.body.encoder.embeddings.word_embeddings"
    assert torch.equal(one.get_submodule(path).weight, two.get_submodule(path).weight)
    assert len(one.loaded) == len([n for n, _ in one.named_parameters()]) - 2
    fresh = build(node("bert", pretrained="false"), topics, 7)
    assert fresh.facts["pretrained"] == "no"
    assert not torch.equal(fresh.get_submodule(path).weight, one.get_submodule(path).weight)


def test_soups_of_other_tokenisers_are_refused(topics):
    state = build(node("bert"), topics).state_dict()
    other = {**state, "prepare.vocabulary": state["prepare.vocabulary"].flip(0)}
    assert set(soup.average([state, state])) == set(state)
    with pytest.raises(Refused, match=r"no one architecture.*prepare\.vocabulary"):
        soup.average([state, other])


WRONG = {
    "no path": (node("text_cnn") | {"family": "hf", "min_count": None}, "min_count is no key"),
    "no folder": ({"family": "hf", "name": "hf", "path": "./nowhere"}, r"path=\./nowhere is no folder"),
    "no name": ({"family": "hf", "name": "hf", "path": "bert-base-uncasde"}, "no folder here, and as a name of a hub"),
    "nothing": ({"family": "hf", "name": "hf"}, "model.path is not set"),
    "pooling": ({"family": "hf", "name": "hf", "path": "x", "pooling": "cnl"}, "did you mean"),
    "windows": (node("text_cnn", long="windows"), "did you mean"),
    "widths": (node("text_cnn", widths=[]), "widths"),
    "dropout": (node("bilstm", dropout=1), r"\[0, 1\)"),
    "layers": (node("bilstm", layers=0), "above 0"),
    "code": ({"family": "hf", "name": "hf", "config": {"model_type": "bert", "auto_map": {}}}, "no setting"),
    "kernels": (
        {"family": "hf", "name": "hf", "config": {"model_type": "bert", "attn_implementation": "a/b"}},
        "no sett",
    ),
    "kind": ({"family": "hf", "name": "hf", "config": {"model_type": "brt"}}, "no text encoder"),
    "huge": ({"family": "hf", "name": "hf", "config": {"model_type": "bert", "vocab_size": 1 << 40}}, "no setting"),
}


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_wrong_node_is_one_line(case):
    spec, says = WRONG[case]
    with pytest.raises(Refused, match=says) as e:
        models.check(spec)
    assert "\n" not in str(e.value)


def test_what_does_not_fit_together_is_one_line(topics):
    with pytest.raises(Refused, match="reads texts, the data has pictures; use model=simple_cnn"):
        models.build(node("text_cnn"), out_dim=2, form=(1, 8, 8))
    with pytest.raises(Refused, match="reads pictures, the data has texts; use model=text_cnn"):
        models.build({"family": "simple_cnn", "name": "simple_cnn"}, out_dim=2, form=topics.form)
    with pytest.raises(Refused, match="more than the 64 positions"):
        build(node("bert", max_length=65), topics)
    with pytest.raises(Refused, match="no pooled output"):
        build(node("distilbert", pooling="pooler"), topics)


def test_a_tokeniser_that_does_not_fit_is_one_line(topics, tmp_path):
    shutil.copytree(bert("bert"), tmp_path / "m")
    shutil.copy(f"{bert('bert', 330)}/tokenizer.json", tmp_path / "m" / "tokenizer.json")
    with pytest.raises(Refused, match="does not fit its model: 153 tokens against 120"):
        build({"family": "hf", "name": "hf", "path": str(tmp_path / "m"), "max_length": 64}, topics)
    model = build(node("bert"), topics)
    model.prepare.limit = 20
    with pytest.raises(Refused, match="does not fit the model"):
        model(batch(topics).inputs)
    for damage in (b"{", b"\xff\xfe", b'{"model": 5}', b'{"version":"1.0","model":{"type":"WordPiece","vocab":{}}}'):
        model = build(node("bert"), topics)
        model.prepare.vocabulary = torch.frombuffer(bytearray(damage), dtype=torch.uint8)
        with pytest.raises(Refused, match=r"tokeniser.*(cannot be read|does not fit)") as e:
            model(batch(topics).inputs)
        assert "\n" not in str(e.value)


def test_without_transformers_one_line_says_so(monkeypatch, topics):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Refused, match=r"pip install 'sftc\[text\]'"):
        models.check(node("bert"))
    assert isinstance(build(node("text_cnn"), topics), nn.Module)
