"""Every strategy, and fuse, on texts with one answer and on words with one each."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from problems import After, config, lab, plain, same, told
from sftc import build
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused, Stopped
from sftc.fusion import compare, make
from sftc.fusion.folds import assign
from sftc.fusion.honest import crossfit, held_together
from sftc.losses import Soft
from sftc.objective import Learner, Live, Objective
from sftc.store import Run
from sftc.strategies import weighing
from sftc.tasks import Classification, Tagging
from texts import bert, write_conll, write_csv

KINDS = ("text_csv", "conll")
SMALL_CNN = ("model=text_cnn", "model.min_count=1", "model.dim=16", "model.channels=8", "optim.lr=0.01")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    home = tmp_path_factory.mktemp("texts")
    return {"text_csv": write_csv(home / "csv"), "conll": write_conll(home / "conll")}


def of(kind, roots, *more):
    return (f"data={kind}", f"data.root={roots[kind]}", "data.limit=null", *SMALL_CNN, *more)


def encoder() -> tuple[str, ...]:
    return ("model=hf", f"model.path={bert()}", "model.max_length=64")


@pytest.fixture(scope="module")
def taught_by(roots, tmp_path_factory) -> dict[str, Run]:
    """Encoders of another tokeniser than the students'."""
    home, out = tmp_path_factory.mktemp("teachers"), {}
    for kind in KINDS:
        words = (f"data={kind}", f"data.root={roots[kind]}", "data.limit=null", *encoder(), "optim.lr=3e-3", "epochs=6")
        out[kind] = plain(home / kind, *words)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_is_resumed_exactly_and_opens_from_its_folder(kind, roots, tmp_path):
    words = of(kind, roots, "epochs=8", "model.dropout=0.1", "checkpoint.steps=2", "optim.lr=0.02")
    whole = plain(tmp_path / "whole", *words)
    with pytest.raises(Stopped):
        plain(tmp_path / "cut", *words, stop=After(4))
    cut = plain(tmp_path / "cut", *words)
    assert same(whole, cut)
    assert whole.result["test"]["accuracy"] > 0.75
    assert (whole.result["monitor"] == "span_f1") == (kind == "conll")
    home = Bench(Device(**whole.config["device"])).open(whole.path)
    assert home.measure(home.restore(), "val")[1] == pytest.approx(whole.result["val"], abs=1e-6)


@pytest.mark.parametrize("outputs", ["live", "cached"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_from_an_encoder_of_another_tokeniser(kind, outputs, roots, taught_by, tmp_path):
    words = of(kind, roots, "strategy=kd", f"strategy.teachers=[{taught_by[kind].path}]", "data.unlabeled=0.5")
    run = told(tmp_path / "run", *words, f"strategy.teacher_outputs={outputs}", "epochs=4", "strategy.allow_weak=true")
    assert run.finished
    row = run.rows()[-1]
    assert row["train/soft"] > 0
    assert 0 <= row["val/agreement"] <= 1


def test_live_and_stored_answers_about_words_are_the_same(roots, taught_by, tmp_path):
    words = of("conll", roots, "strategy=kd", f"strategy.teachers=[{taught_by['conll'].path}]", "micro_batch_size=7")
    runs = [
        told(tmp_path / how, *words, f"strategy.teacher_outputs={how}", "strategy.allow_weak=true")
        for how in ("live", "cached")
    ]
    one, two = (run.rows()[-1]["train/soft"] for run in runs)
    assert one == pytest.approx(two, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_peers_learn_from_each_other(kind, roots, tmp_path):
    run = told(tmp_path / "run", *of(kind, roots, "strategy=kd", "strategy.peers=2"))
    assert run.finished


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "words",
    [
        ("strategy.members=bagging", "strategy.lockstep=true"),
        ("strategy.members=folds", "strategy.models=[text_cnn,bag_of_embeddings]", "fuse@strategy.fuse=stacking"),
        ("strategy.members=snapshot",),
        ("strategy.members=models", "strategy.models=[text_cnn,bag_of_embeddings]", "fuse@strategy.fuse=all"),
    ],
    ids=lambda words: words[0],
)
def test_teams(kind, words, roots, tmp_path):
    run = told(tmp_path / "run", *of(kind, roots, "strategy=ensemble", "strategy.n=2", *words))
    assert run.finished
    home = Bench(Device(**run.config["device"])).open(run.path)
    assert home.measure(home.restore(), "val")[1]["accuracy"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_soup_of_encoders(kind, roots, tmp_path):
    words = (f"data={kind}", f"data.root={roots[kind]}", "data.limit=null", *encoder(), "optim.lr=1e-3")
    words += ("strategy=ensemble", "strategy.n=2", "fuse@strategy.fuse=soup", "strategy.fuse.barrier=1")
    run = told(tmp_path / "run", *words)
    assert run.finished
    assert not run.fused


def test_a_net_of_an_encoders_pooled_output_follows_it(roots, taught_by, tmp_path):
    words = ("data=text_csv", f"data.root={roots['text_csv']}", "data.limit=null", *encoder(), "strategy=leader")
    words += (f"strategy.source={taught_by['text_csv'].path}", "strategy.keep=2", "strategy.followers=[{tap:net.pool}]")
    run = told(tmp_path / "run", *words)
    assert run.finished
    assert (run.path / "members" / "follower0" / "result.json").is_file()


def test_boosting_words_is_refused_in_one_line(roots, tmp_path):
    with pytest.raises(Refused, match="rows here have several"):
        told(tmp_path / "run", *of("conll", roots, "strategy=ensemble", "strategy.members=boosting"))


@pytest.mark.parametrize("words", [SMALL_CNN, ("model=bilstm", "model.min_count=1"), ("model=hf",)], ids=lambda w: w[0])
def test_texts_are_not_stacked_and_that_is_said(words, roots, tmp_path):
    words = encoder() if words == ("model=hf",) else words
    words += ("data=text_csv", f"data.root={roots['text_csv']}", "data.limit=null", "model.dropout=0")
    team = ("strategy=ensemble", "strategy.n=2", "strategy.lockstep=vmap")
    with pytest.raises(Refused, match=r"lockstep=vmap: prepare cuts texts .*strategy\.lockstep=true"):
        told(tmp_path / "run", *words, *team)


def test_runs_of_other_tokenisers_are_fused(roots, taught_by, tmp_path):
    cnn = plain(tmp_path / "cnn", *of("conll", roots))
    cfg = config(f"runs=[{cnn.path},{taught_by['conll'].path}]", "fuse=weighted", "quiet=true", command="fuse")
    build.fuse(cfg, tmp_path / "fused", [], "sftc fuse")
    team = Run(tmp_path / "fused").result
    assert team["val"]["span_f1"] >= 0


def test_folds_of_many_answers_keep_rows_together():
    row = torch.arange(40).repeat_interleave(torch.arange(40) % 4 + 1)
    target = torch.randint(0, 3, (len(row),), generator=torch.Generator().manual_seed(0))
    task = Tagging(["O", "B-A", "I-A"])
    fold = assign(task, target, 5, 0, row)
    assert all(len(fold[row == r].unique()) == 1 for r in row.unique())
    assert torch.bincount(fold.unique(return_inverse=True)[1]).numel() == 5
    one = torch.arange(len(row))
    assert torch.equal(assign(task, target, 5, 0, one), assign(task, target, 5, 0))
    scores = torch.rand(2, len(row), 3, generator=torch.Generator().manual_seed(1)).softmax(2)
    assert torch.equal(held_together(task, target, row=row), fold)
    out = crossfit(make("weighted", task), scores, target, row=row)
    assert not torch.equal(out, crossfit(make("weighted", task), scores, target))


def test_a_bootstrap_draws_whole_rows():
    """Answers of a row that are all alike are one observation, however many they are."""
    task = Classification(["a", "b"])
    right = (torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.6).long()
    base = torch.tensor([[0.9, 0.1]]).expand(60, 2)
    better = torch.where(right[:, None] == 0, torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9]))
    target, row = torch.full((60,), 1), torch.arange(60)
    alone = compare.against(task, [better], base, target)[0]["accuracy"]
    ten = lambda x: x.repeat_interleave(10, 0)  # noqa: E731
    whole = compare.against(task, [ten(better)], ten(base), ten(target), row=ten(row))[0]["accuracy"]
    flat = compare.against(task, [ten(better)], ten(base), ten(target))[0]["accuracy"]
    assert (whole["low"], whole["high"]) == pytest.approx((alone["low"], alone["high"]))
    assert flat["high"] - flat["low"] < 0.5 * (whole["high"] - whole["low"])


def test_span_f1_is_the_same_of_dense_and_of_stored_scores(roots, tmp_path):
    run = plain(tmp_path / "run", *of("conll", roots, "epochs=3"))
    home = lab(tmp_path / "again", *of("conll", roots))
    stored = weighing.scored(home.task, run.predictions("val")[0])
    assert stored["span_f1"] == pytest.approx(run.result["val"]["span_f1"])
    assert stored["accuracy"] == pytest.approx(run.result["val"]["accuracy"])


def test_padding_teaches_nobody(roots, tmp_path):
    """Places without a word count nothing, in terms that need no label either."""
    home = lab(tmp_path / "run", *of("conll", roots))
    batch = next(iter(home.source("train", train=True).epoch(0)))
    teacher = Live(home.model(), home.device)
    made = Objective([Learner(home.model(), home.task, terms={"soft": Soft()}, teachers=[teacher])], home.device)
    made.prepare([batch])
    weight = made.totals([batch])["student", "soft"]
    assert float(weight[0]) == float((batch.target >= 0).sum()) < batch.target.numel()


@pytest.mark.parametrize(("kind", "pooling"), [("text_csv", "pooler"), ("text_csv", "mean"), ("conll", "mean")])
def test_an_exported_encoder_is_opened_by_plain_transformers(kind, pooling, roots, tmp_path):
    import transformers

    words = (f"data={kind}", f"data.root={roots[kind]}", "data.limit=null", *encoder(), f"model.pooling={pooling}")
    run, out = plain(tmp_path / "run", *words), tmp_path / "out"
    build.export(config(f"run={run.path}", f"out={out}", "format=hf", command="export"))
    home = Bench(Device(**run.config["device"])).open(run.path)
    model, batch = home.restore(), next(iter(home.source("val").epoch(0)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    texts = [bytes(row.numpy()).rstrip(b"\0\x1f").decode() for row in batch.inputs]
    many = kind == "conll"
    given = tokenizer(
        [t.split("\x1f") for t in texts] if many else texts, is_split_into_words=many, padding=True, return_tensors="pt"
    )
    if pooling == "mean" and not many:
        hidden, mask = (
            transformers.AutoModel.from_pretrained(out)(**given).last_hidden_state,
            given["attention_mask"][..., None],
        )
        head = load_file(out / "head.safetensors")
        theirs = (hidden * mask).sum(1) / mask.sum(1) @ head["weight"].T + head["bias"]
    else:
        auto = transformers.AutoModelForTokenClassification if many else transformers.AutoModelForSequenceClassification
        opened = auto.from_pretrained(out)
        assert list(opened.config.id2label.values()) == home.facts.class_names
        theirs = opened(**given).logits
    ours = model(batch.inputs)
    if many:
        at = model.prepare(batch.inputs).at
        theirs = theirs.flatten(0, 1)[at.clamp_min(0)].movedim(-1, 1)
        ours, theirs = (x.masked_fill((at < 0).unsqueeze(1), 0) for x in (ours, theirs))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)
