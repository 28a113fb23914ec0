"""Follow a JSONL file of records while another process writes it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_gfshadow.errors import must
from torch_gfshadow.loggers.reading import parse_row
from torch_gfshadow.record import Record


class Follower:
    """Read what was added to a file since the last look.

    The file need not exist yet. A line that is still being written waits for its end; a file that
    was replaced by a shorter one is read from its beginning.

    Args:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._offset = self._n_lines = 0
        self._identity: tuple[int, int] | None = None

    def poll(self) -> list[Record | Mapping[str, Any]]:
        """Return the new records, and headers and summaries as mappings with their ``type``.

        Raises:
            OSError: If the file exists and cannot be read.
            ValueError: If a whole line is not one of ours; the message names it.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            state = os.fstat(file.fileno())
            if state.st_size < self._offset or self._identity != (state.st_dev, state.st_ino):
                self._offset = self._n_lines = 0
                self._identity = (state.st_dev, state.st_ino)
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [item for line in whole.splitlines() if (item := self._parse(line)) is not None]

    def _parse(self, line: bytes) -> Record | Mapping[str, Any] | None:
        self._n_lines += 1
        if not line.strip():
            return None
        place = f"{self.path}, line {self._n_lines}"
        try:
            row = json.loads(line)
        except ValueError as error:
            fix = "Name a file that a torch_gfshadow logger wrote."
            got = repr(line[:40].decode(errors="replace"))
            raise ValueError(must(place, "a record, header or summary", got, fix)) from error
        return parse_row(row if isinstance(row, dict) else {}, place)
