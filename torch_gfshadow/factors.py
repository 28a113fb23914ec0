"""Factors: a step with c times the objective's gradient goes c times as far along its flow.

Clipping by norm and summed accumulation multiply the gradient of step k by some c_k. In an
autonomous flow that is a step of c_k·η_k, so the flow's clock goes by Σ c_k·η_k. The factor may
differ from step to step and only the objective's own gradient shows it. So once it has been
seen, every step is audited, for one gradient more, until the factor has been 1 for a while.
Between two sparse audits clipping shows by itself: it makes every gradient equally long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch_gfshadow._plain import load_attributes, saved_attributes
from torch_gfshadow.audit import Audit
from torch_gfshadow.status import Status

_PATIENCE = 20
_ALIKE = 1e-5
"""Relative difference of two lengths that clipping made the same, in float32."""
_STATE = ("audits", "_late", "_known", "_matched", "_length", "_alarms", "_trusted")


class Factors:
    """The factors of a run's gradients, as its audits find them.

    Attributes:
        audits: Whether the step to come must be audited, too.
    """

    def __init__(self) -> None:
        self.audits = False
        self._late = False
        self._known, self._matched = 0, 0
        self._length: float | None = None
        self._alarms = self._trusted = 0

    def suspects(self, length: float, step: int) -> bool:
        """Say whether ``step`` should be audited: its gradient is exactly as long as the last one.

        Where that was no factor, twice as many steps pass before it is asked again.

        Args:
            length: ‖g‖ of the gradient it uses.
            step: Number of steps before it.
        """
        before, self._length = self._length, length
        if before is None or not 0.0 < length < math.inf or step < self._trusted:
            return False
        if abs(length - before) > _ALIKE * length:
            return False
        self._alarms += 1
        self._trusted = step + 2**self._alarms
        return True

    def begin(self, step: int) -> None:
        """Note that the shadow starts before ``step``: no step of its life is unaccounted for."""
        self._late, self._known = False, step

    def taken(self, audit: Audit, step: int, *, folds: bool) -> float:
        """Return what the step size of ``step`` is multiplied by.

        Args:
            audit: Verdict on the gradient it uses.
            step: Number of steps before it.
            folds: Whether a factor changes nothing but the pace of the flow.
        """
        scaled = audit.kind == "scaled"
        self._late |= scaled and self._known < step
        self._known = step + 1
        if scaled:
            self._alarms = self._trusted = 0
        self._matched = 0 if scaled else self._matched + 1
        self.audits = folds and (scaled or (self.audits and self._matched < _PATIENCE))
        return audit.scale if scaled and folds else 1.0

    def status(self, audit: Audit) -> list[tuple[Status, str]]:
        """Return what a record has to say about factors that are not accounted for."""
        if self._late:
            return [(Status.SCALED, "a factor was at work before an audit saw it; resync()")]
        if audit.kind == "scaled" and not self.audits:
            return [(Status.SCALED, f"factor {audit.scale:.4g}")]
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return what was found so far."""
        return saved_attributes(self, _STATE)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        load_attributes(self, _STATE, saved)
