"""The cells of one column of a table: what they can be read as, and which way fits them."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import numpy as np

from sftc.columns import Column
from sftc.data.frames import pandas
from sftc.errors import Refused

MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-", "<na>", "nat")  # any case
WORDS = {"true": 1.0, "yes": 1.0, "y": 1.0, "t": 1.0, "false": 0.0, "no": 0.0, "n": 0.0, "f": 0.0}
_DATE = re.compile(  # of years of two digits only with strokes: 1.2.11 may be a version
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}|\d{1,2}/\d{1,2}/\d{2})([T ].*)?"
)
_DAY = 86_400.0


class Cells:
    """One column as it stands in the file: a pandas series of strings, numbers, booleans or dates."""

    def __init__(self, name: str, series: Any) -> None:
        self.name = name
        self.series = series

    @cached_property
    def words(self) -> np.ndarray:
        """[n] object: strings, None where missing."""
        s = self.series
        if s.dtype.kind in "fc":  # as a category 1.0 is 1
            s = s.map(lambda v: None if v != v else f"{v:.12g}", na_action="ignore")
        words = s.astype(object).map(lambda v: None if v is None or v != v else str(v).strip())
        gone = {w for w in set(words[words.notna()]) if w.lower() in MISSING}
        out = words.to_numpy(dtype=object, copy=True)
        out[(words.isna() | words.isin(gone)).to_numpy()] = None
        return out

    @cached_property
    def known(self) -> np.ndarray:
        """[n] bool: not missing."""
        return np.array([w is not None for w in self.words], dtype=bool)

    @cached_property
    def numbers(self) -> np.ndarray:
        """[n] float64; NaN: missing, or no finite number. 3,14 is one where no cell needs the comma otherwise."""
        return np.where(np.isinf(self._raw), np.nan, self._raw)

    @cached_property
    def _raw(self) -> np.ndarray:
        """[n] float64: `numbers` with those that are not finite as infinity."""
        if self.series.dtype.kind in "iufb":
            return _finite(self.series.to_numpy(dtype=np.float64, na_value=np.nan))
        parsed = self._parsed(self.words)
        if np.isnan(parsed[self.known]).any() and any("," in w for w in self.words[self.known]):
            points = np.array([w if w is None else w.replace(",", ".") for w in self.words], dtype=object)
            commas = self._parsed(points)
            if np.isnan(commas).sum() < np.isnan(parsed).sum():
                return commas
        return parsed

    def _parsed(self, words: np.ndarray) -> np.ndarray:
        pd = pandas()
        return _finite(pd.to_numeric(pd.Series(words, dtype=object), errors="coerce").to_numpy(dtype=np.float64))

    @cached_property
    def infinite(self) -> np.ndarray:
        """[n] bool: says infinity, or a number that is none in float32, as which models read it."""
        words = (("" if w is None else w.lower().lstrip("+-")) for w in self.words)
        said = np.array([w in ("inf", "infinity") for w in words], dtype=bool)
        return said | np.isinf(self._raw)

    @cached_property
    def booleans(self) -> np.ndarray:
        """[n] float64: 0, 1, or NaN: missing, or another word."""
        return np.array([np.nan if w is None else WORDS.get(w.lower(), np.nan) for w in self.words])

    @cached_property
    def dates(self) -> np.ndarray:
        """[n] float64 days since 1970, times of the day as fractions; NaN: missing, or no date."""
        pd = pandas()
        source = self.series
        if source.dtype.kind != "M":
            clean = [w if w is not None and _DATE.fullmatch(w) else None for w in self.words]
            source = pd.Series(clean, dtype=object)
            first = source.dropna()
            turned = len(first) > 0 and not re.match(r"\d{4}", first.iloc[0]) and _day_first(first)
            source = pd.to_datetime(source, errors="coerce", format="mixed", dayfirst=bool(turned), utc=True)
        elif source.dt.tz is not None:
            source = source.dt.tz_convert("UTC")
        stamps = source.to_numpy(dtype="datetime64[s]").astype(np.int64).astype(np.float64)
        return np.where(source.isna().to_numpy(), np.nan, stamps / _DAY)

    def part(self, part: str) -> np.ndarray:
        """[n] object: a part of each date, of columns.PARTS, as a word; None where there is no date."""
        seconds = np.rint(np.nan_to_num(self.dates) * _DAY).astype(np.int64)
        day = seconds // int(_DAY)
        found = {
            "month": seconds.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64) % 12 + 1,
            "weekday": (day + 3) % 7 + 1,  # the first of 1970 was a Thursday
            "hour": seconds // 3600 % 24,
        }[part]
        out = found.astype(str).astype(object)
        out[np.isnan(self.dates)] = None
        return out

    def read_as(self, kind: str) -> np.ndarray:
        """[n] float64 of a kind of numbers."""
        return {"numeric": self.numbers, "boolean": self.booleans, "date": self.dates}[kind]

    def kind(self, rows: np.ndarray, distinct: int) -> str:
        """What the cells of `rows` are: numeric, boolean, date, categorical, hash; or empty, or label (no two alike).

        Args:
            distinct: more categories than this are hashed.

        Raises:
            Refused: numbers and words, naming one of these.
        """
        there = rows[self.known[rows]]
        if len(there) == 0:
            return "empty"
        if self.series.dtype.kind == "M":
            return "date"
        if self.series.dtype.kind == "b":
            return "boolean"
        odd = there[np.isnan(self.numbers[there]) & ~self.infinite[there]]
        if len(odd) == 0:
            return "numeric"
        for kind, values in (("boolean", self.booleans), ("date", self.dates)):
            if not np.isnan(values[there]).any():
                return kind
        if 2 * len(odd) < len(there):
            raise Refused(
                f"column {self.name} mixes numbers and words (row {odd[0]}: {str(self.words[odd[0]])[:40]!r}): "
                f"data.columns.{self.name}=numeric takes words as missing, =categorical takes numbers as words"
            )
        different = len(set(self.words[there]))
        if different == len(there) > 20:
            return "label"
        return "hash" if different > distinct else "categorical"

    def coded(self, column: Column) -> np.ndarray:
        """[n] codes of a categorical or hashed column; 0: missing, or never seen in training."""
        words = self.part(column.part) if column.part else self.words
        codes = {w: 0 if w is None else column.code(w) for w in set(words)}
        return np.array([codes[w] for w in words], dtype=np.float64)


def ordered(words: Any) -> list[str]:
    """Distinct words in their order: by number if all are numbers."""
    words = set(words)
    try:
        return sorted(words, key=lambda w: (float(w), w))
    except ValueError:
        return sorted(words)


def _finite(values: np.ndarray) -> np.ndarray:
    """What float32 cannot hold as infinity."""
    large = np.abs(np.nan_to_num(values, posinf=np.inf, neginf=-np.inf)) > np.finfo(np.float32).max
    return np.where(large, np.inf, values)


def _day_first(words: Any) -> bool:
    """Whether a first number says that days come before months: it is more than twelve."""
    return any(int(re.split(r"[-/.]", w)[0]) > 12 for w in words)
