"""`debug=smoke` works with every other choice: all pairs of options of all groups, read from conf/.

A new option joins by itself. It must train with everything else, or be refused in one line for a reason in REFUSED.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import masks
from clips import digits
from files import make, write_bikes, write_cifar, write_mnist, write_table
from sftc import build
from sftc.build.bench import Bench
from sftc.cli import compose, conf
from sftc.cli.options import chosen
from sftc.device import Device
from sftc.errors import Refused
from sftc.store import Run
from texts import bert, write_conll, write_csv, write_folder

DIRS = [conf.conf_dir()]
Choice = tuple[str, str]  # group, option with the further overrides that make it what it is
Row = dict[str, str]  # group -> option

# Options that are several things in one, or that need a word more.
VARIANTS = {
    ("data", "fake"): ["fake", "fake data.kind=labels", "fake data.kind=values"],
    ("data", "tabular"): [
        "tabular data.target=word data.drop=[value,hot,dry]",
        "tabular data.target=value data.drop=[word,hot,dry]",
        "tabular data.target=[hot,dry] data.drop=[word,value]",
    ],
    ("loss", "nll"): ["nll model.log_softmax=true"],
    **{("semi", name): [f"{name} data.unlabeled=0.5"] for name in ("pseudo", "fixmatch", "mean_teacher")},
}
# Options that need a machine of their own; without it they say so (tests of the device).
ELSEWHERE = {("device", "cuda"), ("device", "mps")}
# Teams are many runs: what their members may be is tested with them.
ELSEWHERE |= {("strategy", "ensemble"), ("strategy", "leader")}


def options() -> dict[str, list[str]]:
    return {
        group: [
            text for name in names if (group, name) not in ELSEWHERE for text in VARIANTS.get((group, name), [name])
        ]
        for group, names in conf.groups(DIRS).items()
        # Experiments set the other groups, debug is what is tested, and rules of fusion are for finished runs.
        if group not in (*conf.GLOBAL, "fuse")
    }


OPTIONS = options()
CSV = VARIANTS["data", "tabular"]
VALUES = {"diabetes", "fake data.kind=values", CSV[1]}
LABELS = {"fake data.kind=labels", CSV[2]}
TAGS = {"conll"}
CLASSES = set(OPTIONS["data"]) - VALUES - LABELS - TAGS
TEXTS = {"text_csv", "text_folder", "conll"}
READERS = {"bag_of_embeddings", "text_cnn", "bilstm", "hf"}  # models of texts
PIXELS = {"segmentation_folder"}
DENSE = {"fcn", "unet", "torchvision_segmentation"}
NLL = "nll model.log_softmax=true"
OWN = {"mlp", "wide_mlp", "simple_cnn", "wide_cnn", "linear"}
TABLES = {"breast_cancer", "diabetes", "iris", "wine", *CSV}
FOR_TABLES = {"dcn", "fm", "ft_transformer", "tab_resnet"}
# Models without a dense layer but their head.
FLAT = {"linear", "cifar", "resnet18", "resnet50", "vgg16", "inception_v3", "efficientnet_b0", "mobilenetv3"}
FLAT |= {"timm", "torchvision", "text_cnn", "bilstm", "bag_of_embeddings", "audio_cnn", "audio_bilstm"} | DENSE
SOUNDS = {"audio_folder", "audio_csv"}
FOR_SOUNDS = {"audio_cnn", "audio_bilstm"}

# Every reason why two options may exclude each other: (group, options), (group, options), what the one line says.
FIXMATCH = {s for s in OPTIONS["semi"] if s.startswith("fixmatch")}
OF_CLASSES = FIXMATCH | {s for s in OPTIONS["semi"] if s.startswith("pseudo")}
TWO_VIEWS = FIXMATCH | {s for s in OPTIONS["semi"] if s.startswith("mean_teacher")}
OF_VALUES = {"mse", "huber", "mae", "quantile"}
REFUSED = [
    # What a student makes of rows without a label is about classes.
    ("semi", set(OPTIONS["semi"]) - {"none"}, "data", LABELS | TAGS, r"semi=\w+ is for classes"),
    ("semi", set(OPTIONS["semi"]) - {"none"}, "loss", {"bce"}, r"loss=\w+ does not fit"),
    # Of values only the agreement with an average.
    ("semi", OF_CLASSES, "data", VALUES, "is for classes.*use semi=mean_teacher"),
    ("semi", OF_CLASSES, "loss", OF_VALUES, r"loss=\w+ does not fit"),
    ("semi", FIXMATCH, "data", TABLES | SOUNDS | TEXTS - TAGS, "augments pictures"),
    ("semi", FIXMATCH, "model", READERS | FOR_TABLES | FOR_SOUNDS, "reads (texts|rows of numbers|sounds).* simple_cnn"),
    # A loss is made for one kind of target.
    ("loss", {"cross_entropy", NLL}, "data", VALUES | LABELS, r"loss=\w+ does not fit"),
    ("loss", {"focal"}, "data", VALUES, "loss=focal does not fit"),
    ("loss", {"gce", "bootstrap"}, "data", VALUES | LABELS, r"loss=\w+ does not fit"),
    ("loss", {"bce"}, "data", CLASSES | VALUES | TAGS, "loss=bce does not fit"),
    ("loss", OF_VALUES, "data", CLASSES | LABELS | TAGS, r"loss=\w+ does not fit"),
    # Convolutions and patches need pictures, or sounds to make them of; nets for tables need columns.
    (
        "model",
        set(OPTIONS["model"]) - {"mlp", "wide_mlp", "linear"} - FOR_TABLES - READERS - FOR_SOUNDS,
        "data",
        TABLES,
        "reads pictures.* use model=mlp",
    ),
    (
        "model",
        FOR_TABLES,
        "data",
        set(OPTIONS["data"]) - TABLES - TEXTS,
        r"reads rows of numbers.* use model=(simple|audio)_cnn",
    ),
    # Texts have models of their own.
    ("model", READERS, "data", TABLES, "reads texts.* use model=mlp"),
    ("model", READERS, "data", set(OPTIONS["data"]) - TEXTS - TABLES, "reads texts.* use model=(simple|audio)_cnn"),
    ("model", set(OPTIONS["model"]) - READERS, "data", TEXTS, "use model=text_cnn"),
    # So have sounds, which are also read as pictures.
    ("model", FOR_SOUNDS, "data", set(OPTIONS["data"]) - SOUNDS - TEXTS, "reads sounds.* use model=(simple_cnn|mlp)"),
    # A class for each pixel needs nets that answer at each, and they nothing else.
    ("model", DENSE, "data", set(OPTIONS["data"]) - PIXELS - TABLES - TEXTS, "answers at every pixel"),
    ("model", set(OPTIONS["model"]) - DENSE - FOR_TABLES - READERS - FOR_SOUNDS, "data", PIXELS, "use model=unet"),
    ("loss", {NLL}, "data", PIXELS, "use model=unet"),
    ("semi", TWO_VIEWS, "data", PIXELS, "compares two views of a row|use model=unet"),
    ("semi", TWO_VIEWS, "model", DENSE, "answers at every pixel"),
    # Only our own nets can end in LogSoftmax.
    ("loss", {NLL}, "model", set(OPTIONS["model"]) - OWN, "log_softmax|LogSoftmax"),
    ("loss", {NLL}, "data", TEXTS, "use model=text_cnn"),
    ("loss", {"bce", *OF_VALUES}, "model", READERS | FOR_SOUNDS | DENSE, r"loss=\w+ does not fit"),  # of classes
    # The only block of a linear model is its head: nothing can be kept of it.
    ("model", {"linear"}, "finetune", {"first_n"}, r"finetune\.n=1"),
    # Adapters stand beside dense layers below the head.
    ("model", FLAT, "finetune", {"lora"}, "no dense layer but its head|reads (texts|sounds)|at every pixel"),
    ("data", PIXELS, "finetune", {"lora"}, "no dense layer but its head|use model=unet"),
    ("model", {"fm"}, "finetune", {"lora"}, r"finetune\.r=8 is more than any|reads rows of numbers"),
]


def refusal(a: Choice, b: Choice) -> str | None:
    """What is said when two choices meet; None if they go together."""
    for group, these, other, those, says in REFUSED:
        for x, y in ((a, b), (b, a)):
            if x[0] == group and y[0] == other and x[1] in these and y[1] in those:
                return says
    return None


def pairs() -> list[tuple[Choice, Choice]]:
    found = []
    for one, two in itertools.combinations(OPTIONS, 2):
        found += [((one, a), (two, b)) for a in OPTIONS[one] for b in OPTIONS[two]]
    return found


def cover(wanted: Sequence[tuple[Choice, Choice]], groups: dict[str, list[str]]) -> list[Row]:
    """Few rows, an option of every group each, that hold all wanted pairs and no refused one; greedy."""
    todo, rows, used = dict.fromkeys(wanted), [], dict.fromkeys(wanted, 0)
    while todo:
        row = complete(dict(next(iter(todo))), groups, todo)
        assert row is not None, f"{next(iter(todo))} fits into no row: REFUSED says too much"
        for pair in itertools.combinations([(g, row[g]) for g in groups], 2):
            todo.pop(pair, None)
            used[pair] = used.get(pair, 0) + 1
        rows.append(row)
    return rows


def complete(row: Row, groups: dict[str, list[str]], todo: dict[tuple[Choice, Choice], None]) -> Row | None:
    """`row` with an option of every group, those first that hold most pairs still to do; None if nothing fits."""
    left = [g for g in groups if g not in row]
    if not left:
        return row
    group = left[0]
    order = list(groups)

    def gain(option: str) -> int:
        new = [((g, o), (group, option)) for g, o in row.items()]
        return sum((p if order.index(p[0][0]) < order.index(group) else p[::-1]) in todo for p in new)

    for option in sorted(groups[group], key=gain, reverse=True):
        if all(refusal((g, o), (group, option)) is None for g, o in row.items()):
            found = complete({**row, group: option}, groups, todo)
            if found is not None:
                return {g: found[g] for g in groups}
    return None


ALLOWED = [p for p in pairs() if refusal(*p) is None]
ROWS = cover(ALLOWED, OPTIONS)
# Half a second each: our own nets. Those of the hubs take from two seconds to a minute.
LIGHT = [row for row in ROWS if row["model"] in OWN | FOR_TABLES]
SAMPLE = random.Random(0).sample(LIGHT, 10)


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> Iterator[dict[str, Path]]:
    """Files for every data set that reads files."""
    home = tmp_path_factory.mktemp("files")
    write_mnist(home / "mnist" / "MNIST" / "raw", zipped=False)
    write_mnist(home / "fashion_mnist" / "FashionMNIST" / "raw", zipped=True)
    make(home / "image_folder", n=8)
    digits(home / "audio_folder")
    digits(home / "audio_csv")
    masks.write(home / "segmentation_folder", 16)  # enough for two steps, where half of them have no label
    write_table(home / "tabular" / "train.csv")
    write_csv(home / "text_csv")
    write_folder(home / "text_folder")
    write_conll(home / "conll")
    write_bikes(home / "bike_sharing" / "train.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        write_cifar(home / "cifar10", "CIFAR10", patch)
        write_cifar(home / "cifar100", "CIFAR100", patch)
        yield {p.name: p for p in home.iterdir()}


def smoke(row: Row, roots: dict[str, Path], out: Path) -> Run:
    """What `sftc train debug=smoke GROUP=OPTION ...` does."""
    overrides = ["debug=smoke", "quiet=true", "device.threads=1"]
    overrides += [f"{group}={option}" for group, text in row.items() for option in text.split()[:1]]
    overrides += [word for text in row.values() for word in text.split()[1:]]
    named = row.get("experiment", "none").split(" ")[0], row.get("data", "").split(" ")[0]
    if (root := next((roots[name] for name in named if name in roots), None)) is not None:
        overrides.append(f"data.root={root}")
    if row.get("model") == "hf":
        places = ["model", "strategy.teacher"] if row.get("strategy") == "kd" else ["model"]
        overrides += [o for place in places for o in (f"{place}.path={bert()}", f"{place}.max_length=64")]
    if row.get("finetune") == "lora" and row.get("strategy") == "kd":  # who teaches it usually may have no dense layers
        overrides.append(f"model@strategy.teacher={row['model'].split()[0]}")
    cfg = compose.check_all("train", overrides, DIRS, sweep=False).values
    build.check(cfg)
    build.train(cfg, out, overrides, "sftc train")
    return Run.open(out)


def trains(row: Row, roots: dict[str, Path], out: Path) -> None:
    """It finishes, and its folder alone gives the numbers it reports."""
    run = smoke(row, roots, out)
    assert run.finished
    assert run.result["last"]["step"] == 2
    assert all(v.isfinite().all() for v in run.weights().values())
    lab = Bench(Device(**run.config["device"])).open(run.path)
    assert lab.measure(lab.restore(), "val")[1] == pytest.approx(run.result["val"], abs=0, nan_ok=True)


def shown(row: Row) -> str:
    return " ".join(f"{group}={option}" for group, option in row.items())


def test_the_rows_hold_all_pairs_that_go_together():
    met = {pair for row in ROWS for pair in itertools.combinations(row.items(), 2)}
    assert set(ALLOWED) <= met
    assert all(refusal(*pair) is None for pair in met)
    alone = {(g, o) for g, names in OPTIONS.items() for o in names}
    assert alone == {choice for row in ROWS for choice in row.items()}
    assert len(ROWS) < 2 * max(len(a) * len(b) for a, b in itertools.combinations(OPTIONS.values(), 2))


@pytest.mark.parametrize("row", SAMPLE, ids=shown)
def test_smoke_trains_on_a_sample_of_the_rows(row: Row, roots, tmp_path: Path):
    trains(row, roots, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=shown)
def test_smoke_trains_with_all_pairs(row: Row, roots, tmp_path: Path):
    try:
        trains(row, roots, tmp_path / "run")
    finally:
        for file in tmp_path.rglob("*.safetensors"):  # up to three gigabytes each, and there are many
            file.unlink()


def refused(pair: tuple[Choice, Choice], roots, out: Path) -> None:
    row = {"model": "mlp", **dict(pair)}
    with pytest.raises(Refused, match=refusal(*pair)) as error:
        smoke(row, roots, out)
    assert "\n" not in str(error.value)
    assert not out.exists()


EXCLUDED = [p for p in pairs() if refusal(*p) is not None]
ONE_EACH = list(
    {refusal(*p): p for p in EXCLUDED if ("loss", NLL) in p or p[0][1] in OWN or p[0][0] != "model"}.values()
)


@pytest.mark.parametrize("pair", ONE_EACH, ids=lambda p: shown(dict(p)))
def test_what_excludes_each_other_is_refused_in_one_line(pair, roots, tmp_path: Path):
    refused(pair, roots, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("pair", EXCLUDED, ids=lambda p: shown(dict(p)))
def test_all_that_exclude_each_other_are_refused_in_one_line(pair, roots, tmp_path: Path):
    refused(pair, roots, tmp_path / "run")


SLOW = {"kd_cifar10", "fusion_cifar10_resnet_vgg"}  # ResNet-50 at 224 pixels; VGG-16


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in conf.groups(DIRS)["experiment"]]
)
def test_smoke_runs_every_experiment(name: str, roots, tmp_path: Path):
    data = chosen(DIRS, "train", [f"experiment={name}"]).get("data")
    more = f" ++strategy.source.root={roots['cifar10']}" if name.startswith("leader_cifar10") else ""
    more += f" model.path={bert()} model.max_length=64" if name == "sft_bert" else ""
    more += " batch_size=4" if name == "camvid" else ""  # the pictures of two steps
    row = {"experiment": name + more, **({"data": data} if data else {})}
    run = smoke(row, roots, tmp_path / "run")
    assert run.finished
    assert run.result["last"]["step"] == (0 if run.fused else 2)
