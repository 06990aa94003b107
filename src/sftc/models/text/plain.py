"""An encoder as a folder that plain transformers opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sftc.errors import Refused
from sftc.models.text.hf import Encoder, library, quiet
from sftc.models.vision import Vision


def write(model: Any, folder: Path, classes: Sequence[str]) -> str:
    """Weights, config and tokeniser of a trained `model`; what was written, in words.

    Where transformers has a classifier of this very form, it is one: of words, and of pooling=pooler. Else it is the
    encoder, with the head beside it in head.safetensors.

    Raises:
        Refused: the model is none of transformers'.
    """
    if not isinstance(model, Vision) or not isinstance(body := getattr(model.net, "body", None), Encoder):
        raise Refused("format=hf is for models of transformers (model=hf); leave format away")
    net: Any = model.net
    encoder: Any = body.encoder
    config: Any = encoder.config
    config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}
    made = library()
    auto = made.AutoModelForTokenClassification if model.prepare.words else made.AutoModelForSequenceClassification
    whole: Any = None
    if model.prepare.words or body.pooled:
        with quiet(), torch.random.fork_rng(devices=[]):
            whole = auto.from_config(config)
        ends = getattr(whole, "classifier", None)
        if not isinstance(ends, torch.nn.Linear) or ends.weight.shape != net.head.weight.shape:
            whole = None
    with quiet():
        if whole is not None:
            getattr(whole, whole.base_model_prefix).load_state_dict(encoder.state_dict())
            whole.classifier.load_state_dict(net.head.state_dict())
            whole.save_pretrained(folder)
        else:
            encoder.save_pretrained(folder)
            save_file({k: v.contiguous() for k, v in net.head.state_dict().items()}, folder / "head.safetensors")
        _tokeniser(model).save_pretrained(folder)
    if whole is not None:
        return type(whole).__name__
    return f"{type(encoder).__name__}, its {net.pool.how} pooled by you, and head.safetensors"


def _tokeniser(model: Any) -> Any:
    from tokenizers import Tokenizer

    held = Tokenizer.from_str(model.prepare.vocabulary.cpu().numpy().tobytes().decode())
    more = {"model_input_names": ["input_ids", "attention_mask"], "model_max_length": model.prepare.longest}
    return library().PreTrainedTokenizerFast(
        tokenizer_object=held, pad_token=held.id_to_token(model.prepare.padding), **more
    )
