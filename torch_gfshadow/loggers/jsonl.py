"""JSONL: the lossless default. One header line, one line per record, one summary line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch_gfshadow.loggers._lines import LineFile, checked_path
from torch_gfshadow.loggers.base import make_header, not_started, to_json
from torch_gfshadow.record import Record

_HEADER_START = b'{"type": "header"'


class JsonlLogger:
    """Write one JSON object per line; its ``type`` is header, record or summary.

    Every line is on its way to the disk before ``write`` returns: ``kill -9`` loses at most the
    line being written. Floats are written so that they read back bit by bit; NaN and ±∞ become
    ``null``, because JSON has neither. Starting on an existing file resumes it: a torn last line
    is removed, and a new header marks where the run went on. Read back with
    :func:`torch_gfshadow.loggers.read_records`.

    Args:
        path: The file; missing directories are created on ``start``.

    Raises:
        TypeError: If ``path`` is not a path.
        ValueError: If ``path`` is a directory or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = checked_path(path)
        self._lines = LineFile(self.path, _starts_with_header, _is_object)

    def start(self, header: Mapping[str, Any]) -> None:
        """Open the file and write the header; what ``header`` lacks of the standard is added."""
        self._lines.open()
        self._lines.append(to_json({"type": "header", **make_header(), **header}))

    def write(self, record: Record) -> None:
        """Append one record.

        Raises:
            GFShadowError: If the logger is not started.
            OSError: If the disk is full; the file then still ends in a whole line.
        """
        if not self._lines.is_open:
            raise not_started(self)
        # to_dict() is JSON-ready already; converting it again would double the cost per step.
        row = {"type": "record", **record.to_dict()}
        self._lines.append(json.dumps(row, allow_nan=False))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Append the summary and close the file."""
        if not self._lines.is_open:
            return
        try:
            self._lines.append(to_json({"type": "summary", **summary}))
        finally:
            self._lines.close()


def _starts_with_header(first: bytes) -> bool:
    # The very first line may itself be torn, anywhere.
    return first.startswith(_HEADER_START) or _HEADER_START.startswith(first)


def _is_object(line: bytes) -> bool:
    # A proper prefix of an object never parses, so only the newline itself can be missing.
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
