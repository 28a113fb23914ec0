"""CSV: one column per field, for spreadsheets. JSONL keeps more: header, summary, structure."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch_gfshadow.loggers._lines import LineFile, checked_path
from torch_gfshadow.loggers.base import not_started, to_json
from torch_gfshadow.record import FIELDS, Record


class CsvLogger:
    """Write one line per record under a line of field names; ``None`` is an empty cell.

    ``bounds`` and ``extras`` are JSON cells; a text never spans lines. Header and summary of the
    run have no place in a table and are not written. Starting on an existing file resumes it.

    Args:
        path: The file; missing directories are created on ``start``.

    Raises:
        TypeError: If ``path`` is not a path.
        ValueError: If ``path`` is a directory or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = checked_path(path)
        self._lines = LineFile(self.path, _is_column_line, _ends_in_newline)

    def start(self, header: Mapping[str, Any]) -> None:
        """Open the file; write the field names if it is new."""
        if self._lines.open():
            self._lines.append(_COLUMNS)

    def write(self, record: Record) -> None:
        """Append one record.

        Raises:
            GFShadowError: If the logger is not started.
            OSError: If the disk is full; the file then still ends in a whole line.
        """
        if not self._lines.is_open:
            raise not_started(self)
        self._lines.append(_line(_cell(value) for value in record.to_dict().values()))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the file."""
        self._lines.close()


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return to_json(value) if value else ""
    return " ".join(value.split()) if isinstance(value, str) else value


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


_COLUMNS = _line(FIELDS)


def _is_column_line(first: bytes) -> bool:
    # Another version's columns would put numbers under wrong names: not ours.
    line = first.decode(errors="replace")
    return line.rstrip("\n") == _COLUMNS or (not line.endswith("\n") and _COLUMNS.startswith(line))


def _ends_in_newline(line: bytes) -> bool:
    return line.endswith(b"\n")
