"""Encoders of transformers, by name or local folder. A run holds the encoder's own config and its tokeniser, so that it
opens without either. Nothing from a hub is executed: architectures are those of the installed library, by a list.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sftc.errors import Refused, choose, nearest
from sftc.models import keys, text, weights
from sftc.models.text import tokens
from sftc.models.text.nets import POOLS, TextNet
from sftc.models.text.tokens import Read
from sftc.models.vision import Vision
from sftc.types import Form

# Encoders that read token numbers and a mask. To add one: its model_type.
ENCODERS = (
    *("albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "esm"),
    *("mobilebert", "modernbert", "mpnet", "nomic_bert", "rembert", "roberta", "roberta-prelayernorm", "roformer"),
    *("squeezebert", "xlm-roberta", "xlm-roberta-xl", "xlnet", "gpt2", "opt"),
)
LAST = ("gpt2", "opt", "xlnet")  # whose last token has read all the others
SHIFTED = ("camembert", "esm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl")
# Of a config: what is about its origin, its task or how it is run, not what the encoder is.
DROPPED = (
    *(
        "architectures",
        "auto_map",
        "attn_implementation",
        "dtype",
        "torch_dtype",
        "name_or_path",
        "quantization_config",
    ),
    *("id2label", "label2id", "num_labels", "problem_type", "return_dict", "output_attentions", "transformers_version"),
    *("output_hidden_states", "use_cache", "gradient_checkpointing", "trust_remote_code", "experts_implementation"),
)
UNSET = "model.path is not set: a folder with config.json and tokenizer.json, or a name such as bert-base-uncased"
LARGEST = 1 << 20  # of a number in a config
DEEPEST = 200  # layers: each takes time to make even without memory


class Encoder(nn.Module):
    """A model of transformers as a body: Read -> the vectors of its tokens, or what it pooled itself."""

    def __init__(self, encoder: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooled = pooled

    def forward(self, read: Read) -> Tensor:
        found: Any = self.encoder(input_ids=read.ids, attention_mask=read.mask.long())
        return found.pooler_output if self.pooled else found.last_hidden_state

    def sections(self) -> list[list[str]]:
        """Parameter names by block: the embeddings, each layer, and with the last what comes after."""
        lists = {path: m for path, m in self.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
        path = max(lists, key=lambda p: sum(x.numel() for x in lists[p].parameters()))
        blocks: list[list[str]] = [[] for _ in range(len(lists[path]) + 1)]
        at = 0
        for name, _ in self.named_parameters():
            inside = name.startswith(f"{path}.")
            at = 1 + int(name[len(path) + 1 :].partition(".")[0]) if inside else at and len(lists[path])
            blocks[at].append(name)
        return [names for names in blocks if names]


def check(spec: Mapping[str, Any]) -> None:
    """Raises Refused: no transformers, no such model, no such pooling."""
    node = {**text.HF, **keys.rest(spec)}
    library()
    choose("model.pooling", node["pooling"], ("auto", *POOLS))
    if node["config"]:
        _check_config(node["config"])
    else:
        _published(node["path"])


def build(spec: Mapping[str, Any], out_dim: int, form: Form) -> Vision:
    """The encoder with a fresh head. With a `config` in its node nothing is read but a checkpoint."""
    text_node = {**text.HF, **keys.rest(spec)}
    stored, fresh = text_node["config"], str(spec.get("pretrained", "auto")).lower() == "false"
    config = _check_config(stored) if stored else _published(text_node["path"])
    held = _held(spec, text_node, form)
    limit = int(config["vocab_size"])
    if isinstance(held, bytes) and (size := tokens.coder("pieces", held).size) > limit:
        raise Refused(f"the tokeniser of {text_node['path']} does not fit its model: {size} tokens against {limit}")
    _check_length(text_node["max_length"], config)
    load = not fresh and not spec.get("checkpoint")
    encoder, missing, said = _encoder(config, text_node["path"], load, str(spec.get("pretrained")).lower() == "true")
    pooling = text_node["pooling"]
    if pooling == "auto":
        pooling = "last" if config["model_type"] in LAST else "mean"
    own = getattr(encoder, "pooler", None)
    if pooling == "pooler" and own is None:
        raise Refused(f"model.pooling=pooler: a {config['model_type']} has no pooled output; use mean or cls")
    if pooling != "pooler" and own is not None:
        encoder.pooler = None  # its weights would never learn anything
    width = encoder.get_input_embeddings().weight.shape[1] if "hidden_size" not in config else config["hidden_size"]
    net = TextNet(Encoder(encoder, pooling == "pooler"), int(width), out_dim, pooling, text_node["dropout"])
    facts: dict[str, Any] = {"pretrained": said, "config": config, "pooling": pooling}
    model = text.finished("pieces", held, limit, text_node, net, facts, form, int(config.get("pad_token_id") or 0))
    if said == "loaded":
        lost = {f"net.body.encoder.{name}" for name in missing}
        model.loaded = {n for n, _ in model.named_parameters() if n.startswith("net.body.") and n not in lost}
    return model


def _held(spec: Mapping[str, Any], node: Mapping[str, Any], form: Form) -> bytes | int:
    """The tokeniser: of the checkpoint, else of the folder; its size alone where it comes with the weights."""
    held, sizes = text.carried(spec), node["vocabulary"]
    if held is not None:
        return held
    if sizes == "auto":
        return _tokeniser(node["path"])
    if form.corpus is not None:
        with contextlib.suppress(Refused):  # its folder is gone: what it holds comes with the weights
            held = _tokeniser(node["path"])
    return held if held is not None and len(held) == sizes[1] else int(sizes[1])


def library() -> Any:
    try:
        import transformers
    except ImportError:
        raise Refused("model=hf needs transformers: pip install 'sftc[text]'") from None
    return transformers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the library says while it loads is ours to say."""
    log = library().utils.logging
    was, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings(), weights.quiet():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(was)
        if bars:
            log.enable_progress_bar()


def _place(path: str) -> str:
    """A local folder in full, or a name as it is."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        near = nearest(folder.name, os.listdir(folder.parent)) if folder.parent.is_dir() else ""
        raise Refused(f"model.path={path} is no folder{near}")
    return path


def _published(path: str | None) -> dict[str, Any]:
    """The config of a model, as a run stores it. Raises Refused: it cannot be had, or is no text encoder of ours."""
    if not path:
        raise Refused(UNSET)
    place = _place(path)
    try:
        with quiet():
            config = library().AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as e:  # OSError for a name nobody knows, ValueError for a type, and others of its own
        where = "" if os.path.isdir(place) else " is no folder here, and as a name of a hub"
        raise Refused(f"model.path={path}{where} cannot be read: {weights.line(e)}") from None
    return _check_config({k: v for k, v in config.to_dict().items() if not k.startswith("_") and k not in DROPPED})


def _check_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Raises Refused: no text encoder, or a value that no encoder has."""
    kind = config.get("model_type")
    if kind not in ENCODERS:
        raise Refused(f"model_type={str(kind)[:40]} is no text encoder known here{nearest(str(kind), ENCODERS)}")
    for key, value in config.items():
        if key.startswith("_") or key in DROPPED or not _plain(value, 3):
            raise Refused(f"model.config.{key}={str(value)[:40]} is no setting of an encoder")
    layers = [v for k, v in config.items() if k in ("num_hidden_layers", "n_layers", "n_layer") and type(v) is int]
    if any(n > DEEPEST for n in layers) or type(config.get("vocab_size")) is not int:
        raise Refused(f"model.config describes no encoder that is known ({layers} layers)")
    return dict(config)


def _plain(value: Any, deep: int) -> bool:
    if isinstance(value, Mapping):
        return (
            deep > 0 and len(value) <= 64 and all(isinstance(k, str) and _plain(v, deep - 1) for k, v in value.items())
        )
    if isinstance(value, list | tuple):
        return deep > 0 and len(value) <= DEEPEST and all(_plain(v, deep - 1) for v in value)
    if isinstance(value, int | float):
        return abs(value) <= LARGEST
    return value is None or (isinstance(value, str) and len(value) <= 100)


def _check_length(longest: int, config: Mapping[str, Any]) -> None:
    most = config.get("max_position_embeddings", config.get("n_positions"))
    if config["model_type"] in SHIFTED and most is not None:
        most -= 1 + int(config.get("pad_token_id") or 0)
    if isinstance(most, int) and 0 < most < longest:
        raise Refused(f"model.max_length={longest} is more than the {most} positions the encoder knows")


def _tokeniser(path: str | None) -> bytes:
    """The JSON of a model's tokeniser. Raises Refused: it has none, or none of the fast kind."""
    if not path:
        raise Refused(UNSET)
    try:
        with quiet():
            made = library().AutoTokenizer.from_pretrained(_place(path), trust_remote_code=False)
        return made.backend_tokenizer.to_str().encode()
    except Exception as e:
        raise Refused(f"model.path={path} has no tokeniser that can be read: {weights.line(e)}") from None


def _encoder(config: Mapping[str, Any], path: str, load: bool, must: bool) -> tuple[Any, list[str], str]:
    """The encoder, which of its parameters no file had, and what to say of its weights."""
    made_of = library()
    rest = {k: v for k, v in config.items() if k != "model_type"}
    try:
        with quiet():
            made = made_of.AutoConfig.for_model(config["model_type"], **rest)
            if load:
                with contextlib.suppress(OSError) if not must else contextlib.nullcontext():
                    found, info = made_of.AutoModel.from_pretrained(
                        _place(path),
                        config=made,
                        trust_remote_code=False,
                        output_loading_info=True,
                        dtype=torch.float32,
                    )
                    return found, list(info["missing_keys"]), "loaded"
            encoder = made_of.AutoModel.from_config(made, trust_remote_code=False, dtype=torch.float32)
    except Refused:
        raise
    except Exception as e:
        raise Refused(f"model.path={path} cannot be built: {weights.line(e)}") from None
    return encoder, [], f"unavailable: no weights in {path}" if load else "no"
