"""The run folder: what teachers, leaders, members and inputs of fuse are named by."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from sftc import __version__
from sftc.errors import Refused, choose, nearest
from sftc.folders import free
from sftc.positions import Said
from sftc.store import forms, predictions
from sftc.store.checkpoints import Checkpoints
from sftc.store.files import appended, inner, plain, write_tensors, write_text
from sftc.store.home import Home
from sftc.store.reading import lines, read_meta, read_shapes, read_tensors, read_yaml

FORMAT = 1  # of the folder; a newer one is refused
GROUPS = "val_group"  # in rows.safetensors


class Run(Home):
    """One folder, one training or fusion: what teachers, leaders, members and inputs of fuse are named by."""

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        fill: Callable[[Run], None] = lambda run: None,
        alone: bool = False,
    ) -> Run:
        """A new run. config.yaml is written last: with it, the folder is a run that can be gone on with.

        Args:
            fill: writes what belongs to the start of the run.
            alone: hold the run's lock; members need none, their parent's guards them.

        Raises:
            Refused: the folder exists and holds anything at all, or is another process's.
        """
        run = cls(path)
        if run.path.is_file():
            raise Refused(f"out={run.path} is a file; choose a folder that does not exist yet")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise Refused(f"out={run.path} cannot be made: {e.strerror}") from None
        if alone:
            run.lock()
        if not free(run.path):
            run.unlock()
            way = f"sftc train resume={run.path}" if (run.path / "config.yaml").is_file() else "another out="
            raise Refused(f"out={run.path} is not empty and is never overwritten; use {way}")
        run.tidy()
        fill(run)
        run.write_config(config)
        run.mark("running")
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run. Raises Refused: there is none."""
        run = cls(path)
        if not run.path.is_dir():
            raise Refused(f"run {run.path} does not exist{_neighbour(run.path)}")
        if not (run.path / "config.yaml").is_file():
            raise Refused(f"{run.path} is not a run folder: it has no config.yaml{_inside(run.path)}")
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, plain types. Raises Refused: it is damaged, newer than this version, or interpolates."""
        path = self.inside("config.yaml")
        config = read_yaml(path)
        if (written := config.pop("format", FORMAT)) != FORMAT:
            by = self.environment.get("sftc", "?")
            raise Refused(
                f"{path} has format {written}, of another version of sftc ({by}); this is {__version__} and reads "
                f"format {FORMAT}"
            )
        if "${" in str(config):
            raise Refused(f"{path} holds an interpolation; a stored config is plain, so it is not trusted")
        return config

    def write_config(self, config: Mapping[str, Any]) -> None:
        text = yaml.safe_dump({"format": FORMAT, **plain(config)}, sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)

    @property
    def status(self) -> dict[str, Any]:
        """status.json. Raises Refused: it is damaged, or the state is none that a run can have."""
        status = self._json("status.json") or {"state": "unknown"}
        forms.expect(self.path / "status.json", status, forms.STATUS)
        choose(f"{self.path / 'status.json'}: state", status["state"], forms.STATES)
        return status

    @property
    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    def mark(self, state: str, **more: Any) -> None:
        """status.json: running, finished, stopped or failed; when; and why."""
        write_text(
            self.path / "status.json",
            json.dumps({"state": state, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **plain(more)}, indent=2),
        )

    @property
    def result(self) -> dict[str, Any]:
        """result.json of a finished run. Raises Refused: it has none, or not all of it."""
        result = self._json("result.json")
        if result is None:
            state = self.status.get("state")
            raise Refused(f"run {self.path} has no result yet ({state}); finish it: sftc train resume={self.path}")
        forms.expect_result(self.path / "result.json", result)
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_text(self.path / "result.json", json.dumps(plain(result), indent=2))

    @property
    def environment(self) -> dict[str, Any]:
        """environment.json, with `command` and `notes` at least."""
        about = {"command": "", "notes": [], **(self._json("environment.json") or {})}
        forms.expect(self.path / "environment.json", about, forms.ENVIRONMENT)
        return about

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        appended(self.path / "metrics.jsonl", json.dumps(plain(row)) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl; a line that is none, such as one torn by a kill, is left out."""
        rows = []
        for line in lines(self.inside("metrics.jsonl")):
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and all(isinstance(row.get(key, 0), int) for key in ("step", "epoch")):
                    rows.append(row)
        return rows

    def forget_from(self, epoch: int) -> None:
        """Drop the lines of metrics.jsonl from `epoch` on: a resumed run writes them again."""
        if (self.path / "metrics.jsonl").is_file():
            kept = [r for r in self.rows() if r.get("epoch", 0) < epoch]
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))

    @property
    def skipped(self) -> dict[str, Any]:
        """skipped.json, {split: {"of": rows, "rows": {path: why}}}: what could not be read, and was left out."""
        skipped = self._json("skipped.json") or {}
        forms.expect(self.path / "skipped.json", skipped, forms.SKIPPED)
        return skipped

    def add_skipped(self, found: Mapping[str, Any]) -> None:
        """Add to skipped.json; what an earlier sitting found stays."""
        before = self.skipped
        after = dict(before)
        for split, node in found.items():
            rows = {**before.get(split, {"rows": {}})["rows"], **node["rows"]}
            after[split] = {"of": node["of"], "rows": dict(sorted(rows.items()))}
        if after != before:
            self.write_json("skipped.json", after)

    def write_weights(self, name: str, state: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> None:
        """`name` is model (best on validation) or last."""
        write_tensors(self.path / f"{name}.safetensors", state, meta)

    def weights(self, name: str = "model") -> dict[str, Tensor]:
        return read_tensors(self._weights(name))

    def shapes(self, name: str = "model") -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (dtype, shape) of the weights, from the file's header."""
        return read_shapes(self._weights(name))

    def _weights(self, name: str) -> Path:
        path = self.inside(f"{name}.safetensors")
        if not path.exists():
            state = self.status.get("state")
            if state == "finished":
                raise Refused(f"run {self.path} is finished, and its {path.name} is gone: bring it back, or train anew")
            raise Refused(f"run {self.path} has no {path.name} ({state}); finish it: sftc train resume={self.path}")
        return path

    @property
    def fused(self) -> bool:
        """Whether its model is a rule over members."""
        return (self.path / "fusion.json").is_file()

    def write_fusion(self, about: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """fusion.json: rule, options, members with the hashes of their weights. fusion.safetensors: what was fitted."""
        if state:  # a rule that learns nothing has none
            write_tensors(self.path / "fusion.safetensors", state)
        self.write_json("fusion.json", about)

    def fusion(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The rule of a fused run and its state. Raises Refused: not of this form."""
        about = self.read_json("fusion.json")
        forms.expect(self.path / "fusion.json", about, forms.FUSION)
        path = self.inside("fusion.safetensors")
        return about, read_tensors(path) if path.exists() else {}

    def write_predictions(self, split: str, p: Said, meta: Mapping[str, str]) -> None:
        """preds/<split>.safetensors with the model's hash and the data's fingerprint."""
        predictions.write(inner(self.inside("preds")) / f"{split}.safetensors", p, meta)

    def predictions(self, split: str) -> tuple[Said, dict[str, str]]:
        """Raises Refused: there are none of this split, or the file holds something else."""
        path = self.inside("preds", f"{split}.safetensors")
        if not path.exists():
            raise Refused(f"run {self.path} holds no predictions of {split}: sftc eval run={self.path} split={split}")
        meta = read_meta(path)
        return predictions.read(path, meta), meta

    def groups(self) -> Tensor | None:
        """[n] the group of each row of `rows_of("val")`, whose rows are held out together; None: rows go alone.

        Raises:
            Refused: the file holds something else.
        """
        group, val = self.rows_of(GROUPS), self.rows_of("val")
        if group is not None and (val is None or len(val) != len(group)):
            raise Refused(f"{self.path / 'rows.safetensors'}: {GROUPS} holds no group for each row of val")
        return group

    def write_rows(self, rows: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
        """rows.safetensors: source row numbers of every split, and the data's fingerprint."""
        write_tensors(self.path / "rows.safetensors", rows, meta)

    def rows_of(self, split: str) -> Tensor | None:
        """The source rows of a split; None: not stored. Raises Refused: the file holds something else."""
        path = self.inside("rows.safetensors")
        rows = read_tensors(path).get(split) if path.exists() else None
        if rows is not None and (rows.ndim != 1 or rows.dtype != torch.int64):
            raise Refused(f"{path}: {split} holds no row numbers")
        return rows

    def rows_meta(self) -> dict[str, str]:
        path = self.inside("rows.safetensors")
        return read_meta(path) if path.exists() else {}

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """The states of this run's fit."""
        return Checkpoints(self.inside("checkpoint"))

    def discard(self) -> None:
        """Take a run away that has learned nothing yet; one that has a state or a row, or a member that does, stays."""
        if not (self.path / "config.yaml").is_file() and not free(self.path):
            return  # somebody else's
        runs = [Run(file.parent) for file in self.path.rglob("config.yaml")]
        if any(run.finished or run.rows() or run.checkpoints.files() for run in runs):
            return
        self.unlock()
        shutil.rmtree(self.path, ignore_errors=True)

    def member(self, name: str) -> Path:
        return self.inside("members", name)

    def refer(self, name: str, path: Path) -> None:
        """A member that lives elsewhere: members/<name>/reference.json says where, and its weights' hash once known."""
        run = Run(path)
        known = run.result["fingerprints"]["model"] if run.finished else None
        folder = self.member(name)
        folder.mkdir(parents=True, exist_ok=True)
        where = os.path.relpath(path.resolve(), folder.resolve())
        write_text(folder / "reference.json", json.dumps({"path": where, "model": known}, indent=2))

    def referred(self, name: str) -> str | None:
        """The hash of the weights of a member that was referred to, if it was finished then."""
        node = Run(self.member(name))._json("reference.json")
        return None if node is None else node.get("model")

    def reference(self, name: str) -> Path | None:
        """Where a member lives that was referred to. Raises Refused: its weights are no longer those referred to."""
        node = Run(self.member(name))._json("reference.json")
        if node is None:
            return None
        forms.expect(self.member(name) / "reference.json", node, forms.REFERENCE)
        path = Path(os.path.normpath(self.member(name) / node["path"]))
        known = node.get("model")
        if known is not None:
            run = Run.open(path)
            if run.result.get("fingerprints", {}).get("model") != known:
                raise Refused(f"{path} is no longer the run that {self.path} refers to as {name}; train a new run")
        return path


def _neighbour(path: Path) -> str:
    parent = path.parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    return nearest(path.name, names) or f" (looked in {parent.resolve()})"


def _inside(path: Path) -> str:
    """A sweep or a day of runs was named instead of one run: name one."""
    runs = sorted(p.parent for p in [*path.glob("*/config.yaml"), *path.glob("*/*/config.yaml")])
    return f"; did you mean {runs[0]}?" if runs else ""
