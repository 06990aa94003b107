"""Terms that couple rows against the published formulas, written down once more as loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sftc.errors import Refused
from sftc.losses import Contrastive, Ramp, Relational, Similarity
from views import draw, tapped

N = 6
TAPS = {"student": ["s0"], "teacher": ["t0"]}
WEIGHT = torch.tensor([1.0, 0, 1, 1, 0, 1])
KEEP = WEIGHT > 0


def contrastive(seen, **more):
    term = Contrastive(**TAPS, **({"dim": 4, "temperature": 0.5} | more))
    torch.manual_seed(0)
    term.prepare(seen)
    return term.double()


MAKE = {
    "similarity": lambda seen: Similarity(**TAPS),
    "distance": lambda seen: Relational(**TAPS, angle=0),
    "angle": lambda seen: Relational(**TAPS, distance=0),
    "relational": lambda seen: Relational(**TAPS),
    "contrastive": contrastive,
}


def similarity(s: np.ndarray, t: np.ndarray) -> float:
    total, n = 0.0, len(s)
    for i in range(n):
        ours, theirs = (np.array([x[i].ravel() @ x[j].ravel() for j in range(n)]) for x in (s, t))
        total += np.sum((ours / np.linalg.norm(ours) - theirs / np.linalg.norm(theirs)) ** 2)
    return total / n**2


def huber(a: float, b: float) -> float:
    d = abs(a - b)
    return d * d / 2 if d < 1 else d - 0.5


def distance(s: np.ndarray, t: np.ndarray) -> float:
    n = len(s)
    far = [np.array([[np.linalg.norm(a - b) for a in x] for b in x]) for x in (s, t)]
    ours, theirs = (d / d[d > 0].mean() for d in far)
    return sum(huber(ours[i, j], theirs[i, j]) for i in range(n) for j in range(n)) / n**2


def cosine(x: np.ndarray, i: int, j: int, k: int) -> float:
    a, b = x[j] - x[i], x[k] - x[i]
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return 0.0 if size == 0 else a @ b / size


def angle(s: np.ndarray, t: np.ndarray) -> float:
    n = len(s)
    triples = np.ndindex(n, n, n)
    return sum(huber(cosine(s, *x), cosine(t, *x)) for x in triples) / n**3


def features(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return draw(N, 3, *shape, seed=1), draw(N, 5, *shape, seed=2)


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_similarity_is_the_published_formula(shape):
    s, t = features(*shape)
    got = Similarity(**TAPS)(tapped(s, t))
    assert got.shape == (N,)
    assert got.mean().item() == pytest.approx(similarity(s.numpy(), t.numpy()))


def test_relations_are_the_published_formula():
    s, t = features()
    got = Relational(**TAPS)(tapped(s, t))
    expected = 25 * distance(s.numpy(), t.numpy()) + 50 * angle(s.numpy(), t.numpy())
    assert got.shape == (N,)
    assert got.mean().item() == pytest.approx(expected)
    parts = Relational(**TAPS, distance=2, angle=3)(tapped(s, t)).mean().item()
    assert parts == pytest.approx(2 * distance(s.numpy(), t.numpy()) + 3 * angle(s.numpy(), t.numpy()))


def test_relations_of_maps_and_tokens_are_of_their_means():
    s, t = features(2, 2)
    flat = tapped(s.mean((2, 3)), t.mean((2, 3)))
    assert torch.allclose(Relational(**TAPS)(tapped(s, t)), Relational(**TAPS)(flat))
    tokens = tapped(s.flatten(2).transpose(1, 2), t.flatten(2).transpose(1, 2))
    assert torch.allclose(Relational(**TAPS)(tokens), Relational(**TAPS)(flat))


def test_contrast_is_info_nce_both_ways():
    s, t = features()
    seen = tapped(s, t)
    term = contrastive(seen)
    heads = [[p.detach().numpy() for p in head.parameters()] for head in (term.students[0], term.teachers[0])]
    a, b = (x.numpy() @ w.T + bias for x, (w, bias) in zip((s, t), heads, strict=True))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    near = np.exp(a @ b.T / 0.5)
    expected = [-np.log(near[i, i] ** 2 / near[i].sum() / near[:, i].sum()) / 2 for i in range(N)]
    assert term(seen).detach().numpy() == pytest.approx(np.array(expected))


def test_contrast_trains_heads_on_both_sides():
    s, t = features()
    seen = tapped(s, t)
    term = contrastive(seen)
    term(seen).mean().backward()
    assert sorted(term.state_dict()) == [f"{x}.0.{y}" for x in ("students", "teachers") for y in ("bias", "weight")]
    assert all(p.grad.abs().sum() > 0 for p in term.parameters())


def test_contrast_may_cool_down():
    seen = tapped(*features())
    term = contrastive(seen, temperature=Ramp(1.0, 0.5))
    hot = term(seen)
    seen.progress = 1.0
    assert torch.equal(term(seen), contrastive(seen)(seen))
    assert not torch.equal(term(seen), hot)


@pytest.mark.parametrize("name", MAKE)
def test_rows_that_do_not_count_are_nobodys_neighbours(name):
    s, t = features()
    wild = [x.clone() for x in (s, t)]
    for x in wild:
        x[~KEEP] = float("inf")
    student = wild[0].requires_grad_()
    term = MAKE[name](tapped(s, t))
    got = term(tapped(student, wild[1], weight=WEIGHT))
    expected = term(tapped(s[KEEP], t[KEEP]))
    assert torch.allclose(got[KEEP], expected)
    assert (got[~KEEP] == 0).all()
    got.sum().backward()
    assert student.grad[KEEP].isfinite().all()
    assert (student.grad[~KEEP] == 0).all()
    assert all(p.grad.isfinite().all() for p in term.parameters())


@pytest.mark.parametrize("name", MAKE)
def test_rows_with_any_position_that_counts_are_real(name):
    s, t = features()
    term = MAKE[name](tapped(s, t))
    dense = torch.zeros(N, 2, 2)
    dense[KEEP, 1, 0] = 1
    assert torch.equal(term(tapped(s, t, weight=dense)), term(tapped(s, t, weight=WEIGHT)))


AWKWARD = {
    "one row": torch.tensor([[1.0, 2, 3]]),
    "identical rows": torch.tensor([[1.0, 2, 3]]).repeat(4, 1),
    "two identical rows": torch.tensor([[1.0, 2, 3], [1, 2, 3], [0, 1, 0]]),
    "all zeros": torch.zeros(4, 3),
    "a zero row": torch.tensor([[0.0, 0, 0], [1, 2, 3], [3, 1, 2]]),
    "tiny": 1e-30 * torch.tensor([[1.0, 2, 3], [3, 2, 1]]),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("rows", AWKWARD)
@pytest.mark.parametrize("teacher", ["another", "itself"])
def test_awkward_rows_give_no_nan_in_value_or_gradient(name, rows, teacher):
    s = AWKWARD[rows].clone().requires_grad_()
    t = draw(len(s), 3).float() if teacher == "another" else s.detach()
    term = MAKE[name](tapped(s, t)).float()
    value = term(tapped(s, t))
    value.sum().backward()
    assert value.isfinite().all()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("name", [n for n in MAKE if n != "contrastive"])
def test_dead_rows_get_no_huge_gradient(name):
    s = AWKWARD["a zero row"].clone().requires_grad_()
    MAKE[name](None)(tapped(s, draw(3, 3).float())).sum().backward()
    assert s.grad.abs().max() < 1e3


@pytest.mark.parametrize("name", MAKE)
def test_a_batch_in_which_nothing_counts_gives_zero(name):
    s, t = features()
    term = MAKE[name](tapped(s, t))
    s.requires_grad_()
    value = term(tapped(s, t, weight=torch.zeros(N)))
    value.sum().backward()
    assert (value == 0).all()
    assert (s.grad == 0).all()


@pytest.mark.parametrize("name", MAKE)
def test_the_teachers_own_relations_cost_nothing(name):
    s, _ = features()
    if name != "contrastive":
        assert MAKE[name](None)(tapped(s, s)).abs().max() < 1e-12


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_gradients_are_those_of_the_values(name, weight):
    s, t = features()
    term = MAKE[name](tapped(s, t))
    inputs = s.requires_grad_(), *term.parameters()
    assert torch.autograd.gradcheck(lambda x, *_: term(tapped(x, t, weight=weight)), inputs)


def test_relations_need_something_to_compare():
    with pytest.raises(Refused, match="drop the term"):
        Relational(**TAPS, distance=0, angle=0)
    with pytest.raises(Refused, match="above 0"):
        Contrastive(**TAPS, temperature=0)
