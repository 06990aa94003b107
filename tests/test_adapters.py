"""Adapters: they move alone, say what their folded weights say, and leave an ordinary run behind."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from problems import After, config, lab, plain, same, stirred, told
from sftc import build, models, optim
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused, Stopped
from sftc.models import surgery
from sftc.optim import adapters
from sftc.store import Run
from sftc.types import Form
from texts import bert, write_csv

TEXT = Form((), "text", corpus=lambda: ["a goal"])
PICTURE, TABLE = Form((3, 32, 32)), Form((9,))
NETS = {
    "bert": ({"family": "hf", "path": "bert"}, TEXT),
    "gpt2, weights turned round": ({"family": "hf", "path": "gpt2"}, TEXT),
    "bert, by name": ({"family": "hf", "path": "bert", "targets": ["query", "layer.1.*.dense"]}, TEXT),
    "vit": ({"family": "timm", "name": "test_vit"}, PICTURE),
    "convolutions": ({"family": "timm", "name": "test_resnet", "targets": ["conv2", "layer3.*.conv1"]}, PICTURE),
    "mlp": ({"family": "mlp", "name": "mlp"}, TABLE),
    "ft_transformer": ({"family": "ft_transformer", "name": "ft_transformer"}, TABLE),
}


def way(**more) -> optim.Finetune:
    return optim.finetune({"name": "lora", "r": 4, "alpha": 8, "dropout": 0.0, "targets": "auto", **more})


def net(key: str) -> tuple[nn.Module, torch.Tensor, dict]:
    spec, form = NETS[key]
    more = {"targets": spec["targets"]} if "targets" in spec else {}
    spec = {k: v for k, v in spec.items() if k != "targets"} | {"name": spec.get("name", "hf"), "pretrained": False}
    if spec["family"] == "hf":
        spec |= {"path": bert(spec["path"]), "max_length": 64}
    torch.manual_seed(0)
    model = models.build(spec, out_dim=3, form=form)
    inputs = form.blank(5)
    inputs = torch.randint(97, 122, (5, 9), dtype=torch.uint8) if form.kind == "text" else torch.rand_like(inputs) * 255
    return stirred(model), inputs, more


@pytest.mark.parametrize("key", NETS)
def test_every_adapter_learns_and_folded_weights_say_the_same(key):
    model, inputs, more = net(key)
    finetune, start, names = way(**more), model(inputs), list(model.state_dict())
    said = finetune.moving(model, inputs)
    finetune.begin(model, inputs, seed=1)
    assert torch.equal(model(inputs), start)  # adapters begin with nothing to say
    moving = {n: p for n, p in model.named_parameters() if p.requires_grad}
    heads = tuple(f"{head}." for head in surgery.head_names(model))
    beside = {n: p for n, p in moving.items() if not n.startswith(heads)}
    assert beside
    assert len(beside) < len(moving)
    assert all(".lora_A." in n or ".lora_B." in n for n in beside)
    assert said.startswith(f"{sum(p.numel() for p in moving.values()):,} weights")
    assert {id(p) for g in finetune.groups(model, 0.1, 0) for p in g["params"]} == set(map(id, moving.values()))
    for name, p in beside.items():
        if ".lora_B." in name:
            nn.init.normal_(p, 0, 0.3)
    there = model(inputs)
    there.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in beside.values())  # none that nobody calls
    assert (there - start).abs().max() > 1e-2
    state = {k: v.clone() for k, v in finetune.weights(model).items()}
    finetune.end(model)
    assert list(model.state_dict()) == list(state) == names
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(model(inputs), there, atol=2e-5, rtol=1e-4)


def test_first_weights_follow_the_seed_alone():
    def first(seed: int) -> torch.Tensor:
        model, inputs, _ = net("mlp")
        torch.manual_seed(torch.seed() % 1000)
        before = torch.get_rng_state()
        way().begin(model, inputs, seed)
        assert torch.equal(torch.get_rng_state(), before)
        return next(p for n, p in model.named_parameters() if ".lora_A." in n).detach()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_layers_that_are_never_called_get_none():
    class Reads(nn.Module):
        """As BEiT does: the weight is read, the layer never called."""

        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj, self.head = nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.proj(nn.functional.linear(x, self.qkv.weight)))

    inputs = torch.rand(2, 9)
    made = adapters.Adapters(4, 8, 0.0, "auto")
    assert made.paths(Reads(), inputs) == ["proj"]
    with pytest.raises(Refused, match="the weights of qkv without calling it"):
        adapters.Adapters(4, 8, 0.0, ["qkv"]).paths(Reads(), inputs)
    block = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 16), nn.Linear(16, 16), nn.Linear(16, 3))
    assert made.paths(block, torch.rand(2, 5, 16)) == ["1"]  # torch's fast path calls none of its layers


@pytest.mark.parametrize(
    ("key", "more", "said"),
    [
        ("mlp", {"r": 0}, r"finetune\.r=0 must be at least 1"),
        ("mlp", {"alpha": 0}, r"finetune\.alpha=0 above 0"),
        ("mlp", {"dropout": 1}, r"finetune\.dropout=1 must lie"),
        ("mlp", {"targets": []}, "neither auto nor a list"),
        ("mlp", {"targets": "query"}, "neither auto nor a list"),
        ("mlp", {"r": 4000}, r"finetune\.r=4000 is more than any dense layer can have"),
        ("bert", {"targets": ["qery"]}, "no layer is called qery; did you mean 'query'"),
        ("bert", {"targets": ["LayerNorm"]}, "is of kind LayerNorm, which can have no adapter"),
        ("bert", {"targets": ["net.head"]}, "is the head, which learns as a whole"),
        ("bert", {"targets": ["query"], "r": 33}, r"finetune\.r=33 is more than the 32 of .*query"),
        ("convolutions", {}, "no dense layer but its head; name convolutions by finetune.targets"),
    ],
)
def test_wrong_choices_are_refused_in_one_line(key, more, said):
    model, inputs, _ = net(key)
    with pytest.raises(Refused, match=said) as e:
        way(**more).begin(model, inputs)
    assert "\n" not in str(e.value)


def test_without_peft_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(Refused, match=r"finetune=lora needs peft: pip install 'sftc\[text\]'"):
        way()


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    root = write_csv(tmp_path_factory.mktemp("texts"))
    node = ("data=text_csv", f"data.root={root}", "data.limit=null", "model=hf", f"model.path={bert()}")
    return (*node, "model.max_length=64", "finetune=lora", "finetune.r=4", "optim.lr=0.02")


@pytest.fixture(scope="module")
def run(words, tmp_path_factory) -> Run:
    return plain(tmp_path_factory.mktemp("runs") / "lora", *words, "epochs=4")


def opened(run: Run):
    return Bench(Device(**run.config["device"])).open(run.path)


def test_a_run_holds_an_ordinary_model_that_moved_by_low_rank(run, words, tmp_path):
    assert run.result["val"]["nll"] < 1.05  # of guessing among three: 1.10
    start = lab(tmp_path / "start", *words).model().state_dict()
    end = run.weights()
    assert end.keys() == start.keys()
    moved = {k for k in end if not torch.equal(end[k], start[k])}
    assert {k for k in moved if k.startswith("net.head.")} == {"net.head.weight", "net.head.bias"}
    layers = {k for k in moved if not k.startswith("net.head.")}
    assert len(layers) == 12
    for key in layers:
        assert key.endswith(".weight")
        values = torch.linalg.svdvals(end[key] - start[key])
        assert values[3] > 1e-4 > values[4] * 10
    assert "peft" not in json.dumps(run.config)
    notes = " ".join(run.environment["notes"])
    assert "adapters of rank 4 on 12 layers" in notes
    assert run.result["val"]["loss"] == pytest.approx(run.result["best"]["val"]["loss"], rel=1e-4)  # folded, and not
    last = run.weights("last")
    assert last.keys() == start.keys()
    assert {k for k in last if not torch.equal(last[k], start[k])} == moved


@pytest.mark.parametrize("more", [("ema=0.9",), ("finetune.dropout=0.3", "model.dropout=0.1", "optim=adamw")])
def test_stopped_and_resumed_it_ends_bit_identical(more, words, tmp_path):
    settings = (*words, "epochs=2", "checkpoint.steps=2", *more)
    whole = plain(tmp_path / "whole", *settings)
    for steps in (2, 2):  # three steps an epoch
        with pytest.raises(Stopped):
            plain(tmp_path / "cut", *settings, stop=After(steps))
    assert same(plain(tmp_path / "cut"), whole)
    assert "hf" in str(whole.config["model"]["family"])


def test_a_state_of_another_rank_is_refused_in_one_line(words, tmp_path):
    with pytest.raises(Stopped):
        plain(tmp_path / "run", *words, stop=After(2))
    file = tmp_path / "run" / "config.yaml"
    held = yaml.safe_load(file.read_text())
    for node, said in (({"r": 5}, "does not fit its own config"), ({"r": 1 << 40}, "lower it"), ({"r": -1}, "r=-1")):
        file.write_text(yaml.safe_dump(held | {"finetune": held["finetune"] | node}))
        with pytest.raises(Refused, match=said) as e:
            plain(tmp_path / "run")
        assert "\n" not in str(e.value)


def test_exported_without_peft_it_says_what_it_said_unfolded(words, tmp_path, monkeypatch):
    import transformers

    said = {}
    fold = adapters.fold

    def spy(model: nn.Module) -> None:
        batch = next(iter(home.source("val").epoch(0)))
        said.update(inputs=batch.inputs, logits=model.eval()(batch.inputs).detach())
        assert any(".lora_A." in n for n, _ in model.named_parameters())
        fold(model)

    monkeypatch.setattr(adapters, "fold", spy)
    home = lab(tmp_path / "run", *words, "model.pooling=pooler")
    (fitted,) = home.fit(home.learner(home.model()))
    home.keep(fitted)
    run = home.run
    monkeypatch.setitem(sys.modules, "peft", None)
    for name in ("sftc", "hf"):
        build.export(config(f"run={run.path}", f"out={tmp_path / name}", f"format={name}", command="export"))
    close = {"atol": 1e-5, "rtol": 1e-4}
    model = opened(run).restore()
    model.load_state_dict(load_file(tmp_path / "sftc" / "model.safetensors"))
    torch.testing.assert_close(model(said["inputs"]), said["logits"], **close)
    texts = [bytes(row.numpy()).rstrip(b"\0").decode() for row in said["inputs"]]
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")(texts, padding=True, return_tensors="pt")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")(**tokens).logits
    torch.testing.assert_close(theirs, said["logits"], **close)
    build.evaluate(config(f"run={run.path}", "split=val", command="eval"))


def test_it_teaches_and_is_fused_and_leads_without_peft(run, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    small = (*words[:3], "model=text_cnn", "model.min_count=1", "model.dim=16", "model.channels=8", "optim.lr=0.01")
    student = told(tmp_path / "kd", *small, "strategy=kd", f"strategy.teachers=[{run.path}]")
    assert student.rows()[-1]["train/soft"] > 0
    build.fuse(
        config(f"runs=[{run.path},{student.path}]", "fuse=weighted", "quiet=true", command="fuse"),
        tmp_path / "fused",
        [],
        "sftc fuse",
    )
    assert Run(tmp_path / "fused").result["val"]["accuracy"] >= 0.5
    full = [w for w in words if not w.startswith("finetune")]
    led = (f"strategy.source={run.path}", "strategy.keep=2", "strategy.followers=[{tap:net.pool}]")
    assert told(tmp_path / "led", *full, "strategy=leader", *led).finished


def test_members_with_adapters_are_trained_in_lockstep_and_make_a_soup(words, tmp_path):
    team = (*words, "strategy=ensemble", "strategy.n=2", "epochs=1")
    apart = told(tmp_path / "apart", *team, "fuse@strategy.fuse=soup", "strategy.fuse.barrier=1")
    assert not apart.fused
    together = told(tmp_path / "together", *team, "strategy.lockstep=true")
    for name in ("member0", "member1"):
        one, two = (Run(team.member(name)).weights() for team in (apart, together))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one)
    with pytest.raises(Refused, match="lockstep=vmap cannot stack adapters"):
        told(tmp_path / "stacked", *team, "strategy.lockstep=vmap")


def test_a_picture_model_takes_them_too(tmp_path):
    vit = ("model=timm", "model.name=test_vit", "model.pretrained=false", "finetune=lora")
    run = plain(tmp_path / "run", *vit, "epochs=1")
    assert opened(run).restore()
    with pytest.raises(Refused, match=r"penalty\.l2_sp=0\.1 holds weights near their start"):
        build.parts.check(config(*vit, "penalty.l2_sp=0.1"))
