"""What happened in this process, as plain counters: counting costs nothing and needs no library."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Totals:
    """Counts since the process began; a counter of Prometheus never goes back.

    Attributes:
        attached: Runs that began.
        detached: Runs that ended.
        records: Records, by status.
        exceeded: Records whose discrepancy lies above a bound, by bound.
        errors: Exceptions caught so that training could go on, by type.
    """

    attached: int = 0
    detached: int = 0
    records: Counter[str] = field(default_factory=Counter)
    exceeded: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


TOTALS = Totals()
