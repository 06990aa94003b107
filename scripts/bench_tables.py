"""Nets on tables beside gradient boosting and a linear model, on the same rows.

    scripts/bench_tables.py diabetes --seeds 5 --models mlp,ft_transformer
    scripts/bench_tables.py bike_sharing --root ../shared/data/bike_sharing/hour.csv --team 5
    scripts/bench_tables.py bike_sharing --root ../shared/data/bike_sharing/hour.csv --more data.order_by=instant

A seed is another split (data.split_seed) and other first weights. Boosting and the linear model learn from the training
and validation rows together, since they need none to choose by; nets choose their epoch on validation. Test is scored.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.metrics import r2_score, roc_auc_score

from sftc import build
from sftc import data as datasets
from sftc.cli import compose, conf
from sftc.models.entry import Entry
from sftc.store import Run


def arrays(data: datasets.Data, names: tuple[str, ...], onehot: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows and targets of some splits: cells as they are (NaN: missing), or standardised with codes one-hot."""
    parts = [(data.splits[n].table, data.splits[n].rows, data.splits[n].target) for n in names]
    x = torch.cat([table.read(rows) for table, rows, _ in parts])
    y = torch.cat([target[rows] for _, rows, target in parts])
    if onehot:
        assert data.input_mean is not None
        assert data.input_std is not None
        x = Entry(data.form, onehot=True)((x - data.input_mean) / data.input_std)
    return x.numpy(), y.numpy()


def baseline(data: datasets.Data, linear: bool, seed: int) -> dict[str, float]:
    x, y = arrays(data, ("train", "val"), linear)
    tx, ty = arrays(data, ("test",), linear)
    values = data.kind == "values"
    coded = None if linear else [j for j, c in enumerate(data.form.about["columns"]) if c["kind"] == "categorical"]
    if linear:
        model: Any = RidgeCV(np.logspace(-3, 4, 15)) if values else LogisticRegressionCV(max_iter=5000)
    else:
        kind = HistGradientBoostingRegressor if values else HistGradientBoostingClassifier
        model = kind(random_state=seed, categorical_features=coded)
    model.fit(x, y.ravel())
    if values:
        said = model.predict(tx)
        return {"r2": r2_score(ty, said), "rmse": float(np.sqrt(((said - ty.ravel()) ** 2).mean()))}
    p = model.predict_proba(tx)
    auc = roc_auc_score(ty, p[:, 1]) if p.shape[1] == 2 else roc_auc_score(ty, p, multi_class="ovr")
    return {"accuracy": float((p.argmax(1) == ty).mean()), "auc": float(auc)}


def trained(preset: str, more: list[str], seed: int, out: Path) -> tuple[Run, dict[str, Any]]:
    given = [f"experiment={preset}", f"seed={seed}", f"data.split_seed={seed}", "device=cpu", "quiet=true", *more]
    cfg = compose.check_all("train", given, [conf.conf_dir()], sweep=False).values
    build.check(cfg)
    build.train(cfg, out, given, "bench")
    return Run.open(out), cfg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--root")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", default="mlp,ft_transformer")
    parser.add_argument("--team", type=int, default=0, help="also so many mlps as one ensemble")
    parser.add_argument("--more", nargs="*", default=[], help="further overrides")
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = [f"data.root={args.root}"] if args.root else []
    scores: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            cfg: dict[str, Any] = {}
            ways = {name: [f"model={name}"] for name in args.models.split(",")}
            if args.team:
                ways[f"{args.team} mlp"] = ["strategy=ensemble", f"strategy.n={args.team}"]
            for i, (name, more) in enumerate(ways.items()):
                run, cfg = trained(args.preset, [*root, *more, *args.more], seed, Path(folder) / str(i))
                scores.setdefault(name, []).append(run.result["test"])
            data = datasets.build(cfg["data"])
            scores.setdefault("gradient boosting", []).append(baseline(data, False, seed))
            scores.setdefault("ridge, logistic", []).append(baseline(data, True, seed))
        print(f"seed {seed} done", flush=True)
    keys = list(scores["gradient boosting"][0])
    print(f"\n| {args.preset} | {' | '.join(keys)} |\n| --- |{' --- |' * len(keys)}")
    for name, rows in scores.items():
        cells = [[row[k] for row in rows] for k in keys]
        spread = [statistics.stdev(c) if len(c) > 1 else 0.0 for c in cells]
        told = (f"{statistics.mean(c):.4f} ({s:.4f})" for c, s in zip(cells, spread, strict=True))
        print(f"| {name} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
