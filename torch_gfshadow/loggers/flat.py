"""A record as the flat list of numbers that most tracking systems want."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch_gfshadow.record import Record


def numbers(record: Record) -> Iterator[tuple[str, float]]:
    """Yield every finite number of a record with a path as its name.

    Names are ``gfshadow/<field>``, ``bounds/<name>`` and ``extras/<plugin>/<key>``. The step is
    left out: it is the axis. So is what is not finite or not a number; JSONL keeps the reason.
    """
    row = record.to_dict()
    bounds, extras = row.pop("bounds"), row.pop("extras")
    del row["step"]
    yield from _numbers("gfshadow", row)
    yield from _numbers("bounds", {name: cell.get("value") for name, cell in bounds.items()})
    yield from _numbers("extras", extras)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(f"{name}/{key}", item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value
