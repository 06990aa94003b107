"""strategy=leader: who learns what, from which layers; gone on with anywhere, it ends the same."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from problems import After, config, lab, same
from problems import plain as plain_run
from sftc import build, models
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused, Stopped
from sftc.lab import Watch
from sftc.models.surgery import blocks
from sftc.store import Run, hash_tensors
from sftc.store.reading import read_meta, read_tensors
from sftc.strategies.leader import Leader

TEAM = (
    "strategy=leader",
    "model.hidden=[24,12]",
    "strategy.keep=1",
    "strategy.followers=[{hidden:[9]},{tap:net.fc2,hidden:[7]}]",
)


class Said(Watch):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def led(out, *overrides, stop=None, watch=None) -> Run:
    """The team in `out`, or gone on with."""
    home = lab(out, *TEAM, *overrides, stop=stop, watch=watch)
    node = {k: v for k, v in home.run.config["strategy"].items() if k != "name"}
    Leader(**node).run(home)
    return home.run


def train(cfg, out):
    build.check(cfg)
    build.train(cfg | {"out": str(out)}, out, [], "sftc train")


def member(run, name) -> Run:
    return Run.open(run.member(name))


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    return led(tmp_path_factory.mktemp("team") / "run")


def test_plain_digits_are_halved_and_that_is_written(team):
    assert team.config["data"]["classes"] == ["5", "6", "7", "8", "9"]
    assert team.config["strategy"]["source"] == {"classes": ["0", "1", "2", "3", "4"]}
    assert any("halves data.classes" in note for note in team.environment["notes"])
    source = Run.open(team.reference("source"))
    assert source.config["data"]["classes"] == ["0", "1", "2", "3", "4"]
    assert source.config["data"].get("limit") is None  # few rows are the target's own trouble
    assert source.config["strategy"] == {"name": "plain"}


@pytest.mark.parametrize("keep_lr", [0, 0.5])
def test_the_first_blocks_are_the_sources_and_the_rest_is_new(keep_lr, tmp_path):
    run = led(tmp_path / "run", f"strategy.keep_lr={keep_lr}", "max_steps=1", "epochs=1", "strategy.followers=[]")
    source, leader = Run.open(run.reference("source")).weights(), member(run, "leader")
    kept, fresh = "net.fc1.0.weight", "net.fc2.0.weight"
    now = leader.weights("last")
    assert torch.equal(now[kept], source[kept]) == (keep_lr == 0)
    near = (now[kept] - source[kept]).abs().max()
    assert near < 0.002  # one step of AdamW at 0.001
    assert (now[fresh] - source[fresh]).abs().max() > 0.05
    assert leader.config["finetune"] == {"name": "first_n", "n": 1, "keep_lr": keep_lr}


def test_a_layers_path_keeps_all_up_to_it(tmp_path):
    run = led(tmp_path / "run", "strategy.keep=net.fc2", "strategy.keep_lr=0", "max_steps=1", "strategy.followers=[]")
    assert member(run, "leader").config["finetune"]["n"] == 2


def test_followers_hold_their_net_alone_and_leave_the_leader_as_it_is(team):
    for name, width in (("follower0", 9), ("follower1", 7)):
        state = member(team, name).weights()
        assert all(key.startswith("net.") for key in state)
        assert state["net.fc1.0.weight"].shape == (width, {"follower0": 5, "follower1": 12}[name])
        assert member(team, name).referred("leader0") == hash_tensors(member(team, "leader").weights())
    assert team.result["fingerprints"]["model"] == member(team, "leader").result["fingerprints"]["model"]


def test_members_are_told_side_by_side(team):
    rows = {row["name"]: row for row in team.result["team"]}
    assert list(rows) == ["leader from scratch", "leader", "follower0", "follower1", "team, mean"]
    for name in ("leader", "follower0", "follower1"):
        assert rows[name]["val"]["accuracy"] == member(team, name).result["val"]["accuracy"]
    scores = torch.stack(
        [member(team, n).predictions("val")[0].scores for n in ("leader", "follower0", "follower1")]
    ).mean(0)
    right = (scores.argmax(1) == member(team, "follower0").predictions("val")[0].target).float().mean()
    assert rows["team, mean"]["val"]["accuracy"] == pytest.approx(float(right))
    gain = rows["leader"]["val"]["accuracy"] - rows["leader from scratch"]["val"]["accuracy"]
    assert team.result["gain"]["leader"]["val"] == pytest.approx(gain)


def test_from_scratch_is_the_same_net_rows_and_budget(team):
    leader, scratch = member(team, "leader"), member(team, "scratch-leader")
    differ = {k for k in leader.config if leader.config[k] != scratch.config[k]}
    assert differ == {"strategy", "finetune"}
    assert leader.result["last"]["step"] == scratch.result["last"]["step"]
    assert torch.equal(leader.rows_of("train"), scratch.rows_of("train"))


def test_negative_transfer_is_said_out_loud(tmp_path):
    watch = Said()
    # A frozen net that learned nothing of the source against one that may learn.
    spoil = ("strategy.keep=net.fc2", "strategy.keep_lr=0", "strategy.source_lr=1e-9", "optim.lr=0.01", "epochs=6")
    run = led(tmp_path / "run", *spoil, "strategy.followers=[]", watch=watch)
    assert run.result["gain"]["leader"]["val"] < 0
    assert any(line.startswith("negative transfer: leader is worse") for line in watch.lines)


def test_a_follower_opens_by_itself_and_says_the_same(team):
    run = member(team, "follower1")
    home = Bench(Device("cpu")).open(run.path)
    said = home.predict(home.restore(), "val")
    assert torch.allclose(said.scores, run.predictions("val")[0].scores)


def test_a_follower_moves_with_its_team(team, tmp_path):
    shutil.copytree(team.path, tmp_path / "elsewhere")
    home = Bench(Device("cpu")).open(tmp_path / "elsewhere" / "members" / "follower0")
    assert torch.allclose(
        home.predict(home.restore(), "val").scores, member(team, "follower0").predictions("val")[0].scores
    )


@pytest.mark.parametrize("spoiled", ["gone", "changed", "swapped"])
def test_a_follower_says_when_its_leader_is_missing_or_changed(spoiled, team, tmp_path):
    shutil.copytree(team.path, tmp_path / "run")
    leader = Run(tmp_path / "run" / "members" / "leader")
    if spoiled == "gone":
        shutil.rmtree(leader.path)
    elif spoiled == "changed":  # its weights, not its result
        leader.write_weights("model", {k: v + 1 for k, v in leader.weights().items()})
    else:
        shutil.rmtree(leader.path)
        shutil.copytree(tmp_path / "run" / "members" / "scratch-leader", leader.path)
    with pytest.raises(Refused, match="leader") as e:
        Bench(Device("cpu")).open(tmp_path / "run" / "members" / "follower0").restore()
    assert str(leader.path) in str(e.value)


def test_an_exported_follower_has_its_leader_inside(team, tmp_path):
    run = member(team, "follower1")
    build.export({"run": str(run.path), "weights": "model", "out": str(tmp_path / "out"), "quiet": True})
    about = json.loads(read_meta(tmp_path / "out" / "model.safetensors")["sftc"])
    model = models.build(about["model"], out_dim=len(about["class_names"]), form=tuple(about["shape"])).eval()
    model.load_whole(read_tensors(tmp_path / "out" / "model.safetensors"))
    own = Bench(Device("cpu")).open(run.path)
    inputs = next(iter(own.source("val").epoch(0))).inputs
    assert torch.equal(model(inputs), own.restore()(inputs))


def test_stored_answers_and_live_ones_teach_nearly_the_same(tmp_path):
    only = "strategy.followers=[{hidden:[9]}]"
    live = led(tmp_path / "live", "strategy.leader_outputs=live", only, "strategy.baseline=false")
    stored = led(tmp_path / "stored", "strategy.leader_outputs=cached", only, "strategy.baseline=false")
    assert list((stored.member("leader") / "answers").rglob("view-*.safetensors"))
    assert not (live.member("leader") / "answers").exists()
    a, b = (member(run, "follower0").weights("last") for run in (live, stored))
    assert all(torch.allclose(a[k], b[k], atol=1e-2) for k in a)


def test_one_after_another_followers_are_runs_with_fits_of_their_own(tmp_path):
    run = led(tmp_path / "run", "strategy.together=false", "strategy.baseline=false")
    assert run.rows() == []
    assert len(member(run, "follower0").rows()) == len(member(run, "follower1").rows()) == 2


def test_followers_learn_from_the_leaders_soft_answers_too(tmp_path):
    run = led(tmp_path / "run", "strategy.follower.alpha=0.3", "strategy.baseline=false")
    assert {"train/follower0/truth", "train/follower0/soft", "train/follower1/soft"} <= run.rows()[0].keys()


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_two_leaders_of_one_source_run(combine, tmp_path):
    source = plain_run(tmp_path / "source", "data.classes=[0,1,2]", "model.hidden=[24,12]")
    one, two = f"strategy.source={source.path}", "+strategy.leaders.two={source:{classes:[0,1]},optim:{lr:0.01}}"
    team = ("data.classes=[5,6,7]", one, two, f"strategy.combine={combine}")
    run = led(tmp_path / "run", *team, "strategy.followers=[{tap:net.fc2,alpha:0.5}]")
    assert member(run, "follower0").weights()["net.fc1.0.weight"].shape == (50, 12 if combine == "sum" else 24)
    assert run.reference("source-leader-0") == source.path.resolve()
    assert member(run, "two").config["optim"]["lr"] == 0.01
    assert not torch.equal(*(member(run, n).weights()["net.fc2.0.weight"] for n in ("leader", "two")))
    assert list(run.result["gain"]) == ["leader", "two"]
    home = Bench(Device("cpu")).open(run.member("follower0"))
    assert torch.allclose(
        home.predict(home.restore(), "val").scores, member(run, "follower0").predictions("val")[0].scores
    )


@pytest.mark.parametrize(
    ("target", "source"),
    [
        (["data=digits"], "{name:fake,channels:1,size:8}"),
        (["data=fake", "data.channels=1", "data.size=8"], "{name:digits}"),
    ],
)
def test_a_source_may_be_another_data_set(target, source, tmp_path):
    run = led(
        tmp_path / "run", *target, f"strategy.source={source}", "strategy.followers=[]", "strategy.baseline=false"
    )
    home = Bench(Device("cpu")).open(run.reference("source"))  # its config has all keys of its own data, and no others
    assert home.run.config["data"]["name"] == source[1:].split(":")[1].split(",")[0].rstrip("}")
    assert home.data.shape == (1, 8, 8)


def test_a_source_of_another_architecture_is_what_the_run_keeps(tmp_path):
    source = plain_run(tmp_path / "source", "model=simple_cnn", "data.classes=[0,1,2]")
    given = (f"strategy.source={source.path}", "data.classes=[5,6,7]", "strategy.followers=[]", "strategy.keep=3")
    run = led(tmp_path / "run", *given)
    assert run.config["model"]["name"] == "simple_cnn"
    home = Bench(Device("cpu")).open(run.path)
    assert [name for name, _ in blocks(home.restore())][:2] == ["net.conv1", "net.conv2"]


def test_of_candidates_the_best_by_a_probe_leads(tmp_path):
    """One source learned digits, the other nothing: a new head shows which."""
    good = plain_run(tmp_path / "good", "data.classes=[0,1,2]", "model.hidden=[24,12]", "epochs=20", "data.limit=null")
    poor = plain_run(tmp_path / "poor", "data.classes=[0,1,2]", "model.hidden=[24,12]", "optim.lr=1e-9", "seed=3")
    watch = Said()
    given = (f"strategy.source=[{poor.path},{good.path}]", "data.classes=[5,6,7]", "strategy.followers=[]", "epochs=8")
    run = led(tmp_path / "run", *given, "optim.lr=0.01", "strategy.baseline=false", watch=watch)
    assert member(run, "leader").reference("source") == good.path.resolve()
    (table,) = (line for line in watch.lines if line.startswith("sources of leader"))
    assert table.index(str(good.path)) < table.index(str(poor.path))
    assert member(run, "leader-probe0").config["finetune"] == {"name": "head"}


def test_how_much_to_keep_is_searched_by_folds_of_the_training_rows(tmp_path):
    search = (
        "strategy.keep=auto",
        "strategy.folds=2",
        "strategy.followers=[]",
        "strategy.baseline=false",
        "max_steps=3",
    )
    watch = Said()
    run = led(tmp_path / "run", *search, watch=watch)
    table = run.result["keep"]["leader"]
    assert [row["keep"] for row in table] == [1, 2]
    best = max(table, key=lambda row: (row["mean"], row["keep"]))
    assert member(run, "leader").config["finetune"]["n"] == best["keep"]
    assert any("by first blocks kept, 2 folds" in line for line in watch.lines)
    home = Bench(Device("cpu")).open(run.path)
    train = home.data.splits["train"]
    parts = [member(run, f"leader-keep1-fold{k}").rows_of("train") for k in range(2)]
    assert sorted(torch.cat(parts).tolist()) == train.rows.tolist()
    for part in parts:  # stratified: half of every class, give or take one
        counts = torch.bincount(train.target[part], minlength=5) * 2
        assert (counts - torch.bincount(train.target[train.rows])).abs().max() <= 2
    scores = [member(run, f"leader-keep1-fold{k}").result["last"]["val"]["accuracy"] for k in range(2)]
    assert table[0]["mean"] == pytest.approx(sum(scores) / 2)

    with pytest.raises(Stopped):
        led(tmp_path / "again", *search, stop=After(8))
    assert led(tmp_path / "again", *search).result["keep"] == run.result["keep"]


def test_ties_go_to_the_larger_frozen_part(tmp_path):
    flat = ("strategy.keep=auto", "strategy.folds=2", "optim.lr=1e-12", "monitor=accuracy", "strategy.keep_lr=0")
    run = led(
        tmp_path / "run", *flat, "data.limit=20", "max_steps=1", "strategy.followers=[]", "strategy.baseline=false"
    )
    table = run.result["keep"]["leader"]
    if table[0]["mean"] == table[1]["mean"]:
        assert member(run, "leader").config["finetune"]["n"] == 2


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["strategy.keep=3"], "must lie in 1..2"),
        (["strategy.keep=net.fcc2"], "did you mean 'net.fc2'"),
        (["strategy.source=/nowhere"], "does not exist"),
        (["strategy.source={classes:[0,77]}"], "no class 77"),
        (["strategy.source={name:mnist,root:/nowhere}"], "/nowhere"),
        (["strategy.source=pretrained"], "loads no weights"),
        (["strategy.source=[]"], "or a list of these"),
        (["strategy.followers=[{tap:net.fc9}]"], "did you mean 'net.fc"),
        (["strategy.followers=[{model:simple_cnn,tap:net.fc2}]"], "use model=mlp"),
        (["strategy.followers=[{model:resnet18}]"], "one of: mlp, linear"),
        (["strategy.followers=[{hiden:[3]}]"], "did you mean 'hidden'"),
        (["strategy.followers=[{tap:[logits,logits]}]"], "one for each of 1 leaders"),
        (["+strategy.leaders.follower0={}"], "nobody can follow himself"),
        (["strategy.followers=[{tap:net.fc2}]", "strategy.leader_outputs=cached"], "holds logits only"),
        (["~strategy.leaders.leader"], "leaves nobody to follow"),
        (["+strategy.leaders.leader.kept=1"], "did you mean 'keep'"),
        (["+strategy.leaders.source={}"], "is no name"),
        (["strategy.joint=true", "strategy.followers=[]"], "give followers, or joint=false"),
        (
            ["strategy.joint=true", "strategy.combine=sum", "+strategy.leaders.b={source:pretrained}"],
            "use combine=concat",
        ),
        (["strategy.followers=[{leaders:[leadr]}]"], "did you mean 'leader'"),
        (["strategy.followers=[{leaders:[]}]"], "must name leaders"),
        (["strategy.followers=[{leaders:[leader,leader]}]"], "each once"),
        (["strategy.followers=[{leaders:[follower0]}]"], "follower0 cannot follow itself"),
        (["strategy.followers=[{},{leaders:[follower0]}]"], "follower1 cannot follow follower0, which follows too"),
        (["strategy.followers=[{leaders:[follower1]},{leaders:[follower0]}]"], "follower0 cannot follow follower1"),
        (["strategy.followers=[{data:{classes:[0,77]}}]"], "no class 77"),
        (["strategy.followers=[{data:{name:mnist,root:/nowhere}}]"], "/nowhere"),
        (["strategy.followers=[{data:{name:diabetes}}]"], "which its leaders cannot read"),
        (["strategy.followers=[{data:{name:fake,channels:3,size:8}}]"], "which its leaders cannot read"),
        (["loss=cross_entropy", "strategy.followers=[{data:{name:fake,kind:labels,channels:1,size:8}}]"], "loss=cross"),
        (["strategy.source={name:diabetes}"], "are they alike"),
        (["+strategy.leaders.b={source:{classes:[0,77]}}"], "no class 77"),
        (["+strategy.leaders.leader.head=dense"], "leader leader: strategy.head=dense"),
        (["+strategy.leaders.leader={head:mlp,head_hidden:[0]}"], "not a list of widths"),
        (["strategy.head=conv"], "use model.head=mlp"),
        (["model=simple_cnn", "strategy.head=conv", "strategy.keep=3"], "must lie in 1..2"),
        (["strategy.joint=true", "ema=0.9"], "leave ema at null"),
        (["finetune=head"], "strategy.keep and strategy.keep_lr say"),
        (["strategy.followers=[{data:{classes:[0,1]},alpha:0.5}]"], "do not go together"),
        (["strategy.keep=auto", "strategy.folds=999"], "more than the target has"),
        (["data=diabetes"], "has no four classes to halve"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_no_folder(overrides, says, tmp_path):
    cfg = config("quiet=true", "device=cpu", "device.threads=1", "model=mlp", "model.hidden=[24,12]", *TEAM, *overrides)
    with pytest.raises(Refused, match=says) as e:
        train(cfg, tmp_path / "run")
    assert "\n" not in str(e.value)
    assert [p for p in tmp_path.rglob("*") if p.name != ".lock"] == []


@pytest.mark.parametrize("steps", [2, 9, 14, 21])
def test_stopped_in_any_stage_and_gone_on_with_it_ends_bit_identical(steps, team, tmp_path):
    with pytest.raises(Stopped):
        led(tmp_path / "run", stop=After(steps))
    run = led(tmp_path / "run")
    assert same(team, run)
    for name in ("leader", "scratch-leader"):
        assert same(member(team, name), member(run, name))
    for name in ("follower0", "follower1"):
        one, two = (member(r, name).weights("last") for r in (team, run))
        assert all(torch.equal(one[k], two[k]) for k in one)


JOINT = ("strategy.joint=true", "strategy.baseline=false", "epochs=3")


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return led(tmp_path_factory.mktemp("joint") / "run", *JOINT, "strategy.follower.alpha=0.5")


def test_trained_jointly_followers_move_their_leader(joint, tmp_path):
    heavy = led(tmp_path / "heavy", *JOINT, "strategy.follower.weight=50", "clip=1")
    alone = led(tmp_path / "alone", *JOINT, "strategy.follower.weight=0", "clip=1")
    by = [member(r, "leader").weights("last")["net.fc1.0.weight"] for r in (heavy, alone)]
    assert not torch.equal(*by)
    assert {"train/leader/truth", "train/follower0/truth", "train/follower1/soft"} <= joint.rows()[0].keys()


def test_trained_jointly_all_keep_the_leaders_best_epoch_and_open_by_themselves(joint):
    best = {name: member(joint, name).result["best"]["epoch"] for name in ("leader", "follower0", "follower1")}
    assert len(set(best.values())) == 1
    for name in ("follower0", "follower1"):
        run = member(joint, name)
        home = Bench(Device("cpu")).open(run.path)
        assert torch.allclose(home.predict(home.restore(), "val").scores, run.predictions("val")[0].scores)
        assert run.result["val"]["accuracy"] == pytest.approx(run.result["best"]["val"]["accuracy"])


@pytest.mark.parametrize("steps", [4, 8, 12])
def test_trained_jointly_and_stopped_it_ends_bit_identical(steps, joint, tmp_path):
    with pytest.raises(Stopped):
        led(tmp_path / "run", *JOINT, "strategy.follower.alpha=0.5", stop=After(steps))
    run = led(tmp_path / "run")
    assert same(joint, run)
    for name in ("leader", "follower0", "follower1"):
        one, two = (member(r, name).weights(w) for r, w in ((joint, "last"), (run, "last")))
        assert all(torch.equal(one[k], two[k]) for k in one)


def test_leaders_and_followers_stop_together(tmp_path):
    run = led(tmp_path / "run", *JOINT, "patience=1", "epochs=40", "optim.lr=1e-9")
    assert run.rows()[-1]["ended"] == "patience"
    assert len(run.rows()) < 40


TWO = (
    "data.classes=[5,6,7]",
    "strategy.source={classes:[0,1]}",
    "+strategy.leaders.b={source_seed:7}",
    "strategy.baseline=false",
)
WIRED = "strategy.followers=[{leaders:[b]},{leaders:[leader,b],tap:[logits,net.fc2]},{leaders:[leader],alpha:0.5}]"


@pytest.fixture(scope="module")
def wired(tmp_path_factory):
    return led(tmp_path_factory.mktemp("wired") / "run", *TWO, WIRED)


@pytest.mark.parametrize(
    "way", [["strategy.together=false"], ["strategy.leader_outputs=cached"], ["strategy.joint=true"]]
)
def test_a_follower_may_read_some_of_the_leaders(way, wired, tmp_path):
    taps = WIRED if "cached" not in way[0] else WIRED.replace("net.fc2", "logits")
    for run in (wired, led(tmp_path / "run", *TWO, taps, *way)):
        a, b = (hash_tensors(member(run, name).weights()) for name in ("leader", "b"))
        for name, heard in (("follower0", [b]), ("follower1", [a, b]), ("follower2", [a])):
            one = member(run, name)
            assert [one.referred(f"leader{i}") for i in range(2)] == [*heard, None][:2]
            home = Bench(Device("cpu")).open(one.path)
            assert torch.allclose(home.predict(home.restore(), "val").scores, one.predictions("val")[0].scores)


@pytest.mark.slow
def test_summed_followers_may_read_different_leaders(tmp_path):
    run = led(tmp_path / "run", *TWO, "strategy.combine=sum", "strategy.followers=[{leaders:[b]},{alpha:0.5}]")
    for name in ("follower0", "follower1"):
        one = member(run, name)
        home = Bench(Device("cpu")).open(one.path)
        assert torch.allclose(home.predict(home.restore(), "val").scores, one.predictions("val")[0].scores)


@pytest.mark.slow
def test_several_leaders_learn_jointly_keep_one_epoch_and_are_moved_by_who_reads_them(tmp_path):
    wire = "strategy.followers=[{leaders:[b],weight:50}]"
    run = led(tmp_path / "run", *TWO, *JOINT, wire, "clip=1", "optim.lr=0.01")
    best = {name: member(run, name).result["best"]["epoch"] for name in ("leader", "b", "follower0")}
    assert len(set(best.values())) == 1
    alone = led(tmp_path / "alone", *TWO, *JOINT, wire.replace("50", "0"), "clip=1", "optim.lr=0.01")
    now = {n: [member(r, n).weights("last")["net.fc1.0.weight"] for r in (run, alone)] for n in ("leader", "b")}
    assert torch.equal(*now["leader"])
    assert not torch.equal(*now["b"])
    with pytest.raises(Stopped):
        led(tmp_path / "again", *TWO, *JOINT, wire, "clip=1", "optim.lr=0.01", stop=After(9))
    again = led(tmp_path / "again")
    assert same(run, again)


@pytest.mark.parametrize("head", ["mlp", "conv"])
def test_a_leader_grows_another_head_by_which_it_opens_teaches_and_leads(head, tmp_path):
    given = ("model=simple_cnn", "strategy.keep=2", "strategy.keep_lr=0", f"strategy.head={head}")
    widths = ("strategy.head_hidden=[9]", "strategy.head_channels=[7]", "strategy.followers=[{hidden:[6]}]")
    # TEAM's own keys of an mlp do not fit here.
    home = lab(tmp_path / "run", "strategy=leader", *given, *widths)
    Leader(**{k: v for k, v in home.run.config["strategy"].items() if k != "name"}).run(home)
    run = home.run
    leader, source = member(run, "leader"), Run.open(run.reference("source"))
    assert source.config["model"]["head"] == "linear"
    for each in (leader, run, member(run, "scratch-leader")):
        assert each.config["model"]["head"] == head
    name, shape = {"mlp": ("net.head.fc1.0.weight", (9, 84)), "conv": ("head.conv1.0.weight", (7, 16, 3, 3))}[head]
    assert leader.weights()[name].shape == shape
    assert torch.equal(leader.weights()["net.conv2.0.weight"], source.weights()["net.conv2.0.weight"])
    for path in (leader.path, run.path, run.member("follower0")):
        opened = Bench(Device("cpu")).open(path)
        told = Run.open(path).predictions("val")[0].scores
        assert torch.allclose(opened.predict(opened.restore(), "val").scores, told)
    build.export({"run": str(run.member("follower0")), "weights": "model", "out": str(tmp_path / "out"), "quiet": True})
    state = read_tensors(tmp_path / "out" / "model.safetensors")
    assert state[f"leaders.0.{name}"].shape == shape
    taught = lab(tmp_path / "taught", "strategy=kd", f"strategy.teachers=[{leader.path}]", "data.classes=[5,6,7,8,9]")
    assert taught.teacher(str(leader.path)).model(torch.zeros(2, 1, 8, 8)).shape == (2, 5)


def test_leaders_have_heads_of_their_own_and_pass_them_on(tmp_path):
    own = "+strategy.leaders.b={head:mlp,head_hidden:[5]}"
    run = led(tmp_path / "run", *TWO[:2], TWO[3], own, "strategy.followers=[]")
    assert member(run, "leader").config["model"]["head"] == "linear"
    assert member(run, "b").weights()["net.head.fc1.0.weight"].shape == (5, 12)
    given = (f"strategy.source={run.member('b')}", "data.classes=[0,1,2]", "strategy.followers=[]")
    after = led(tmp_path / "after", *given, "strategy.baseline=false")  # head=null: as the source has it
    assert member(after, "leader").weights()["net.head.fc1.0.weight"].shape == (5, 12)


TASKS = "strategy.followers=[{tap:net.fc2},{tap:net.fc2,data:{classes:[0,1,2]}}]"


@pytest.mark.parametrize("way", ["joint=true", "together=true", "together=false"])
def test_followers_have_tasks_of_their_own(way, tmp_path):
    run = led(tmp_path / "run", TASKS, f"strategy.{way}", "strategy.weighting=uncertain", "strategy.baseline=false")
    assert member(run, "follower0").weights()["net.head.weight"].shape[0] == 5
    other = member(run, "follower1")
    assert other.weights()["net.head.weight"].shape[0] == 3
    assert other.predictions("val")[0].scores.shape[1] == 3
    home = Bench(Device("cpu")).open(other.path)
    assert torch.allclose(home.predict(home.restore(), "val").scores, other.predictions("val")[0].scores)
    assert [row["name"] for row in run.result["team"]] == ["leader", "follower0", "follower1", "team, mean"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["leader_cifar10_cifar100", "leader_cifar10_cifar100_logits"])
@pytest.mark.parametrize("keep_lr", [0, 1])
def test_the_cifar_presets_run_on_pictures_by_class_subsets(experiment, keep_lr, real_data, tmp_path):
    cfg = config(
        *("quiet=true", "device=cpu", "device.threads=1", f"experiment={experiment}", f"strategy.keep_lr={keep_lr}"),
        *("data=image_folder", f"data.root={real_data}/cifar10_subset", "data.classes=[5,6,7,8,9]", "data.limit=500"),
        *("strategy.source={name:image_folder,classes:[0,1,2,3,4]}", "epochs=3", "data.workers=0"),
    )
    train(cfg, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert member(run, "leader").config["finetune"] == {"name": "first_n", "n": 3, "keep_lr": keep_lr}
    width = 84 if experiment.endswith("100") else 5
    assert member(run, "follower0").weights()["net.fc1.0.weight"].shape == (50, width)
    names = [row["name"] for row in run.result["team"]]
    assert names == ["leader from scratch", "leader", "follower0", "team, mean"]
