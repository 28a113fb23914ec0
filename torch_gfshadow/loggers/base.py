"""What a logger is, and the header every run begins with. Next: jsonl.py, reading.py."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from enum import Enum
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from torch_gfshadow.errors import GFShadowError, must
from torch_gfshadow.record import SCHEMA_VERSION, Record

_PACKAGES = ("torch-gfshadow", "torch", "torchdiffeq", "pluggy")


@runtime_checkable
class Logger(Protocol):
    """A sink for records. It writes, it never computes, and it keeps no tensor alive.

    The tracker calls ``start`` once, ``write`` per record and ``finish`` once, on rank 0 only,
    and isolates each call: what a logger raises mutes that logger, not the run. Constructing a
    logger checks its arguments and opens nothing.
    """

    def start(self, header: Mapping[str, Any]) -> None:
        """Open the sink. ``header`` is :func:`make_header`'s, or a part of it."""

    def write(self, record: Record) -> None:
        """Write one row. Raises what the sink raises, a full disk for example."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and close. Harmless before ``start`` and when repeated."""


def make_header(
    configuration: Mapping[str, Any] | None = None, seed: int | None = None
) -> dict[str, Any]:
    """Describe a run: schema, package versions, field units, configuration and seed.

    Args:
        configuration: The arguments of ``attach``; what JSON cannot hold is written as text.
        seed: Seed of everything random that we do, for example Krylov start vectors.

    Returns:
        A new JSON-ready mapping with keys schema, versions, configuration, seed, fields.
    """
    return {
        "schema": SCHEMA_VERSION,
        "versions": {name: _version(name) for name in _PACKAGES},
        "configuration": to_json_ready(configuration or {}),
        "seed": seed,
        "fields": {f.name: f.metadata["unit"] for f in dataclasses.fields(Record)},
    }


def to_json_ready(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: NaN and ±∞ become ``None``, objects their text."""
    if isinstance(value, Enum):
        return to_json_ready(value.value)
    if isinstance(value, Mapping):
        return {str(key): to_json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json_ready(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    # Scalars of NumPy and torch are numbers; their arrays could be as large as a data set.
    is_scalar = hasattr(value, "item") and getattr(value, "ndim", None) == 0
    return to_json_ready(value.item()) if is_scalar else str(value)


def to_json(value: Any) -> str:
    """Return ``value`` as one line of strict JSON; floats keep every digit."""
    return json.dumps(to_json_ready(value), allow_nan=False)


def not_started(logger: object) -> GFShadowError:
    """Return the error for a record that comes before ``start`` or after ``finish``."""
    name = type(logger).__name__
    return GFShadowError(
        must(
            f"{name}.write()",
            "called between start() and finish()",
            "a record outside them",
            "Call start(header) first; a finished logger can be started again.",
        )
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"  # imported from a checkout that was never installed
