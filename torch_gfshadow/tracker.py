"""Tracker: the only wiring. It measures everything before anything moves on.

``before_step`` and ``after_step`` are called by the hooks that attach.py puts on the optimizer.
Everything here reads the run and writes records; nothing here does numerics.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.audit import Audit, compare
from torch_gfshadow.bounds import Bound
from torch_gfshadow.clock import FlowClock, SparseSchedule, every
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.eigen import Spectrum
from torch_gfshadow.errors import FlowError
from torch_gfshadow.flows import Flow
from torch_gfshadow.loggers import Logger
from torch_gfshadow.objective import Objective
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.probes import Point, Probe
from torch_gfshadow.record import FIELDS, Record
from torch_gfshadow.session import Session, Settings, summarise
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.solvers import SolverConfig
from torch_gfshadow.status import Status, worst
from torch_gfshadow.watched import Watched

_log = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Parts:
    """What a tracker is made of. Without ``objective`` and ``flow`` it is passive."""

    watched: Watched
    settings: Settings
    session: Session
    plugins: Plugins
    objective: Objective | None
    curvature: Curvature | None
    flow: Flow | None
    solver: SolverConfig
    probes: Sequence[Probe]
    bounds: Sequence[Bound]
    loggers: Sequence[Logger]
    why_passive: str = ""


class Tracker:
    """Follows one optimizer."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.clock = FlowClock()
        self.shadow: ShadowFlow | None = None
        self.paused = False
        self._audit = Audit("pending" if parts.objective and parts.settings.audit else "none")
        self._audit_against: Tensor | None = None
        self._audits = SparseSchedule(dense=0, ratio=2.0)
        self._losses = SparseSchedule(dense=100, ratio=1.05)
        self._probes_due = SparseSchedule(dense=0, ratio=2.0)
        self._used: Tensor | None = None
        self._before_used: Tensor | None = None
        self._moved: Tensor | None = None
        self._used_at: Tensor | None = None
        self._step_size = 0.0
        self._spectrum: Spectrum | None = None
        self._lambda_max: float | None = None
        self._trouble: list[tuple[Status, str]] = []
        self._path = 0.0
        self._started = time.perf_counter()
        self._origin = parts.watched.layout.current(parts.solver.dtype)
        self._last_theta = self._origin

    # -- the run ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the shadow and the loggers where the run stands, and write record 0."""
        parts = self.parts
        self._step_size = self._read_step_size()
        if parts.objective is not None:
            self._begin_flow(self._origin, parts.objective.initial)
            self._audit_against = parts.objective.initial[1] if parts.settings.audit else None
            self._audits.due(0)
        parts.watched.mark()
        self._write(self._record())

    def before_step(self) -> None:
        """Read the gradient the step is about to use, and the rate it will use it with."""
        watched = self.parts.watched
        if watched.edited():
            self._trouble.append((Status.EXTERNAL_EDIT, f"before step {self.clock.step + 1}"))
            self.resync()
        self._step_size = self._read_step_size()
        if not self._gradient_is_due():
            self._used = self._used_at = None
            return
        self._before_used, self._used = self._used, watched.gradient()
        before, self._used_at = self._used_at, watched.layout.current()
        self._moved = self._used_at - before if before is not None else None
        if self._audit_against is not None:
            self._compare(self._audit_against, self._used)
            self._audit_against = None

    def after_step(self) -> None:
        """Advance the clock, bring the shadow along, and write a record if one is due."""
        step = self.clock.step + 1
        self.clock.tick(self._step_size)
        settings = self.parts.settings
        if every(step, settings.every) and not self.paused:
            self._write(self._record())
        if every(step, settings.resync_every):
            self.resync()
        self.parts.watched.mark()

    def resync(self) -> None:
        """Set the shadow to the run's own parameters; discrepancies start anew from here."""
        objective = self.parts.objective
        if objective is not None and self.parts.flow is not None:
            theta = self.parts.watched.layout.current(self.parts.solver.dtype)
            self._begin_flow(theta, objective.loss_and_grad(theta, "setup"))
        self._audit_against = None

    def finish(self) -> None:
        """Close the loggers with the summary; tell the plugins."""
        summary = self.summary()
        for logger in self.parts.loggers:
            self._isolated(logger.finish, summary, who=f"logger {type(logger).__name__}")
        self.parts.plugins.notify("gfshadow_detach", session=self.parts.session)

    def summary(self) -> dict[str, Any]:
        """Return the totals of the run so far."""
        session = self.parts.session
        elapsed = time.perf_counter() - self._started
        out = summarise(session.records, session.ledger, elapsed)
        out["errors"] = [f"{type(e).__name__}: {e}" for e in session.errors]
        return out

    # -- parts of a step ----------------------------------------------------------------------

    def _read_step_size(self) -> float:
        flow, groups = self.parts.flow, self.parts.watched.groups
        if flow is None:
            return float(groups[0]["lr"]) if groups and "lr" in groups[0] else 0.0
        if self.parts.watched.has_other_params():
            raise FlowError(
                "optimizer must step the parameters it was attached with, got others. "
                "Add, freeze and unfreeze parameters before attach(), or attach anew."
            )
        if flow.configure(groups, self.parts.watched.layout) and self.shadow is not None:
            self.resync()
            self._trouble.append((Status.EXTERNAL_EDIT, "weight_decay or maximize changed"))
        return flow.step_size(groups)

    def _begin_flow(self, theta: Tensor, known: tuple[float, Tensor]) -> None:
        parts = self.parts
        if parts.flow is None or parts.objective is None:
            return
        parts.flow.configure(parts.watched.groups, parts.watched.layout)
        self.shadow = ShadowFlow(
            parts.objective,
            parts.flow,
            parts.solver,
            theta,
            known,
            time=self.clock.time,
            step_size=self._step_size,
            resolution=parts.settings.resolution,
        )

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
        distance = _norm(theta - self._origin)
        self._path += _norm(theta - self._last_theta)
        self._last_theta = theta
        row: dict[str, Any] = {"distance_from_init": distance}
        extras: dict[str, Any] = {}
        loss, grad = self._known_at_start() if step == 0 else (None, None)
        grad = grad if grad is not None else self._used
        row["grad_norm"] = _norm(grad) if grad is not None else None
        if self._used is not None and self._before_used is not None:
            row["local_defect"] = _norm(self._used - self._before_used)
        extras.update(self._secant())
        if not math.isfinite(distance):
            self._trouble.append((Status.NON_FINITE, "The run's own parameters are not finite"))
            return self._finished({**row, "distance_from_init": None}, extras, loss)
        row.update(self._discrepancy(theta, distance))
        if parts.objective is not None:
            loss_probed = self._probe(theta, row, extras)
            loss = loss if loss is not None else loss_probed
            if parts.settings.audit and self._audits.due(step) and step > 0:
                loss, self._audit_against = parts.objective.loss_and_grad(theta, "audit")
            if loss is None and self._losses.due(step):
                loss = parts.objective.loss(theta, "loss")
        return self._finished(row, extras, loss)

    def _finished(self, row: dict[str, Any], extras: dict[str, Any], loss: float | None) -> Record:
        parts, ledger = self.parts, self.parts.session.ledger
        status, detail = self._status(row)
        curvature = parts.curvature
        record = Record(
            step=self.clock.step,
            time=self.clock.time,
            step_size=self._step_size,
            loss=loss,
            audit=str(self._audit),
            flow=parts.flow.name if parts.flow is not None else "none",
            solver=self.shadow.solver if self.shadow is not None else "none",
            hvp=(curvature.backend or "none") if curvature is not None else "none",
            mode="passive" if parts.objective is None or parts.flow is None else "reference",
            n_grad_evals=ledger.n_grads,
            n_loss_evals=ledger.n_losses,
            n_hvps=ledger.n_hvps,
            seconds=ledger.seconds,
            status=status,
            status_detail=detail,
            extras=extras,
            **row,
        )
        return self._with_bounds(record)

    def _known_at_start(self) -> tuple[float | None, Tensor | None]:
        objective = self.parts.objective
        return objective.initial if objective is not None else (None, None)

    def _secant(self) -> dict[str, Any]:
        """What the run's own gradients tell for nothing: path, turning, curvature along it."""
        out: dict[str, Any] = {"path_length": self._path}
        used, before = self._used, self._before_used
        if used is not None and before is not None:
            size = _norm(used) * _norm(before)
            if size > 0.0:
                out["gradient_cosine"] = float(torch.dot(used, before)) / size
            if self._moved is not None and _norm(self._moved) > 0.0:
                bend = float(torch.dot(used - before, self._moved))
                out["secant_curvature"] = bend / _norm(self._moved) ** 2
        return {"run": out}

    def _discrepancy(self, theta: Tensor, distance: float) -> dict[str, Any]:
        shadow, now = self.shadow, self.clock.time
        if shadow is None or not shadow.advance(now, self._lambda_max):
            return {}
        discrepancy = _norm(theta - shadow.state(now))
        shadow.observe(discrepancy)
        return {
            "discrepancy": discrepancy,
            "relative_discrepancy": discrepancy / distance if distance > 0.0 else None,
            "solver_error": shadow.error,
            "shadow_loss": shadow.loss(now),
        }

    def _probe(self, theta: Tensor, row: dict[str, Any], extras: dict[str, Any]) -> float | None:
        """Measure the probes that are due; return the loss if one of them came by it."""
        parts, step = self.parts, self.clock.step
        period = parts.settings.probe_every
        due = self._probes_due.due(step) if period is None else every(step, period)
        probes = [p for p in parts.probes if due and _due(p, step)]
        if not probes or parts.curvature is None or parts.objective is None:
            return None
        point = Point(
            step=step,
            time=self.clock.time,
            step_size=self._step_size,
            theta=theta.to(parts.watched.layout.dtype),
            objective=parts.objective,
            curvature=parts.curvature,
            previous=self._spectrum,
            seed=parts.settings.seed,
        )
        loss = None
        for probe in probes:
            measured = self._isolated(probe.measure, point, who=f"probe {probe.name}")
            for key, value in (measured or {}).items():
                if key in FIELDS:
                    row[key] = value
                else:
                    extras.setdefault(probe.name, {})[key] = value
        if point.spectrum_known:
            self._spectrum = point.spectrum()
            self._lambda_max = row.get("lambda_max", self._lambda_max)
        if point.linearised:
            loss = point.loss
        return loss

    def _with_bounds(self, record: Record) -> Record:
        parts, cells = self.parts, {}
        for bound in parts.bounds:
            value = self._isolated(bound.update, record, who=f"bound {bound.name}")
            if value is not None:
                cells[bound.name] = value.to_cell()
        return dataclasses.replace(record, bounds=cells) if cells else record

    def _status(self, row: Mapping[str, Any]) -> tuple[Status, str]:
        found = list(self._trouble)
        self._trouble.clear()
        if self._audit.kind == "mismatch":
            found.append((Status.MISMATCH, f"cosine {self._audit.cosine:.4f}"))
        elif self._audit.kind == "scaled":
            found.append((Status.SCALED, f"factor {self._audit.scale:.4g}"))
        if self.shadow is None:
            found.append((Status.PASSIVE, self.parts.why_passive))
        elif not self.shadow.alive:
            found.append((self.shadow.status, self.shadow.detail))
        elif (row.get("solver_error") or 0.0) > row.get("discrepancy", math.inf):
            found.append((Status.UNRESOLVED, "the error bar exceeds the discrepancy"))
        status = worst(s for s, _ in found)
        details = [f"{d}. {s.sentence}" if d else s.sentence for s, d in found if s is status]
        return status, details[0] if details else ""

    def _write(self, record: Record) -> None:
        parts, session = self.parts, self.parts.session
        session.records.append(record)
        for logger in list(parts.loggers):
            self._isolated(logger.write, record, who=f"logger {type(logger).__name__}")
        parts.plugins.notify("gfshadow_step", record=record, session=session)
        if record.discrepancy is None:
            return
        for name, cell in record.bounds.items():
            if cell["value"] is not None and record.discrepancy > cell["value"]:
                parts.plugins.notify(
                    "gfshadow_bound_exceeded", record=record, bound=name, session=session
                )

    def _isolated(self, function: Any, *args: Any, who: str) -> Any:
        """Call one part; if it raises, note it once and go on without its result."""
        try:
            return function(*args)
        except Exception as error:
            if self.parts.settings.on_error == "raise":
                raise
            known = {str(e) for e in self.parts.session.errors}
            if str(error) not in known:
                self.parts.session.errors.append(error)
                _log.warning("%s failed and is skipped: %s", who, error)
                self.parts.plugins.notify("gfshadow_error", exc=error, session=self.parts.session)
            return None


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def _due(probe: Probe, step: int) -> bool:
    period = getattr(probe, "every", None)
    return period is None or step % period == 0
