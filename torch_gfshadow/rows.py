"""Rows: everything that is measured at one step, put together as its record.

Here nothing is decided and nothing moves on; read next: ``measure`` (probes and bounds).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torch_gfshadow.alerts import Watch
from torch_gfshadow.clock import FlowClock, SparseSchedule
from torch_gfshadow.follow import Follower
from torch_gfshadow.journey import Journey
from torch_gfshadow.measure import Measures
from torch_gfshadow.parts import Parts
from torch_gfshadow.record import Record
from torch_gfshadow.sampling import Sampler
from torch_gfshadow.status import Status
from torch_gfshadow.used import UsedGradients, norm


class Rows:
    """Makes the records of one run.

    Attributes:
        measures: What is evaluated at the iterate.
    """

    def __init__(self, parts: Parts, clock: FlowClock, journey: Journey, sampler: Sampler) -> None:
        self.parts, self.clock, self.sampler = parts, clock, sampler
        self.measures = Measures(parts, clock)
        self._journey = journey
        self._losses = SparseSchedule(dense=100, ratio=1.05)
        self._watch = Watch(parts.alerts) if parts.alerts is not None else None

    def state_dict(self) -> dict[str, Any]:
        """Return the schedules, and the state of what is measured."""
        return {
            "measures": self.measures.state_dict(),
            "losses": self._losses.next,
            "watch": None if self._watch is None else self._watch.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.measures.load_state_dict(saved["measures"])
        self._losses.next = saved["losses"]
        if self._watch is not None and saved["watch"] is not None:
            self._watch.load_state_dict(saved["watch"])

    def make(self, follower: Follower, used: UsedGradients) -> Record:
        """Measure, and return the row of this moment.

        Args:
            follower: The flow side of it.
            used: The gradients of the last steps.
        """
        parts, step = self.parts, self.clock.step
        distance = self._journey.distance()
        self._journey.arrive(used)
        row: dict[str, Any] = {"distance_from_init": distance}
        extras: dict[str, Any] = {}
        loss, grad = self._known_at_start() if step == 0 else (None, None)
        row["grad_norm"] = norm(grad) if grad is not None else used.norm
        row["local_defect"] = used.defect()
        extras["run"] = {"path_length": self._journey.length, **used.secant()}
        if (next_step := self.sampler.forecast(follower.dearer)) is not None:
            extras["budget"] = {"next_step": next_step}
        used.compared()
        if not math.isfinite(distance):
            follower.note(Status.NON_FINITE, "The run's own parameters are not finite")
            return self._finished(follower, {**row, "distance_from_init": None}, extras, loss)
        row.update(follower.measure(distance, self.measures.lambda_max))
        loss_probed = self._probed(follower.step_size, row, extras)
        loss = loss if loss is not None else loss_probed
        if parts.objective is not None:
            audited = follower.audit_at()
            loss = audited if audited is not None else loss
            if loss is None and self._losses.due(step):
                loss = parts.objective.loss(self._now(), "loss")
        return self._finished(follower, row, extras, loss)

    def _now(self) -> Tensor:
        """Return the run's parameters, shape ``[d]``, as one new vector."""
        return self.parts.watched.layout.current()

    def _finished(
        self, follower: Follower, row: dict[str, Any], extras: dict[str, Any], loss: float | None
    ) -> Record:
        parts, ledger = self.parts, self.parts.session.ledger
        status, detail = follower.status(row.get("discrepancy"), row.get("solver_error"))
        curvature = parts.curvature if parts.objective is not None else None
        record = Record(
            step=self.clock.step,
            time=self.clock.time,
            step_size=follower.step_size,
            loss=loss,
            audit=str(follower.audit),
            flow=parts.flow.name if parts.flow is not None else "none",
            solver=follower.shadow.solver if follower.shadow is not None else "none",
            hvp=(curvature.backend or "none") if curvature is not None else "none",
            mode=follower.mode,
            n_grad_evals=ledger.n_grads,
            n_loss_evals=ledger.n_losses,
            n_hvps=ledger.n_hvps,
            seconds=ledger.seconds,
            status=status,
            status_detail=detail,
            extras=extras,
            **row,
        )
        return self._alerted(self.measures.with_bounds(record), follower.since)

    def _alerted(self, record: Record, since: float) -> Record:
        alerts = self.parts.alerts
        if self._watch is None or alerts is None:
            return record
        record, new = self._watch.look(record, self.clock.time - since)
        for alert in new if alerts.callback is not None else []:
            self.parts.isolated(alerts.callback, alert, who="alert callback")
        return record

    def _known_at_start(self) -> tuple[float | None, Tensor | None]:
        objective = self.parts.objective
        return objective.initial if objective is not None else (None, None)

    def _probed(
        self, step_size: float, row: dict[str, Any], extras: dict[str, Any]
    ) -> float | None:
        sampler, ledger = self.sampler, self.parts.session.ledger
        if not sampler.affords_probes():
            return None
        started = ledger.now()
        known = self.measures.probe(self._now, step_size, row, extras)
        if known is not None:
            sampler.probed(ledger.now() - started)
        return known
