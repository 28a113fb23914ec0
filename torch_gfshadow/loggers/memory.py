"""Memory: keep the records, all or the last few."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any

from torch_gfshadow.errors import must
from torch_gfshadow.loggers.base import not_started
from torch_gfshadow.record import Record


class MemoryLogger:
    """Keep records in ``records``, the last ``max_records`` of them if that is given.

    Args:
        max_records: How many to keep; ``None`` keeps all. ``"memory:1000"`` keeps 1000.

    Raises:
        ValueError: If ``max_records`` is not a positive integer.
    """

    def __init__(self, max_records: int | str | None = None) -> None:
        self.max_records = None if max_records is None else positive("max_records", max_records)
        self.header: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self._records: deque[Record] = deque(maxlen=self.max_records)
        self._started = False

    @property
    def records(self) -> list[Record]:
        """The records kept, oldest first."""
        return list(self._records)

    def start(self, header: Mapping[str, Any]) -> None:
        """Begin; records of an earlier start are kept, as a resumed file keeps its lines."""
        self.header, self._started = dict(header), True

    def write(self, record: Record) -> None:
        """Keep one record, its extras as plain numbers so that no tensor lives on.

        Raises:
            GFShadowError: If the logger is not started.
        """
        if not self._started:
            raise not_started(self)
        if record.extras:
            record = dataclasses.replace(record, extras=record.to_dict()["extras"])
        self._records.append(record)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Keep the summary."""
        if self._started:
            self.summary, self._started = dict(summary), False


def positive(argument: str, value: int | str) -> int:
    """Return ``value`` as a positive integer; strings come from ``"name:argument"``.

    Raises:
        ValueError: If it is none.
    """
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or isinstance(value, (bool, float)):
        raise ValueError(must(argument, "a positive integer", repr(value), f"Pass {argument}=10."))
    return number
