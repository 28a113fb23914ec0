"""Tracker: the only wiring. It measures everything before anything moves on.

``before_step`` and ``after_step`` are called by the hooks that attach.py puts on the optimizer.
Everything here reads the run and writes records; nothing here does numerics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from torch_gfshadow._plain import load_attributes, saved_attributes
from torch_gfshadow.alerts import Watch
from torch_gfshadow.borrowed import BorrowedGradients
from torch_gfshadow.clock import FlowClock, SparseSchedule, every, next_multiple
from torch_gfshadow.follow import Follower
from torch_gfshadow.measure import Measures
from torch_gfshadow.outlet import Outlet
from torch_gfshadow.parts import Parts
from torch_gfshadow.piecewise import PiecewiseFlow
from torch_gfshadow.record import Record
from torch_gfshadow.sampling import Sampler
from torch_gfshadow.session import summarise
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.solvers import is_large
from torch_gfshadow.status import Status
from torch_gfshadow.used import UsedGradients, norm

_STATE = ("_origin", "_last_theta", "_path")


class Tracker:
    """Follows one optimizer.

    Args:
        parts: What it is made of.
        follower: The flow side of it, by mode.
    """

    def __init__(self, parts: Parts, clock: FlowClock, follower: Follower) -> None:
        self.parts, self.clock, self.follower = parts, clock, follower
        self.outlet = Outlet(parts)
        self.sampler = Sampler(
            parts.settings,
            parts.session.ledger,
            probed=bool(parts.probes),
            agree=partial(parts.ranks.agreed, device=parts.watched.layout.device)
            if parts.ranks is not None
            else float,
        )
        self.paused = False
        self._losses = SparseSchedule(dense=100, ratio=1.05)
        self._measures = Measures(parts, self.clock)
        self._lean = parts.settings.mode in ("reference", "passive") and is_large(
            parts.solver, parts.watched.layout.dim
        )
        self._used = BorrowedGradients() if self._lean else UsedGradients()
        self._watch = Watch(parts.alerts) if parts.alerts is not None else None
        self._path = 0.0
        self._resumed = False
        self._silent_until = 0  # the last step that may need nothing, as far as is known
        # in the parameters' own dtype, which holds them exactly in half the space
        self._origin = parts.watched.layout.current()
        # of the last record; None while the step to come begins there and will be read
        self._last_theta: Tensor | None = self._origin
        self._recorded = False

    @property
    def shadow(self) -> ShadowFlow | PiecewiseFlow | None:
        """The flow now followed, if any."""
        return self.follower.shadow

    # -- the run ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the shadow where the run stands, and make record 0."""
        self.follower.read_step_size()
        if self.sampler.begins(0):
            self.follower.start(self._origin)
        self.parts.watched.mark()
        self.outlet.hold(self._record())
        self._settle()

    def idle(self) -> bool:
        """Say whether the step to come needs nothing but to be counted: the cheapest question.

        Nothing is due before it or after it, nothing is held, nobody touched the optimizer or the
        parameters. False is "look closer", with :meth:`before_step`.
        """
        if self.clock.step >= self._silent_until or self.paused or self._resumed:
            return False
        parts = self.parts
        ledger = parts.session.ledger
        start = ledger.now()
        still = self.follower.idle and parts.watched.still()
        if still and not parts.watched.as_set():
            # a schedule moves the rate at every step
            still = parts.watched.only_rates_moved() and self.follower.read_pace()
        ledger.seconds += ledger.now() - start
        return still

    def count(self) -> None:
        """Count a step that :meth:`idle` was true of."""
        parts = self.parts
        ledger = parts.session.ledger
        start = ledger.now()
        self.clock.tick(self.follower.step_size)
        parts.watched.mark()
        ledger.seconds += ledger.now() - start

    def before_step(self) -> None:
        """Read the gradient the step is about to use, and the rate it will use it with."""
        self.outlet.release()
        self._resumed = False
        watched, step = self.parts.watched, self.clock.step + 1
        if watched.edited():
            self.follower.note(Status.EXTERNAL_EDIT, f"before step {step}")
            self.resync()
        self.follower.read_step_size()
        watched.look()
        self._silent_until = 0
        if self.paused:
            if self._last_theta is None:
                self._last_theta = watched.layout.current()
            self.follower.skip()
            self._used.skip()
        elif self.follower.needs_gradient or self.sampler.reads(step):
            self.follower.before(self._used.read(watched))
            self._used.leave(watched)
        else:
            self._used.skip()
            self.follower.before(None)
            self._silent_until = self._silence(step)

    def after_step(self) -> None:
        """Advance the clock, bring the shadow along, and write a record if one is due."""
        step = self.clock.step + 1
        self.clock.tick(self.follower.step_size)
        self._used.stepped(self.parts.watched)
        self.follower.after()
        settings, sampler = self.parts.settings, self.sampler
        ends, begins = sampler.ends(step), sampler.begins(step)
        if begins and not ends:
            self.resync()
        due = every(step, settings.every) if sampler.whole else begins or ends
        if due and not self.paused:
            self.outlet.write(self._record())
        if ends:
            sampler.closed()
            self.follower.stop()
            if begins:
                self.resync()
        if every(step, settings.resync_every):
            self.resync()
        self._settle()
        self.parts.watched.mark()

    def _walked(self) -> None:
        """Add the way from the last record to here, and let go of the point it began at."""
        if self._last_theta is None:
            self._path += self._used.step_length
        else:
            self._path += self.parts.watched.layout.distance([(self._last_theta, -1.0)])
        self._last_theta, self._recorded = None, True

    def _settle(self) -> None:
        """Copy what the next step will change, now that the shadow's own vectors are gone."""
        self._used.settle(self.parts.watched)
        recorded, self._recorded = self._recorded, False
        if recorded and not (self._lean and self.sampler.reads(self.clock.step + 1)):
            self._last_theta = self.parts.watched.layout.current()

    def _silence(self, step: int) -> int:
        """Return the last step, from ``step`` on, that is certain to need nothing of us."""
        last, period = self.sampler.silent_until(step), self.parts.settings.resync_every
        return last if period is None else min(last, next_multiple(step, period) - 1)

    def resync(self) -> None:
        """Set the shadow to the run's own parameters; discrepancies start anew from here."""
        if self.sampler.active:
            self.follower.resync()

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
        out = summarise(session.records, session.ledger, self.sampler.elapsed)
        out["errors"] = [f"{type(e).__name__}: {e}" for e in session.errors]
        return out

    # -- saving -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that the records to come depend on, as plain values."""
        parts = self.parts
        self._settle()
        return {
            "clock": self.clock.state_dict(),
            "sampler": self.sampler.state_dict(),
            "ledger": parts.session.ledger.state_dict(),
            "objective": None if parts.objective is None else parts.objective.state_dict(),
            "curvature": None if parts.curvature is None else parts.curvature.state_dict(),
            "follower": self.follower.state_dict(),
            "measures": self._measures.state_dict(),
            "outlet": self.outlet.state_dict(),
            "used": self._used.state_dict(),
            "marks": list(parts.watched.marks),
            "losses": self._losses.next,
            "watch": None if self._watch is None else self._watch.state_dict(),
            **saved_attributes(self, _STATE),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state; the model and the optimizer load theirs themselves."""
        parts = self.parts
        for key, part in (("objective", parts.objective), ("curvature", parts.curvature)):
            if part is not None and saved[key] is not None:
                part.load_state_dict(saved[key])
        self.clock.load_state_dict(saved["clock"])
        self.follower.load_state_dict(saved["follower"])
        self._measures.load_state_dict(saved["measures"])
        self.outlet.load_state_dict(saved["outlet"])
        self._used.load_state_dict(saved["used"])
        self._losses.next = saved["losses"]
        if self._watch is not None and saved["watch"] is not None:
            self._watch.load_state_dict(saved["watch"])
        load_attributes(self, _STATE, saved)
        parts.session.ledger.load_state_dict(saved["ledger"])
        self.sampler.load_state_dict(saved["sampler"])
        # the parameters must be those of the saved moment: the next step looks, as it always does
        parts.watched.marks = saved["marks"]
        self._resumed = True

    # -- the record ---------------------------------------------------------------------------

    def _record(self) -> Record:
        parts, step = self.parts, self.clock.step
        layout = parts.watched.layout
        distance = layout.distance([(self._origin, -1.0)])
        self._walked()
        row: dict[str, Any] = {"distance_from_init": distance}
        extras: dict[str, Any] = {}
        loss, grad = self._known_at_start() if step == 0 else (None, None)
        row["grad_norm"] = norm(grad) if grad is not None else self._used.norm
        row["local_defect"] = self._used.defect()
        extras["run"] = {"path_length": self._path, **self._used.secant()}
        self._used.compared()
        if not math.isfinite(distance):
            self.follower.note(Status.NON_FINITE, "The run's own parameters are not finite")
            return self._finished({**row, "distance_from_init": None}, extras, loss)
        row.update(self.follower.measure(distance, self._measures.lambda_max))
        loss_probed = self._probed(row, extras)
        loss = loss if loss is not None else loss_probed
        if parts.objective is not None:
            audited = self.follower.audit_at()
            loss = audited if audited is not None else loss
            if loss is None and self._losses.due(step):
                loss = parts.objective.loss(self._now(), "loss")
        return self._finished(row, extras, loss)

    def _now(self) -> Tensor:
        """Return the run's parameters, shape ``[d]``, as one new vector."""
        return self.parts.watched.layout.current()

    def _finished(self, row: dict[str, Any], extras: dict[str, Any], loss: float | None) -> Record:
        parts, ledger = self.parts, self.parts.session.ledger
        status, detail = self.follower.status(row.get("discrepancy"), row.get("solver_error"))
        curvature = parts.curvature if parts.objective is not None else None
        record = Record(
            step=self.clock.step,
            time=self.clock.time,
            step_size=self.follower.step_size,
            loss=loss,
            audit=str(self.follower.audit),
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
        return self._alerted(self._measures.with_bounds(record))

    def _alerted(self, record: Record) -> Record:
        alerts = self.parts.alerts
        if self._watch is None or alerts is None:
            return record
        record, new = self._watch.look(record, self.clock.time - self.follower.since)
        for alert in new if alerts.callback is not None else []:
            self.parts.isolated(alerts.callback, alert, who="alert callback")
        return record

    def _known_at_start(self) -> tuple[float | None, Tensor | None]:
        objective = self.parts.objective
        return objective.initial if objective is not None else (None, None)

    def _probed(self, row: dict[str, Any], extras: dict[str, Any]) -> float | None:
        sampler, ledger = self.sampler, self.parts.session.ledger
        if not sampler.affords_probes():
            return None
        started = ledger.now()
        known = self._measures.probe(self._now, self.follower.step_size, row, extras)
        if known is not None:
            sampler.probed(ledger.now() - started)
        return known
