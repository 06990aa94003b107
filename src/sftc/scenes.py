"""What a run says of a few validation pictures: beside picture and mask, and where it errs or its members differ."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftc.lab import Lab
from sftc.models.fused import Fused
from sftc.pictures import INK, canvas, lacking, png

ROWS = 4  # pictures that are shown
WIDE = 2.6  # inches of one
UNKNOWN = (0.93, 0.93, 0.93)


@torch.no_grad()
def draw(lab: Lab) -> str | None:
    """scenes.png in the folder of a finished run about pixels.

    Returns:
        Why there is none, in a line, if matplotlib is not installed.
    """
    if said := lacking():
        return said
    rows = lab.data.splits["val"].rows
    rows = rows[torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).long()]
    model: Any = lab.restore()
    shown: list[tuple[np.ndarray, Tensor, Tensor, Tensor]] = []
    for batch in lab.source("val", rows=rows).epoch(0):
        inputs: Any = lab.device.inputs(batch.inputs)
        with lab.device.autocast():
            said = model(inputs).argmax(1)
            if isinstance(model, Fused):
                differ = torch.stack([member(inputs).argmax(1) != said for member in model.members]).float().mean(0)
            else:
                differ = ((said != batch.target) & (batch.target >= 0)).float()
        pictures = batch.inputs.movedim(1, -1).cpu().numpy()  # type: ignore[union-attr]
        shown += list(zip(pictures, batch.target.cpu(), said.cpu(), differ.cpu(), strict=True))
    last = "members that differ" if isinstance(model, Fused) else "errors"
    lab.run.write_picture("scenes", png(_drawn(shown, lab.facts.class_names, last)))
    return None


def _drawn(shown: list[tuple[np.ndarray, Tensor, Tensor, Tensor]], names: list[str], last: str) -> Any:
    height, width = shown[0][1].shape
    tall = WIDE * height / width
    drawn = canvas(4 * WIDE + 1.6, len(shown) * tall + 0.5)
    axes = np.atleast_2d(drawn.subplots(len(shown), 4))
    colours = _colours(len(names))
    for line, (picture, target, said, differ) in zip(axes, shown, strict=True):
        line[0].imshow(picture)
        line[1].imshow(_painted(target, colours))
        line[2].imshow(_painted(said, colours))
        line[3].imshow(differ.numpy(), cmap="magma", vmin=0, vmax=1)
        for each in line:
            each.set_axis_off()
    for each, title in zip(axes[0], ("picture", "mask", "said", last), strict=True):
        each.set_title(title, color=INK, fontsize=10)
    patch = importlib.import_module("matplotlib.patches").Patch
    handles = [patch(color=colour, label=name[:20]) for colour, name in zip(colours, names, strict=True)]
    handles.append(patch(color=UNKNOWN, label="unlabelled"))
    drawn.legend(handles=handles[:40], loc="outside right upper", fontsize=8, frameon=False)
    return drawn


def _colours(count: int) -> np.ndarray:
    """[count, 3], told apart for as many as tab20 has."""
    table = importlib.import_module("matplotlib").colormaps["tab20"].colors
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    return np.array([table[order[i % 20]] for i in range(count)])


def _painted(classes: Tensor, colours: np.ndarray) -> np.ndarray:
    return np.concatenate([colours, [UNKNOWN]])[classes.numpy()]  # -1 is the last
