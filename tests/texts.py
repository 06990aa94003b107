"""Small texts to learn from, and an encoder that any machine can hold."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from functools import cache
from pathlib import Path

TOPICS = {
    "sport": ["goal", "match", "team", "coach", "league", "player", "score", "win", "season", "cup"],
    "money": ["bank", "market", "shares", "profit", "price", "trade", "stock", "dollar", "growth", "loan"],
    "space": ["orbit", "rocket", "planet", "star", "launch", "moon", "probe", "mission", "comet", "sun"],
}
FILLERS = ["the", "a", "of", "in", "on", "and", "was", "is", "with", "for", "by", "from", "at", "this", "that", "it"]
TAGS = ("O", "B-PER", "I-PER", "B-LOC")
NAMES = {"first": ["anna", "bert", "carl", "dora", "emil", "fritz"], "last": ["berg", "stein", "meyer", "wolf"]}
PLACES = ["paris", "london", "rome", "oslo", "cairo"]


def sentences(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, class); a third of the words are about its topic."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        topic = list(TOPICS)[i % len(TOPICS)]
        words = [draw.choice(TOPICS[topic] if draw.random() < 0.35 else FILLERS) for _ in range(draw.randint(4, 24))]
        rows.append((" ".join(words).capitalize() + ".", topic))
    return rows


def write_csv(root: Path, n: int = 120, split: bool = False) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    parts = {"train": sentences(n, 0), "val": sentences(n // 3, 1), "test": sentences(n // 3, 2)}
    for name, rows in parts.items() if split else [("train", parts["train"])]:
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return root


def write_folder(root: Path, n: int = 60) -> Path:
    for i, (text, topic) in enumerate(sentences(n)):
        (root / topic).mkdir(parents=True, exist_ok=True)
        (root / topic / f"{i}.txt").write_text(text)
    return root


def tagged(n: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(n):
        words, tags = [], []
        for _ in range(draw.randint(2, 9)):
            kind = draw.random()
            if kind < 0.2:
                found, said = [draw.choice(NAMES["first"]), draw.choice(NAMES["last"])], ["B-PER", "I-PER"]
            elif kind < 0.35:
                found, said = [draw.choice(PLACES)], ["B-LOC"]
            else:
                found, said = [draw.choice(FILLERS)], ["O"]
            words, tags = words + found, tags + said
        rows.append((words, tags))
    return rows


def write_conll(root: Path, n: int = 90, lists: bool = False) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = tagged(n)
    if lists:
        lines = [json.dumps({"words": words, "tags": tags}) for words, tags in rows]
        (root / "train.jsonl").write_text("\n".join(lines))
    else:
        blocks = ["\n".join(f"{w} x {t}" for w, t in zip(words, tags, strict=True)) for words, tags in rows]
        (root / "train.conll").write_text("-DOCSTART- x O\n\n" + "\n\n".join(blocks) + "\n")
    return root


def tiny_bert(folder: Path, words: int = 120, seed: int = 0, kind: str = "bert") -> Path:
    """An encoder of random weights, two layers, 32 wide, with a tokeniser of the commonest words of the texts here.

    Their own trainer orders words of equal counts anew in every process, and with them what is learned from them.
    """
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(seed)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    said = [*(text for text, _ in sentences(200)), *(" ".join(parts) for parts, _ in tagged(100))]
    counts = Counter(" ".join(said).lower().split())
    letters = sorted({letter for word in counts for letter in word})
    known = [*special, *letters, *(f"##{letter}" for letter in letters)]
    known += [w for w in sorted(counts, key=lambda w: (-counts[w], w)) if len(w) > 1][: words - len(known)]
    pieces = {piece: i for i, piece in enumerate(known)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    names = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}}
    names["distilbert"] = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 64}
    more = names.get(kind, size | {"max_position_embeddings": 64})
    config = transformers.AutoConfig.for_model(kind, vocab_size=tokenizer.get_vocab_size(), **more)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    fast.save_pretrained(folder)
    return folder


@cache
def bert(kind: str = "bert", words: int = 120, seed: int = 0) -> str:
    """The folder of a tiny encoder, made once per process."""
    import tempfile

    return str(tiny_bert(Path(tempfile.mkdtemp()) / kind, words, seed, kind))
