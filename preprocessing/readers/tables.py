"""Tables in which a set says of its images what they show, and which split they belong to: csv, or parquet.

A table is read once, however many images ask, and again where it changed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import ConfigError, MissingInputError
from preprocessing import splits

Row = Mapping[str, Any]


class Entry(NamedTuple):
    """What a table says of an image."""

    classes: tuple[str, ...] | None = None
    """None where the table does not say."""
    split: str = ""
    acquired: str = ""


@dataclass(frozen=True)
class Table:
    """The tables of a set: what must be in them, and what their rows say."""

    columns: tuple[str, ...]
    """Columns that are needed."""
    entry: Callable[[str, Row], tuple[str, Entry]]
    """The table's name without ending and a row -> the image's name, and what is said of it."""
    rows: Callable[[Path, Table], Iterator[Row]]
    """`csv_rows` or `parquet_rows`."""
    lists_from: str
    """Where the tables can be had."""

    def read(self, path: Path) -> Mapping[str, Entry]:
        """Return what a table says, or every csv of a folder, by the images' names.

        Raises `MissingInputError` where there is none, and `ConfigError` for one of another kind.
        """
        # as the record of the split lists them, so that what is read is what is recorded
        found = splits.tables(path)
        if not found:
            raise MissingInputError(
                f"there is no table at {path} (labels.table). It can be had at {self.lists_from}."
            )
        return _read(self, tuple(found), tuple(one.stat().st_mtime_ns for one in found))


@lru_cache(maxsize=2)
def _read(table: Table, paths: tuple[Path, ...], changed_ns: tuple[int, ...]) -> Mapping[str, Entry]:
    """Read all tables; their times of change are there so that the cache never holds older ones."""
    return dict(table.entry(path.stem, row) for path in paths for row in table.rows(path, table))


def csv_rows(path: Path, table: Table) -> Iterator[Row]:
    """Yield the rows of a csv file with a line of names."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        # before the first row: an empty list of another kind is a fault too
        _check(path, rows.fieldnames or (), table)
        yield from rows


def parquet_rows(path: Path, table: Table) -> Iterator[Row]:
    """Yield the rows of a parquet file."""
    # at first use: half a second, and few readers need it
    import pyarrow.parquet

    try:
        columns: dict[str, list[Any]] = pyarrow.parquet.read_table(path).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(
            f"{path} (labels.table) is no parquet file ({error}). Fetch it again, {table.lists_from}."
        ) from error
    _check(path, columns, table)
    # by columns first: of half a million rows only three are kept
    for values in zip(*(columns[name] for name in table.columns), strict=True):
        yield dict(zip(table.columns, values, strict=True))


def _check(path: Path, names: Iterable[str], table: Table) -> None:
    if not set(table.columns) <= set(names):
        raise ConfigError(
            f"{path} (labels.table) has the columns {', '.join(names)}; {', '.join(table.columns)} are needed: take the"
            f" set's own, {table.lists_from}."
        )
