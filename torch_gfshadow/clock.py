"""Flow time t_k = Σ η_j, and the schedules that say when something is due."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class FlowClock:
    """Step count and flow time, summed with compensation so that 10⁶ steps lose nothing.

    Attributes:
        step: Steps taken.
        time: Flow time.
        silent_until: The last step that may need nothing but to be counted, as far as is known.
    """

    step: int = 0
    time: float = 0.0
    _carry: float = 0.0
    silent_until: int = 0

    def tick(self, step_size: float) -> float:
        """Advance by one step of size ``step_size`` and return the new time."""
        self.step += 1
        increment = step_size - self._carry
        total = self.time + increment
        self._carry = (total - self.time) - increment
        self.time = total
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return count, time and the part of it that rounding left over."""
        return {"step": self.step, "time": self.time, "carry": self._carry}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.step, self.time, self._carry = saved["step"], saved["time"], saved["carry"]


class SparseSchedule:
    """Due at every step up to ``dense``, then at steps growing by ``ratio``.

    A measurement on this schedule costs O(log k) evaluations in k steps, and short runs get
    every value.

    Attributes:
        next: The step it is due at next.
    """

    def __init__(self, dense: int, ratio: float) -> None:
        self.dense, self.ratio = dense, ratio
        self.next = 0

    def due(self, step: int) -> bool:
        """Say whether ``step`` is due, and if so plan the next one."""
        if step < self.next:
            return False
        self.next = step + 1 if step < self.dense else max(step + 1, int(step * self.ratio))
        return True


def every(step: int, period: int | None) -> bool:
    """Say whether ``step`` is a multiple of ``period`` (never for ``None``)."""
    return period is not None and step % period == 0


def next_multiple(step: int, period: int) -> int:
    """Return the first multiple of ``period`` that is not below ``step``."""
    return -(-step // period) * period
