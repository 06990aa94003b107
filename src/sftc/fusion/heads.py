"""A small head on columns [n, F]: fitted by scikit-learn, its strength by inner cross-validation, kept as arrays.

A head is `w0, b0, w1, b1, ...`: linear layers with ReLU between them. Standardisation of columns and of values is
folded into the first and the last, so that applying one needs neither scikit-learn nor anything but its arrays.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftc.errors import Refused, choose
from sftc.fusion.folds import assign
from sftc.fusion.targets import kind_of, labelled
from sftc.types import Task

MODELS = {"classes": ("logistic", "mlp"), "labels": ("logistic", "mlp"), "values": ("ridge", "mlp")}
ALPHAS = {  # weight of the squared weights against the sum over rows, strongest first
    "logistic": (1e3, 1e2, 1e1, 1.0, 1e-1),
    "ridge": (1e4, 1e3, 1e2, 1e1, 1.0, 1e-1),
    "mlp": (1e2, 1e1, 1.0, 1e-1),
}
INNER = 3  # folds that choose alpha
JUDGES = 1 << 13  # rows they are of at most: of more, alpha matters less the more there are, and every fit costs more
HIDDEN = 32
RARE = -20.0  # logit of a class without a row, beside others around 0
STEP = 1 << 12  # rows of a temporary

Arrays = dict[str, Tensor]


def fitting_model(rule: str, task: Task, model: str) -> str:
    """The model of a head for this task; `auto` is the first that fits. Raises Refused: it does not fit."""
    options = MODELS[kind_of(task)]
    choose("model", model, ("auto", "logistic", "ridge", "mlp"))
    if model != "auto" and model not in options:
        raise Refused(
            f"fuse={rule}: model={model} does not fit {kind_of(task)}; use model={' or model='.join(options)}"
        )
    return options[0] if model == "auto" else model


def fit(task: Task, model: str, x: Tensor, target: Tensor, alpha: float | None = None) -> Arrays:
    """A head on columns x [n, F] (no NaN) and targets [n] or [n, C]; unlabelled rows are left out, of an mlp also
    those of which only a part is known.

    With alpha=None it is taken from ALPHAS: from the strongest on, as long as held-out loss falls.

    Raises:
        Refused: fewer than two labelled rows, or, of classes, than two classes.
    """
    whole = model == "mlp" and target.is_floating_point()  # it has no loss for a part of a row
    keep = ~target.isnan().any(1) if whole else labelled(target)
    x, target = x[keep].double(), target[keep]
    if len(x) < 2:
        of = " of which everything is known" if whole else ""
        raise Refused(f"a {model} head needs 2 labelled rows{of}, and has {len(x)}; use fuse=mean, or more rows")
    if kind_of(task) == "classes" and len(target.unique()) < 2:
        raise Refused(f"a {model} head needs labelled rows, of two classes at least; use fuse=mean, or more rows")
    return _once(task, model, x, target, _alpha(task, model, x, target) if alpha is None else alpha)


def run(head: Arrays, x: Tensor) -> Tensor:
    """Logits, or values, [n, C] float64."""
    last = sum(name.startswith("w") for name in head) - 1
    out = []
    for piece in x.split(STEP):
        h = piece.double()
        for i in range(last + 1):
            h = h @ head[f"w{i}"].T + head[f"b{i}"]
            h = h.relu() if i < last else h
        out.append(h)
    return torch.cat(out) if out else x.new_zeros(0, len(head[f"b{last}"]), dtype=torch.float64)


def answer(task: Task, head: Arrays, x: Tensor) -> Tensor:
    """Scores [n, C] float64."""
    out = run(head, x)
    return out if kind_of(task) == "values" else task.scores(out)


def _alpha(task: Task, model: str, x: Tensor, target: Tensor) -> float:
    step = -(-len(x) // JUDGES)
    x, target = x[::step], target[::step]
    fold = assign(task, target, INNER)
    best, chosen = float("inf"), ALPHAS[model][0]
    for alpha in ALPHAS[model]:
        loss = 0.0
        for k in range(INNER):
            train, held = fold != k, fold == k
            if kind_of(task) == "classes" and len(target[train].unique()) < 2:
                continue
            out = run(_once(task, model, x[train], target[train], alpha), x[held])
            loss += float(_loss(task, out, target[held], target[train]).sum())
        if loss >= best:
            break
        best, chosen = loss, alpha
    return chosen


def _loss(task: Task, out: Tensor, target: Tensor, train: Tensor) -> Tensor:
    """Per row. Values are compared in units of the spread of `train`, or the largest alone would count."""
    if kind_of(task) == "classes":
        return torch.nn.functional.cross_entropy(out, target, reduction="none")
    known = ~target.isnan()
    goal = torch.where(known, target.double(), 0.0)
    if kind_of(task) == "labels":
        value = torch.nn.functional.binary_cross_entropy_with_logits(out, goal, reduction="none")
    else:
        value = ((out - goal) / _spread(train)[1]) ** 2
    return value.masked_fill(~known, 0).sum(1)


def _spread(target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [K] of known values; 1 where there is none."""
    goal = target.double()
    mean = goal.nanmean(0).nan_to_num(0.0)
    std = ((goal - mean) ** 2).nanmean(0).sqrt().nan_to_num(0.0)
    return mean, torch.where(std > 0, std, 1.0)


def _once(task: Task, model: str, x: Tensor, target: Tensor, alpha: float) -> Arrays:
    """One fit at one strength."""
    center, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 1e-12, scale, 1.0)
    z = ((x - center) / scale).numpy()
    kind = kind_of(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not yet converged is good enough: held-out loss judges
        if kind == "values":
            layers = _values(model, z, target, alpha)
        elif kind == "labels" and model == "logistic":
            layers = [_labels(z, target, alpha)]
        elif kind == "labels":
            layers = _layers(_mlp(alpha, True).fit(z, target.numpy().astype(int)))
        else:
            layers = _classes(model, z, target.numpy(), alpha, task.out_dim)
    w, b = layers[0]
    w = w / scale.numpy()
    layers[0] = (w, b - w @ center.numpy())
    return {
        f"{n}{i}": torch.from_numpy(np.array(a))
        for i, layer in enumerate(layers)
        for n, a in zip("wb", layer, strict=True)
    }


Layer = tuple[np.ndarray, np.ndarray]


def _classes(model: str, z: np.ndarray, target: np.ndarray, alpha: float, out_dim: int) -> list[Layer]:
    found = (_logistic(alpha) if model == "logistic" else _mlp(alpha, True)).fit(z, target)
    layers = [(found.coef_, found.intercept_)] if model == "logistic" else _layers(found)
    w, b = layers[-1]
    if len(w) == 1:  # of two classes scikit-learn keeps the second alone
        w, b = np.concatenate([0 * w, w]), np.concatenate([0 * b, b])
    full, bias = np.zeros((out_dim, w.shape[1])), np.full(out_dim, RARE)
    full[found.classes_], bias[found.classes_] = w, b
    return [*layers[:-1], (full, bias)]


def _labels(z: np.ndarray, target: Tensor, alpha: float) -> Layer:
    """A logistic regression for each label on the rows where it is known."""
    w, b = np.zeros((target.shape[1], z.shape[1])), np.zeros(target.shape[1])
    for j, column in enumerate(target.numpy().T):
        known = ~np.isnan(column)
        yes = column[known] >= 0.5
        if yes.all() or not yes.any():  # nothing to tell apart: Laplace's estimate
            b[j] = np.log((yes.sum() + 1) / ((~yes).sum() + 1))
            continue
        found = _logistic(alpha).fit(z[known], yes.astype(int))
        w[j], b[j] = found.coef_[0], found.intercept_[0]
    return w, b


def _values(model: str, z: np.ndarray, target: Tensor, alpha: float) -> list[Layer]:
    mean, std = (t.numpy() for t in _spread(target))
    goal = (target.double().numpy() - mean) / std
    if model == "mlp":
        layers = _layers(_mlp(alpha, False).fit(z, goal.squeeze(-1) if goal.shape[1] == 1 else goal))
        w, b = layers[-1]
        return [*layers[:-1], (w * std[:, None], b * std + mean)]
    from sklearn.linear_model import Ridge

    known = ~np.isnan(goal)
    w, b = np.zeros((goal.shape[1], z.shape[1])), np.zeros(goal.shape[1])
    for j in range(goal.shape[1]):
        if known[:, j].any():
            found = Ridge(alpha=alpha).fit(z[known[:, j]], goal[known[:, j], j])
            w[j], b[j] = found.coef_, found.intercept_
    return [(w * std[:, None], b * std + mean)]


def _logistic(alpha: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / alpha, max_iter=300)


def _mlp(alpha: float, classes: bool) -> Any:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    make = MLPClassifier if classes else MLPRegressor
    return make(hidden_layer_sizes=(HIDDEN,), solver="lbfgs", alpha=alpha, max_iter=200, random_state=0)


def _layers(found: Any) -> list[Layer]:
    return [(w.T, b) for w, b in zip(found.coefs_, found.intercepts_, strict=True)]
