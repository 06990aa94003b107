"""What a model must know of the data it learned from, kept in its run: it opens without that data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftc import columns
from sftc.data import Data
from sftc.errors import Refused
from sftc.store import Run
from sftc.store.forms import expect
from sftc.tasks import TASKS
from sftc.types import Form

FILE = "data.json"
TENSORS = ("class_weights", "input_mean", "input_std", "target_mean", "target_std")
FORM = {
    "name": str,
    "kind": str,
    "class_names": [str],
    "shape": [int],
    "form": str,
    "about": dict,
    **dict.fromkeys(TENSORS, object),
}
LARGEST = 1 << 24  # numbers along one side of a row


class Facts:
    """The attributes of `Data` that outlive it, by the same names."""

    def __init__(self, name: str, kind: str, class_names: list[str], form: Form, **tensors: Any) -> None:
        self.name = name
        self.kind = kind
        self.class_names = class_names
        self.out_dim = len(class_names)
        self.form = form
        self.shape = form.shape
        self.class_weights: Tensor | None = tensors["class_weights"]
        self.input_mean: Tensor | None = tensors["input_mean"]
        self.input_std: Tensor | None = tensors["input_std"]
        self.target_mean: Tensor | None = tensors["target_mean"]
        self.target_std: Tensor | None = tensors["target_std"]

    @classmethod
    def of(cls, data: Data) -> Facts:
        return cls(data.name, data.kind, data.class_names, data.form, **{k: getattr(data, k) for k in TENSORS})

    @classmethod
    def read(cls, run: Run) -> Facts:
        """Raises Refused: the run does not say, or not in this form."""
        node = run.read_json(FILE)
        path = run.path / FILE
        expect(path, node, FORM)
        try:
            tensors = {k: None if node[k] is None else _vector(node[k]) for k in TENSORS}
            form = Form(node["shape"], node["form"], node["about"])
            facts = cls(node["name"], node["kind"], node["class_names"], form, **tensors)
            facts._check()
        except (TypeError, ValueError, RuntimeError) as e:
            raise Refused(f"{path} is not what sftc train writes ({e})") from None
        return facts

    def expect(self, data: Data) -> None:
        """Raises Refused: `data` is not what these facts were taken from."""
        for key in ("kind", "class_names", "shape"):
            if getattr(data, key) != getattr(self, key):
                mine, there = str(getattr(self, key))[:80], str(getattr(data, key))[:80]
                raise Refused(f"data={data.name} has {key} {there}; the run learned from {mine}")

    def _check(self) -> None:
        """Raises ValueError: the parts are not of one data set."""
        if self.kind not in TASKS or not self.class_names or len(set(self.class_names)) < self.out_dim:
            raise ValueError(f"kind {self.kind}, {self.out_dim} classes")
        if self.form.kind != Form.KINDS.get(len(self.shape)) or not all(1 <= n <= LARGEST for n in self.shape):
            raise ValueError(f"{self.form.kind} rows of shape {list(self.shape)}")
        if len(self.shape) == 1:
            columns.read(self.form.about, self.shape[0])
        inputs = self.shape[0] if len(self.shape) == 1 else None
        outputs = self.out_dim if self.kind == "values" else None
        wanted = {"input_mean": inputs, "input_std": inputs, "target_mean": outputs, "target_std": outputs}
        for key, length in wanted.items():
            held: Tensor | None = getattr(self, key)
            if (None if held is None else len(held)) != length:
                raise ValueError(f"{key} is not a list of {length or 'nothing'}")
            if held is not None and key.endswith("_std") and not (held > 0).all():
                raise ValueError(f"{key} is not above zero")
        if self.class_weights is not None and len(self.class_weights) != self.out_dim:
            raise ValueError(f"class_weights is not a list of {self.out_dim}")

    def plain(self) -> dict[str, Any]:
        tensors = {k: None if (t := getattr(self, k)) is None else t.tolist() for k in TENSORS}
        return {
            "name": self.name,
            "kind": self.kind,
            "class_names": self.class_names,
            **self.form.plain(),
            **tensors,
        }


def _vector(numbers: Any) -> Tensor:
    """[n] float32. Raises ValueError or TypeError: it is no list of finite numbers."""
    vector = torch.tensor(numbers, dtype=torch.float32)
    if vector.ndim != 1 or not vector.isfinite().all():
        raise ValueError("numbers that are no list of finite ones")
    return vector
