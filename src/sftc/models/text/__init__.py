"""Text models: raw bytes in, logits out. Ours from scratch, whose vocabulary is made of the training rows, and those of
transformers.

What a node leaves to be chosen (`vocabulary`, and of transformers' `config`) is resolved into numbers, so that a stored
run is built again without its data, its folder or a hub; the tokeniser itself is among the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from sftc.errors import Refused, choose, nearest
from sftc.models import keys, weights
from sftc.models.text import nets, tokens
from sftc.models.text.nets import TextNet
from sftc.models.text.tokens import Tokens
from sftc.models.vision import Vision
from sftc.types import Form

COMMON = {"max_length": 128, "long": "truncate", "dropout": 0.0, "vocabulary": "auto"}
SCRATCH = COMMON | {"max_words": 20000, "min_count": 2, "dim": 64}
OWN: dict[str, dict[str, Any]] = {  # family -> its keys with their defaults
    "bag_of_embeddings": SCRATCH,
    "text_cnn": SCRATCH | {"channels": 64, "widths": [3, 4, 5], "dropout": 0.3},
    "bilstm": SCRATCH | {"hidden": 64, "layers": 1, "dropout": 0.3},
}
HF = COMMON | {"path": None, "pooling": "auto", "config": {}}
FAMILIES = (*OWN, "hf")
BUFFER = "prepare.vocabulary"
LONG = ("truncate", "window")
LOOKED = 10_000  # training texts whose length is looked at, to tell how many are cut


def check(spec: Mapping[str, Any]) -> None:
    """What `build` would refuse whatever the data.

    Raises:
        Refused: an unknown key or a value out of range; of hf, no such model, or no transformers.
    """
    known = HF if spec["family"] == "hf" else OWN[spec["family"]]
    node = keys.rest(spec)
    for key in node:
        if key not in known:
            raise Refused(f"model.{key} is no key of {spec['family']}{nearest(key, known)}")
    node = {**known, **node}
    choose("model.long", node["long"], LONG)
    for key in ("max_length", "dim", "channels", "hidden", "layers", "max_words", "min_count"):
        if key in node and not (type(node[key]) is int and node[key] >= 1):
            raise Refused(f"model.{key}={node[key]} must be a whole number above 0")
    if not 0 <= node["dropout"] < 1:
        raise Refused(f"model.dropout={node['dropout']} must lie in [0, 1)")
    if not (node["vocabulary"] == "auto" or _sizes(node["vocabulary"])):
        raise Refused(f"model.vocabulary={node['vocabulary']} is neither auto nor [words, bytes]")
    if spec["family"] == "hf":
        from sftc.models.text import hf

        hf.check(spec)
    elif keys.pretrained(spec) == "true" and not spec.get("checkpoint"):
        raise Refused(f"model.pretrained=true: nobody published weights for {spec['family']}; give model.checkpoint")
    if not all(type(w) is int and 1 <= w <= 64 for w in node.get("widths", [1])) or node.get("widths") == []:
        raise Refused(f"model.widths={node['widths']} is not a list of widths in words, such as [3,4,5]")


def build(spec: Mapping[str, Any], out_dim: int, form: Form) -> Vision:
    """The net with its tokeniser; with an answer for each word where the form says so.

    Raises:
        Refused: what `check` refuses, a vocabulary that nothing tells, or a tokeniser that does not fit.
    """
    if spec["family"] == "hf":
        from sftc.models.text import hf

        return hf.build(spec, out_dim, form)
    check(spec)
    node = {**OWN[spec["family"]], **keys.rest(spec)}
    size, held = _vocabulary(spec, node, form)
    body = _body(spec["family"], node, size)
    pooling = "mean" if spec["family"] == "bag_of_embeddings" else "max"
    net = TextNet(body, body.width, out_dim, pooling, node["dropout"])
    facts: dict[str, Any] = {"pretrained": "no"}
    return finished("words", held, size, node, net, facts, form, tokens.PADDING)


def write_plain(model: nn.Module, folder: Path, classes: Sequence[str]) -> str:
    """The trained model as a folder of transformers'; what was written, in words. Raises Refused: it is none of its."""
    from sftc.models.text import plain

    return plain.write(model, folder, classes)


def finished(
    kind: str,
    held: bytes | int,
    size: int,
    node: Mapping[str, Any],
    net: nn.Module,
    facts: dict[str, Any],
    form: Form,
    padding: int,
) -> Vision:
    """The model of a net and its tokeniser; `facts` say how many training texts are cut."""
    longest, windows, words = node["max_length"], node["long"] == "window", bool(form.about.get("words"))
    first = Tokens(kind, held, limit=size, longest=longest, windows=windows, words=words, padding=padding)
    facts["vocabulary"] = [size, int(first.vocabulary.numel())]
    if form.corpus is not None and isinstance(held, bytes):
        memory = first.memory
        assert memory is not None
        texts = memory([text.encode() for text in islice(form.corpus(), LOOKED)], words)
        room = longest - len(memory.coder.before) - len(memory.coder.after)
        longer = sum(len(text.ids) > room for text in texts)
        what = "read in windows" if windows else "cut"
        facts["texts"] = f"{longer:,} of {len(texts):,} have more than {longest} tokens: {what}" if longer else "whole"
    return Vision(first, net, ["net.head"], facts)


def carried(spec: Mapping[str, Any]) -> bytes | None:
    """The tokeniser in the checkpoint of a node, if that is of a text model of ours: its embeddings belong to it."""
    if not spec.get("checkpoint"):
        return None
    found = weights.read(spec["checkpoint"]).get(BUFFER)
    return None if found is None else found.cpu().numpy().tobytes()


def _vocabulary(spec: Mapping[str, Any], node: Mapping[str, Any], form: Form) -> tuple[int, bytes | int]:
    """How many tokens, and the words; only their bytes' number where they are to be loaded."""
    held = carried(spec)
    wanted = None if node["vocabulary"] == "auto" else node["vocabulary"]
    if held is None and form.corpus is not None:
        held = tokens.vocabulary(form.corpus(), bool(form.about.get("words")), node["max_words"], node["min_count"])
    if held == b"":
        raise Refused(f"no word occurs model.min_count={node['min_count']} times in the training texts; lower it")
    found = None if held is None else [tokens.coder("words", held).size, len(held)]
    if wanted is not None and found != wanted:  # of other data: the words come with the weights
        return wanted[0], wanted[1]
    if found is None or held is None:
        raise Refused(f"model={spec['name']} makes its vocabulary of training texts: it needs its data")
    return found[0], held


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and 1 <= n <= 1 << 27 for n in value)


def _body(family: str, node: Mapping[str, Any], size: int) -> nets.Bag:
    if family == "text_cnn":
        return nets.Convolutions(size, node["dim"], node["channels"], node["widths"], node["dropout"])
    if family == "bilstm":
        return nets.Recurrent(size, node["dim"], node["hidden"], node["layers"], node["dropout"])
    return nets.Bag(size, node["dim"])
