"""Epochs as a table: the same batches, bit by bit, however they are fetched and wherever they are entered."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch

from sftc import data
from sftc.data import plan as plans
from sftc.data import source as sources
from sftc.data.plan import Plan
from sftc.data.source import place
from sftc.errors import Refused

CPU = torch.device("cpu")
ALL = {"crop": 2, "flip": 0.5, "randaugment": 2, "erasing": 0.3, "mixup": 0.4, "cutmix": 1.0}
FAKE = {"name": "fake", "count": 80, "size": 12, "val_share": 0.2, "augment": ALL}


def take(spec: dict, epoch: int = 0, start: int = 0, seed: int = 0, size: int = 16, **more) -> list:
    return list(data.build(spec).source("train", size, train=True, seed=seed, device=CPU, **more).epoch(epoch, start))


def same(a: list, b: list) -> bool:
    """Whether two lists of batches agree in every bit."""

    def parts(batch):
        found = [batch.inputs, batch.target, batch.index, batch.view]
        if batch.partner is not None:
            found += [batch.partner.index, batch.partner.view, batch.partner.target, batch.partner.lam]
        return found

    return len(a) == len(b) > 0 and all(
        len(parts(x)) == len(parts(y)) and all(torch.equal(s, t) for s, t in zip(parts(x), parts(y), strict=True))
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than this machine likes
@pytest.mark.parametrize("workers", [0, 2, 4])
def test_resident_and_streaming_with_any_workers_agree(workers: int):
    assert same(take(FAKE, 3), take(FAKE | {"cache": "none", "workers": workers}, 3))


def test_an_epoch_can_be_entered_at_any_step():
    for more in ({}, {"cache": "none", "workers": 2}):
        whole = take(FAKE | more, 2)
        for start in (1, len(whole) - 1):
            assert same(whole[start:], take(FAKE | more, 2, start))
        assert take(FAKE | more, 2, len(whole)) == []


def test_parameters_drawn_in_chunks_are_the_same(monkeypatch):
    whole = take(FAKE, 1)
    monkeypatch.setattr(sources, "_DRAW_ROWS", 20)
    assert same(whole, take(FAKE, 1))


def test_epochs_do_not_depend_on_earlier_ones_but_differ():
    source = data.build(FAKE).source("train", 16, train=True, seed=0, device=CPU)
    first, second = list(source.epoch(0)), list(source.epoch(1))
    assert same(second, take(FAKE, 1))
    assert same(first, list(source.epoch(0)))
    assert not same(first, second)
    assert not same(first, take(FAKE, 0, seed=1))
    assert sorted(torch.cat([b.index for b in first]).tolist()) == source.rows.tolist()


def test_a_rows_pixels_do_not_depend_on_batch_size():
    spec = FAKE | {"augment": {k: v for k, v in ALL.items() if k not in ("mixup", "cutmix")}}
    found = []
    for size in (7, 64):
        batches = take(spec, 4, size=size)
        found.append(torch.cat([b.inputs for b in batches]))
        assert all(b.inputs.dtype == torch.uint8 for b in batches)
    assert torch.equal(*found)


def test_nothing_touches_the_global_generators():
    torch.manual_seed(7)
    np.random.seed(7)
    before, before_np = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    take(FAKE)
    take(FAKE | {"cache": "none", "workers": 2})
    assert torch.equal(before, torch.get_rng_state())
    assert (before_np == np.random.get_state()[1]).all()  # type: ignore[index]


def test_the_source_data_is_never_written_to():
    d = data.build(FAKE)
    table = d.splits["train"].table
    before = table.read(torch.arange(80)).clone()
    for batch in d.source("train", 16, train=True, seed=0, device=CPU).epoch(0):
        batch.inputs.zero_()
    assert torch.equal(before, table.read(torch.arange(80)))


def test_partners_are_the_mirrored_places():
    for batch in take(FAKE):
        assert batch.partner is not None
        assert torch.equal(batch.partner.index, batch.index.flip(0))
        assert torch.equal(batch.partner.target, batch.target.flip(0))
        assert torch.equal(batch.partner.view, batch.view.flip(0))
        assert ((batch.partner.lam >= 0) & (batch.partner.lam <= 1)).all()
        assert batch.inputs.dtype == torch.float32
        assert batch.inputs.min() >= 0
        assert batch.inputs.max() <= 255


def test_prediction_is_in_order_and_untouched():
    d = data.build(FAKE)
    source = d.source("train", 16, train=False, seed=3, device=CPU)
    batches = list(source.epoch(5))
    assert torch.cat([b.index for b in batches]).tolist() == d.splits["train"].rows.tolist()
    assert torch.equal(torch.cat([b.inputs for b in batches]), d.splits["train"].table.read(source.rows))
    assert all(b.partner is None and not b.view.any() for b in batches)
    assert source.augmentation == "none"


def plan(rows: list[int], size: int = 4, views: int | None = None, **more) -> Plan:
    return Plan(torch.tensor(rows), size, shuffle=True, seed=0, views=views, view_seed=0, **more)


@pytest.mark.parametrize(
    ("n", "size", "ends"), [(9, 4, [4, 9]), (10, 4, [4, 8, 10]), (8, 4, [4, 8]), (1, 4, [1]), (3, 1, [1, 3])]
)
def test_a_last_batch_of_one_joins_the_one_before(n: int, size: int, ends: list[int]):
    assert [b for _, b in plan(list(range(n)), size).bounds] == ends


def test_copies_of_a_row_get_views_of_their_own():
    index, view = plan([5, 9, 5, 5, 2]).epoch(3)
    seen = sorted(zip(index.tolist(), view.tolist(), strict=True))
    far = plans._COPY
    assert seen == [(2, 3), (5, 3), (5, 3 + far), (5, 3 + 2 * far), (9, 3)]


def test_limited_views_come_round_and_ignore_the_seed():
    spec = FAKE | {"views": 3, "augment": {"crop": 2, "flip": 0.5, "erasing": 1.0}}
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for seed in (0, 1):
        for epoch in range(4):
            for batch in take(spec, epoch, seed=seed):
                for row, view, image in zip(batch.index.tolist(), batch.view.tolist(), batch.inputs, strict=True):
                    assert torch.equal(seen.setdefault((row, view), image), image)
    assert {v for _, v in seen} == {0, 1, 2}
    assert len(seen) == 3 * 51
    first = [b.view for b in take(spec, 0)]
    assert len(set(torch.cat(first).tolist())) == 3  # rows start at different views


def test_sources_name_their_augmentation():
    def name(spec, seed=0):
        return data.build(spec).source("train", 8, train=True, seed=seed, device=CPU).augmentation  # type: ignore[attr-defined]

    assert name(FAKE) != name(FAKE, 1) != name(FAKE | {"augment": ALL | {"flip": 0.4}}, 1)
    assert name(FAKE | {"views": 2}) == name(FAKE | {"views": 2}, 1)


class Rows5:
    """A table whose reads are counted, and whose row 3 cannot be read."""

    shape = (1, 2, 2)
    target = torch.zeros(5).long()
    nbytes = 20

    def read(self, rows):
        if 3 in rows.tolist():
            raise Refused("row 3 is broken")
        return rows.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_refuses_arrives_as_one_line(workers: int):
    stream = sources.Streaming(Rows5(), workers, CPU)
    with pytest.raises(Refused, match=r"^row 3 is broken$"):
        list(stream.batches(torch.arange(5), [(0, 2), (2, 5)]))


def test_workers_leave_signals_to_the_run(monkeypatch):
    def read(self, rows):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # that of a batch queue, which goes to all processes of a run
        quiet = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        return torch.tensor([quiet, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL])  # a second one ends it

    monkeypatch.setattr(Rows5, "read", read)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        ((said, _),) = sources.Streaming(Rows5(), 1, CPU).batches(torch.arange(2), [(0, 2)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said.tolist() == [True, True]


def test_held_rows_are_found_by_their_numbers():
    held = sources.hold(Rows5(), torch.tensor([1, 4]), 0, CPU, CPU)
    ((raw, _),) = held.batches(torch.tensor([4, 1, 4]), [(0, 3)])
    assert raw[:, 0, 0, 0].tolist() == [4, 1, 4]


def test_a_loader_left_in_the_middle_ends_its_workers():
    import multiprocessing

    before = set(multiprocessing.active_children())
    batches = (
        data.build(FAKE | {"cache": "none", "workers": 2}).source("train", 8, train=True, seed=0, device=CPU).epoch(0)
    )
    next(iter(batches))
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) <= before


def test_where_rows_are_kept(monkeypatch):
    monkeypatch.setattr(sources, "host_free", lambda: 10_000_000)
    gpu = torch.device("meta")  # any device that is not the host
    cases = [
        (1_000, "auto", CPU, None, False, "host"),
        (9_000_000, "auto", CPU, None, False, "none"),
        (9_000_000, "auto", CPU, None, True, "host"),
        (1_000, "auto", gpu, 10_000, False, "device"),
        (9_000, "auto", gpu, 10_000, False, "host"),
        (1_000, "auto", gpu, None, False, "host"),
        (9_000_000, "device", gpu, 10, False, "device"),
        (1_000, "device", CPU, None, False, "host"),
        (1_000, "none", CPU, None, True, "none"),
    ]
    for nbytes, cache, device, free, in_memory, want in cases:
        where, why = place(nbytes, cache, device, free, in_memory=in_memory)
        assert where == want
        assert "MB" in why
    assert sources.host_free() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cache", ["device", "host", "none"])
def test_on_a_gpu_batches_are_the_same_wherever_rows_are_held(cache: str):
    gpu = torch.device("cuda")
    exact = {
        "crop": 2,
        "flip": 0.5,
        "erasing": 0.3,
        "cutmix": 1.0,
    }  # copies only; arithmetic may round differently
    d = data.build(FAKE | {"cache": cache, "workers": 2, "augment": exact})
    source = d.source("train", 16, train=True, seed=0, device=gpu, free_bytes=10**9)
    batches = list(source.epoch(1))
    assert all(b.inputs.device.type == "cuda" and b.target.device.type == "cuda" for b in batches)
    assert same([b.map(lambda t: t.cpu()) for b in batches], take(FAKE | {"augment": exact}, 1))


@pytest.mark.parametrize("more", [{"resized_crop": 0.5}, {"crop": 2}])
def test_a_view_shows_what_training_shows_before_mixing(more: dict):
    alone = {"flip": 0.5, "randaugment": 2, "erasing": 0.3} | more
    spec = FAKE | {"views": 3, "augment": alone}
    mixing = data.build(spec | {"augment": alone | {"mixup": 0.4, "cutmix": 1.0}})
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for view in range(3):
        source = mixing.source("train", 20, train=True, seed=5, device=CPU, view=view)
        batches = list(source.epoch(view))
        assert torch.equal(torch.cat([b.index for b in batches]), source.rows)
        assert all(b.partner is None and (b.view == view).all() for b in batches)
        assert source.augmentation == data.build(spec).source("train", 8, train=True, seed=0, device=CPU).augmentation  # type: ignore[attr-defined]
        seen |= {(row, view): x for b in batches for row, x in zip(b.index.tolist(), b.inputs, strict=True)}
    for epoch in range(4):
        for b in take(spec, epoch, seed=1):
            for row, view, x in zip(b.index.tolist(), b.view.tolist(), b.inputs, strict=True):
                assert torch.equal(seen[row, view], x)


def test_views_there_are():
    with pytest.raises(ValueError, match=r"view 3 is not one of data.views=3"):
        take(FAKE | {"views": 3}, view=3)
    (plain, *_) = take({"name": "digits"}, view=0)
    assert torch.equal(plain.inputs, data.build({"name": "digits"}).splits["train"].table.read(plain.index))
