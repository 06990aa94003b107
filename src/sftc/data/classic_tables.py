"""Tables that come with scikit-learn: small, without a missing cell, and known to everybody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sftc.columns import Column, told
from sftc.data.rows import ArrayTable
from sftc.data.split import Raw


def breast_cancer() -> Raw:
    """569 tumours, 30 measurements, malignant or benign (Street et al. 1993)."""
    from sklearn.datasets import load_breast_cancer

    return _classes(load_breast_cancer)


def wine() -> Raw:
    """178 wines of three growers, 13 measurements (Forina et al. 1988)."""
    from sklearn.datasets import load_wine

    return _classes(load_wine)


def iris() -> Raw:
    """150 irises of three species, 4 measurements (Fisher 1936)."""
    from sklearn.datasets import load_iris

    return _classes(load_iris)


def diabetes() -> Raw:
    """442 patients, 10 measurements, disease progression a year later (Efron et al. 2004)."""
    from sklearn.datasets import load_diabetes

    held: Any = load_diabetes()
    return _raw("values", ["progression"], held, torch.from_numpy(held.target).float().view(-1, 1))


def _classes(load: Callable[[], Any]) -> Raw:
    held = load()
    return _raw("classes", [str(n) for n in held.target_names], held, torch.from_numpy(held.target).long())


def _raw(kind: str, names: list[str], held: Any, target: torch.Tensor) -> Raw:
    table = ArrayTable(torch.from_numpy(held.data).float(), target)
    table.about = told([Column(str(n), "numeric") for n in held.feature_names])
    return Raw(kind, names, {"train": lambda: table})
