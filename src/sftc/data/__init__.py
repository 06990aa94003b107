"""Data sets by name: `check` what needs no data, `build` a Data. Knows no model, no strategy, no task.

To add one: a function that returns a `Raw` in this folder, a row in READERS, a YAML in conf/data, a test.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
import torch
from torch.nn.functional import interpolate

from sftc.data import audio, bundled, classic_tables, classics, conll, folder, masks, segmentation, tabular, text
from sftc.data.audio_augment import Changes, SoundAugment
from sftc.data.augment import Augment
from sftc.data.rows import ArrayTable, Data, Split, Table
from sftc.data.split import Raw, chosen, repeated, splits, weights
from sftc.errors import Refused, choose, nearest

__all__ = ["READERS", "Augment", "Changes", "Data", "SoundAugment", "Split", "Table", "build", "check"]


class Reader:
    """How a data set is opened, and what is known before."""

    __slots__ = ("check", "form", "kind", "locate", "open")

    def __init__(
        self,
        open: Callable[..., Raw],
        kind: str | None = "classes",
        form: str = "picture",
        locate: Callable[[str | None], object] | None = None,
        check: Callable[[Mapping[str, Any]], None] = lambda own: None,
    ) -> None:
        self.open = open  # its keyword arguments are its keys in the YAML
        self.kind = kind  # None: the key `kind` says
        self.form = form  # of its rows, a kind of types.Form
        self.locate = locate  # refuses a root without the files
        self.check = check  # refuses values of its own keys


READERS = {
    "digits": Reader(bundled.digits),
    "breast_cancer": Reader(classic_tables.breast_cancer, form="table"),
    "wine": Reader(classic_tables.wine, form="table"),
    "iris": Reader(classic_tables.iris, form="table"),
    "diabetes": Reader(classic_tables.diabetes, "values", form="table"),
    "mnist": Reader(classics.mnist, locate=classics.locate_mnist),
    "fashion_mnist": Reader(classics.fashion_mnist, locate=classics.locate_fashion),
    "cifar10": Reader(classics.cifar10, locate=classics.locate_cifar),
    "cifar100": Reader(classics.cifar100, locate=classics.locate_cifar100),
    "image_folder": Reader(folder.image_folder, locate=folder.locate),
    "fake": Reader(bundled.fake, None),
    "tabular": Reader(tabular.tabular, None, form="table", locate=tabular.locate, check=tabular.check),
    "text_csv": Reader(text.text_csv, form="text", locate=text.locate_files),
    "text_folder": Reader(text.text_folder, form="text", locate=folder.locate),
    "conll": Reader(conll.conll, "tags", "text", locate=conll.locate),
    "audio_folder": Reader(audio.audio_folder, form="sound", locate=audio.locate),
    "audio_csv": Reader(audio.audio_csv, form="sound", locate=audio.locate_csv),
    "segmentation_folder": Reader(segmentation.segmentation_folder, "pixels", locate=segmentation.locate),
}
HOLDS = {"picture": "images", "table": "tables", "text": "texts", "sound": "sounds"}  # in words
CHANGES: dict[str, Any] = {"picture": Augment, "sound": SoundAugment}  # what augments rows of a form
GIVEN = ("model_size", "like")  # to readers by `build`: no keys

# The keys every data set has, with their defaults; conf/data/_base.yaml describes them.
COMMON: dict[str, Any] = {
    "root": None,
    "download": False,
    "size": "auto",
    "limit": None,
    "eval_limit": None,
    "classes": None,
    "val_share": 0.1,
    "test_share": 0.2,
    "split_seed": 0,
    "unlabeled": None,
    "class_weights": "none",
    "cache": "auto",
    "workers": None,
    "views": None,
    "on_error": "fail",
    "augment": {},
}


def check(spec: Mapping[str, Any]) -> None:
    """Refuse what can be refused without reading data: keys, values, contradictions, a root without files.

    Raises:
        Refused: with one line that names the key and the way out.
    """
    reader, own, common = _parse(spec)
    _check_common(reader, own, common, str(spec["name"]))
    reader.check(own)
    _check_augment(reader, own, common)
    if reader.locate is not None and not common["download"]:
        reader.locate(common["root"])


def build(
    spec: Mapping[str, Any],
    *,
    model_size: int | None = None,
    like: Any = None,
    quantiles: Sequence[float] | None = None,
) -> Data:
    """Open a data set.

    Args:
        spec: the `data` group as plain types; keys left out have the defaults of conf/data.
        model_size: the largest model input of the run, where it is known: what data.size=auto may choose.
        like: facts of a run whose model will read the rows: they come its way, not the way they suggest themselves.
        quantiles: to be predicted of each value: its target then stands once for each of them.

    Raises:
        Refused: see `check`; also classes that differ between splits, a split with no rows, an unknown class,
            files that cannot be read.
    """
    check(spec)
    reader, own, common = _parse(spec)
    takes = inspect.signature(reader.open).parameters
    size = None if common["size"] == "auto" else int(common["size"])
    given = {k: common[k] for k in ("root", "download", "on_error")} | {
        "size": size,
        "model_size": model_size,
        "like": like,
    }
    raw = reader.open(**own, **{k: v for k, v in given.items() if k in takes})
    if size is not None and "size" not in takes:
        raw.tables = {name: _resized(load, size) for name, load in raw.tables.items()}
    numbers = chosen(raw.kind, raw.class_names, common["classes"])
    if raw.kind == "pixels" and numbers is not None:
        raw.tables = {name: segmentation.only(load, numbers) for name, load in raw.tables.items()}
    shares = {k: common[k] for k in ("limit", "eval_limit", "val_share", "test_share", "split_seed", "unlabeled")}
    parts = splits(raw, numbers=numbers, **shares)
    if quantiles and raw.kind == "values":
        parts = {name: repeated(split, len(quantiles)) for name, split in parts.items()}
        raw.class_names = [f"{name} q{q:g}" for name in raw.class_names for q in quantiles]
    labelled = _labelled(parts["train"], common["unlabeled"])
    data = Data(
        name=str(spec["name"]),
        kind=raw.kind,
        splits=parts,
        class_names=raw.class_names if numbers is None else [raw.class_names[i] for i in numbers],
        augment=_augment(reader, common["augment"], parts["train"].table),
        notes=raw.notes,
        **{k: common[k] for k in ("split_seed", "cache", "workers", "views", "on_error")},
    )
    _check_built(data)
    if raw.kind == "pixels" and common["class_weights"] == "balanced":
        train = parts["train"]
        seen = train.rows[train.target[train.rows] >= 0]
        data.class_counts = masks.counts(train.table, seen, data.out_dim, skip=common["on_error"] == "skip")
    data.class_weights = weights(common["class_weights"], data.class_counts, raw.kind, labelled)
    return data


def _parse(spec: Mapping[str, Any]) -> tuple[Reader, dict[str, Any], dict[str, Any]]:
    """The reader, its own keys, and the common ones completed by their defaults."""
    if "name" not in spec:
        raise Refused(f"data.name is missing (one of: {', '.join(READERS)})")
    reader = READERS[choose("data", str(spec["name"]), READERS)]
    takes = set(inspect.signature(reader.open).parameters) - COMMON.keys() - set(GIVEN)
    own = {k: v for k, v in spec.items() if k in takes}
    for key in spec.keys() - takes - COMMON.keys() - {"name"}:
        raise Refused(f"data.{key} is not known for data={spec['name']}{nearest(key, [*takes, *COMMON])}")
    common = COMMON | {k: v for k, v in spec.items() if k in COMMON}
    return reader, own, common


def _check_common(reader: Reader, own: dict[str, Any], common: dict[str, Any], name: str) -> None:
    takes = inspect.signature(reader.open).parameters
    if reader.locate is None and (common["root"] is not None or common["download"]):
        raise Refused(f"data={name} needs no files: leave out data.root and data.download")
    if common["download"] and "download" not in takes:
        raise Refused(f"data={name} cannot be downloaded: leave out data.download, set data.root")
    choose("data.on_error", common["on_error"], ("fail", "skip"))
    choose("data.cache", common["cache"], ("auto", "device", "host", "none"))
    size = common["size"]
    if size != "auto" and (not isinstance(size, int) or size < 1):
        raise Refused(f"data.size={size} must be auto or a number of pixels")
    if reader.form != "picture" and size != "auto":
        raise Refused(f"data={name} holds {HOLDS[reader.form]}, not images: leave out data.size")
    for key in ("limit", "eval_limit"):
        value = common[key]
        if value is not None and (value <= 0 or (isinstance(value, float) and value >= 1)):
            raise Refused(f"data.{key}={value} must be a number of rows, or a share below 1")
    for key, least in (("val_share", False), ("test_share", True), ("unlabeled", True)):
        value = common[key]
        if value is not None and not (0 < value < 1 or (least and value == 0)):
            raise Refused(f"data.{key}={value} must be a share of the rows between 0 and 1")
    _check_targets(_kind(reader, own), common)


def _kind(reader: Reader, own: dict[str, Any]) -> str:
    return reader.kind or own.get("kind", "classes")


def _check_targets(kind: str, common: dict[str, Any]) -> None:
    given = common["class_weights"]
    if isinstance(given, str):
        choose("data.class_weights", given, ("none", "balanced"))
    elif given is not None and not all(_above_zero(w) for w in given):
        raise Refused(
            f"data.class_weights={given} must be finite numbers above 0, one for each class; "
            "data.classes leaves classes out"
        )
    if given not in (None, "none") and kind == "values":
        raise Refused("data.class_weights needs classes or labels, and this data set has values: set it to none")
    if common["classes"] is not None and kind in ("values", "tags"):
        raise Refused(f"data.classes chooses among classes or labels, and this data set has {kind}: leave it out")


def _above_zero(weight: object) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < math.inf


def _check_augment(reader: Reader, own: dict[str, Any], common: dict[str, Any]) -> None:
    known = {form: _defaults(made) for form, made in CHANGES.items()}
    keys = [key for some in known.values() for key in some]
    for key, value in common["augment"].items():
        form = next((form for form, some in known.items() if key in some), None)
        if form is None:
            raise Refused(f"data.augment.{key} is not known{nearest(key, keys)} (one of: {', '.join(keys)})")
        if form != reader.form and value != known[form][key]:
            mine = HOLDS[reader.form]
            raise Refused(f"data.augment.{key} changes {HOLDS[form]}, and this data set holds {mine}: leave it out")
    augment = _augment(reader, common["augment"])
    if augment.mixes and _kind(reader, own) == "values":
        raise Refused("data.augment: mixup and cutmix mix classes, and this data set has values: set both to 0")


def _defaults(made: Callable[..., Any]) -> dict[str, Any]:
    return {k: p.default for k, p in inspect.signature(made).parameters.items() if k != "rate"}


def _augment(reader: Reader, node: Mapping[str, Any], table: Table | None = None) -> Changes:
    """What changes the rows of this form; sounds are then read with room to be moved in."""
    made = CHANGES.get(reader.form, Augment)
    keys = {k: v for k, v in node.items() if k in _defaults(made)}
    if made is not SoundAugment or table is None:
        return made(**keys)
    sound: Any = table
    augment = SoundAugment(**keys, rate=sound.about["rate"])
    sound.make_room(augment.reach)
    return augment


def _check_built(data: Data) -> None:
    augment = data.augment
    if not isinstance(augment, Augment):
        return
    if augment.colours and data.shape[0] not in (1, 3):
        raise Refused(f"data.augment: randaugment and autoaugment need 1 or 3 channels, not {data.shape[0]}")
    if augment.crop and augment.crop > min(data.shape[1:]):
        raise Refused(f"data.augment.crop={augment.crop} is more than the images' {min(data.shape[1:])} pixels")


def _labelled(train: Split, unlabeled: float | None) -> torch.Tensor:
    """How many training rows have a label, for each column of floating targets; how many positions, of classes.

    Raises:
        Refused: none has.
    """
    target = train.target[train.rows]
    known = ~target.isnan() if target.is_floating_point() else (target >= 0).flatten()
    if unlabeled and not known.any():
        raise Refused(
            f"no training row has a label (data.unlabeled={unlabeled} of {len(train.rows)} rows): "
            "lower data.unlabeled or raise data.limit"
        )
    if not known.any():
        raise Refused("no training row of the source has a label: there is nothing to learn from")
    return known.sum(0)


def _resized(load: Callable[[], Table], size: int) -> Callable[[], Table]:
    """The same table with its images at another size (bilinear, antialiased), resized once."""

    def resized() -> Table:
        table = load()
        if not isinstance(table, ArrayTable) or table.shape[1:] == (size, size):
            return table
        if (needed := len(table.target) * table.shape[0] * size**2) > (room := psutil.virtual_memory().available):
            raise Refused(f"data.size={size} makes {needed:,} bytes of the images; memory has room for {room:,}")
        parts = [interpolate(part, (size, size), mode="bilinear", antialias=True) for part in table.inputs.split(4096)]
        return ArrayTable(torch.cat(parts), table.target)

    return resized
