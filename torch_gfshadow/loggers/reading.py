"""Read a JSONL file of records back, whole or torn."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch_gfshadow.errors import must
from torch_gfshadow.record import SCHEMA_VERSION, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFile:
    """What a JSONL file holds.

    Attributes:
        header: The first header, ``{}`` if there is none.
        records: Every record in file order; a resumed run may repeat steps.
        summary: The last session's summary, ``None`` if it never finished.
        complete: Whether the last session finished and no line is torn.
        headers: Every header; each one after the first marks a resumption.
        starts: Index into ``records`` at which each header's session begins.
    """

    header: Mapping[str, Any]
    records: tuple[Record, ...]
    summary: Mapping[str, Any] | None
    complete: bool
    headers: tuple[Mapping[str, Any], ...] = ()
    starts: tuple[int, ...] = field(default=(), repr=False)

    @property
    def sessions(self) -> tuple[tuple[Record, ...], ...]:
        """The records, split where the run was resumed."""
        edges = (*self.starts, len(self.records))
        return tuple(self.records[begin:end] for begin, end in pairwise(edges))


def read_records(path: str | os.PathLike[str]) -> RecordFile:
    """Read what :class:`~torch_gfshadow.loggers.JsonlLogger` wrote.

    A torn last line, as a killed run leaves it, is dropped and makes the file incomplete. An
    empty file has no records and is incomplete too.

    Args:
        path: The file.

    Returns:
        Header, records and summary; ``complete`` says whether the run reached its end.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If any line but the last is not a header, record or summary of this schema;
            the message names the line.
    """
    headers: list[Mapping[str, Any]] = []
    starts: list[int] = []
    records: list[Record] = []
    summary: Mapping[str, Any] | None = None
    whole = True
    for place, row in _rows(Path(path)):
        if row is None:
            whole = False
            continue
        item = parse_row(row, place)
        summary = None  # only a summary that nothing follows belongs to the last session
        if isinstance(item, Record):
            records.append(item)
        elif item["type"] == "header":
            headers.append(_without_type(item))
            starts.append(len(records))
        else:
            summary = _without_type(item)
    return RecordFile(
        header=headers[0] if headers else {},
        records=tuple(records),
        summary=summary,
        complete=whole and summary is not None,
        headers=tuple(headers),
        starts=tuple(starts),
    )


def parse_row(row: Mapping[str, Any], place: str) -> Record | Mapping[str, Any]:
    """Return the record a line holds, or the header or summary as it is, ``type`` included.

    Raises:
        ValueError: If it is none of them, or of a newer schema.
    """
    kind = row.get("type")
    if kind == "record":
        return _record(row, place)
    if kind == "header":
        _check_schema(row, place)
    elif kind != "summary":
        raise _bad_line(place, f"type {kind!r}")
    return row


def _without_type(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "type"}


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield where and what each line is; ``None`` for a last line that is torn."""
    torn: tuple[str, bytes] | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if torn is not None:
                raise _bad_line(torn[0], repr(torn[1][:60].decode(errors="replace")))
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                torn = place, line
                continue
            if not isinstance(row, dict):
                raise _bad_line(place, type(row).__name__)
            yield place, row
    if torn is not None:
        yield torn[0], None


def _record(row: Mapping[str, Any], place: str) -> Record:
    try:
        return Record.from_dict(row)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _check_schema(header: Mapping[str, Any], place: str) -> None:
    schema = header.get("schema", SCHEMA_VERSION)
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        raise ValueError(
            must(
                f"{place}: schema",
                f"at most {SCHEMA_VERSION}",
                repr(schema),
                "A newer torch_gfshadow wrote this file: upgrade to read it.",
            )
        )


def _bad_line(place: str, got: str) -> ValueError:
    fix = "Only the last line of a killed run may be broken; restore or delete this one."
    return ValueError(must(place, "a header, record or summary", got, fix))
