"""Finished runs -> tables and the model card."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from sftc.errors import printable
from sftc.store import Run

NAMED = 6  # members in a line


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else printable(value)


def scores(result: dict[str, Any]) -> Table:
    """Best and last weights on validation and test, a line per metric."""
    best, last = result["best"], result["last"]
    chosen = f"best: epoch {best['epoch'] + 1}, chosen on validation by {printable(result['monitor'])}"
    table = Table(title=f"{chosen}; last: epoch {last['epoch'] + 1}", box=None, pad_edge=False, title_justify="left")
    table.add_column("metric", no_wrap=True)
    for name in ("val best", "test best", "val last", "test last"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in _ordered(result):
        table.add_row(printable(name), *(_number(r.get(name)) for r in _four(result)))
    return table


def _four(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Metrics of the best weights on validation and test, then of the last. Test may be missing."""
    last = result["last"]
    return [result["val"], result.get("test", {}), last["val"], last.get("test", {})]


def _ordered(result: dict[str, Any]) -> list[str]:
    return [result["monitor"], *(n for n in sorted(result["val"]) if n != result["monitor"])]


def evaluation(metrics: dict[str, Any], stored: dict[str, Any] | None, split: str) -> Table:
    """Metrics of one evaluation, beside those the run stored when they are about the same rows."""
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column(split, justify="right")
    if stored is not None:
        table.add_column("stored in the run", justify="right")
    for name in sorted(metrics):
        extra = [] if stored is None else [_number(stored.get(name))]
        table.add_row(printable(name), _number(metrics[name]), *extra)
    return table


def team(rows: list[dict[str, Any]], monitor: str) -> Table:
    """Students, teachers and what they are compared with: a line each, on the same rows."""
    failed = [r for r in rows if "failed" in r]
    rows = [r for r in rows if "failed" not in r]
    splits = [s for s in ("val", "test") if all(s in r for r in rows)]
    shown = [m for m in dict.fromkeys([monitor, "nll", "ece"]) if m in rows[0]["val"]]
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in [f"{s}\n{m}" for s in splits for m in shown] + ["\nparameters", "ms per\nrow"]:
        table.add_column(name, justify="right", no_wrap=True)
    judged = any("gain" in row for row in rows)
    if judged:
        table.add_column(f"{splits[-1]} {_judge(rows)}\nto the best", justify="right", no_wrap=True)
    if failed:
        table.add_column("", no_wrap=True)  # wide enough for a sentence
    for row in rows:
        cells = [_number(row[s].get(m)) for s in splits for m in shown]
        cells += [f"{row['params']:,}", f"{row['ms_per_row']:.3f}"]
        table.add_row(printable(row["name"]), *cells, *([_gain(row, splits[-1])] if judged else []))
    for row in failed:
        dashes = ["-"] * (len(splits) * len(shown) + 2 + judged)
        table.add_row(printable(row["name"]), *dashes, printable(f"left out: {row['failed']}"))
    return table


def _judge(rows: list[dict[str, Any]]) -> str:
    """The metric that fusions are compared with the best single member by."""
    return next(iter(next(iter(next(r["gain"] for r in rows if "gain" in r).values()))))


def _gain(row: dict[str, Any], split: str) -> str:
    """The first metric's difference to the best single member; ~ where it is inside the noise."""
    if "gain" not in row:
        return ""
    gain = next(iter(row["gain"][split].values()))
    return f"{gain['difference']:+.4f}{' ~' if gain['noise'] else '  '}"


def fused(result: dict[str, Any]) -> list[Any]:
    """What a fusion gained against its best member, and what it owes to each."""
    about, why = result["fused"], result["members"]
    lines: list[Any] = []
    for split, gain in about["gain"].items():
        for metric, d in gain.items():
            noise = ", which is inside the noise" if d["noise"] else ""
            span = f"{d['low']:+.4f} to {d['high']:+.4f}"
            lines.append(f"{split} {metric}: {d['difference']:+.4f} against {about['best_single']} ({span}){noise}")
    table = Table(box=None, pad_edge=False)
    table.add_column("member", no_wrap=True)
    gains, bags, monitor = why.get("leave_one_out", {}), result.get("out_of_bag"), result["monitor"]
    for name in [*(f"gain by it\n{m}" for m in gains), "disagrees with\nthe others", "error\ncorrelation"]:
        table.add_column(name, justify="right")
    if bags:
        table.add_column(f"out of bag\n{printable(monitor)}", justify="right")
    for i, name in enumerate(why["names"]):
        cells = [_number(values[i]) for values in gains.values()]
        cells += [_number(_others(why[k][i], i)) for k in ("disagreement", "error_correlation")]
        table.add_row(name, *cells, *([_number(bags["members"][name][monitor])] if bags else []))
    marked = "~ cannot be told from the best single member (paired bootstrap, 95 %)"
    out = [marked, "", f"fused by {about['rule']}:", *lines, "", table]
    if bags:
        bag = bags["bag"]
        out += ["", f"out of bag: {monitor} {_number(bag[monitor])} on the {bag['rows']:,} rows that some did not draw"]
    if chosen := result.get("chosen_on_validation"):
        out += ["", chosen_on(chosen)]
    return out


def chosen_on(chosen: dict[str, str]) -> str:
    """Members that saw the rows fusion is fitted on in a way that training rows are not: they chose its end by them."""
    named = [f"{name} ({how})" for name, how in chosen.items()]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"chosen on the rows that fusion is fitted on, which flatters them there: {', '.join(named[:NAMED])}{more}"


def _others(row: list[float | None], i: int) -> float | None:
    values = [v for j, v in enumerate(row) if j != i and v is not None]
    return sum(values) / len(values) if values else None


def per_class(table: dict[str, dict[str, float]]) -> Table:
    out = Table(box=None, pad_edge=False)
    columns = list(next(iter(table.values())))
    out.add_column("output" if "precision" not in columns else "class")
    for name in columns:
        out.add_column(name, justify="right")
    for name, row in table.items():
        out.add_row(printable(name), *(_number(row[k]) for k in columns))
    return out


def skipped(found: dict[str, Any]) -> list[str]:
    """A line per split that lost rows: {split: {"of": rows, "rows": {path: why}}}."""
    lines = []
    for split, node in found.items():
        named = [f"{path} ({why})" for path, why in node["rows"].items()]
        more = f" and {len(named) - 3:,} more" if len(named) > 3 else ""
        lines.append(f"{split}: skipped {len(named):,} of {node['of']:,} rows: {', '.join(named[:3])}{more}")
    return lines


def show(*things: Any) -> None:
    """Print texts and tables. Texts may hold what a run folder holds, so nothing in them is taken for markup."""
    wide = None if sys.stdout.isatty() else 160  # a file has no width, and a table is no wider than it must be
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=wide)
    for thing in things:
        console.print(thing if isinstance(thing, Table) else printable(thing))


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def write_card(run: Run) -> None:
    """README.md of a run that has its result: what it is, how good, on what, and how to make it again."""
    about = run.environment
    run.write_page("README.md", card(run, about["command"], about["notes"] + skipped(run.skipped)))


def _fusion(run: Run) -> str:
    """What a fused run is made of."""
    members = ", ".join(f"`{name}`" for name in run.fusion()[0]["members"])
    return f"""The answers of these members, made one by the rule in `fusion.json`: {members}.

Validation was scored by rules fitted on other rows of it; the rule kept was fitted on all of them. The test split was
read once."""


def _trained(result: dict[str, Any]) -> str:
    best, last = result["best"], result["last"]
    return f"""`model.safetensors` is the best of {last["epoch"] + 1} epochs on validation by {result["monitor"]} (epoch
{best["epoch"] + 1}); `last.safetensors` the last. The test split was read once, after training."""


def _shown(run: Run) -> str:
    doubted = "\nLabels that models doubt which had not seen them: [suspects.csv](suspects.csv).\n"
    pictures = "".join(f"\n![{name.removesuffix('.png')}]({name})\n" for name in run.pictures)
    return pictures + doubted * (run.path / "suspects.csv").is_file()


def card(run: Run, command: str, notes: list[str]) -> str:
    config, result = run.config, run.result
    numbers = _markdown(
        ["metric", "val (best)", "test (best)", "val (last)", "test (last)"],
        [[n, *(_number(r.get(n)) for r in _four(result))] for n in _ordered(result)],
    )
    facts = _markdown(["", ""], [[k, str(v)] for k, v in result["model"].items()])
    said = "\n".join(f"- {n}" for n in notes)
    name = result["model"]["name"] if run.fused else config["model"]["name"]
    what = _fusion(run) if run.fused else _trained(result)
    return f"""# {name} on {config["data"]["name"]}, strategy {config["strategy"]["name"]}

{what}

{numbers}
{_shown(run)}
## Model

{facts}

## Choices made, and why

{said}

## Again

```
{command}
sftc eval run={run.path}
```

Training took {result["seconds"]:.1f} seconds and ended by {result["ended"]}. `config.yaml` holds every setting,
`environment.json` the versions and the machine, `rows.safetensors` the rows of every split.
"""
