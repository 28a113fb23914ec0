"""Findings: what one check saw, and the diagnosis they add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

LEVELS = ("ok", "note", "unknown", "wrong")


@dataclass(frozen=True)
class Finding:
    """One check and its outcome.

    Attributes:
        check: What was looked at.
        level: ``"ok"``; ``"note"`` (right, but know this); ``"unknown"`` (could not be checked
            here); ``"wrong"`` (numbers of a run with this model could not be trusted).
        found: What was seen, with its numbers.
        advice: What to change; empty where nothing is to be done.
    """

    check: str
    level: str
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        assert self.level in LEVELS


@dataclass(frozen=True)
class Diagnosis:
    """Every finding about one model, and what a shadow beside it would cost.

    Attributes:
        findings: In the order the checks ran; the checks after a fatal one did not run.
        cost: Counts per step and per probe, and time ratios paired in one run. Empty if the
            model could not be followed.
    """

    findings: Sequence[Finding]
    cost: Mapping[str, Any] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether nothing was found wrong."""
        return all(finding.level != "wrong" for finding in self.findings)

    def __getitem__(self, check: str) -> Finding:
        """Return the finding of ``check``.

        Raises:
            KeyError: If that check did not run.
        """
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(check)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            "healthy": self.healthy,
            "findings": [asdict(finding) for finding in self.findings],
            "cost": dict(self.cost),
        }
