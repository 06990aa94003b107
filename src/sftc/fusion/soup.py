"""Soups: one model whose weights are the mean of several (Wortsman et al. 2022). Same architecture, nearby minima."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sftc.errors import Refused
from sftc.types import Inputs

State = dict[str, Tensor]
Evaluate = Callable[[State], float]


def average(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> State:
    """The mean of state dicts, added up in float64; what is no float (counters, masks) is copied from the first.

    Raises:
        Refused: no state, keys or shapes that differ (they are named), weights that are negative, all zero or too few.
    """
    if not states:
        raise Refused("a soup needs one model at least")
    weights = [1.0] * len(states) if weights is None else [float(w) for w in weights]
    if len(weights) != len(states) or not (min(weights) >= 0 and sum(weights) > 0):
        raise Refused(f"weights={weights} must hold one number >= 0 for each of {len(states)} models, not all zero")
    for i, state in enumerate(states[1:], 1):
        _same(states[0], state, i)
    return {key: _mean([state[key] for state in states], weights) for key in states[0]}


def _same(first: Mapping[str, Tensor], other: Mapping[str, Tensor], number: int) -> None:
    apart = sorted(first.keys() ^ other.keys())
    if not apart:
        apart = [
            f"{key} {tuple(first[key].shape)} and {tuple(other[key].shape)}"
            for key in first
            if first[key].shape != other[key].shape
        ]
    if not apart:  # the bytes of a tokeniser, which no mean can be taken of
        apart = [key for key in first if first[key].dtype == torch.uint8 and not torch.equal(first[key], other[key])]
    if apart:
        more = f" and {len(apart) - 3} more" if len(apart) > 3 else ""
        raise Refused(
            f"models 0 and {number} are no one architecture: they differ in {', '.join(apart[:3])}{more}; "
            "fuse their scores instead: fuse=mean"
        )


def _mean(tensors: list[Tensor], weights: list[float]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        return first.clone()
    total = torch.zeros_like(first, dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight:  # 0 * inf is NaN
            total.add_(tensor.to(first.device), alpha=weight)
    return (total / sum(weights)).to(first.dtype)


def barrier(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], evaluate: Evaluate, points: int = 5
) -> dict[str, list[float] | float]:
    """How far the score (larger is better) sags on the straight line between two models.

    Returns:
        `share` [points] of the other model, 0 and 1 included, `score` there, and `barrier`: the largest fall below the
        line between the scores of the ends. 0 is a way without a valley; then a soup has a chance.
    """
    if points < 3:
        raise Refused(f"points={points} must be 3 or more: both ends and something between")
    shares = [i / (points - 1) for i in range(points)]
    scores = [evaluate(average([one, other], [1 - share, share])) for share in shares]
    falls = [(1 - share) * scores[0] + share * scores[-1] - score for share, score in zip(shares, scores, strict=True)]
    return {"share": shares, "score": scores, "barrier": max(0.0, *falls)}


def greedy(
    states: Sequence[Mapping[str, Tensor]], scores: Sequence[float], evaluate: Evaluate
) -> tuple[State, list[int], float]:
    """A greedy soup: from the best score on, each model stays in if the mean with it is no worse.

    Args:
        scores: of the single models, larger is better; they give the order, ties to the earlier.
        evaluate: score of a state, on the same held-out rows, BatchNorm statistics re-estimated within.

    Returns:
        The state, the numbers of its models in the order they went in, its score.
    """
    if len(scores) != len(states):
        raise Refused(f"{len(scores)} scores came for {len(states)} models; give one each")
    order = sorted(range(len(states)), key=lambda i: -scores[i])
    chosen = order[:1]
    soup = average([states[i] for i in chosen])
    best = evaluate(soup)
    for i in order[1:]:
        tried = average([states[j] for j in [*chosen, i]])
        score = evaluate(tried)
        if score >= best:
            chosen, soup, best = [*chosen, i], tried, score
    return soup, chosen, best


def needs_statistics(model: nn.Module) -> bool:
    """Whether it holds BatchNorm statistics, which are wrong after averaging: they belong to the weights they saw."""
    return bool(_norms(model))


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Measure BatchNorm statistics anew: the plain mean over `batches` of inputs, on the model's device.

    Only BatchNorm is in train mode meanwhile (dropout would disturb what is measured); modes are as before afterwards.

    Raises:
        Refused: there is no batch; the statistics are as before.
    """
    norms = _norms(model)
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    seen = 0
    try:
        model.eval()
        for batch in batches if norms else ():
            if not seen:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # 1 / batches so far: every batch counts the same
                    norm.train()
            model(batch)
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if norms and not seen:
        raise Refused("no batch to measure BatchNorm statistics on; give training rows")
