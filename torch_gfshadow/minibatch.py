"""Minibatch: the flow of the loss each step was taken on. Modes ``batch`` and ``local``.

During step k the shadow follows θ' = −c_k·∇L_k(θ) − wd·θ for the time η_k, L_k being the loss of
the batches observed since the last step and c_k what clipping or accumulation multiplied its
gradient by. What is left between iterate and shadow is the error of the discretisation; the noise
of sampling is in both. In mode ``local`` the shadow starts at the iterate anew at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._moment import Moment
from torch_gfshadow.clock import FlowClock, every
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.flows.base import FlowWithMemory, lifted
from torch_gfshadow.follow import Follower, seen
from torch_gfshadow.low_midpoints import LowPair
from torch_gfshadow.midpoints import FullPair
from torch_gfshadow.objective import Objective
from torch_gfshadow.observed import Observed, Seen
from torch_gfshadow.parts import Parts
from torch_gfshadow.passing import Asks
from torch_gfshadow.piecewise import PiecewiseFlow
from torch_gfshadow.shadow import narrow
from torch_gfshadow.solvers.storage import SMALL, is_large
from torch_gfshadow.status import Status

_PARALLEL = 0.9
"""Cosine above which a mismatch is rounding of mixed precision, and its scale still counts."""


class Minibatch(Follower):
    """Carries a shadow from batch to batch.

    Args:
        parts: With ``data``, mode ``local`` follows the full objective, and ``batch`` probes on it.
        clock: The run's.
        observed: The batches since the last step.
    """

    shadow: PiecewiseFlow | None  # type: ignore[assignment]

    def __init__(self, parts: Parts, clock: FlowClock, observed: Observed) -> None:
        super().__init__(parts, clock)
        self._observed = observed
        self._base = parts.objective
        self._restarts = parts.settings.mode == "local"
        self._fresh = False
        self._piece: tuple[Objective, float, tuple[float, Tensor] | None] | None = None
        # one step far beyond the edge says nothing, and two at a time are cheaper than one and two
        self._steps = 1 if parts.settings.budget is None else 2
        self._judged: Mapping[str, Any] | None = None
        self._resumed = False
        self._cut = 0
        self._origin: Tensor | None = None
        self.audit = type(self.audit)("pending" if parts.settings.audit else "none")

    def succeed(self, before: Follower) -> None:
        """Take over what does not depend on which parameters are trained.

        The batches of the step to come among it, as long as its random numbers come from the same
        devices. Without data the objective is checked anew on the first of them.
        """
        super().succeed(before)
        if isinstance(before, Minibatch):
            self._fresh = before._fresh or before.shadow is not None
            if before._observed.devices == self._observed.devices:
                self._observed, self._cut = before._observed, before._cut

    @property
    def mode(self) -> str:
        """``"batch"`` or ``"local"``."""
        return "local" if self._restarts else "batch"

    @property
    def wants_batches(self) -> bool:
        """Whether the batches of the step to come are needed."""
        return self._follows_next and not (self._restarts and self.given is not None)

    @property
    def needs_gradient(self) -> bool:
        """Whether the gradient of the step to come must be read: its scale is folded in."""
        return self._follows_next and self._parts.settings.audit

    @property
    def idle(self) -> bool:
        """Whether no shadow follows the step to come, and no batch waits to be taken or missed."""
        return not (self._follows_next or self._observed.count or self._cut)

    def asks(self) -> Asks:
        """Return what to ask at steps that are not looked at closely: batches come between them."""
        return lambda time, step_size: self.idle

    @property
    def _follows_next(self) -> bool:
        if self._restarts:
            return self._fresh and every(self._clock.step + 1, self._parts.settings.every)
        return self._fresh or self.shadow is not None

    def start(self, theta: Tensor) -> None:
        """Start with the next step; ``theta`` is where the run stands, a vector that stays."""
        self.resync()
        self._origin = theta

    def resync(self) -> None:
        """Start anew, where the run stands, with the next step."""
        self.shadow, self._piece, self._fresh, self._origin = None, None, True, None

    @property
    def dearer(self) -> float:
        """How many times what this window has cost the next one wants to spend."""
        return self.shadow.dearer if self.shadow is not None else 1.0

    def stop(self) -> None:
        """Follow nothing until started again."""
        self.shadow, self._piece, self._fresh = None, None, False
        self._forget()

    def skip(self) -> None:
        """Let a step pass; a shadow cannot cross a batch it has not seen."""
        self._observed.take()
        self._forget()
        if self.shadow is not None:
            self.resync()

    def observe(self, batch: Any, weight: float) -> None:
        """Take in a batch whose forward pass comes next."""
        if self.wants_batches:
            self._observed.add(batch, weight)

    def moment(self) -> Moment:
        """Return what a forward pass that begins now begins with."""
        return self._observed.moment(whole=self.wants_batches)

    def before(self, used: Tensor | None) -> None:
        """Make the field of the step to come, from its batches and the gradient it will use."""
        window, self._piece = self._observed.take(), None
        cut, self._cut = self._cut, 0
        self._forget()
        flow, watched = self._parts.flow, self._parts.watched
        if not self._follows_next or flow is None:
            return
        if cut and self.wants_batches:
            self._lost(cut)
            return
        objective = self._objective(window)
        if objective is None:
            self.note(Status.UNOBSERVED, f"before step {self._clock.step + 1}")
            self.resync()
            return
        theta = watched.layout.current(self._dtype)
        starts = self._fresh or self.shadow is None
        if self._low and self.given is not None:
            self.given.forget_initial()
        known: tuple[float, Tensor] | None = None
        factor = 1.0
        if starts or self._parts.settings.audit:
            known = objective.loss_and_grad(theta, "audit")
            if self._parts.settings.audit:
                objective, known = self._without_skipped(window, objective, theta, known, used)
                self._compare(known[1], used, objective)
                factor = self._factor()
        if starts:
            assert known is not None
            self.since = self._clock.time
            self._rest.begin(self._clock.step)
            if isinstance(flow, FlowWithMemory):
                theta = lifted(flow, theta, factor * known[1], watched.state, watched.layout)
            self.shadow = self._shadow_of(self._shared(theta))
            self._fresh = self._restarts
        self._piece = objective, factor, known if starts else None

    def _without_skipped(
        self,
        window: list[Seen],
        objective: Objective,
        theta: Tensor,
        known: tuple[float, Tensor],
        used: Tensor | None,
    ) -> tuple[Objective, tuple[float, Tensor]]:
        """Leave out batches of a step that the loop did not take, if the gradient is without them.

        Returns:
            The objective of the batches that are left, and its loss and gradient.
        """
        ranks, count = self._parts.ranks, len(window)
        if count < 2 or self._verdict(known[1], used, objective).kind != "mismatch":
            return objective, known
        first = self._observed.replaced(window)
        if ranks is not None:  # all of them evaluate, or none
            first = min(int(ranks.agreed(float(first), theta.device)), count - 1)
        later = self._objective(window[first:]) if first > 0 else None
        if later is None:
            return objective, known
        found = later.loss_and_grad(theta, "audit")
        if self._verdict(found[1], used, later).kind != "mismatch":
            return later, found
        self._objective(window)  # what is measured, too
        return objective, known

    def _lost(self, count: int) -> None:
        """Pass over a step some of whose batches were observed before the state was saved."""
        self.note(
            Status.UNOBSERVED,
            f"the state was saved in the middle of step {self._clock.step + 1}, after {count} "
            "of its batches, which it does not keep; save after a step",
        )
        self.resync()

    def after(self, theta: Tensor | None = None) -> None:
        """Follow the flow of the step that was taken."""
        piece, self._piece = self._piece, None
        if piece is not None and self.shadow is not None and self._parts.flow is not None:
            objective, factor, known = piece
            layout = self._parts.watched.layout
            del piece
            self.shadow.cross(
                self._parts.flow, objective, self.step_size, layout, factor=factor, known=known
            )
            self._steps = self.shadow.steps

    def audit_at(self) -> float | None:
        """Nothing: every step is compared as it comes."""

    def measure(self, distance: float, lambda_max: float | None) -> dict[str, Any]:
        """Return the fields of the record that the shadow gives where it stands."""
        shadow = self.shadow
        if shadow is None:
            return seen(0.0, distance, 0.0, None) if self._fresh else {}
        if not shadow.alive:
            return {}
        terms = [(vector, -weight) for vector, weight in shadow.terms]
        discrepancy = self._parts.watched.layout.distance(terms)
        return seen(discrepancy, distance, shadow.error, shadow.loss)

    def known_loss(self) -> None:
        """Nothing: no batch is kept that the loss could be compared on."""

    def state_dict(self) -> dict[str, Any]:
        """Return the flow's state, and what is noted for the next record."""
        curvature = self._parts.curvature
        return super().state_dict() | {
            "fresh": self._fresh,
            "steps": self._steps,
            "window": self._observed.count or self._cut,
            "known": self._base is not None or self._resumed,
            "judged": self._judged if curvature is None else curvature.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state, bit for bit."""
        super().load_state_dict(dict(saved) | {"shadow": None})
        self._fresh, self._steps = saved["fresh"], saved["steps"]
        self._resumed, self._judged = saved["known"], saved["judged"]
        self._cut = int(saved.get("window", 0))
        self._observed.take()  # batches of the run that this state replaces
        if saved["shadow"] is not None:
            self.shadow = self._shadow_of(self._parts.watched.layout.current(self._dtype))
            self.shadow.load_state_dict(saved["shadow"])

    def _reconfigured(self) -> None:
        """Take the new field: every step has one of its own."""
        assert self._parts.flow is not None
        self._parts.flow.configure(self._parts.watched.groups, self._parts.watched.layout)

    def _shadow_of(self, state: Tensor) -> PiecewiseFlow:
        parts = self._parts
        return PiecewiseFlow(
            parts.solver,
            LowPair(state) if self._low else FullPair(state, parts.watched.layout.dim),
            resolution=parts.settings.resolution,
            steps=self._steps,
            thrifty=parts.settings.budget is not None,
        )

    @property
    def _low(self) -> bool:
        """Whether every copy of the parameters counts, and the field is a·∇f + b·θ."""
        parts = self._parts
        full = getattr(parts.solver, "storage", "auto") == "full"
        plain = getattr(parts.flow, "coefficients", None) is not None
        return plain and not full and is_large(parts.solver, parts.watched.layout.dim)

    @property
    def _dtype(self) -> torch.dtype:
        """Dtype of both solutions.

        Of models so large that float64 vectors cost as much as the gradients, windows that a
        budget pays are too short for rounding to add up: the parameters' own is enough.
        """
        parts = self._parts
        large = parts.watched.layout.dim > SMALL
        if self._low or (parts.settings.budget is not None and large):
            return narrow(parts.watched.layout)
        return parts.solver.dtype

    def _shared(self, theta: Tensor) -> Tensor:
        """Return where the run began, if ``theta`` is the same: one vector instead of two."""
        origin, self._origin = self._origin, None
        same = origin is not None and origin.dtype == theta.dtype and origin.shape == theta.shape
        return origin if same and torch.equal(origin, theta) else theta  # type: ignore[arg-type,return-value]

    def _factor(self) -> float:
        audit = self.audit
        folds = audit.kind == "scaled" or (audit.kind == "mismatch" and audit.cosine > _PARALLEL)
        return audit.scale if folds else 1.0

    def _forget(self) -> None:
        """Let go of the batches of the last step: a record after this one is not of their loss."""
        parts = self._parts
        if self.given is None and parts.objective is not None:
            parts.objective = None
            if parts.curvature is not None and self._base is not None:
                parts.curvature.objective = self._base

    def _objective(self, window: list[Seen]) -> Objective | None:
        """Return the mean loss of the window's batches; ``None`` if there are none."""
        parts = self._parts
        if self._restarts and self.given is not None:
            return self.given
        if not window or (self._base is None and parts.source is None):
            return None
        if self._base is None:
            self._base = self._first_objective(window[0].replay.batch)
            if self._observed.places is None:
                self._observed.places = self._base.sandbox.moves
        if self._low:
            self._base.forget_initial()
        total = sum(seen.weight for seen in window)
        made = self._base.on([(seen.replay, seen.weight / total) for seen in window])
        if self.given is None:
            parts.objective = made
            if parts.curvature is None:
                parts.curvature = Curvature(made, str(parts.session.config["hvp"]))
                if self._judged is not None:
                    parts.curvature.load_state_dict(self._judged)
            parts.curvature.objective = made
        return made

    def _first_objective(self, batch: Any) -> Objective:
        """Check the user's function on the first batch; a resumed run has paid for it before."""
        assert self._parts.source is not None
        ledger = self._parts.session.ledger
        counts = ledger.state_dict()
        made = self._parts.source(batch)
        if self._resumed:
            ledger.load_state_dict(counts)
        return made

    def _of_audit(self) -> list[tuple[Status, str]]:
        return [] if self.audit.kind == "scaled" else super()._of_audit()

    def _of_shadow(self) -> list[tuple[Status, str]]:
        return super()._of_shadow() if self.shadow is not None else []
