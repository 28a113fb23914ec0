"""Follow: the flow beside the run. Which field, which clock, how far the iterate is from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torch_gfshadow.audit import Audit
from torch_gfshadow.clock import FlowClock
from torch_gfshadow.errors import FlowError
from torch_gfshadow.parts import Parts
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.status import Status, worst
from torch_gfshadow.used import norm


class Follower:
    """Carries the shadow of a full objective; without one it is passive and only keeps time.

    Attributes:
        shadow: The flow now followed, if any.
        step_size: η of the step under way, or of the last one.
    """

    def __init__(self, parts: Parts, clock: FlowClock) -> None:
        self.shadow: ShadowFlow | None = None
        self.step_size = 0.0
        self._noted: list[tuple[Status, str]] = []
        self._parts, self._clock = parts, clock

    @property
    def mode(self) -> str:
        """Name of the mode, as records carry it."""
        parts = self._parts
        return "passive" if parts.objective is None or parts.flow is None else "reference"

    def known_loss(self) -> tuple[Tensor, float] | None:
        """Return a point of the flow and the loss that was found there."""
        return None if self.shadow is None else self.shadow.known_loss()

    def note(self, status: Status, detail: str) -> None:
        """Remember what happened, for the status of the next record."""
        self._noted.append((status, detail))

    def read_step_size(self) -> None:
        """Read η from the optimizer, and start anew if its other hyperparameters changed.

        Raises:
            FlowError: If the optimizer steps other parameters than it was attached with.
        """
        flow, groups = self._parts.flow, self._parts.watched.groups
        if flow is None:
            self.step_size = float(groups[0]["lr"]) if groups and "lr" in groups[0] else 0.0
            return
        if self._parts.watched.has_other_params():
            raise FlowError(
                "optimizer must step the parameters it was attached with, got others. "
                "Add, freeze and unfreeze parameters before attach(), or attach anew."
            )
        if flow.configure(groups, self._parts.watched.layout) and self.shadow is not None:
            self.resync()
            self.note(Status.EXTERNAL_EDIT, "weight_decay or maximize changed")
        self.step_size = flow.step_size(groups)

    def begin(self, theta: Tensor, known: tuple[float, Tensor]) -> None:
        """Start the shadow at ``theta``, where loss and gradient are ``known``."""
        parts = self._parts
        if parts.flow is None or parts.objective is None:
            return
        parts.flow.configure(parts.watched.groups, parts.watched.layout)
        self.shadow = ShadowFlow(
            parts.objective,
            parts.flow,
            parts.solver,
            theta,
            known,
            time=self._clock.time,
            step_size=self.step_size,
            resolution=parts.settings.resolution,
        )

    def resync(self) -> None:
        """Set the shadow to the run's own parameters."""
        objective = self._parts.objective
        if objective is not None and self._parts.flow is not None:
            theta = self._parts.watched.layout.current(self._parts.solver.dtype)
            self.begin(theta, objective.loss_and_grad(theta, "setup"))

    def measure(self, theta: Tensor, distance: float, lambda_max: float | None) -> dict[str, Any]:
        """Bring the shadow to the run's clock; return the fields of the record it gives.

        Args:
            theta: The iterate, shape ``[d]``.
            distance: ‖θ_k − θ_0‖.
            lambda_max: Largest Hessian eigenvalue last seen by a probe, if any.
        """
        shadow, now = self.shadow, self._clock.time
        if shadow is None or not shadow.advance(now, lambda_max):
            return {}
        discrepancy = norm(theta - shadow.state(now))
        shadow.observe(discrepancy)
        return {
            "discrepancy": discrepancy,
            "relative_discrepancy": discrepancy / distance if distance > 0.0 else None,
            "solver_error": shadow.error,
            "shadow_loss": shadow.loss(now),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the flow's state, and what is noted for the next record."""
        return {
            "step_size": self.step_size,
            "noted": [(status.value, detail) for status, detail in self._noted],
            "shadow": None if self.shadow is None else self.shadow.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state, bit for bit."""
        parts = self._parts
        self.step_size = saved["step_size"]
        self._noted = [(Status(status), detail) for status, detail in saved["noted"]]
        self.shadow = None
        if saved["shadow"] is None or parts.flow is None or parts.objective is None:
            return
        parts.flow.configure(parts.watched.groups, parts.watched.layout)
        self.shadow = ShadowFlow.resumed(
            parts.objective,
            parts.flow,
            parts.solver,
            saved["shadow"],
            resolution=parts.settings.resolution,
        )

    def status(
        self, discrepancy: float | None, solver_error: float | None, audit: Audit
    ) -> tuple[Status, str]:
        """Return the worst state of the row to be written, and the sentence behind it."""
        found = list(self._noted)
        self._noted.clear()
        if audit.kind == "mismatch":
            found.append((Status.MISMATCH, f"cosine {audit.cosine:.4f}"))
        elif audit.kind == "scaled":
            found.append((Status.SCALED, f"factor {audit.scale:.4g}"))
        if self.shadow is None:
            found.append((Status.PASSIVE, self._parts.why_passive))
        elif not self.shadow.alive:
            found.append((self.shadow.status, self.shadow.detail))
        elif (solver_error or 0.0) > (math.inf if discrepancy is None else discrepancy):
            found.append((Status.UNRESOLVED, "the error bar exceeds the discrepancy"))
        status = worst(s for s, _ in found)
        details = [f"{d}. {s.sentence}" if d else s.sentence for s, d in found if s is status]
        return status, details[0] if details else ""
