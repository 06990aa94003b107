"""What a fused run looks like: who differs from whom, and what each answer costs."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from sftc.store import Run

LACKING = "no pictures: they need matplotlib (pip install 'sftc[pictures]')"
DPI = 120
WRITTEN_OUT = 12  # members; of more, numbers in the fields would be too small to read
LABELLED = 32  # points; of more, only rules and what is on the Pareto line are named, and of fields every second or so
INK, MUTED, MEMBER, RULE = "#222222", "#9a9a9a", "#3b6ea8", "#c8553d"


def lacking() -> str | None:
    """Why there are no pictures, in a line; None if there can be."""
    return None if find_spec("matplotlib") else LACKING


def draw(run: Run) -> str | None:
    """members.png and cost.png in the folder of a fused run, which has its result.

    Returns:
        Why there are none, in a line, if matplotlib is not installed.
    """
    if said := lacking():
        return said
    result = run.result
    if len(result["members"]["names"]) > 1:
        run.write_picture("members", png(_members(result["members"])))
    run.write_picture("cost", png(_cost(result["team"], result["monitor"], result["maximize"])))
    return None


def pareto(points: Sequence[tuple[float, float]], maximize: bool) -> list[int]:
    """The (cost, score) that no other beats at the same cost or less, by number, in order of cost."""
    sign = 1 if maximize else -1
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if not kept or sign * points[i][1] > sign * points[kept[-1]][1]:
            kept.append(i)
    return kept


def canvas(width: float, height: float) -> Any:
    """A figure in inches. Without pyplot there is no state, and no display is looked for."""
    return importlib.import_module("matplotlib.figure").Figure((width, height), dpi=DPI, layout="constrained")


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _members(why: dict[str, Any]) -> Any:
    """Two heat maps over pairs of members. A diagonal says nothing and is left out."""
    names = why["names"]
    side = min(12.0, 2.4 + 0.5 * len(names))
    figure = canvas(2 * side + 0.8, side)
    left, right = figure.subplots(1, 2, sharey=True)
    values = _pairs(why["disagreement"])
    top = np.nanmax(values) if np.isfinite(values).any() else 1.0
    _heat(figure, left, names, values, "disagreement", cmap="YlGnBu", vmin=0.0, vmax=top or 1.0)
    _heat(
        figure, right, names, _pairs(why["error_correlation"]), "correlation of errors", cmap="RdBu_r", vmin=-1, vmax=1
    )
    return figure


def _pairs(matrix: list[list[float | None]]) -> np.ndarray:
    out = np.array(matrix, dtype=float)  # None, which JSON has for NaN, becomes NaN again
    np.fill_diagonal(out, np.nan)
    return out


def _heat(figure: Any, axes: Any, names: list[str], values: np.ndarray, title: str, **scale: Any) -> None:
    axes.set_facecolor("#eeeeee")
    image = axes.imshow(values, **scale)
    axes.set_title(title, color=INK, fontsize=11)
    step = -(-len(names) // LABELLED)
    named = range(0, len(names), step)
    axes.set_xticks(named, names[::step], rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(named, names[::step], fontsize=8)
    axes.tick_params(length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_label_coords(0, 0)  # of none; or a place for it is looked for beside all the names, at every drawing
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.8).outline.set_visible(False)
    if len(names) > WRITTEN_OUT:
        return
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axes.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=8, color="white" if dark else INK)


def _cost(rows: list[dict[str, Any]], monitor: str, maximize: bool) -> Any:
    """The score of every member and rule against its milliseconds per row, and the line of the best at each cost."""
    rows = [row for row in rows if row["name"] != "fuse best" and "failed" not in row]  # best is drawn as a member
    split = "test" if all("test" in row for row in rows) else "val"
    points = [(row["ms_per_row"], row[split][monitor]) for row in rows]
    ruled = ["gain" in row for row in rows]
    best = pareto(points, maximize)
    figure = canvas(8.5, max(4.5, 0.22 * min(len(rows), LABELLED)))
    axes = figure.subplots()
    if all(x > 0 for x, _ in points):
        axes.set_xscale("log")
    for flag, colour, marker, label in ((False, MEMBER, "o", "a member"), (True, RULE, "D", "a rule over members")):
        at = [p for p, r in zip(points, ruled, strict=True) if r == flag]
        if at:  # a run fused by `best` alone has no rule to draw
            axes.scatter(*zip(*at, strict=True), c=colour, marker=marker, s=34, label=label, zorder=3, linewidths=0)
    x, y = zip(*(points[i] for i in best), strict=True)
    axes.step(x, y, where="post", color=INK, linewidth=1, label="best at this cost (Pareto)", zorder=2)
    axes.set_xlabel("milliseconds per row")
    axes.set_ylabel(f"{split} {monitor}")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.06)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    named = [i for i in range(len(rows)) if len(rows) <= LABELLED or ruled[i] or i in best]
    _label(axes, [points[i] for i in named], [rows[i]["name"].removeprefix("fuse ") for i in named])
    return figure


def _label(axes: Any, points: list[tuple[float, float]], names: list[str]) -> None:
    """Names in a column at the right, in the order of the scores and apart from each other, each tied to its point."""
    low, high = axes.get_ylim()
    order = sorted(range(len(points)), key=lambda i: points[i][::-1])
    wanted = np.array([(points[i][1] - low) / (high - low) for i in order])
    for i, place in zip(order, _apart(wanted, 1 / max(len(order), 22)), strict=True):
        axes.annotate(
            names[i],
            points[i],
            (1.03, place),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            color=INK,
            arrowprops={
                "arrowstyle": "-",
                "color": MUTED,
                "linewidth": 0.4,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _apart(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Ascending places in 0..1, moved until each is `gap` above the one before it."""
    steps = gap * np.arange(len(wanted))
    up = np.maximum.accumulate(wanted - steps) + steps
    return np.minimum(up, 1 - steps[::-1])
