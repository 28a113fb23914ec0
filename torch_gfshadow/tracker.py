"""Tracker: the only wiring. It measures everything before anything moves on.

``before_step`` and ``after_step`` are called by the hooks that attach.py puts on the optimizer.
Everything here reads the run and writes records; nothing here does numerics.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torch_gfshadow._plain import load_attributes, saved_attributes
from torch_gfshadow.audit import Audit, compare
from torch_gfshadow.clock import FlowClock, SparseSchedule, every
from torch_gfshadow.follow import Follower
from torch_gfshadow.measure import Measures
from torch_gfshadow.outlet import Outlet
from torch_gfshadow.parts import Parts
from torch_gfshadow.record import Record
from torch_gfshadow.session import summarise
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.status import Status
from torch_gfshadow.used import UsedGradients, norm

_log = logging.getLogger(__name__)
_STATE = ("_audit_against", "_origin", "_last_theta", "_path")


class Tracker:
    """Follows one optimizer."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.clock = FlowClock()
        self.follower = Follower(parts, self.clock)
        self.outlet = Outlet(parts)
        self.paused = False
        self._audit = Audit("pending" if parts.objective and parts.settings.audit else "none")
        self._audit_against: Tensor | None = None
        self._audits = SparseSchedule(dense=0, ratio=2.0)
        self._losses = SparseSchedule(dense=100, ratio=1.05)
        self._measures = Measures(parts, self.clock)
        self._used = UsedGradients()
        self._path = 0.0
        self._resumed = False
        self._started = time.perf_counter()
        self._origin = parts.watched.layout.current(parts.solver.dtype)
        self._last_theta = self._origin

    @property
    def shadow(self) -> ShadowFlow | None:
        """The flow now followed, if any."""
        return self.follower.shadow

    # -- the run ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the shadow and the loggers where the run stands, and write record 0."""
        parts = self.parts
        self.follower.read_step_size()
        if parts.objective is not None:
            self.follower.begin(self._origin, parts.objective.initial)
            self._audit_against = parts.objective.initial[1] if parts.settings.audit else None
            self._audits.due(0)
        parts.watched.mark()
        self.outlet.hold(self._record())

    def before_step(self) -> None:
        """Read the gradient the step is about to use, and the rate it will use it with."""
        self.outlet.release()
        self._resumed = False
        watched = self.parts.watched
        if watched.edited():
            self.follower.note(Status.EXTERNAL_EDIT, f"before step {self.clock.step + 1}")
            self.resync()
        self.follower.read_step_size()
        if not self._gradient_is_due():
            self._used.skip()
            return
        used = self._used.read(watched)
        if self._audit_against is not None:
            self._compare(self._audit_against, used)
            self._audit_against = None

    def after_step(self) -> None:
        """Advance the clock, bring the shadow along, and write a record if one is due."""
        step = self.clock.step + 1
        self.clock.tick(self.follower.step_size)
        settings = self.parts.settings
        if every(step, settings.every) and not self.paused:
            self.outlet.write(self._record())
        if every(step, settings.resync_every):
            self.resync()
        self.parts.watched.mark()

    def resync(self) -> None:
        """Set the shadow to the run's own parameters; discrepancies start anew from here."""
        self.follower.resync()
        self._audit_against = None

    def reloaded(self) -> None:
        """Start anew after the optimizer loaded a state, unless that belongs to a resumption."""
        if not self._resumed:
            self.resync()

    def finish(self) -> None:
        """Close the loggers with the summary; tell the plugins."""
        self.outlet.finish(self.summary())

    def summary(self) -> dict[str, Any]:
        """Return the totals of the run so far."""
        session = self.parts.session
        elapsed = time.perf_counter() - self._started
        out = summarise(session.records, session.ledger, elapsed)
        out["errors"] = [f"{type(e).__name__}: {e}" for e in session.errors]
        return out

    # -- saving -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that the records to come depend on, as plain values."""
        parts = self.parts
        return {
            "clock": self.clock.state_dict(),
            "elapsed": time.perf_counter() - self._started,
            "ledger": parts.session.ledger.state_dict(),
            "objective": None if parts.objective is None else parts.objective.state_dict(),
            "curvature": None if parts.curvature is None else parts.curvature.state_dict(),
            "follower": self.follower.state_dict(),
            "measures": self._measures.state_dict(),
            "outlet": self.outlet.state_dict(),
            "used": self._used.state_dict(),
            "marks": list(parts.watched.marks),
            "audit": dataclasses.asdict(self._audit),
            "due": {name: getattr(self, f"_{name}").next for name in ("audits", "losses")},
            **saved_attributes(self, _STATE),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state; the model and the optimizer load theirs themselves."""
        parts = self.parts
        for key, part in (("objective", parts.objective), ("curvature", parts.curvature)):
            if part is not None:
                part.load_state_dict(saved[key])
        self.clock.load_state_dict(saved["clock"])
        self.follower.load_state_dict(saved["follower"])
        self._measures.load_state_dict(saved["measures"])
        self.outlet.load_state_dict(saved["outlet"])
        self._used.load_state_dict(saved["used"])
        self._audit = Audit(**saved["audit"])
        for name, step in saved["due"].items():
            getattr(self, f"_{name}").next = step
        load_attributes(self, _STATE, saved)
        parts.session.ledger.load_state_dict(saved["ledger"])
        self._started = time.perf_counter() - saved["elapsed"]
        # the parameters must be those of the saved moment: the next step looks, as it always does
        parts.watched.marks = saved["marks"]
        self._resumed = True

    # -- parts of a step ----------------------------------------------------------------------

    def _gradient_is_due(self) -> bool:
        """Two consecutive gradients give the defect, so the step before a record counts, too."""
        step, period = self.clock.step + 1, self.parts.settings.every
        return self._audit_against is not None or every(step, period) or every(step + 1, period)

    def _compare(self, own: Tensor, used: Tensor) -> None:
        before = self._audit.kind
        self._audit = compare(used, own)
        if self._audit.kind == "mismatch" and before != "mismatch":
            _log.warning("gradient audit at step %d: %s", self.clock.step, Status.MISMATCH.sentence)

    # -- the record ---------------------------------------------------------------------------

    def _record(self) -> Record:
        parts, step = self.parts, self.clock.step
        theta = parts.watched.layout.current(parts.solver.dtype)
        distance = norm(theta - self._origin)
        self._path += norm(theta - self._last_theta)
        self._last_theta = theta
        row: dict[str, Any] = {"distance_from_init": distance}
        extras: dict[str, Any] = {}
        loss, grad = self._known_at_start() if step == 0 else (None, None)
        grad = grad if grad is not None else self._used.now
        row["grad_norm"] = norm(grad) if grad is not None else None
        row["local_defect"] = self._used.defect()
        extras["run"] = {"path_length": self._path, **self._used.secant()}
        if not math.isfinite(distance):
            self.follower.note(Status.NON_FINITE, "The run's own parameters are not finite")
            return self._finished({**row, "distance_from_init": None}, extras, loss)
        row.update(self.follower.measure(theta, distance, self._measures.lambda_max))
        if parts.objective is not None:
            loss_probed = self._measures.probe(theta, self.follower.step_size, row, extras)
            loss = loss if loss is not None else loss_probed
            if parts.settings.audit and self._audits.due(step) and step > 0:
                loss, self._audit_against = parts.objective.loss_and_grad(theta, "audit")
            if loss is None and self._losses.due(step):
                loss = parts.objective.loss(theta, "loss")
        return self._finished(row, extras, loss)

    def _finished(self, row: dict[str, Any], extras: dict[str, Any], loss: float | None) -> Record:
        parts, ledger = self.parts, self.parts.session.ledger
        status, detail = self.follower.status(
            row.get("discrepancy"), row.get("solver_error"), self._audit
        )
        curvature = parts.curvature
        record = Record(
            step=self.clock.step,
            time=self.clock.time,
            step_size=self.follower.step_size,
            loss=loss,
            audit=str(self._audit),
            flow=parts.flow.name if parts.flow is not None else "none",
            solver=self.shadow.solver if self.shadow is not None else "none",
            hvp=(curvature.backend or "none") if curvature is not None else "none",
            mode=self.follower.mode,
            n_grad_evals=ledger.n_grads,
            n_loss_evals=ledger.n_losses,
            n_hvps=ledger.n_hvps,
            seconds=ledger.seconds,
            status=status,
            status_detail=detail,
            extras=extras,
            **row,
        )
        return self._measures.with_bounds(record)

    def _known_at_start(self) -> tuple[float | None, Tensor | None]:
        objective = self.parts.objective
        return objective.initial if objective is not None else (None, None)
