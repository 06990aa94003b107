"""Terms on features against the published formulas, written down once more in numpy."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sftc.errors import Refused
from sftc.losses import TERMS, Attention, Hint
from views import draw, tapped

N = 3
FEATURES = [name for name, term in TERMS.items() if "student" in inspect.signature(term).parameters]
TAPS = {"student": ["s0"], "teacher": ["t0"]}
SHAPES = {  # student, teacher
    "vectors": ((N, 5), (N, 7)),
    "tokens": ((N, 4, 5), (N, 4, 7)),
    "maps": ((N, 5, 4, 4), (N, 7, 4, 4)),
    "larger student": ((N, 5, 8, 4), (N, 7, 4, 2)),
    "larger teacher": ((N, 5, 3, 3), (N, 7, 7, 5)),
    "crossed": ((N, 5, 8, 2), (N, 7, 4, 4)),
    "fewer tokens": ((N, 3, 5), (N, 8, 7)),
}


def hint(seen, **more):
    term = Hint(**(TAPS | more)).double()
    term.prepare(seen)
    return term.double()


def cells(size: int, count: int) -> list[slice]:
    """Where an adaptive average looks, as torch documents it."""
    return [slice(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def positions(x: torch.Tensor, size: tuple[int, ...]) -> np.ndarray:
    """[N, P, C] of any features, averaged down to `size`."""
    x = x.detach().numpy()
    if x.ndim == 2:
        return x[:, None]
    if x.ndim == 3:
        return np.stack([x[:, c].mean(1) for c in cells(x.shape[1], size[0])], 1)
    rows, columns = (cells(n, m) for n, m in zip(x.shape[2:], size, strict=True))
    return np.stack([x[:, :, r, c].mean((2, 3)) for r in rows for c in columns], 1)


def common(s: torch.Tensor, t: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    axes = slice(1, 2) if s.ndim == 3 else slice(2, None)
    size = tuple(map(min, s.shape[axes], t.shape[axes]))
    return positions(s, size), positions(t, size)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_hint_is_the_mean_squared_error_of_projected_features(kind):
    s, t = (draw(*shape, seed=i) for i, shape in enumerate(SHAPES[kind]))
    seen = tapped(s, t)
    term = hint(seen)
    weight, bias = (p.detach().numpy() for p in term.projectors[0].parameters())
    ours, theirs = common(s, t)
    expected = ((ours @ weight.T + bias - theirs) ** 2).reshape(N, -1).mean(1)
    assert term(seen).detach().numpy() == pytest.approx(expected)


def test_the_projector_of_maps_is_a_one_by_one_convolution():
    s, t = draw(N, 5, 4, 4), draw(N, 7, 4, 4)
    term = hint(tapped(s, t))
    weight, bias = term.projectors[0].parameters()
    conv = F.conv2d(s, weight[:, :, None, None], bias)
    assert torch.allclose(term(tapped(s, t)), F.mse_loss(conv, t, reduction="none").mean((1, 2, 3)))


def test_projectors_belong_to_the_term_and_learn():
    s = draw(64, 5)
    seen = tapped(s, s @ draw(5, 5, seed=3))
    term = hint(seen)
    before = term(seen).mean().item()
    for _ in range(100):
        gradients = torch.autograd.grad(term(seen).mean(), list(term.parameters()))
        with torch.no_grad():
            for p, g in zip(term.parameters(), gradients, strict=True):
                p -= g
    assert term(seen).mean().item() < 0.01 * before
    assert sorted(term.state_dict()) == ["projectors.0.bias", "projectors.0.weight"]


@pytest.mark.parametrize("kind", [k for k in SHAPES if k != "vectors"])
def test_attention_is_the_published_formula(kind):
    s, t = (draw(*shape, seed=i) for i, shape in enumerate(SHAPES[kind]))
    maps = [(x**2).mean(2) for x in common(s, t)]
    ours, theirs = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in maps)
    got = Attention(**TAPS)(tapped(s, t))
    assert got.numpy() == pytest.approx(((ours - theirs) ** 2).mean(1))


def test_attention_at_dead_features_is_finite_and_gives_no_gradient():
    dead = torch.zeros(N, 5, 4, 4, requires_grad=True)
    Attention(**TAPS)(tapped(dead, torch.randn(N, 7, 4, 4))).sum().backward()
    assert (dead.grad == 0).all()


@pytest.mark.parametrize("name", FEATURES)
def test_pairs_add_up(name):
    both = tapped(draw(N, 5, 4, 4), draw(N, 7, 4, 4), (draw(N, 5, 4, 4, seed=1), draw(N, 7, 4, 4, seed=2)))
    term = TERMS[name](student=["s0", "s1"], teacher=["t0", "t1"])
    term.prepare(both)
    term.double()
    parts = []
    for i in range(2):
        part = TERMS[name](student=[f"s{i}"], teacher=[f"t{i}"])
        for own, projectors in term.named_children():
            setattr(part, own, projectors[i : i + 1])
        parts.append(part(both))
    assert torch.allclose(term(both), parts[0] + parts[1])
    assert not torch.allclose(term(both), parts[0])


@pytest.mark.parametrize("kind", ["vectors", "tokens", "crossed"])
def test_gradients_of_hints_are_those_of_the_values(kind):
    s, t = (draw(*shape, seed=i) for i, shape in enumerate(SHAPES[kind]))
    term = hint(tapped(s, t))
    assert torch.autograd.gradcheck(lambda x, *_: term(tapped(x, t)), (s.requires_grad_(), *term.parameters()))


def test_gradients_of_attention_are_those_of_the_values():
    s, t = (draw(*shape, seed=i) for i, shape in enumerate(SHAPES["crossed"]))
    assert torch.autograd.gradcheck(lambda x: Attention(**TAPS)(tapped(x, t)), s.requires_grad_())


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize(("student", "teacher"), [([], []), (["a"], []), (["a", "b"], ["c"])])
def test_taps_go_in_pairs(name, student, teacher):
    with pytest.raises(Refused, match="taps go in pairs"):
        TERMS[name](student=student, teacher=teacher)


@pytest.mark.parametrize("name", FEATURES)
def test_a_term_says_which_taps_it_wants(name):
    term = TERMS[name](student=["a", "b"], teacher=["c", "d"])
    assert (term.student_taps, term.teacher_taps) == (("a", "b"), ("c", "d"))
    assert TERMS[name](student="layer1", teacher="blocks").student_taps == ("layer1",)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("of", [1, -1])
def test_a_teacher_that_is_not_there_is_refused(name, of):
    seen = tapped(torch.randn(N, 5, 2, 2), torch.randn(N, 5, 2, 2))
    term = TERMS[name](**TAPS, of=of)
    with pytest.raises(Refused, match=f"of={of} names no teacher: there are 1"):
        term.prepare(seen) if list(term.children()) else term(seen)


def test_features_of_different_kinds_are_refused():
    with pytest.raises(Refused, match="two of a kind"):
        hint(seen := tapped(torch.randn(N, 5, 4, 4), torch.randn(N, 16, 5)))(seen)
    with pytest.raises(Refused, match="no positions"):
        Attention(**TAPS)(tapped(torch.randn(N, 5), torch.randn(N, 5)))
    with pytest.raises(Refused, match="only"):
        Attention(**TAPS)(tapped(torch.randn(N, 5, 2, 2, 2), torch.randn(N, 5, 2, 2, 2)))
