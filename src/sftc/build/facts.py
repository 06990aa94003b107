"""What a model must know of the data it learned from, kept in its run: it opens without that data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftc.data import Data
from sftc.errors import Refused
from sftc.store import Run

FILE = "data.json"
TENSORS = ("class_weights", "input_mean", "input_std", "target_mean", "target_std")


class Facts:
    """The attributes of `Data` that outlive it, by the same names."""

    def __init__(self, name: str, kind: str, class_names: list[str], shape: tuple[int, ...], **tensors: Any) -> None:
        self.name = name
        self.kind = kind
        self.class_names = class_names
        self.out_dim = len(class_names)
        self.shape = shape
        self.class_weights: Tensor | None = tensors["class_weights"]
        self.input_mean: Tensor | None = tensors["input_mean"]
        self.input_std: Tensor | None = tensors["input_std"]
        self.target_mean: Tensor | None = tensors["target_mean"]
        self.target_std: Tensor | None = tensors["target_std"]

    @classmethod
    def of(cls, data: Data) -> Facts:
        return cls(data.name, data.kind, data.class_names, data.shape, **{k: getattr(data, k) for k in TENSORS})

    @classmethod
    def read(cls, run: Run) -> Facts:
        """Raises Refused: the run does not say, or not in this form."""
        try:
            node = run.read_json(FILE)
            tensors = {k: None if node[k] is None else torch.tensor(node[k], dtype=torch.float32) for k in TENSORS}
            names, shape = [str(n) for n in node["class_names"]], tuple(int(n) for n in node["shape"])
            return cls(str(node["name"]), str(node["kind"]), names, shape, **tensors)
        except (KeyError, TypeError, ValueError) as e:
            raise Refused(f"{run.path / FILE} is not what sftc train writes ({type(e).__name__}: {e})") from None

    def plain(self) -> dict[str, Any]:
        tensors = {k: None if (t := getattr(self, k)) is None else t.tolist() for k in TENSORS}
        return {
            "name": self.name,
            "kind": self.kind,
            "class_names": self.class_names,
            "shape": list(self.shape),
            **tensors,
        }
