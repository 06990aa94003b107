"""What holds for every term, in a real objective: still teachers, micro-batches, padding, low precision."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import nn

from sftc.device import Device
from sftc.losses import TERMS, Agreeing, Consistent, Pseudo, Soft, Team
from sftc.objective import Learner, Live, Objective, Peer
from sftc.tasks import Regression
from sftc.types import Batch
from views import NAMES, classes, labels, pixels, values

N = 12
TAPS = {"student": ["1"], "teacher": ["1"]}
OF_ROWS = [name for name, term in TERMS.items() if "pixels" not in term.needs]
ROWWISE = [name for name in OF_ROWS if not TERMS[name].couples_rows]
TASKS = {"pixels": pixels, "classes": classes, "labels": labels, "values": values}
OF_VALUES = {
    "mae": lambda: Regression(NAMES[:3], loss="mae"),
    "huber": lambda: Regression(NAMES[:3], loss="huber", delta=0.3),
    "quantiles": lambda: Regression(NAMES[:3], loss="quantile", quantiles=[0.1, 0.5, 0.9]),
}
SEMI = {
    "pseudo": partial(Pseudo, threshold=0.0),
    "fixmatch": partial(Agreeing, threshold=0.0),
    "mean_teacher": Consistent,
}
MADE = {**TERMS, **SEMI, "quantile": partial(Soft, form="quantile")}


def make(name: str, **more):
    wants = inspect.signature(MADE[name]).parameters
    return MADE[name](**(TAPS if "student" in wants else {}), **{k: v for k, v in more.items() if k in wants})


def net(seed: int, width: int = 6, kind: str = "classes") -> nn.Module:
    """Maps at "1", so that every term finds its kind of features."""
    torch.manual_seed(seed)
    if kind == "pixels":
        return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 3, 1))
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width, 3)
    )


def batch(kind: str = "classes", weight: torch.Tensor | None = None) -> Batch:
    g = torch.Generator().manual_seed(5)
    target = torch.randint(3, (N,), generator=g)
    target[::3] = -1
    if kind == "pixels":
        target = torch.randint(-1, 3, (N, 4, 4), generator=g)
    elif kind != "classes":
        target = (torch.rand(N, 3, generator=g) > 0.5).float()
        target[::3] = float("nan")
    inputs = torch.randn(N, 16, generator=g)
    return Batch(inputs, target, torch.arange(N), weight=weight, extra={"second": inputs.flip(1)})


def objective(name: str, kind: str = "classes", device: Device | None = None, teachers: int = 1, **more) -> Objective:
    device = device or Device("cpu", threads=1)
    live = [Live(net(10 + i, 5 + i, kind), device, ["1"]) for i in range(teachers)]
    task = (TASKS | OF_VALUES)[kind]()
    made = Objective([Learner(net(0, kind=kind), task, terms={name: make(name, **more)}, teachers=live)], device)
    made.averages = {"student": net(20, kind=kind)}
    return made


def step(made: Objective, whole: Batch, pieces: int = 1) -> tuple[float, list[torch.Tensor]]:
    made.prepare([whole])
    totals, total = made.totals([whole]), 0.0
    made.zero_grad()
    for i, piece in enumerate(whole.cut(pieces)):
        loss = made([piece], totals, micro=i).loss
        loss.backward()
        total += loss.item()
    return total, [p.grad.clone() for p in made.parameters() if p.grad is not None]


def fitting() -> list[tuple[str, str]]:
    """Which terms go with which task."""
    return [(t, k) for t in TERMS for k in TASKS if not TERMS[t].needs - {"target"} - TASKS[k]().offers]


def learned() -> list[tuple[str, str]]:
    """Those, the losses of values, and what is made of rows without a label."""
    losses = [(t, k) for t in TERMS for k in OF_VALUES if TERMS[t].needs == {"target"}]
    semi = [("pseudo", "pixels"), *((t, "classes") for t in SEMI), ("mean_teacher", "values")]
    return [*fitting(), *losses, ("quantile", "quantiles"), *semi]


NOT_OF_CLASSES = [(n, k) for n, k in learned() if k in OF_VALUES or (n in SEMI and k != "pixels")]


@pytest.mark.parametrize(("name", "kind"), learned())
@pytest.mark.parametrize("teachers", [1, 3])
def test_every_term_trains_the_student_of_every_task_it_fits(name, kind, teachers):
    loss, grads = step(objective(name, kind, teachers=teachers), batch(kind))
    assert loss > 0
    assert any(g.abs().sum() > 0 for g in grads)
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("name", OF_ROWS)
def test_no_gradient_ever_reaches_a_teacher(name):
    made = objective(name)
    teacher = made.learners[0].teachers[0].model
    before = [p.clone() for p in teacher.parameters()]
    step(made, batch())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


@pytest.mark.parametrize("name", [n for n in OF_ROWS if n not in ("truth", "uncertain")])
def test_no_gradient_ever_reaches_a_peer(name):
    """The second learner learns nothing of its own, so what reached it would have come through the first's term."""
    models = [net(0), net(1)]
    silent = TERMS["hint"](0.0, **TAPS)  # only taps the peer
    first = Learner(models[0], classes(), terms={name: make(name)}, teachers=[Peer("b")], name="a")
    second = Learner(
        models[1], classes(), terms={"silent": silent}, teachers=[Live(net(9), Device("cpu"), ["1"])], name="b"
    )
    made, whole = Objective([first, second], Device("cpu", threads=1)), batch()
    made.prepare([whole, whole])
    made([whole], made.totals([whole])).loss.backward()
    assert any(p.grad.abs().sum() > 0 for p in models[0].parameters() if p.grad is not None)
    assert all(p.grad is None or not p.grad.any() for p in models[1].parameters())


@pytest.mark.parametrize(("name", "kind"), NOT_OF_CLASSES)
def test_micro_batches_change_nothing_to_values_and_rows_without_a_label(name, kind):
    whole = batch(kind, weight=torch.tensor([1.0, 0, 2, 1, 1, 1, 0.5, 1, 1, 1, 0, 3]))
    loss, expected = step(objective(name, kind), whole)
    again, got = step(objective(name, kind), whole, pieces=4)
    assert again == pytest.approx(loss, rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", ROWWISE)
@pytest.mark.parametrize("team", [None, Team("agree", conflict="skip")])
def test_micro_batches_change_nothing_where_rows_stand_alone(name, team):
    whole = batch(weight=torch.tensor([1.0, 0, 2, 1, 1, 1, 0.5, 1, 1, 1, 0, 3]))
    loss, expected = step(objective(name, teachers=3, team=team), whole)
    again, got = step(objective(name, teachers=3, team=team), whole, pieces=4)
    assert again == pytest.approx(loss, rel=1e-5)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [*((n, "classes") for n in OF_ROWS), *NOT_OF_CLASSES])
def test_padding_changes_nothing(name, kind):
    """Rows of weight 0 that hold anything at all, against a batch without them."""
    real = batch(kind)
    mark = torch.cat([torch.ones(N), torch.zeros(3)])
    inputs = torch.cat([real.inputs, torch.full((3, 16), float("inf"))])
    target = torch.cat([real.target, torch.zeros_like(real.target[:3])])
    extra = {"second": torch.cat([real.extra["second"], inputs[-3:]])}
    padded = Batch(inputs, target, torch.arange(N + 3), weight=mark, extra=extra)
    made = objective(name, kind)
    made.prepare([real])
    loss = made([real], made.totals([real])).loss
    assert made([padded], made.totals([padded])).loss.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", OF_ROWS)
def test_a_lone_row_is_finite(name):
    one = batch().cut(1)[0].map(lambda t: t[1:2])
    loss, grads = step(objective(name), one)
    assert torch.tensor(loss).isfinite()
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("name", OF_ROWS)
def test_forwards_in_low_precision_give_values_in_high(name):
    low = objective(name, device=Device("cpu", precision="bf16-mixed", threads=1))
    whole = batch()
    low.prepare([whole])
    seen = low([whole], low.totals([whole]))
    exact, _ = step(objective(name), whole)
    seen.loss.backward()
    assert seen.rows[name].dtype == torch.float32
    assert seen.loss.item() == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("name", OF_ROWS)
def test_projectors_are_the_same_in_every_run(name):
    first, second = objective(name), objective(name)
    for made in (first, second):
        torch.rand(3)  # somebody else draws in between
        made.prepare([batch()])
    a, b = (made.terms.state_dict() for made in (first, second))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("team", [Team("weighted", weights=[1, 2]), Team("agree")], ids=lambda team: team.rule)
def test_a_gpu_gives_what_the_cpu_gives(team):
    for name, kind in fitting():
        if kind == "values" and team.rule == "agree":
            continue  # values have no vote
        here = objective(name, kind, teachers=2, team=team)
        there = objective(name, kind, Device("cuda"), teachers=2, team=team)
        there.students.to("cuda")
        whole = batch(kind, weight=torch.cat([torch.ones(N - 2), torch.zeros(2)]))
        both = (here, whole), (there, whole.to(torch.device("cuda")))
        for made, rows in both:
            made.prepare([rows])
        there.terms.load_state_dict(here.terms.state_dict())  # projectors are drawn on the device
        losses = [made([rows], made.totals([rows])).loss.item() for made, rows in both]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3), name


def dense(name: str, teachers: int = 1, **more) -> Objective:
    """As `objective`, with an answer at each of four positions."""
    device = Device("cpu", threads=1)

    def positions(seed: int, width: int) -> nn.Module:
        return nn.Sequential(*net(seed, width)[:-1], nn.Linear(4 * width, 12), nn.Unflatten(1, (3, 4)))

    live = [Live(positions(10 + i, 5 + i), device, ["1"]) for i in range(teachers)]
    return Objective([Learner(positions(0, 6), classes(), terms={name: make(name, **more)}, teachers=live)], device)


def positions(padding: int = -1) -> Batch:
    """A row has one to four positions that are real; of the others the target is `padding`, the weight 0."""
    flat = batch()
    real = torch.arange(4) <= torch.arange(N).unsqueeze(1) % 4
    target = torch.randint(3, (N, 4), generator=torch.Generator().manual_seed(6)).masked_fill(~real, padding)
    target[::5] = torch.where(real[::5], -1, padding)  # rows without a label
    return Batch(flat.inputs, target, flat.index, weight=real.float())


@pytest.mark.parametrize("name", [n for n, kind in fitting() if kind == "classes"])
def test_every_term_takes_answers_at_positions(name):
    loss, grads = step(dense(name, teachers=2), positions())
    assert loss > 0
    assert any(g.abs().sum() > 0 for g in grads)
    assert all(g.isfinite().all() for g in grads)
    again, _ = step(dense(name, teachers=2), positions(padding=1))
    assert again == pytest.approx(loss)  # what a position of weight 0 holds is nobody's business
    if name in ROWWISE:
        pieces, got = step(dense(name, teachers=2), positions(), pieces=3)
        assert pieces == pytest.approx(loss, rel=1e-5)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, grads, strict=True))
