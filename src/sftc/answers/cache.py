"""The answers on disk: what is missing is asked of the live teacher, what is there is checked against it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sftc.answers.table import LIVE, Answers, decode, encode, place
from sftc.errors import Refused, Stopped
from sftc.store import answers as files
from sftc.store.answers import Answered, Parts
from sftc.store.lock import locked
from sftc.types import Batch, Source, Teacher

_LARGEST = 65504.0  # of fp16
_MARGIN = 0.05  # of the spread of the logits: batches of another size round differently, most of all in bf16
_CHECKED_VIEWS = 4  # each costs the reading of one batch
_WAIT = 0.2  # seconds between two looks at a lock

Stop = Callable[[], BaseException | None]


def stored(
    teacher: Teacher,
    *,
    home: Path,
    beside: Path,
    marks: Mapping[str, str],
    view: Callable[[int], Source],
    views: int,
    temperature: float | None = None,
    topk: int | None = None,
    check: int = 16,
    say: Callable[[str], None] = lambda line: None,
    stop: Stop | None = None,
    device: torch.device,
    free_bytes: int | None = None,
) -> Answers:
    """The answers of a teacher, read from disk; what is missing there is asked of it first.

    Args:
        teacher: the live one: fills what is missing, and is compared with what is there.
        home: the teacher's run folder, which keeps the answers in answers/<key>/view-0000.safetensors and so on.
        beside: the student's run folder: keeps them if `home` cannot be written.
        marks: what tells these answers from others: hash of the weights, fingerprint of the data, precision...
        view: number of a view -> a source that passes every row of the train split once, in that view, unmixed.
        views: how many there are. Where nothing is augmented all views are one, whatever their numbers.
        temperature: the T in use; `topk` needs it.
        topk: keep the largest k logits of each row in fp16, and of the others their mass at T; None: all, in fp16.
        check: how many rows to compare with the live teacher.
        stop: asked between two batches and while waiting for another process; what it returns is raised.
        free_bytes: free on `device` if it is not the host.

    Raises:
        Refused: logits that fp16 cannot hold; a teacher that does not answer the same twice; top-k of what is not
            one distribution a row, or of a temperature that changes; no folder, or no room on disk.
    """
    if topk is not None and topk < 1:
        raise Refused(f"top-k answers keep at least one class, not {topk}")
    if topk is not None and temperature is None:
        raise Refused(f"top-k answers hold for one temperature, and this one changes: store all logits, or {LIVE}")
    cache = _Cache(teacher, home, beside, dict(marks), view, views, temperature, topk, say, stop)
    for again in (False, True):
        found, held = cache.complete(again)
        if len({v.form() for v in held}) == 1:
            answers = Answers(
                held,
                cache.rows,
                still=cache.still,
                temperature=temperature,
                place=place(sum(v.bytes for v in held), device, free_bytes),
                device=device,
                found=found,
                note=cache.note(found, held),
            )
            if cache.agrees(answers, check):
                return answers
        if not again:
            say(f"the stored answers of {home} are not what the teacher says now; made again")
    raise Refused(f"the teacher {home} answers the same rows differently each time; {LIVE}")


def _file(view: int) -> str:
    return f"view-{view:04d}.safetensors"


def _count(views: int) -> str:
    return f"{views} view{'' if views == 1 else 's'}"


class _Cache:
    """The files of one teacher's answers about one thing."""

    def __init__(
        self,
        teacher: Teacher,
        home: Path,
        beside: Path,
        marks: dict[str, str],
        view: Callable[[int], Source],
        views: int,
        temperature: float | None,
        topk: int | None,
        say: Callable[[str], None],
        stop: Stop | None,
    ) -> None:
        first = view(0)
        augmentation: str = first.augmentation  # type: ignore[attr-defined]
        self.teacher, self.view, self.topk, self.say, self.stop = teacher, view, topk, say, stop
        self.rows = first.rows.cpu()
        if len(self.rows.unique()) < len(self.rows):
            raise ValueError("a view must pass every row once")
        self.still = augmentation == "none"
        self.views = 1 if self.still else views
        self.marks = marks | {"augmentation": augmentation, "topk": str(topk), "format": str(files.FORMAT)}
        self.key = hashlib.blake2b(json.dumps(self.marks, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.home, self.roots = home, list(dict.fromkeys((home, beside)))
        self.needs = temperature if topk is not None else None
        self.temperatures = set() if self.needs is None else {self.needs}
        self.kept = home  # or beside
        self._told: set[Path] = set()

    def complete(self, fresh: bool) -> tuple[int, list[Answered]]:
        """Every view, and how many were there already. `fresh`: none counts as there."""
        held = {} if fresh else {v: x for v in range(self.views) if (x := self._read(v)) is not None}
        found = len(held)
        if found < self.views:
            self.say(f"{self.home} answers {_count(self.views - found)} of {len(self.rows):,} rows")
            with self._alone() as folder:
                for v in (v for v in range(self.views) if v not in held):
                    there = None if fresh else self._read(v)  # by whom we waited for
                    found += there is not None
                    held[v] = there if there is not None else self._make(v, folder)
        return found, [held[v] for v in range(self.views)]

    def note(self, found: int, held: Sequence[Answered]) -> str:
        dense = "logits" in held[0].parts
        form = "fp16" if dense else f"the largest {self.topk} of {held[0].classes}, fp16"
        size = sum(v.bytes for v in held) / 1e6
        where = "" if self.kept == self.home else f", kept in {self.kept}: {self.home} cannot be written"
        what = f"{_count(found)} of {len(self.rows):,} rows found, {len(held) - found} made"
        return f"answers of {self.home}: {what}, {size:.1f} MB ({form}){where}"

    def _marks(self, v: int) -> str:
        return json.dumps(self.marks | {"view": str(v)}, sort_keys=True)

    def _folder(self, root: Path) -> Path:
        return root / "answers" / self.key

    def _read(self, v: int) -> Answered | None:
        """A view that is on disk and fits. Why one does not is said once."""
        for root in self.roots:
            path = self._folder(root) / _file(v)
            if not os.path.lexists(path):
                continue
            try:
                view = files.read(path, self.rows, self._marks(v), self.topk)
                self.temperatures.update(view.temperatures)
                if "rest" in view.parts and self.needs not in view.temperatures:
                    raise files.Unfit(f"does not know temperature {self.needs:g}")
            except files.Unfit as why:
                if path not in self._told:
                    self.say(f"{path} {why}; made again")
                self._told.add(path)
                continue
            if root != self.home:
                self.kept = root
            return view
        return None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Path]:
        """The folder to write to, while no other process does."""
        root = next((r for r in self.roots if files.writable(self._folder(r))), None)
        if root is None:
            tried = " nor ".join(map(str, self.roots))
            raise Refused(f"the answers of {self.home} cannot be kept: no writing to answers/ in {tried}; {LIVE}")
        folder = self._folder(root)
        if root != self.home:
            self.kept = root
        with contextlib.ExitStack() as lock:
            waits = False
            while True:
                try:
                    lock.enter_context(locked(folder))
                    break
                except Refused:
                    if not waits:
                        self.say(f"another process is asking {self.home}; waiting for its answers")
                    waits = True
                self._ask()
                time.sleep(_WAIT)
            for torn in folder.glob(".view-*.tmp"):
                if f".{os.getpid()}." not in torn.name:  # another thread's; the others were killed
                    torn.unlink(missing_ok=True)
            yield folder

    def _ask(self) -> None:
        if self.stop is not None and (why := self.stop()) is not None:
            raise why

    def _make(self, v: int, folder: Path) -> Answered:
        source, n = self.view(v), len(self.rows)
        temperatures = sorted(self.temperatures)
        whole: Parts = {}
        classes = at = 0
        for batch in source.epoch(0):
            self._ask()
            end = at + len(batch)
            right = torch.equal(batch.index.cpu(), self.rows[at:end]) and (self.still or bool((batch.view == v).all()))
            if not right or batch.partner is not None:
                raise ValueError(f"view {v} must pass all rows in one order, in view {v}, unmixed")
            logits = self._answer(batch)
            classes = logits.shape[1]
            parts = encode(logits, self.topk, temperatures)
            whole = whole or self._room(parts, folder)
            for k, p in parts.items():
                whole[k][at:end] = p
            at = end
        if at < n:
            raise ValueError(f"view {v} passes {at} of {n} rows")
        path = folder / _file(v)
        files.write(path, whole, classes, temperatures, self.rows, self._marks(v))
        try:
            return files.read(path, self.rows, self._marks(v), self.topk)
        except files.Unfit as why:
            raise Stopped(f"{path} {why}, though it was just written", 1, "failed") from None

    def _room(self, parts: Parts, folder: Path) -> Parts:
        """Where the parts of all rows are gathered. Raises Refused: the disk is too full for them."""
        n = len(self.rows)
        whole = {k: torch.empty((n, *p.shape[1:]), dtype=p.dtype) for k, p in parts.items()}
        need, free = sum(p.nbytes for p in whole.values()), shutil.disk_usage(folder).free
        if need > free:
            much = f"{need / 1e6:,.1f} MB for a view, and {folder} has {free / 1e6:,.1f} MB free"
            raise Refused(f"the answers of {self.home} take {much}; {LIVE}")
        return whole

    def _answer(self, batch: Batch) -> Tensor:
        """The live teacher's logits. Raises Refused: they do not fit the way they would be stored."""
        with torch.no_grad():
            logits = self.teacher(batch).logits.float()
        if self.topk is not None and logits.ndim != 2:
            raise Refused(f"top-k answers are for one distribution a row, not for {tuple(logits.shape[1:])} logits")
        most = logits.abs().flatten(1).amax(1)
        if not bool((most <= _LARGEST).all()):
            bad = int((most <= _LARGEST).int().argmin())
            what = f"{most[bad]:.3g} about row {batch.index[bad]}"
            raise Refused(f"the teacher {self.home} answers {what}, which fp16 cannot hold; {LIVE}")
        return logits

    def agrees(self, answers: Answers, check: int) -> bool:
        """Whether the live teacher still says what is stored about `check` rows, drawn by the key."""
        draw = torch.Generator().manual_seed(int(self.key[:12], 16))
        asked = torch.randperm(self.views, generator=draw)[: min(_CHECKED_VIEWS, check)].tolist()
        for v in asked:
            source = self.view(v)
            start = int(torch.randint(source.steps, (1,), generator=draw))
            batch = next(iter(source.epoch(0, start)))
            some = torch.randperm(len(batch), generator=draw)[: math.ceil(check / len(asked))].to(batch.index.device)
            batch = batch.map(lambda t, some=some: t[some.to(t.device)])  # texts stay on the host
            live, parts = self._answer(batch), answers.parts(batch)
            said = answers(batch).logits
            if said.shape != live.shape:
                return False
            if "index" in parts:  # classes of nearly equal logits may change places
                assert self.needs is not None
                again = encode(live, self.topk, [self.needs], parts["index"])
                live = decode(again | {"rest": again["rest"][:, 0]}, live.shape[1], self.needs)
            room = 1e-7 + 1e-3 * live.abs() + _MARGIN * (live - live.mean()).abs().max()
            if not bool(((said - live).abs() <= room).all()):
                return False
        return True
