"""Follow: the flow beside the run. Which field, which clock, how far the iterate is from it."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._batch import map_tensors
from torch_gfshadow._plain import load_state, state_of
from torch_gfshadow.audit import Audit, compare, compare_parts
from torch_gfshadow.clock import FlowClock, SparseSchedule
from torch_gfshadow.factors import Factors
from torch_gfshadow.fed import FedShadow, coefficients_of, fed_across_kinks
from torch_gfshadow.flows.base import Flow, FlowWithMemory, PacedFlow, lifted, position
from torch_gfshadow.objective import Objective
from torch_gfshadow.paced import PacedShadow
from torch_gfshadow.parts import Parts
from torch_gfshadow.passing import Asks
from torch_gfshadow.rest import Rest
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.solvers import is_large
from torch_gfshadow.status import Status, worst
from torch_gfshadow.used import norm

_log = logging.getLogger(__name__)

_HALVES = (torch.bfloat16, torch.float16)
"""What loops run their forward passes in under autocast."""
_AUTOCAST_COSINE = 0.8
"""Below it two gradients are not one in two precisions."""


class Follower:
    """Carries the shadow of a full objective; without one it is passive and only keeps time.

    Attributes:
        shadow: The flow now followed, if any.
        step_size: η of the step under way, or of the last one.
        since: Flow time at which the shadow last started.
        audit: Verdict on the last pair of gradients compared.
        given: The objective on the data that ``attach`` was given, if any.
    """

    def __init__(self, parts: Parts, clock: FlowClock) -> None:
        self.shadow: ShadowFlow | FedShadow | None = None
        self.step_size = 0.0
        self.since = 0.0
        self.audit = Audit("pending" if parts.objective and parts.settings.audit else "none")
        self._own: Tensor | None = None
        self._audits_next = False
        self._audits = SparseSchedule(dense=0, ratio=2.0)
        self._halves: tuple[torch.dtype, ...] = _HALVES
        self._noted: list[tuple[Status, str]] = []
        self._factors, self._rest = Factors(), Rest()
        self._parts, self._clock = parts, clock
        self.given = parts.objective
        self._paced = isinstance(parts.flow, PacedFlow)

    @property
    def mode(self) -> str:
        """Name of the mode, as records carry it."""
        parts = self._parts
        return "passive" if parts.objective is None or parts.flow is None else "reference"

    @property
    def needs_gradient(self) -> bool:
        """Whether the gradient of the step to come must be read, record or not."""
        factors = self.shadow is not None and self._factors.audits
        return self._own is not None or self._audits_next or factors

    @property
    def idle(self) -> bool:
        """Whether the step to come may pass without :meth:`before` and :meth:`after`."""
        return not self.needs_gradient

    def succeed(self, before: Follower) -> None:
        """Take over what does not depend on which parameters are trained."""
        self.step_size = before.step_size
        self._noted, self._halves = before._noted, before._halves
        self._audits.next = self._clock.step + 1
        if self.given is None and before.given is not None:  # until the parameters fit it again
            self.given = before.given
            self.given.forget_initial()

    def start(self, theta: Tensor) -> None:
        """Start where the run stands, from what the objective's own checks found there."""
        objective = self._parts.objective
        if objective is not None:
            self.begin(theta, objective.initial)
            self._own = objective.initial[1] if self._parts.settings.audit else None
            self._audits.due(0)

    def before(self, used: Tensor | None) -> None:
        """Look at the step to come; ``used`` is its gradient, ``None`` where that is borrowed."""
        objective = self._parts.objective
        if used is not None and self._parts.settings.audit and self.shadow is not None:
            self._audits_next |= self._factors.suspects(norm(used), self._clock.step)
        if self._own is None and self.needs_gradient and objective is not None:
            layout, self._audits_next = self._parts.watched.layout, False
            wide = torch.promote_types(layout.dtype, torch.float32)
            self._own = torch.zeros(layout.dim, dtype=wide, device=layout.device)
            objective.add_grad(self._own, None, 1.0, "audit")
        own, self._own = self._own, None
        if own is not None:
            self._compare(own, used)
            folds = bool(getattr(self._parts.flow, "paced_by_gradient", False))
            self.step_size *= self._factors.taken(self.audit, self._clock.step, folds=folds)
        if objective is not None and self.shadow is not None and self.shadow.low_storage:
            objective.forget_initial()

    def after(self, theta: Tensor | None = None) -> None:
        """Look at the step taken; the clock stands at its end already."""

    def audit_at(self) -> float | None:
        """If an audit is due, take the objective's gradient here and return the loss.

        In low storage it is taken before the next step, which finds the same parameters.
        """
        objective = self._parts.objective
        due = objective is not None and self._parts.settings.audit
        if not (due and self._audits.due(self._clock.step)) or self._clock.step == 0:
            return None
        if self.shadow is not None and self.shadow.low_storage:
            self._audits_next = True
            return None
        assert objective is not None
        loss, self._own = objective.loss_and_grad(self._parts.watched.layout.current(), "audit")
        return loss

    def _compare(
        self, own: Tensor, used: Tensor | None, objective: Objective | None = None
    ) -> None:
        before = self.audit.kind
        self.audit = self._verdict(own, used, objective or self._parts.objective)
        if self.audit.kind == "mismatch" and before != "mismatch":
            step = self._clock.step
            _log.warning("gradient audit at step %d: %s", step, Status.MISMATCH.sentence)

    def _verdict(self, own: Tensor, used: Tensor | None, objective: Objective | None) -> Audit:
        if used is None:
            lent = self._parts.watched.gradients()
            assert lent is not None
            audit = compare_parts(lent, own)
        else:
            audit = compare(used, own)
        if audit.kind == "mismatch" and audit.cosine > _AUTOCAST_COSINE:
            return self._compared_in_halves(used, objective) or audit
        return audit

    def _compared_in_halves(self, used: Tensor | None, objective: Objective | None) -> Audit | None:
        """Compare with the gradient as the loop computes it if it runs under autocast.

        The loop's autocast is over when its step is seen, so it is found out by trying.
        """
        theta = self._parts.watched.layout.current()
        used = self._parts.watched.gradient() if used is None else used
        for dtype in self._halves if objective is not None else ():
            assert objective is not None
            try:
                own = objective.grad_in(theta, dtype, "audit")
            except Exception:  # a model that does not run in half precision was not run in it
                if len(self._halves) == 1:
                    raise
                continue
            found = compare(used, own, dtype=dtype)
            if found.kind != "mismatch":
                self._halves = (dtype,)
                return found
        if len(self._halves) > 1:
            self._halves = ()  # not a loop under autocast
        return None

    def known_loss(self) -> tuple[Tensor, float] | None:
        """Return a point of the flow, shape ``[d]``, and the loss that was found there."""
        known, flow = None if self.shadow is None else self.shadow.known_loss(), self._parts.flow
        return (position(flow, known[0]), known[1]) if known and flow is not None else known

    def note(self, status: Status, detail: str) -> None:
        """Remember what happened, for the status of the next record."""
        self._noted.append((status, detail))

    def read_step_size(self) -> None:
        """Read η from the optimizer, and follow another field if its hyperparameters changed."""
        flow, watched = self._parts.flow, self._parts.watched
        if flow is not None:
            now = copy.copy(flow)
            if now.configure(watched.groups, watched.layout) and not self._only_paced(now):
                self._reconfigured()
        self._read_pace()

    def read_pace(self) -> bool:
        """Read η as :meth:`read_step_size` does, or leave all as it is if the field changed, too.

        Returns:
            Whether η was read. The optimizer's parameters must be those of the layout.
        """
        flow, watched = self._parts.flow, self._parts.watched
        if flow is not None:
            now = copy.copy(flow)
            if now.configure(watched.groups, watched.layout) and not self._only_paced(now):
                return False
        self._read_pace()
        return True

    def _only_paced(self, now: Flow) -> bool:
        """Say whether the flow is followed at any pace, and nothing else of it changed."""
        return self._paced and self._parts.flow.fixed == now.fixed  # type: ignore[attr-defined,union-attr]

    def _read_pace(self) -> None:
        flow, watched = self._parts.flow, self._parts.watched
        groups = watched.groups
        if flow is not None:
            self.step_size = flow.step_size(groups)
            if self._paced:
                flow.configure(groups, watched.layout)
            if isinstance(self.shadow, PacedShadow):
                self.shadow.keep_pace(self._clock.step, self._clock.time, flow.pace)  # type: ignore[attr-defined]
        else:
            self.step_size = float(groups[0]["lr"]) if groups and "lr" in groups[0] else 0.0

    def begin(self, theta: Tensor, known: tuple[float, Tensor]) -> None:
        """Start the shadow at ``theta``, where loss and gradient are ``known``."""
        parts = self._parts
        if parts.flow is None or parts.objective is None:
            return
        parts.flow.configure(parts.watched.groups, parts.watched.layout)
        self._factors.begin(self._clock.step)
        self._rest.begin(self._clock.step)
        watched, self.since = parts.watched, self._clock.time
        if isinstance(parts.flow, FlowWithMemory):
            theta = theta.to(parts.solver.dtype)
        self.shadow = self._shadow_at(
            lifted(parts.flow, theta, known[1], watched.state, watched.layout), known
        )

    def _shadow_at(self, state: Tensor, known: tuple[float, Tensor]) -> ShadowFlow | FedShadow:
        parts = self._parts
        assert parts.flow is not None
        assert parts.objective is not None
        at = parts.objective, parts.flow, parts.solver, state, known
        clock, resolution = self._clock, parts.settings.resolution
        if self._paced:
            return PacedShadow(*at, step=clock.step, time=clock.time, resolution=resolution)  # type: ignore[arg-type]
        kind = self._kind(state.numel())
        return kind(*at, time=clock.time, step_size=self.step_size, resolution=resolution)

    def _kind(self, dim: int) -> type[ShadowFlow] | type[FedShadow]:
        """Choose the shadow: one that the run's gradients can carry, where they change little."""
        parts = self._parts
        assert parts.objective is not None
        plain = coefficients_of(parts.flow) is not None
        pays = not parts.objective.kinked or fed_across_kinks(parts.settings.resolution)
        fits = parts.solver.fed and not is_large(parts.solver, dim)
        return FedShadow if fits and plain and pays else ShadowFlow

    def passes(self) -> bool:
        """Say whether the step to come may pass: taken in, at the cost of an addition at most."""
        shadow = self.shadow
        if type(shadow) is not FedShadow:
            return True
        return shadow.passes(self._parts.watched.gradients, self._clock.time, self.step_size)

    def asks(self) -> Asks | None:
        """Return what to ask at steps that are not looked at closely; ``None`` for nothing.

        It stands for :attr:`idle` and :meth:`passes` until the next step that is, or resync.
        """
        return (
            self.shadow.asks(self._parts.watched.layout) if type(self.shadow) is FedShadow else None
        )

    def feed(self) -> None:
        """Take in the step to come, whose gradients are there."""
        if isinstance(self.shadow, FedShadow):
            grads = None if self._factors.audits else self._parts.watched.gradients()
            self.shadow.feed(grads, self._clock.time, self.step_size)

    def _reconfigured(self) -> None:
        """Follow the old field to this moment, and the new one from the same state on."""
        parts, shadow, now = self._parts, self.shadow, self._clock.time
        flow, objective, layout = parts.flow, parts.objective, parts.watched.layout
        assert flow is not None
        reached = shadow is not None and shadow.alive and shadow.advance(now)
        flow.configure(parts.watched.groups, layout)
        if not reached or shadow is None or objective is None:
            return
        state = shadow.state(now)
        known = objective.loss_and_grad(position(flow, state), "flow")
        self.shadow = self._shadow_at(state, known)
        self.shadow.inherit(shadow)

    def rested(self) -> bool:
        """Say whether a shadow that proved too dear or too stiff is to be replaced here."""
        shadow, step, most = self.shadow, self._clock.step, self._parts.solver.max_evals
        if shadow is None or not self._rest.over(step, shadow.status):
            return False
        spent = self._parts.session.ledger.grads["flow"]
        return most is None or spent <= most * step

    @property
    def dearer(self) -> float:
        """How many times what this window has cost the next one wants to spend."""
        return 1.0

    def stop(self) -> None:
        """Follow nothing until started again."""
        self.shadow = None

    def skip(self) -> None:
        """Let a step pass without looking."""
        self._own = None

    def observe(self, batch: Any, weight: float) -> None:
        """Ignore a batch: the full objective knows its data."""

    def moment(self) -> Any:
        """Nothing: no forward pass of the run's is repeated."""

    def resync(self) -> None:
        """Set the shadow to the run's own parameters."""
        objective = self._parts.objective
        if objective is not None and self._parts.flow is not None:
            theta = self._parts.watched.layout.current()
            known = objective.loss_and_grad(theta, "setup")
            self.begin(theta, known)
            kept = self.shadow is not None and not self.shadow.low_storage
            self._own = known[1] if kept and self._parts.settings.audit else None

    def measure(self, distance: float, lambda_max: float | None) -> dict[str, Any]:
        """Bring the shadow to the run's clock; return the fields of the record it gives.

        Args:
            distance: ‖θ_k − θ_0‖.
            lambda_max: Largest Hessian eigenvalue last seen by a probe, if any.
        """
        shadow, now = self.shadow, self._clock.time
        if shadow is None or not shadow.advance(now, lambda_max):
            return {}
        discrepancy = shadow.distance(self._parts.watched.layout, now)
        shadow.observe(discrepancy)
        return seen(discrepancy, distance, shadow.error, shadow.loss(now))

    def state_dict(self) -> dict[str, Any]:
        """Return the flow's state, and what is noted for the next record."""
        return {
            "step_size": self.step_size,
            "since": self.since,
            "audit": dataclasses.asdict(self.audit),
            "own": self._own,
            "factors": self._factors.state_dict(),
            "rest": self._rest.state_dict(),
            "audits_next": self._audits_next,
            "audits": self._audits.next,
            "halves": [_HALVES.index(dtype) for dtype in self._halves],
            "noted": [(status.value, detail) for status, detail in self._noted],
            "flow": None if self._parts.flow is None else state_of(self._parts.flow),
            "shadow": None if self.shadow is None else self.shadow.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state, bit for bit."""
        parts = self._parts
        self.step_size, self._own = saved["step_size"], saved["own"]
        self.since, self._audits_next = saved["since"], saved["audits_next"]
        self._factors.load_state_dict(saved["factors"])
        self._rest.load_state_dict(saved["rest"])
        self.audit, self._audits.next = Audit(**saved["audit"]), saved["audits"]
        self._halves = tuple(_HALVES[i] for i in saved["halves"])
        self._noted = [(Status(status), detail) for status, detail in saved["noted"]]
        self.shadow = None
        if parts.flow is not None and saved.get("flow") is not None:
            # as it was: hyperparameters that changed since are for the next step to see
            device = parts.watched.layout.device
            load_state(parts.flow, map_tensors(lambda t: t.to(device), saved["flow"]))
        elif parts.flow is not None:
            parts.flow.configure(parts.watched.groups, parts.watched.layout)
        if saved["shadow"] is None or parts.flow is None or parts.objective is None:
            return
        fed = "alone" in saved["shadow"]
        kind = PacedShadow if self._paced else FedShadow if fed else ShadowFlow
        self.shadow = kind.resumed(
            parts.objective,
            parts.flow,
            parts.solver,
            saved["shadow"],
            resolution=parts.settings.resolution,
        )

    def status(self, discrepancy: float | None, solver_error: float | None) -> tuple[Status, str]:
        """Return the worst state of the row to be written, and the sentence behind it."""
        found = [*self._noted, *self._of_audit(), *self._of_shadow()]
        self._noted.clear()
        if (solver_error or 0.0) > (math.inf if discrepancy is None else discrepancy):
            found.append((Status.UNRESOLVED, "the error bar exceeds the discrepancy"))
        status = worst(s for s, _ in found)
        details = [_words(s, d) for s, d in found if s is status][:1]
        if discrepancy is None:  # and the worst status may be about something else
            missing = [_words(s, d) for s, d in self._of_shadow() if s is not status]
            details += [f"And no discrepancy: {words}" for words in missing]
        return status, " ".join(details)

    def _of_audit(self) -> list[tuple[Status, str]]:
        if self.audit.kind == "mismatch":
            return [(Status.MISMATCH, f"cosine {self.audit.cosine:.4f}")]
        return self._factors.status(self.audit)

    def _of_shadow(self) -> list[tuple[Status, str]]:
        if self.shadow is None and self.mode == "reference":
            return [(Status.PENDING, "No shadow has started: budget= has to be earned first")]
        if self.shadow is None:
            return [(Status.PASSIVE, self._parts.why_passive)]
        if not self.shadow.alive:
            return [(self.shadow.status, self.shadow.detail)]
        behind = self.shadow.behind
        return [(Status.BEHIND, behind)] if behind else []


def _words(status: Status, detail: str) -> str:
    return f"{detail}. {status.sentence}" if detail else status.sentence


def seen(discrepancy: float, distance: float, error: float, loss: float | None) -> dict[str, Any]:
    """Return the fields of a record that a shadow gives."""
    return {
        "discrepancy": discrepancy,
        "relative_discrepancy": discrepancy / distance if distance > 0.0 else None,
        "solver_error": error,
        "shadow_loss": loss,
    }
