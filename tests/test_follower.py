"""A net on what leaders say: what it reads, whose weights it holds, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sftc import models
from sftc.errors import Refused
from sftc.lab.through import Said, Through
from sftc.types import Batch, Out

CNN = {"family": "simple_cnn", "name": "simple_cnn", "channels": [4, 6], "hidden": [12, 8]}
SHAPE = (1, 8, 8)


def spec(taps=("logits",), name="mlp", combine="concat", leaders=None, **net):
    node = {"model": CNN, "out_dim": 3, "shape": list(SHAPE), "kind": "classes"}
    found = [node] * len(taps) if leaders is None else leaders
    return {"family": "follower", "name": name, **net, "taps": list(taps), "combine": combine, "leaders": found}


def follower(*taps, out_dim=5, **more):
    torch.manual_seed(0)
    return models.build(spec(taps or ("logits",), **more), out_dim=out_dim, form=SHAPE).eval()


def pictures(n=6):
    return torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_it_reads_logits_probabilities_layers_and_maps():
    x = pictures()
    for tap, width in [("logits", 3), ("probabilities", 3), ("net.fc2", 8), ("net.conv2", 96), ("net.conv1", 256)]:
        f = follower(tap, hidden=[7])
        assert f.net.fc1[0].in_features == width
        assert f(x).shape == (6, 5)
    maps = follower("net.conv1", name="simple_cnn", channels=[4], hidden=[7])
    assert maps(x).shape == (6, 5)


@torch.no_grad()
def test_what_it_says_is_its_net_on_the_leaders_outputs():
    f, x = follower("probabilities", hidden=[7]), pictures()
    torch.testing.assert_close(f(x), f.net(f.leaders[0](x).softmax(1)))
    two = follower("logits", "net.fc2", hidden=[7])
    a, b = two.leaders
    fc2 = nn.Sequential(*list(b.net)[: list(dict(b.net.named_children())).index("fc2") + 1])
    torch.testing.assert_close(two(x), two.net(torch.cat([a(x), fc2(b.prepare(x))], 1)))


@torch.no_grad()
def test_summed_it_reads_each_leader_by_itself():
    f, x = follower("logits", "logits", combine="sum", hidden=[7]), pictures()
    a, b = f.leaders
    torch.testing.assert_close(f(x), (f.net(a(x)) + f.net(b(x))) / 2)


def test_its_weights_are_its_own_alone_and_its_leaders_stand_still():
    f, x = follower("logits", hidden=[7]), pictures()
    assert all(name.startswith("net.") for name in f.state_dict())
    assert sum(p.numel() for p in f.parameters()) == 3 * 7 + 7 + 7 * 5 + 5
    leader = f.leaders[0].train()
    f.train()(x).sum().backward()
    assert all(p.grad is None for p in leader.parameters())
    assert leader.training  # in eval mode only while it is asked
    leader.eval()


def test_a_leaders_dropout_is_off_while_it_is_asked():
    leader = {"model": {**CNN, "dropout": 0.5}, "out_dim": 3, "shape": list(SHAPE), "kind": "classes"}
    f, x = follower("logits", leaders=[leader], hidden=[7]), pictures()
    f.leaders[0].train()
    assert torch.equal(f(x), f(x))


def test_a_copy_asks_the_same_leaders_and_devices_are_shared():
    f = follower("logits", hidden=[7])
    twin = copy.deepcopy(f)
    assert twin.leaders[0] is f.leaders[0]
    assert twin.net is not f.net
    f.double()
    assert next(f.leaders[0].parameters()).dtype == torch.float64


def test_all_of_it_travels_with_its_leaders_inside():
    f, x = follower("logits", "net.fc2", hidden=[7]), pictures()
    torch.manual_seed(9)
    other = models.build(spec(("logits", "net.fc2"), hidden=[7]), out_dim=5, form=SHAPE).eval()
    assert not torch.equal(other(x), f(x))
    other.load_whole(f.whole())
    assert torch.equal(other(x), f(x))


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (spec(("net.fc9",)), "did you mean 'net.fc"),
        (spec(("net.fc2",), name="simple_cnn"), "use model=mlp, or tap a convolution"),
        (spec(name="resnet18"), "is not known"),
        (spec(combine="product"), "is not known"),
        (spec(("logits", "net.fc2"), combine="sum"), "of one shape"),
        (spec(("logits", "net.conv1")), "of one shape"),
        (spec(leaders=[{"model": spec(), "out_dim": 3, "shape": [1, 8, 8], "kind": "classes"}]), "cannot follow"),
        (
            spec(("probabilities",), leaders=[{"model": CNN, "out_dim": 3, "shape": [1, 8, 8], "kind": "values"}]),
            "tap=",
        ),
    ],
)
def test_what_cannot_be_wired_is_refused_in_one_line(node, says):
    with pytest.raises(Refused, match=says) as e:
        models.build(node, out_dim=5, form=SHAPE)
    assert "\n" not in str(e.value)


class Rows:
    """A source of one batch."""

    steps, rows = 1, torch.arange(4)

    def epoch(self, epoch, start=0):
        yield Batch(pictures(4), torch.tensor([0, 1, 2, 0]), torch.arange(4), weight=torch.tensor([1.0, 0, 1, 1]))


class Asked:
    """A leader that counts how often it is asked."""

    def __init__(self, model, taps):
        from sftc.models.surgery import Tapped

        self.times, self.tapped = 0, Tapped(model, taps)

    @torch.no_grad()
    def __call__(self, batch):
        self.times += 1
        return self.tapped(batch.inputs)


def test_a_leader_is_asked_once_a_batch_for_all_who_read_it():
    one, two = follower("logits", hidden=[7]), follower("net.fc2", hidden=[7])
    two.seat(one.leaders)
    leader = Asked(one.leaders[0], ["net.fc2"])
    (batch,) = Through(Rows(), {"leader0": leader}, [one, two]).epoch(0)
    assert leader.times == 1
    x = pictures(4)
    torch.testing.assert_close(one(batch.inputs), one(x))
    torch.testing.assert_close(two(batch.inputs), two(x))
    assert torch.equal(Said("leader0")(batch).logits, one.leaders[0](x))


def test_summed_losses_are_rows_as_each_leader_says_them():
    f = follower("logits", "logits", combine="sum", hidden=[7])
    leaders = {f"leader{i}": Asked(m, []) for i, m in enumerate(f.leaders)}
    (batch,) = Through(Rows(), leaders, [f]).epoch(0)
    a, b = f.leaders
    x = pictures(4)
    assert torch.equal(batch.inputs[f.key], torch.cat([a(x), b(x)]))
    assert torch.equal(Said("leader0")(batch).logits, torch.cat([a(x), b(x)]))
    assert batch.target.tolist() == [0, 1, 2, 0] * 2
    assert batch.weight.tolist() == [1, 0, 1, 1] * 2
    assert isinstance(Said("leader0")(batch), Out)


def test_followers_of_one_batch_may_read_different_leaders():
    both, one = follower("logits", "net.fc2", hidden=[7]), follower("logits", hidden=[7])
    a, b = both.leaders
    both.seat([a, b], ["a", "b"])
    one.seat([b], ["b"])
    asked = {"a": Asked(a, []), "b": Asked(b, ["net.fc2"])}
    (batch,) = Through(Rows(), asked, [both, one]).epoch(0)
    assert [x.times for x in asked.values()] == [1, 1]
    x = pictures(4)
    torch.testing.assert_close(both(batch.inputs), both(x))
    torch.testing.assert_close(one(batch.inputs), one(x))
    assert torch.equal(Said("b")(batch).logits, b(x))
