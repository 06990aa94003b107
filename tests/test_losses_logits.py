"""Terms on logits against the published formulas, written down once more as loops in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sftc.device import Device
from sftc.errors import Refused
from sftc.losses import ChannelWise, Correlation, Decoupled, MeanSquared, Ramp, Soft, Team, Truth
from sftc.objective import Learner, Objective
from sftc.tasks import Classification, Regression
from sftc.types import Batch, Out, Partner
from views import NAMES, classes, draw, labels, pixels, values, view

N, C, T = 5, 4, 3.0
TARGET = torch.tensor([0, 3, 1, 1, 2])


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = shape or (N, C)
    return draw(*shape, seed=1, scale=2.0), draw(*shape, seed=2, scale=2.0)


def js(p: np.ndarray, q: np.ndarray) -> float:
    m = (p + q) / 2
    return (kl(p, m) + kl(q, m)) / 2


DIVERGENCE = {"forward": lambda p, q: kl(p, q), "reverse": lambda p, q: kl(q, p), "js": js}


@pytest.mark.parametrize("form", DIVERGENCE)
@pytest.mark.parametrize("standardize", [False, True])
def test_soft_is_t_squared_times_the_divergence_of_each_row(form, standardize):
    s, t = pair()

    def ready(z):
        z = z.numpy()
        return ((z - z.mean()) / z.std() if standardize else z) / T

    expected = [T**2 * DIVERGENCE[form](softmax(ready(b)), softmax(ready(a))) for a, b in zip(s, t, strict=True)]
    got = Soft(form=form, temperature=T, standardize=standardize)(view(s, t))
    assert got.numpy() == pytest.approx(expected, rel=1e-4 if standardize else 1e-9)


def test_soft_agrees_with_torch():
    s, t = pair()
    whole = T**2 * F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean")
    assert Soft(temperature=T)(view(s, t)).mean().item() == pytest.approx(whole.item())


@pytest.mark.parametrize("form", DIVERGENCE)
def test_soft_sums_over_classes_at_every_position(form):
    s, t = pair(2, C, 3, 2)
    got = Soft(form=form, temperature=T)(view(s, t))
    assert got.shape == (2, 3, 2)
    for n, i, j in np.ndindex(2, 3, 2):
        p, q = softmax(t[n, :, i, j].numpy() / T), softmax(s[n, :, i, j].numpy() / T)
        assert got[n, i, j].item() == pytest.approx(T**2 * DIVERGENCE[form](p, q))


@pytest.mark.parametrize("form", DIVERGENCE)
def test_soft_of_labels_is_the_mean_over_labels_of_two_way_divergences(form):
    s, t = pair()
    got = Soft(form=form, temperature=T)(view(s, t, task=labels(C)))
    for n in range(N):
        two = [[np.array([x, 1 - x]) for x in 1 / (1 + np.exp(-z[n].numpy() / T))] for z in (t, s)]
        expected = np.mean([DIVERGENCE[form](p, q) for p, q in zip(*two, strict=True)])
        assert got[n].item() == pytest.approx(T**2 * expected)


@pytest.mark.parametrize("form", DIVERGENCE)
def test_soft_of_values_is_the_squared_error(form):
    s, t = pair()
    assert torch.allclose(Soft(form=form)(view(s, t, task=values(C))), ((s - t) ** 2).mean(1))


def quantiles(level: list[float], n: int = 1) -> Regression:
    return Regression([f"{v} q{q:g}" for v in NAMES[:n] for q in level], loss="quantile", quantiles=level)


def test_soft_of_quantiles_is_the_pinball_loss_expected_of_the_teachers():
    """Levels 0.1, 0.5 and 0.9 stand for 0.3, 0.4 and 0.3 of the truth."""
    level, mass = [0.1, 0.5, 0.9], [0.3, 0.4, 0.3]
    s, t = draw(N, 6, seed=1), draw(N, 6, seed=2)
    got = Soft(form="quantile")(view(s, t, task=quantiles(level, 2)))
    for n in range(N):
        total = 0.0
        for v, i, j in np.ndindex(2, 3, 3):
            short = t[n, 3 * v + j].item() - s[n, 3 * v + i].item()
            total += mass[j] * (level[i] * short if short > 0 else (level[i] - 1) * short)
        assert got[n].item() == pytest.approx(total / 6)
    # One by hand: a median of 2 where the teacher says 1, 2 and 5: 0.3 * 0.5 + 0.3 * 1.5; its neighbours are at rest.
    still = torch.tensor([[1.0, 2, 5]])
    one = Soft(form="quantile")(view(still, still, task=quantiles(level)))
    # Level 0.1 at 1: 0.1 * (0.4 + 1.2); level 0.9 at 5: 0.1 * (1.2 + 1.2).
    assert one.item() == pytest.approx((0.6 + 0.16 + 0.24) / 3)


@pytest.mark.parametrize("level", [[0.5], [0.1, 0.5, 0.9], [0.05, 0.1, 0.2, 0.95]])
def test_quantiles_rest_at_the_teachers(level):
    t = torch.arange(1.0, len(level) + 1)[None].double() ** 2
    task = quantiles(level)
    best = Soft(form="quantile")(view(t, t, task=task))
    for i in range(len(level)):
        for move in (-0.1, 0.1):
            s = t.clone()
            s[0, i] += move
            assert Soft(form="quantile")(view(s, t, task=task)) > best


def test_quantiles_are_compared_where_there_are_some():
    with pytest.raises(Refused, match="term soft needs quantiles"):
        Learner(torch.nn.Linear(2, 3), values(), terms={"soft": Soft(form="quantile")})


def test_js_is_bounded_and_everything_is_zero_where_both_agree():
    far = view(torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]]))
    assert Soft(form="js", temperature=2.0)(far).item() == pytest.approx(4 * math.log(2))
    s, _ = pair()
    for form in DIVERGENCE:
        assert Soft(form=form)(view(s, s)).abs().max() < 1e-9


def test_standardizing_forgets_the_size_of_logits_and_their_level():
    s, t = pair()
    term = Soft(temperature=2.0, standardize=True)
    assert torch.allclose(term(view(7 * s - 3, t)), term(view(s, 0.5 * t + 1)), rtol=1e-3)


def test_standardizing_is_for_classes():
    for task in (values(), labels()):
        with pytest.raises(Refused, match="term soft needs classes"):
            Learner(torch.nn.Linear(2, 3), task, terms={"soft": Soft(standardize=True)})


def test_the_temperature_follows_the_progress():
    s, t = pair()
    got = Soft(temperature=Ramp(4, 2))(view(s, t, progress=0.5))
    assert torch.equal(got, Soft(temperature=3)(view(s, t)))
    assert not torch.equal(got, Soft(temperature=4)(view(s, t)))


def test_t_squared_stays_when_the_truth_counts_nothing():
    """With it, the gradient tends to (student - teacher) / C of centred logits as T grows; without, to zero."""
    s, t = (z - z.mean(1, keepdim=True) for z in pair())
    batch = Batch(s.requires_grad_(), TARGET, torch.arange(N))
    terms = {"truth": Truth(0.0), "soft": Soft(1.0, temperature=100.0)}
    learner = Learner(torch.nn.Identity(), classes(C), terms=terms, teachers=[lambda _: Out(t)])
    objective = Objective([learner], Device("cpu"))
    objective([batch], objective.totals([batch])).loss.backward()
    assert torch.allclose(s.grad, (s - t).detach() / C / N, atol=0.01)


def test_the_average_is_over_rows_not_over_elements():
    s, t = pair()
    batch = Batch(s, TARGET, torch.arange(N))
    learner = Learner(torch.nn.Identity(), classes(C), terms={"soft": Soft()}, teachers=[lambda _: Out(t)])
    objective = Objective([learner], Device("cpu"))
    got = objective([batch], objective.totals([batch])).parts["soft"]
    rows = [16 * kl(softmax(b.numpy() / 4), softmax(a.numpy() / 4)) for a, b in zip(s, t, strict=True)]
    assert got.item() == pytest.approx(sum(rows) / N, rel=1e-5)


def decoupled(s: np.ndarray, t: np.ndarray, target: int, alpha: float, beta: float) -> float:
    q, p = softmax(s / T), softmax(t / T)
    whether = kl(np.array([p[target], 1 - p[target]]), np.array([q[target], 1 - q[target]]))
    others = [i for i in range(len(s)) if i != target]
    among = kl(p[others] / p[others].sum(), q[others] / q[others].sum())
    return T**2 * (alpha * whether + beta * among)


def test_decoupled_is_the_published_formula():
    s, t = pair()
    got = Decoupled(alpha=0.5, beta=2.0, temperature=T)(view(s, t, target=TARGET))
    rows = zip(s.numpy(), t.numpy(), TARGET, strict=True)
    assert got.numpy() == pytest.approx([decoupled(a, b, y, 0.5, 2.0) for a, b, y in rows])


def test_decoupled_sums_up_to_soft_where_the_others_count_as_much_as_the_teacher_gives_them():
    """Zhao et al., equation 7: KL = whether + (1 - p_true) * among."""
    s, t = pair()
    whether = Decoupled(alpha=1, beta=0, temperature=T)(view(s, t, target=TARGET))
    among = Decoupled(alpha=0, beta=1, temperature=T)(view(s, t, target=TARGET))
    rest = 1 - F.softmax(t / T, 1).gather(1, TARGET[:, None]).squeeze(1)
    assert torch.allclose(whether + rest * among, Soft(temperature=T)(view(s, t)))


def test_decoupled_at_every_position_and_with_certain_teachers():
    s, t = pair(2, C, 3)
    y = torch.tensor([[0, 1, 2], [3, -1, 0]])
    got = Decoupled(alpha=1, beta=8, temperature=T)(view(s, t, target=y))
    for n, i in np.ndindex(2, 3):
        if y[n, i] >= 0:
            assert got[n, i].item() == pytest.approx(decoupled(s[n, :, i].numpy(), t[n, :, i].numpy(), y[n, i], 1, 8))
    sure = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    value = Decoupled()(view(sure, sure.detach().flip(1), target=torch.tensor([0]))).sum()
    value.backward()
    assert value.isfinite()
    assert sure.grad.isfinite().all()


def test_decoupled_of_a_mixed_row_is_the_mean_over_its_labels():
    s, t = pair()
    other, lam = TARGET.flip(0), torch.linspace(0, 1, N).double()
    partner = Partner(torch.arange(N).flip(0), torch.zeros(N), other, lam)
    got = Decoupled(temperature=T)(view(s, t, target=TARGET, partner=partner))
    own, others = (Decoupled(temperature=T)(view(s, t, target=y)) for y in (TARGET, other))
    assert torch.allclose(got, lam * own + (1 - lam) * others)


def test_decoupled_needs_labels_that_are_classes():
    with pytest.raises(Refused, match="needs classes"):
        Learner(torch.nn.Linear(2, 3), labels(), terms={"dkd": Decoupled()})


@pytest.mark.parametrize(("term", "rows"), [(Soft, N), (Decoupled, 3), (MeanSquared, N), (Correlation, N)])
def test_rows_without_a_label_count_where_no_label_is_needed(term, rows):
    s, t = pair()
    batch = Batch(s, torch.tensor([0, -1, 1, -1, 2]), torch.arange(N))
    learner = Learner(torch.nn.Identity(), classes(C), terms={"x": term()}, teachers=[lambda _: Out(t.float())])
    objective = Objective([learner], Device("cpu"))
    objective.prepare([batch])
    got = objective([batch], objective.totals([batch])).parts["x"]
    keep = batch.target >= 0 if rows == 3 else torch.ones(N, dtype=torch.bool)
    expected = term()(view(s, t, target=batch.target))[keep].mean()
    assert objective.totals([batch])["student", "x"][0] == rows
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def correlation(s: np.ndarray, t: np.ndarray, inter: float, intra: float) -> float:
    q, p = (np.stack([softmax(z / T) for z in x]) for x in (s, t))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    return T**2 * (inter * (1 - rows) + intra * (1 - columns))


def test_correlation_is_the_published_formula():
    s, t = pair()
    got = Correlation(inter=2.0, intra=0.5, temperature=T)(view(s, t))
    assert got.shape == (N,)
    assert got.mean().item() == pytest.approx(correlation(s.numpy(), t.numpy(), 2.0, 0.5))


def test_correlation_at_positions_takes_each_as_a_row():
    s, t = pair(2, C, 3, 2)
    got = Correlation(temperature=T)(view(s, t))
    flat = [z.movedim(1, -1).reshape(-1, C).numpy() for z in (s, t)]
    assert got.shape == (2, 3, 2)
    assert got.mean().item() == pytest.approx(correlation(*flat, 1, 1))


def test_correlation_of_labels_is_of_their_probabilities():
    s, t = pair()
    q, p = (1 / (1 + np.exp(-z.numpy())) for z in (s, t))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    got = Correlation()(view(s, t, task=labels(C))).mean()
    assert got.item() == pytest.approx(2 - rows - columns)


@pytest.mark.parametrize("positions", [(), (3,)])
def test_rows_that_do_not_count_have_no_part_in_a_correlation(positions):
    s, t = pair(N, C, *positions)
    weight = torch.tensor([1.0, 0, 1, 1, 0])
    keep = weight > 0
    wild = s.clone()
    wild[~keep] = float("inf")
    wild.requires_grad_()
    got = Correlation(temperature=T)(view(wild, t, weight=weight))[keep]
    assert torch.allclose(got, Correlation(temperature=T)(view(s[keep], t[keep])))
    got.sum().backward()
    assert wild.grad[keep].isfinite().all()


@pytest.mark.parametrize("outputs", [4, 10])  # 0.1 is no binary number: ten of them are not quite their mean
def test_constant_answers_have_no_correlation_and_give_no_gradient(outputs):
    flat = torch.zeros(3, outputs, requires_grad=True)
    task = Classification([str(i) for i in range(outputs)])
    value = Correlation()(view(flat, pair(3, outputs)[1].float(), task=task))
    value.sum().backward()
    assert value.tolist() == [2.0] * 3
    assert (flat.grad == 0).all()


def test_rows_the_team_skips_have_no_part_in_a_correlation():
    s, t = pair()
    second = t.clone()
    second[0] = t[0].flip(0)
    assert second[0].argmax() != t[0].argmax()
    got = Correlation(team=Team("agree", conflict="skip"))(view(s, t, second))
    assert got[0] == 0
    assert torch.allclose(got[1:], Correlation()(view(s[1:], t[1:])))


def test_mean_squared_is_twice_the_limit_of_soft_at_high_temperature():
    s, t = (z - z.mean(1, keepdim=True) for z in pair())
    got = MeanSquared()(view(s, t))
    assert got.tolist() == pytest.approx(
        [float(np.mean((a - b) ** 2)) for a, b in zip(s.numpy(), t.numpy(), strict=True)]
    )
    assert torch.allclose(2 * Soft(temperature=1e4)(view(s, t)), got, rtol=1e-3)


def test_a_fresh_head_that_says_all_zeros_gets_a_finite_gradient():
    zero = torch.zeros(2, C, requires_grad=True)
    Soft(standardize=True)(view(zero, pair(2, C)[1].float())).sum().backward()
    assert zero.grad.isfinite().all()
    assert zero.grad.abs().max() < 1e4


TERMS = {
    "soft": Soft(temperature=T),
    "reverse": Soft(temperature=T, form="reverse"),
    "js": Soft(temperature=T, form="js"),
    "standard": Soft(temperature=T, standardize=True),
    "decoupled": Decoupled(temperature=T),
    "correlation": Correlation(temperature=T),
    "mean_squared": MeanSquared(),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("shape", [(3, C), (2, C, 2, 2)])
def test_gradients_are_those_of_the_values(name, shape):
    s, t = pair(*shape)
    y = TARGET[: s[:, 0].numel()].new_zeros(s[:, 0].shape) + 1
    assert torch.autograd.gradcheck(lambda z: TERMS[name](view(z, t, target=y)), s.requires_grad_())


@pytest.mark.parametrize("name", TERMS)
def test_low_precision_is_computed_high(name):
    s, t = (z.bfloat16() for z in pair())
    got = TERMS[name](view(s, t, target=TARGET))
    assert got.dtype == torch.float32
    assert torch.allclose(got, TERMS[name](view(s.float(), t.float(), target=TARGET)))


def test_channelwise_compares_where_a_class_is_by_its_formula():
    student, teacher, t = draw(2, 3, 2, 4), draw(2, 3, 2, 4, seed=1), 2.0
    want = torch.zeros(2, dtype=torch.float64)
    for n in range(2):
        for c in range(3):
            p, q = ((z[n, c].flatten() / t).softmax(0) for z in (teacher, student))
            want[n] += t**2 / 3 * (p * (p / q).log()).sum()
    got = ChannelWise(temperature=t)(view(student, teacher, task=pixels()))
    assert torch.allclose(got, want)
    shifted = teacher + draw(2, 3, 1, 1, seed=2)  # how much there is of a class is not looked at
    assert torch.allclose(ChannelWise(temperature=t)(view(shifted, teacher, task=pixels())), torch.zeros(2).double())


def test_channelwise_is_for_pixels_alone():
    with pytest.raises(Refused, match="term channelwise needs pixels"):
        Learner(torch.nn.Linear(2, 3), classes(), terms={"channelwise": ChannelWise()})
