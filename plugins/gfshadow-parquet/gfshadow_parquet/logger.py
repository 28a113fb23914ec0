"""The logger: a directory of Parquet files, each whole from the moment it has its name."""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from torch_gfshadow.errors import must
from torch_gfshadow.loggers import checked_directory, not_started, to_json
from torch_gfshadow.record import Record

_NESTED = ("bounds", "extras")


class ParquetLogger:
    """Write records as a Parquet data set, ``part-00000.parquet`` and on, in one directory.

    Read it with ``pandas.read_parquet(directory)``. Numbers keep their type and every digit;
    ``bounds`` and ``extras``, whose keys differ from run to run, are JSON in a text column.
    Header and summary are ``_header.json`` and ``_summary.json``, which readers pass over.

    A Parquet file can be read only when it is finished, so records wait in memory until there
    are ``rows`` of them; ``kill -9`` loses those that wait, and JSONL beside it loses none.
    A resumed run adds parts to the directory.

    Args:
        directory: Where the parts go; created on ``start``.
        rows: Records per part, at least 1.

    Raises:
        ValueError: If ``directory`` is a file or lies under one, or ``rows`` is not positive.
    """

    def __init__(self, directory: str | os.PathLike[str], rows: int = 256) -> None:
        if rows < 1:
            raise ValueError(must("rows", "at least 1", rows, "256 is a good size."))
        self.directory = checked_directory(directory)
        self.rows = rows
        self._waiting: list[dict[str, Any]] | None = None

    def start(self, header: Mapping[str, Any]) -> None:
        """Create the directory and write the header."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_text("_header.json", to_json(header))
        self._waiting = []

    def write(self, record: Record) -> None:
        """Take one record; every ``rows``-th writes a part.

        Raises:
            GFShadowError: If the logger is not started.
            OSError: If the part cannot be written; its records wait for the next attempt.
        """
        if self._waiting is None:
            raise not_started(self)
        row = record.to_dict()
        self._waiting.append({**row, **{name: json.dumps(row[name]) for name in _NESTED}})
        if len(self._waiting) >= self.rows:
            self._flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write what waits, and the summary; harmless before ``start`` and when repeated."""
        if self._waiting is None:
            return
        try:
            self._flush()
            self._write_text("_summary.json", to_json(summary))
        finally:
            self._waiting = None

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_pylist(self._waiting, schema=SCHEMA)
        number = 1 + max(
            (int(p.stem[5:]) for p in self.directory.glob("part-*.parquet")), default=-1
        )
        target = self.directory / f"part-{number:05d}.parquet"
        partial = target.with_suffix(".partial")
        try:
            pq.write_table(table, partial)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self._waiting.clear()

    def _write_text(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text + "\n", encoding="utf-8")


def _schema() -> pa.Schema:
    """Return one column per field of a record, with the field's type, unit and meaning."""
    hints = typing.get_type_hints(Record)
    columns = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    fields = []
    for item in dataclasses.fields(Record):
        kinds = typing.get_args(hints[item.name]) or (hints[item.name],)
        if not isinstance(hints[item.name], types.UnionType):
            kinds = (hints[item.name],)
        kind = next((columns[k] for k in kinds if k in columns), pa.string())
        fields.append(pa.field(item.name, kind, metadata=dict(item.metadata)))
    return pa.schema(fields)


SCHEMA = _schema()
