"""Nets for tables, against values by hand and torch's own attention; missing cells and codes."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftc import models
from sftc.columns import Column, told
from sftc.errors import Refused
from sftc.models.entry import Cells, Entry
from sftc.models.surgery import blocks, keep_first
from sftc.types import Form

# Two numbers of which one may be missing, a category of two words, an id of four buckets.
COLUMNS = [
    Column("a", "numeric"),
    Column("c", "categorical", False, ["x", "y"]),
    Column("b", "numeric", True),
    Column("i", "hash", True, buckets=4),
]
FORM = Form((4,), about=told(COLUMNS))
NAN = float("nan")
ROWS = torch.tensor([[0.5, 1, NAN, 4], [-1.0, 0, 2.0, 0], [NAN, 2, 0.1, 3]])
NETS = ("tab_resnet", "ft_transformer", "dcn", "fm")
ALL = (*NETS, "mlp", "linear")


def build(name: str, out_dim: int = 3, form: Form = FORM, **keys) -> models.Vision:
    torch.manual_seed(0)
    made = models.build({"family": name, "name": name, **keys}, out_dim=out_dim, form=form)
    assert isinstance(made, models.Vision)
    return made


def test_cells_are_numbers_without_gaps_and_codes():
    cells = Cells(FORM)
    numbers, codes = cells(ROWS)
    torch.testing.assert_close(numbers, torch.tensor([[0.5, 0, 1], [-1, 2, 0], [0, 0.1, 0]]))
    assert codes.tolist() == [[1, 4], [0, 0], [2, 3]]
    assert cells.shifted(codes).tolist() == [[1, 7], [0, 3], [2, 6]]  # three codes of c come first
    assert cells(torch.tensor([[0.0, 99.0, 0, -5.0]]))[1].tolist() == [[2, 0]]  # what no file of ours holds


@pytest.mark.parametrize("name", ALL)
def test_more_categories_than_memory_are_refused_in_one_line(name, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10_000_000))
    form = Form((1,), about=told([Column("i", "hash", buckets=10_000_000)]))
    with pytest.raises(Refused, match=r"10,000,001 categories .* memory has room for 10,000,000: lower data\.buckets"):
        build(name, form=form)
    build(name)


def test_a_linear_model_reads_one_hot_codes():
    entry = Entry(FORM, onehot=True)
    assert entry(ROWS)[0].tolist() == [0.5, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1]
    model = build("linear")
    assert model.facts["params"] == 3 * 11 + 3
    torch.testing.assert_close(model(ROWS), model.net.head(entry(ROWS)))


def test_an_mlp_reads_embeddings():
    model = build("mlp", hidden=[7])
    sizes = [n.weight.shape for n in model.net.entry.embeddings]
    assert sizes == [(3, 3), (5, 4)]  # 1.6 n^0.56, rounded
    assert model.facts["params"] == 9 + 20 + (3 + 3 + 4) * 7 + 7 + 7 * 3 + 3
    assert (model.net.entry.embeddings[0].weight[0] == 0).all()


def test_a_plain_table_needs_no_entry():
    told_of = Form((2,), about=told([Column("a", "numeric"), Column("b", "date")]))
    for form in (told_of, (2,)):
        assert [n for n, _ in build("mlp", form=form).net.named_children()] == ["flatten", "fc1", "fc2", "head"]


@pytest.mark.parametrize(
    ("name", "keys", "params"),
    [
        # entry 29, first 10 -> 8, two blocks of norm 16, 8 -> 16, 16 -> 8, last norm 16, head
        ("tab_resnet", {"width": 8}, 29 + 88 + 2 * (16 + 144 + 136) + 16 + 27),
        # tokens: 4 x 8 weights, 5 x 8 biases, 8 codes; a block: 216 + 72, up 180, down 88, norms 16, the first has one
        (
            "ft_transformer",
            {"width": 8, "depth": 2, "heads": 2},
            72 + 64 + 2 * (216 + 72 + 16 + 180 + 88) + 16 + 16 + 27,
        ),
        # codes 8 x 2, width 7, one cross 56, dense 7 -> 5, head 12 -> 3
        ("dcn", {"dim": 2, "crosses": 1, "hidden": [5]}, 16 + 56 + 40 + 39),
        # factors 3 x 2, codes 8 x 2, linear 11 -> 3, head 2 x 3
        ("fm", {"dim": 2}, 6 + 16 + 36 + 6),
    ],
)
def test_parameters_by_hand(name, keys, params):
    assert build(name, **keys).facts["params"] == params


def test_a_block_of_the_transformer_is_torchs_attention():
    block = build("ft_transformer", width=8, heads=2, depth=2).eval().net.blocks[1]
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = block.qkv.weight.data, block.qkv.bias.data
    theirs.out_proj.load_state_dict(block.out.state_dict())
    x = torch.randn(3, 5, 8)
    y = block.norm(x)
    x1 = x + theirs(y, y, y)[0]
    a, b = block.up(block.norm2(x1)).chunk(2, -1)
    torch.testing.assert_close(block(x), x1 + block.down(a * F.relu(b)))


def test_tokens_are_numbers_times_vectors():
    tokens = build("ft_transformer", width=8, heads=2).net.tokens
    numbers, codes = tokens.cells(ROWS)
    got = tokens(ROWS)
    assert got.shape == (3, 1 + 3 + 2, 8)
    torch.testing.assert_close(got[1, 0], tokens.weight[0])
    torch.testing.assert_close(got[1, 2], numbers[1, 1] * tokens.weight[2] + tokens.bias[1])
    torch.testing.assert_close(got[2, 5], tokens.codes.weight[3 + codes[2, 1]] + tokens.bias[4])


def test_a_cross_layer_by_hand():
    net = build("dcn", dim=2, crosses=2, hidden=[5]).eval().net
    numbers, codes = net.cells(ROWS)
    x0 = torch.cat([numbers, net.codes[0](codes[:, 0]), net.codes[1](codes[:, 1])], 1)
    x = x0
    for layer in net.crosses:
        x = torch.stack([x0[n] * (layer.weight @ x[n] + layer.bias) + x[n] for n in range(3)])
    deep = F.relu(x0 @ net.deep[0][0].weight.T + net.deep[0][0].bias)
    torch.testing.assert_close(net(ROWS), net.head(torch.cat([x, deep], 1)))


def test_a_factorisation_machine_is_the_sum_over_all_pairs():
    net = build("fm", out_dim=1, dim=3).net
    with torch.no_grad():
        net.head.weight.fill_(1)
    numbers, codes = net.cells(ROWS)
    for n in range(3):
        parts = [numbers[n, p] * net.factors[p] for p in range(3)] + [
            net.codes[k].weight[codes[n, k]] for k in range(2)
        ]
        pairs = torch.stack([a @ b for a, b in itertools.combinations(parts, 2)]).sum()
        torch.testing.assert_close(net(ROWS)[n], net.weights(net.linear(ROWS))[n] + pairs)


@pytest.mark.parametrize("name", ALL)
def test_missing_and_unseen_cells_are_answered_and_learned_from(name):
    model = build(name)
    loss = model(ROWS).square().sum()
    assert loss.isfinite()
    loss.backward()
    for path, p in model.named_parameters():
        assert p.grad is not None, path
        assert p.grad.isfinite().all(), path
    model.eval()
    present = ROWS.clone()
    present[0, 2] = 0.0  # the mean: the same number, but it is there
    assert not torch.allclose(model(ROWS)[0], model(present)[0])


@pytest.mark.parametrize("name", NETS)
def test_blocks_taps_and_first_ones_kept(name):
    one, two = build(name), build(name)
    with torch.no_grad():
        for p in one.parameters():
            p.add_(1)
    names = [n for n, _ in blocks(one)]
    assert names[-1] == "net.head"
    keep_first(one, two, len(names) - 1)
    theirs = dict(two.named_parameters())
    for path, p in one.named_parameters():
        assert torch.equal(p, theirs[path]) == (not path.startswith("net.head")), path
    seen = []
    one.get_submodule("net.last").register_forward_hook(lambda _m, _i, out: seen.append(out))
    one.eval()(ROWS)
    assert seen[0].ndim == 2  # what a follower reads


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("ft_transformer", {"width": 10, "heads": 4}, "no multiple of model.heads=4"),
        ("dcn", {"hidden": [0]}, "model.hidden"),
        ("fm", {"dim": 0}, "model.dim=0"),
        ("tab_resnet", {"dropout": 1.0}, "model.dropout"),
        ("tab_resnet", {"widht": 3}, "did you mean 'width'"),
        ("fm", {"pretrained": True}, "nobody published"),
    ],
)
def test_mistakes_are_named(name, keys, says):
    with pytest.raises(Refused, match=says):
        build(name, **keys)


@pytest.mark.parametrize("name", NETS)
def test_pictures_are_refused(name):
    with pytest.raises(Refused, match="reads rows of numbers, the data has pictures; use model=simple_cnn"):
        models.build({"family": name, "name": name}, out_dim=2, form=(1, 8, 8))
