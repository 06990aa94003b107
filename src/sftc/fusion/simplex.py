"""Weights on the simplex (none negative, sum 1) of least NLL or least squared error. Both problems are convex."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sftc.fusion.measures import FLOOR

POLISH = 20  # steps of expectation maximisation after the solver
LEAST = 1e-4  # of the largest weight: less is none, for it would cost a whole model, and is the solver's rounding


def least_nll(said: Tensor) -> Tensor:
    """[M] weights w of least -mean log(w @ said), for said [M, K]: each member's probability of what is true."""
    p = said.double().clamp_min(FLOOR).numpy()

    def value(w: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(w @ p, FLOOR)
        return float(-np.log(mixed).mean()), -(p @ (1 / mixed)) / p.shape[1]

    w = _solve(value, len(p))
    for _ in range(POLISH):  # never worse, never off the simplex; takes away what the solver left undone
        w = w * -value(w)[1]
        w /= w.sum()
    return torch.from_numpy(_sparse(w))


def least_squares(said: Tensor, truth: Tensor) -> Tensor:
    """[M] weights w of least mean (w @ said - truth)^2, for said [M, K] and truth [K]."""
    error = (said.double() - truth.double()).numpy()  # on the simplex w @ said - truth = w @ (said - truth)
    gram = error @ error.T / error.shape[1]
    gram /= max(float(np.trace(gram)) / len(gram), np.finfo(float).tiny)
    return torch.from_numpy(_sparse(_solve(lambda w: (float(w @ gram @ w), 2 * gram @ w), len(gram))))


def _sparse(w: np.ndarray) -> np.ndarray:
    w = np.where(w < LEAST * w.max(), 0.0, w)
    return w / w.sum()


def _solve(value: Callable[[np.ndarray], tuple[float, np.ndarray]], members: int) -> np.ndarray:
    from scipy.optimize import minimize

    start = np.full(members, 1 / members)
    found = minimize(
        value,
        start,
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 500},
    ).x
    found = np.clip(np.nan_to_num(found, nan=0.0), 0, None)
    found = found / found.sum() if found.sum() > 0 else start
    return min((start, found), key=lambda w: value(w)[0])
