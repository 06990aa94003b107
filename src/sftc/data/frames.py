"""Files of tables -> named columns as they stand in the file: csv, also gzipped, and parquet.

pandas is imported when a table is read; only the files of tables in this folder know it.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import warnings
from pathlib import Path
from typing import Any

from sftc.errors import Refused

SEPARATORS = {",": ",", ";": ";", "tab": "\t", "|": "|"}
PARQUET = (".parquet", ".pq")
TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
_SAMPLE = 200  # lines that the separator is found by


def is_table(path: Path) -> bool:
    return path.name.lower().endswith((*PARQUET, *TEXT))


def pandas() -> Any:
    """The library. Raises Refused: it is not installed."""
    try:
        import pandas
    except ImportError:
        raise Refused("tables are read by pandas, which is not installed: pip install 'sftc[tables]'") from None
    return pandas


def frame(path: Path, separator: str = "auto") -> Any:
    """A pandas frame of the file. Of text every cell is a string; rows without any are left out.

    Raises:
        Refused: it is no such file, has two columns of one name, or lines that are no rows of it.
    """
    if path.name.lower().endswith(PARQUET):
        try:
            table = pandas().read_parquet(path)
        except Refused:
            raise
        except Exception as e:  # pyarrow's own kinds
            raise Refused(f"{path} cannot be read as parquet ({_line(e)})") from None
        table.columns = [str(c) for c in table.columns]
        _check_names(path, list(table.columns))
        return table.reset_index(drop=True)
    text = _text(path)
    mark = SEPARATORS[separator] if separator != "auto" else _separator(path, text)
    header = [name.strip() for name in next(csv.reader(io.StringIO(text), delimiter=mark), [])]
    _check_separator(path, header, mark)
    names = [name or f"unnamed{i}" for i, name in enumerate(header)]
    _check_names(path, names)
    _check_rows(path, text, mark, len(names))
    pd = pandas()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a line with more cells than names is a warning to pandas
            how: dict[str, Any] = {"sep": mark, "names": names, "header": 0, "dtype": str, "index_col": False}
            return pd.read_csv(io.StringIO(text), keep_default_na=False, skipinitialspace=True, **how)
    except (ValueError, Warning) as e:
        raise Refused(f"{path} is no table of {len(names)} columns ({_line(e)})") from None


def _text(path: Path) -> str:
    """All of a text file, without a byte order mark."""
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            raw = file.read()
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as e:
        raise Refused(f"{path} is not UTF-8 (byte {e.start}); save it as UTF-8") from None
    except (OSError, EOFError) as e:
        raise Refused(f"{path} cannot be read ({_line(e)})") from None
    if not text.strip():
        raise Refused(f"{path} is empty")
    if "\0" in text[:4096]:
        raise Refused(f"{path} is no text; data=tabular reads csv and parquet")
    return text.lstrip("\r\n")


def _separator(path: Path, text: str) -> str:
    """The one that cuts the first lines into equally many cells, two or more; of several the one that makes most."""
    lines = io.StringIO(text)
    sample = "".join(line for _, line in zip(range(_SAMPLE), lines, strict=False))
    found = {}
    for mark in SEPARATORS.values():
        try:
            widths = [len(row) for row in csv.reader(io.StringIO(sample), delimiter=mark) if row]
        except csv.Error:
            continue
        usual = max(set(widths), key=widths.count)
        if usual > 1 and widths[0] == usual:
            found[mark] = (widths.count(usual) / len(widths), usual)
    return max(found, key=lambda mark: found[mark]) if found else ","


def _check_separator(path: Path, header: list[str], mark: str) -> None:
    other = next((word for word, m in SEPARATORS.items() if m != mark and m in header[0]), None)
    if len(header) == 1 and other:
        raise Refused(f"{path}: cut at {mark!r} it has one column, {header[0][:40]!r}; set data.separator={other}")


def _check_rows(path: Path, text: str, mark: str, width: int) -> None:
    """Raises Refused: a row has fewer cells than there are names, as where a file was cut off: pandas fills it up."""
    with contextlib.suppress(csv.Error):
        cells = (row for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark) if any(map(str.strip, row)))
        for i, row in enumerate(cells, -1):
            if len(row) < width:
                raise Refused(f"{path} is no table of {width} columns (row {i} has {len(row)})")


def _check_names(path: Path, names: list[str]) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise Refused(f"{path} has two columns named {twice}; rename one")


def _line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0].removeprefix("Error tokenizing data. ")[:160]
