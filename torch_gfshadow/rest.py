"""Rest: after a flow proved too dear or too stiff, when a fresh shadow starts at the iterate.

Another attempt may cost as much as the one before, so the steps between them double, and all
attempts of a long run together cost little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_gfshadow._plain import load_attributes, saved_attributes
from torch_gfshadow.status import Status

_FIRST = 10
_OVER_DEAR = (Status.TRUNCATED, Status.STIFF)
_STATE = ("_length", "_begun", "_until")


class Rest:
    """Steps without a shadow after one was given up: 10, 20, 40 and so on.

    A shadow that has lived for longer than the last rest ends the doubling.
    """

    def __init__(self) -> None:
        self._length = _FIRST
        self._begun = 0
        self._until = -1

    def begin(self, step: int) -> None:
        """Note that a shadow starts at ``step``."""
        self._begun, self._until = step, -1

    def over(self, step: int, status: Status) -> bool:
        """Say whether a fresh shadow is to start at ``step``, the present one being in ``status``.

        To be asked at every record, so that the end of the shadow is seen.
        """
        if status not in _OVER_DEAR:
            return False
        if self._until < 0:
            lived = step - self._begun
            self._length = _FIRST if lived > self._length else self._length
            self._until = step + self._length
            self._length *= 2
        return step >= self._until

    @property
    def told(self) -> str:
        """When the next shadow starts, as the end of a sentence."""
        return f"; a fresh shadow starts after step {self._until - 1}" if self._until > 0 else ""

    def state_dict(self) -> dict[str, Any]:
        """Return the length of the next rest, and when the present one ends."""
        return saved_attributes(self, _STATE)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        load_attributes(self, _STATE, saved)
