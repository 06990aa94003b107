"""Every strategy, and fuse, on a class for each pixel."""

from __future__ import annotations

import pytest
import torch

from masks import write
from problems import After, config, plain, same, told
from sftc import build, positions
from sftc.errors import Refused, Stopped
from sftc.positions import Gathered, Positions, chosen
from sftc.store import Run

FCN = ("model=fcn", "model.channels=[6,8]", "model.depth=1", "batch_size=4", "optim.lr=0.02")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scenes"), 12)


def of(root, *more):
    return ("data=segmentation_folder", f"data.root={root}", *FCN, *more)


@pytest.fixture(scope="module")
def pair(root, tmp_path_factory) -> list[Run]:
    home = tmp_path_factory.mktemp("pair")
    return [plain(home / f"{s}", *of(root, "epochs=8", f"seed={s}")) for s in range(2)]


def fused(out, runs, *more) -> Run:
    cfg = config(f"runs=[{','.join(str(r.path) for r in runs)}]", "quiet=true", *more, command="fuse")
    build.fuse(cfg, out, [], "sftc fuse")
    return Run.open(out)


def test_a_run_learns_and_is_resumed_exactly(root, tmp_path):
    words = of(root, "epochs=6", "data.augment.flip=0.5", "data.augment.resized_crop=0.6", "checkpoint.steps=2")
    whole = plain(tmp_path / "whole", *words)
    with pytest.raises(Stopped):
        plain(tmp_path / "cut", *words, stop=After(4))
    assert same(whole, plain(tmp_path / "cut", *words))
    assert whole.result["monitor"] == "miou"
    assert whole.result["test"]["accuracy"] > 0.7
    assert set(whole.result["per_class"]["val"]["1"]) == {"iou", "precision", "recall", "pixels"}
    said, _ = whole.predictions("val")
    assert isinstance(said, Positions)
    assert said.parts["scores"].dtype == torch.float16
    assert len(said) == 12 * (16 * 16 - 4)  # a corner of each mask is unknown


@pytest.mark.parametrize("outputs", ["live", "cached"])
def test_a_student_learns_pixel_by_pixel_and_where_classes_are(root, pair, outputs, tmp_path):
    words = of(root, "strategy=kd", f"strategy.teachers=[{','.join(str(r.path) for r in pair)}]", "data.unlabeled=0.5")
    hint = "{weight:0.5,student:[net.stages.stage1],teacher:[net.stages.stage1],of:1}"
    more = ("strategy.terms.channelwise.weight=1.0", f"strategy.terms.hint={hint}") if outputs == "live" else ()
    run = told(tmp_path / "run", *words, *more, f"strategy.teacher_outputs={outputs}")
    assert run.finished
    row = run.rows()[-1]
    assert all(row[f"train/{name}"] > 0 for name in ("soft", *(("channelwise", "hint") if more else ())))
    assert 0 < run.result["disagreement"]["agreement"] <= 1


def test_a_teacher_that_says_one_class_everywhere_is_weak(root, tmp_path):
    dull = plain(tmp_path / "dull", *of(root, "max_steps=1", "optim.lr=1e-9"))
    with pytest.raises(Refused, match="no better than a constant answer"):
        told(
            tmp_path / "run", *of(root, "strategy=kd", f"strategy.teachers=[{dull.path}]", "strategy.allow_weak=false")
        )


def test_peers_and_snapshots_and_bags(root, tmp_path):
    told(tmp_path / "peers", *of(root, "strategy=kd", "strategy.peers=2", "strategy.teacher_epochs=0"))
    for members in ("snapshot", "bagging"):
        run = told(tmp_path / members, *of(root, "strategy=ensemble", "strategy.n=2", f"strategy.members={members}"))
        assert run.result["fused"]["rule"]
    with pytest.raises(Refused, match="members=boosting weighs rows"):
        told(tmp_path / "no", *of(root, "strategy=ensemble", "strategy.n=2", "strategy.members=boosting"))


@pytest.mark.slow
def test_a_classifier_lends_its_first_layers_to_a_dense_leader(root, tmp_path):
    from files import make

    pets = make(tmp_path / "pets", size=(32, 32))
    resnet = "model.pretrained=false"
    source = plain(
        tmp_path / "source", "data=image_folder", f"data.root={pets}", "model=timm", "model.name=resnet10t", resnet
    )
    words = ("data=segmentation_folder", f"data.root={root}", "batch_size=4", "strategy=leader", "strategy.keep=2")
    words += (f"strategy.source={source.path}", "strategy.keep_lr=0", "strategy.followers=[]", resnet)
    with pytest.raises(Refused, match=r"model=unet model\.backbone=resnet10t"):
        told(tmp_path / "other", *words, "model=unet", "model.backbone=resnet18")
    run = told(tmp_path / "run", *words, "model=unet", "model.backbone=resnet10t", "model.decoder=[8,8,8,8]")
    kept, was = Run(run.member("leader")).weights(), source.weights()
    for name in ("conv1.0.weight", "layer1.0.conv1.weight"):
        assert torch.equal(kept[f"net.encoder.{name}"], was[f"net.{name}"])
    assert not torch.equal(kept["net.encoder.layer2.0.conv1.weight"], was["net.layer2.0.conv1.weight"])


@pytest.mark.slow
def test_a_classifier_of_torchvision_lends_its_first_layers_too(root, tmp_path):
    from files import make

    pets, fresh = make(tmp_path / "pets", size=(32, 32)), "model.pretrained=false"
    net = ("model=torchvision", "model.name=mobilenet_v3_large", fresh)
    source = plain(tmp_path / "source", "data=image_folder", f"data.root={pets}", *net, "max_steps=2")
    words = ("data=segmentation_folder", f"data.root={root}", "batch_size=4", "strategy=leader", "strategy.keep=3")
    words += (f"strategy.source={source.path}", "strategy.keep_lr=0", "strategy.followers=[]", fresh, "max_steps=2")
    dense = "model=torchvision_segmentation"
    with pytest.raises(Refused, match=r"torchvision_segmentation and a model\.name that ends in _mobilenet_v3_large"):
        told(tmp_path / "other", *words, dense, "model.name=fcn_resnet50")
    run = told(tmp_path / "run", *words, dense, "model.name=lraspp_mobilenet_v3_large")
    kept, was = Run(run.member("leader")).weights(), source.weights()
    assert torch.equal(kept["net.backbone.2.block.0.0.weight"], was["net.features.2.block.0.0.weight"])
    assert not torch.equal(kept["net.backbone.3.block.0.0.weight"], was["net.features.3.block.0.0.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_large_nets_of_torchvision_learn_a_few_steps(root, name, tmp_path):
    words = ("data=segmentation_folder", f"data.root={root}", "model=torchvision_segmentation", f"model.name={name}")
    run = plain(tmp_path / "run", *words, "model.pretrained=false", "batch_size=4", "max_steps=3", "optim.lr=0.001")
    assert run.finished
    first, last = Run.open(run.path).weights(), run.weights("last")
    assert first.keys() == last.keys()
    assert run.result["params"] > 30e6


@pytest.mark.slow
def test_hints_go_between_backbones_and_peers_may_differ(root, pair, tmp_path):
    unet = ("model=unet", "model.backbone=resnet10t", "model.decoder=[8,8,8,8]", "model.pretrained=false")
    words = ("data=segmentation_folder", f"data.root={root}", *unet, "batch_size=4", "max_steps=3", "strategy=kd")
    hint = "{weight:1.0,student:[net.encoder.layer1],teacher:[net.stages.stage1]}"
    run = told(tmp_path / "run", *words, f"strategy.teachers=[{pair[0].path}]", f"strategy.terms.hint={hint}")
    assert run.rows()[-1]["train/hint"] > 0
    peers = told(tmp_path / "peers", *words, "strategy.peers=2", "strategy.teacher_epochs=0")
    parts = {name: value for name, value in peers.rows()[-1].items() if name.endswith("soft")}
    assert parts
    assert all(value > 0 for value in parts.values()), parts


def test_the_mean_of_two_is_the_mean_of_their_scores(root, pair, tmp_path):
    run = fused(tmp_path / "run", pair, "fuse=mean", "temperature=false")
    for split in ("val", "test"):
        a, b = (r.predictions(split)[0] for r in pair)
        said = run.predictions(split)[0]
        assert torch.allclose(said.scores, (a.scores + b.scores) / 2, atol=1e-3)
        assert torch.equal(said.target, a.target)
        right = ((a.scores + b.scores).argmax(1) == a.target).float().mean()
        assert run.result[split]["accuracy"] == pytest.approx(float(right), abs=1e-3)
    again = fused(tmp_path / "again", [run, pair[0]], "fuse=mean")
    assert again.finished


def test_all_rules_on_pixels(root, pair, tmp_path):
    run = fused(tmp_path / "run", pair, "fuse=all")
    assert {line["name"] for line in run.result["team"]} > {f"fuse {r}" for r in ("vote", "weighted", "greedy", "mean")}
    assert not [line for line in run.result["team"] if "failed" in line]


def test_a_rule_fitted_on_some_pixels_goes_through_all(root, pair, tmp_path, monkeypatch):
    """Of as many pixels as there are, the pieces give what all at once give; of fewer, nearly that."""
    whole = fused(tmp_path / "whole", pair, "fuse=weighted")
    monkeypatch.setattr(positions, "PIECE", 100)
    pieces = fused(tmp_path / "pieces", pair, "fuse=weighted")
    assert pieces.result["val"] == pytest.approx(whole.result["val"], rel=1e-6)
    assert torch.equal(pieces.predictions("test")[0].scores, whole.predictions("test")[0].scores)
    monkeypatch.setattr(positions, "SAMPLE", 1000)
    some = fused(tmp_path / "some", pair, "fuse=weighted")
    assert len(some.predictions("val")[0].target) == len(whole.predictions("val")[0].target)
    assert some.result["val"]["nll"] == pytest.approx(whole.result["val"]["nll"], rel=0.05)
    assert some.result["val"] != whole.result["val"]


def test_honest_scores_of_pixels_are_those_of_cross_fitting(root, pair, tmp_path, monkeypatch):
    """The streamed way gives what `fusion.honest` gives where all pixels are looked at, of the same five fits.

    By a rule whose fits differ from fold to fold, by 0.4 in a probability: weights were [1, 0] in all of them."""
    from sftc import fusion
    from sftc.fusion import heads
    from sftc.fusion.honest import crossfit
    from sftc.tasks import Segmentation

    task = Segmentation(["0", "1", "2"])
    kind = type(fusion.make("stacking", task))
    monkeypatch.setitem(heads.ALPHAS, "logistic", (1.0,))  # in a quarter of the time
    fits: list[int] = []
    fit = kind.fit
    monkeypatch.setattr(kind, "fit", lambda self, *a: (fits.append(1), fit(self, *a))[1])
    run = fused(tmp_path / "run", pair, "fuse=stacking")
    assert len(fits) == 6 + 3  # five, one on all, and three of leaving each out
    said = [r.predictions("val")[0] for r in pair]
    seed = pair[0].config["data"]["split_seed"]
    want = crossfit(
        fusion.make("stacking", task),
        torch.stack([p.scores for p in said]),
        said[0].target,
        (),
        5,
        seed,
        said[0].row,
    )
    assert torch.allclose(run.predictions("val")[0].scores, want, atol=2e-3)


def test_many_scores_are_kept_as_the_largest_few(monkeypatch):
    scores = torch.rand(500, 6, generator=torch.Generator().manual_seed(0)).softmax(1)
    target, row = torch.arange(500) % 6, torch.arange(500) // 50
    monkeypatch.setattr(positions, "LIMIT", 100)
    made = Gathered(6, 500, None)
    for part in zip(scores.split(100), target.split(100), row.split(100), strict=True):
        made.add(*part)
    p = made.whole()
    assert p.parts["top"].shape == (500, 3)
    assert torch.equal(p.scores.argmax(1), scores.half().argmax(1))
    assert torch.allclose(p.scores.sum(1), torch.ones(500), atol=2e-3)
    top = scores.topk(3, 1)
    assert torch.allclose(p.scores.gather(1, top.indices), top.values, atol=1e-3)
    assert torch.equal(p.row, row)
    assert torch.equal(p.target, target)
    assert "the largest 3 of 6" in str(p)


def test_the_sample_is_fixed_and_sorted(monkeypatch):
    assert chosen(10) == slice(None)
    monkeypatch.setattr(positions, "SAMPLE", 50)
    one = chosen(1000)
    assert isinstance(one, torch.Tensor)
    assert torch.equal(one, torch.as_tensor(chosen(1000)))
    assert torch.equal(one, one.sort().values)
    assert len(one.unique()) == 50


def test_stored_positions_that_do_not_fit_are_refused(root, pair, tmp_path):
    from sftc.store import write_tensors

    run = pair[0]
    said, meta = run.predictions("val")
    assert isinstance(said, Positions)
    path = run.path / "preds" / "val.safetensors"
    before = path.read_bytes()
    parts = {name: part[:] for name, part in said.parts.items()}
    wrong = {"counts": parts["counts"] + 1, "target": parts["target"] + 9, "scores": parts["scores"][1:]}
    try:
        for name, tensor in wrong.items():
            write_tensors(path, {**parts, name: tensor}, meta)
            with pytest.raises(Refused, match="do not fit together"):
                run.predictions("val")
    finally:
        path.write_bytes(before)


def test_pictures_of_what_is_said_are_in_the_folder_and_on_the_card(root, pair, tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    run = fused(tmp_path / "run", pair, "fuse=mean")
    with Image.open(run.path / "scenes.png") as image:
        image.load()
        assert image.width > 600
    assert "scenes.png" in (run.path / "README.md").read_text()
    alone = pair[0].path  # was finished, but the process ended before it drew
    assert not (alone / "scenes.png").exists()
    build.train(config(*of(root, f"resume={alone}", "quiet=true")), alone, [], "sftc train")
    assert (alone / "scenes.png").exists()
    assert "scenes.png" in (alone / "README.md").read_text()
