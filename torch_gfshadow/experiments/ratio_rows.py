"""One row of the paper's own protocol, and rows in a file that a killed run leaves readable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch_gfshadow.errors import must


@dataclass(frozen=True, kw_only=True)
class RatioRow:
    """The runs after step ``step`` of the coarsest one.

    Attributes:
        step: Steps k taken at η; the run at η/r has taken r·k.
        distance_from_init: ‖θ_k − θ_0‖ of the run at η, in units of θ.
        distances: r → ‖θ_k^{η} − θ_{rk}^{η/r}‖, in units of θ. To first order in η this is
            (1 − 1/r) times the discrepancy from the flow.
        extrapolated: Estimate of the discrepancy itself, ‖θ_k^{η} − θ̂‖, where θ̂ extrapolates
            the two finest runs, cleared of their rounding, linearly to step size zero
            (Richardson).
        extrapolated_error: Its error bar: how far θ̂ moves when a third run joins the
            extrapolation, plus a tenth of the rounding that was taken out.
        rounding: r → norm of the rounding errors that the run's updates have summed up.
        losses: r → objective of that run, r = 1 for the run at η.
    """

    step: int
    distance_from_init: float
    distances: Mapping[int, float]
    extrapolated: float
    extrapolated_error: float
    rounding: Mapping[int, float]
    losses: Mapping[int, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON-ready values; the ratios become strings."""
        return {
            key: {str(r): item for r, item in value.items()} if isinstance(value, dict) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> RatioRow:
        """Build a row from :meth:`to_dict`'s output."""
        fields: dict[str, Any] = {
            key: {int(r): item for r, item in value.items()} if isinstance(value, dict) else value
            for key, value in row.items()
        }
        return cls(**fields)


def append_row(path: Path, row: RatioRow) -> None:
    """Append ``row`` to the JSON-lines file ``path`` and flush it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row.to_dict()) + "\n")


def read_rows(path: Path) -> list[RatioRow]:
    """Read what :func:`append_row` wrote; a torn last line is dropped.

    Raises:
        ValueError: If a line other than the last is not a row.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: list[RatioRow] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(RatioRow.from_dict(json.loads(line)))
        except (ValueError, TypeError) as problem:
            if number == len(lines):
                break
            raise ValueError(
                must(f"line {number} of {path}", "a ratio row", line[:60], "Restore the file.")
            ) from problem
    return rows
