"""ShadowFlow: the numerical flow θ̃(t) carried beside the run, with dense output and error bar.

One solver lives as long as the shadow. It runs ahead of the run's clock and is interpolated
back, so a step of the run costs a fraction of an evaluation. Read next: ``solvers``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torch_gfshadow._blocks import Pieces, Stretch, Terms, blocks, combined, dot_of, fill
from torch_gfshadow._kinks import Glance
from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import OverBudgetError
from torch_gfshadow.flows.base import Flow, FlowWithMemory, position
from torch_gfshadow.flows.gradient_flow import sliced
from torch_gfshadow.objective import Objective
from torch_gfshadow.solvers.base import (
    Blended,
    Field,
    HandingOver,
    Node,
    SelfGrading,
    SolverConfig,
    Stepper,
    load_plain,
    save_plain,
)
from torch_gfshadow.solvers.error_bar import ErrorBar
from torch_gfshadow.solvers.low_bar import LowStorageBar
from torch_gfshadow.solvers.spectral import SpectralRadius
from torch_gfshadow.status import Status

_SHARE, _FLOOR = 0.3, 0.4
"""Share of what is left of the error allowance for one step, and the least that counts as left."""
KINK_RESOLUTION = 0.2
_KINK_LONGEST = 10.0
_BLOW_UP = 1e8
_HOPELESS, _FARTHEST = 0.25, 20.0
"""Share of a step that must be gained in a step, and steps a shadow may be behind."""
# attributes that are numbers or strings, saved as they are
_PLAIN = ["detail", "_step_size", "_curvature", "_origin", "_first_norm", "_scale"]
_PLAIN += ["behind", "_evals", "_steps_of_run", "_now"]


class Pace(NamedTuple):
    """Across kinks accuracy is dear and has no end: what may be spent on it.

    Up to ``free`` + ``per_step``·k evaluations by step k of the run. What is not spent yet is
    shared out over the steps to come, evenly in the logarithm of k: early errors stay.
    """

    free: float
    per_step: float

    def shortest(self, spent: int, steps: int, step_size: float, price: float = 1.5) -> float:
        """Return the step size of a solver that spends as much as it may.

        Args:
            spent: Evaluations so far.
            steps: Steps of the run so far.
            step_size: Their η.
            price: Evaluations in one of the solver's steps, its companion's included.
        """
        left = max(self.free + self.per_step * steps - spent, 0.0)
        return price * step_size / (self.per_step + left / (steps + _KINK_START))


_KINK_START = 30
_KINK_DEFAULT = Pace(free=250, per_step=0.4)
_KINK_ASKED = Pace(free=350, per_step=1.2)
_ROOT_DEFAULT, _ROOT_ASKED = Pace(free=400, per_step=2.0), Pace(free=500, per_step=4.0)
"""With the root of a running mean beside the kinks: it forgets within steps of the run, however
smooth its path is."""


class FlowField:
    """F of a flow on an objective, remembering loss and slope of its last evaluation.

    ``factor`` multiplies the gradient: what clipping and accumulation do to it.
    """

    def __init__(self, flow: Flow, objective: Objective, purpose: str, factor: float = 1.0) -> None:
        self.flow, self.objective, self.purpose = flow, objective, purpose
        self.factor = factor
        self.loss, self.loss_rate = math.nan, math.nan

    def __call__(self, theta: Tensor) -> Tensor:
        """Evaluate F at a state of the flow, one gradient of the objective.

        Raises:
            OverBudgetError: If it cannot be paid for.
        """
        self.objective.ledger.charge()
        loss, grad = self.objective.loss_and_grad(position(self.flow, theta), self.purpose)
        return self.remember(loss, theta, grad)

    @property
    def remembers(self) -> bool:
        """Whether the state holds more than θ: the spectrum of F is then not real."""
        return isinstance(self.flow, FlowWithMemory)

    @property
    def smooth(self) -> bool:
        """Whether the flow adds no sharp turn of its own, as roots of running means do."""
        return bool(getattr(self.flow, "smooth", True))

    @property
    def kinked(self) -> bool:
        """Whether the model has activations with kinks, which :meth:`averaged` sees."""
        return self.objective.kinked

    def watched(self, theta: Tensor, entered: Tensor, glance: Glance) -> Tensor:
        """Evaluate what :meth:`averaged` does, and show the kinks to ``glance``."""
        return self.averaged(theta, entered, glance)

    def averaged(self, theta: Tensor, entered: Tensor, glance: Glance | None = None) -> Tensor:
        """Evaluate F with slopes averaged over a stretch: one gradient and one forward pass."""
        self.objective.ledger.charge()
        point = position(self.flow, theta)
        before = position(self.flow, entered)
        loss, grad = self.objective.loss_and_grad(
            point, self.purpose, entered=before, glance=glance
        )
        return self.remember(loss, theta, grad)

    def add_to(self, out: Tensor, theta: Tensor, weight: float) -> None:
        """Add ``weight``·F(θ) to ``out``, one gradient that is never stored as a whole."""
        known = self._coefficients
        if known is None:
            out.add_(self(theta), alpha=weight)
            return
        self.objective.ledger.charge()
        pieces = [(size, weight * self.factor * a, weight * b) for size, a, b in known]
        self.objective.add_grad(out, theta, [(size, a) for size, a, _ in pieces], self.purpose)
        for at, _, b in sliced(pieces):
            if b != 0.0:
                out[at].add_(theta[at], alpha=b)

    def write(self, out: Tensor, theta: Tensor) -> None:
        """Set ``out`` to F(θ), and note loss and d(loss)/dt."""
        known = self._coefficients
        if known is None:
            out.copy_(self(theta))
            return
        self.objective.ledger.charge()
        self.loss = self.objective.add_grad(out.zero_(), theta, 1.0, self.purpose)
        self._turn(out, [(theta, 1.0)], known)

    def write_averaged(self, out: Tensor, stretch: Stretch, glance: Glance | None = None) -> None:
        """Set ``out`` to what :meth:`averaged` gives on ``stretch``, and note the same."""
        known = self._coefficients
        if known is None:
            ends = [fill(torch.empty_like(out), terms) for terms in stretch]
            out.copy_(self.averaged(ends[0], ends[1], glance))
            return
        self.objective.ledger.charge()
        self.loss = self.objective.write_grad(out, stretch, self.purpose, glance)
        self._turn(out, stretch.middle, known)

    def _turn(self, out: Tensor, theta: Terms, pieces: Pieces) -> None:
        """Make F of the gradient in ``out``; note d(loss)/dt."""
        self.loss_rate = 0.0
        for piece, a, b in sliced(pieces):
            for at in blocks(piece.stop, piece.start):
                here = [(out, self.factor * a)]
                here += [(v, b * w) for v, w in theta] if b != 0.0 else []
                speed = combined(here, at)
                self.loss_rate += float(torch.dot(out[at].to(speed), speed))
                out[at] = speed

    @property
    def _coefficients(self) -> Pieces | None:
        known: Pieces | None = getattr(self.flow, "coefficients", None)
        return known

    def remember(self, loss: float, state: Tensor, grad: Tensor) -> Tensor:
        """Return F from a gradient that is known, and note loss and d(loss)/dt."""
        out = self.flow.field(state, grad if self.factor == 1.0 else self.factor * grad)
        speed = position(self.flow, out)
        self.loss, self.loss_rate = loss, dot_of([(grad, 1.0)], [(speed, 1.0)])
        return out


class Scaled(Protocol):
    """What a shadow takes over from another one."""

    @property
    def scale(self) -> float:
        """The discrepancy that has to be resolved."""
        ...

    @property
    def error(self) -> float:
        """Error bar."""
        ...


class ShadowFlow:
    """The flow from one starting point.

    Args:
        objective: f, evaluated purely.
        flow: Which field to follow.
        config: Solver configuration.
        theta: Starting point, shape ``[d]``.
        known: ``(f, ∇f)`` at ``theta``.
        time: Flow time there.
        step_size: η of the step to come; sets the first step and the scale of resolution.
        resolution: Asked solver error over discrepancy; ``None`` asks for 0.1 on smooth fields
            and, across kinks, for what half an evaluation per step buys.
        first: First step that the solver is offered, in units of η.
    """

    dear = 1.0
    """Multiple of ``max_burst`` that a step may take."""

    def __init__(
        self,
        objective: Objective,
        flow: Flow,
        config: SolverConfig,
        theta: Tensor,
        known: tuple[float, Tensor],
        *,
        time: float,
        step_size: float,
        resolution: float | None,
        first: float = 0.1,
    ) -> None:
        self._bind(objective, flow, config, resolution)
        self._low = config.is_low(self._field, theta.numel())
        start = theta.to(self._dtype)
        node = Node(time, start, self._field.remember(*_ordered(known, start)))
        self._losses = (self._loss_at(time),) * 2
        self._step_size = step_size if step_size > 0.0 else 1.0
        self._curvature = math.inf
        self._origin = self._now = time
        self._first_norm = float(torch.linalg.vector_norm(start))
        self._scale = self._local_scale(node)
        counts = objective.ledger.grads
        before = counts["flow"]
        self._stepper: Stepper = config.start(self._field, node, first * self._step_size)
        self._bar = self._new_bar(node)
        self._evals, self._steps_of_run = counts["flow"] - before, 0

    @classmethod
    def resumed(
        cls,
        objective: Objective,
        flow: Flow,
        config: SolverConfig,
        saved: Mapping[str, Any],
        *,
        resolution: float | None,
    ) -> ShadowFlow:
        """Return the shadow that ``saved`` describes; costs no evaluation.

        Args:
            objective: f, evaluated purely; as it was when the state was saved.
            flow: The field, configured as it was.
            config: Solver configuration, with the solver that was in use.
            saved: What :meth:`state_dict` returned.
            resolution: As in the constructor.

        Raises:
            ValueError: If the state was saved by another solver.
        """
        self = cls.__new__(cls)
        self._bind(objective, flow, config, resolution)
        self.load_state_dict(saved)
        return self

    def _bind(
        self, objective: Objective, flow: Flow, config: SolverConfig, resolution: float | None
    ) -> None:
        self.config, self.resolution = config, resolution
        self.status = Status.OK
        self.detail = self.behind = ""
        self._field = FlowField(flow, objective, "flow")
        self._errors = FlowField(flow, objective, "error")

    def state_dict(self) -> dict[str, Any]:
        """Return all that the shadow's future depends on: tensors, numbers, strings and lists.

        Tensors are shared with the live shadow, which never changes them in place.
        """
        return save_plain(self, _PLAIN) | {
            "status": self.status.value,
            "losses": [list(at) for at in self._losses],
            "last_loss": [self._field.loss, self._field.loss_rate],
            "stepper": self._stepper.state_dict(),
            "bar": self._bar.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state, bit for bit as the shadow that was saved would have.

        Raises:
            ValueError: If the state was saved by another solver; then nothing is changed.
        """
        device = self._field.objective.layout.device
        dim = saved["bar"]["error"].numel()
        self._low = self.config.is_low(self._field, dim)
        like = torch.empty(0, dtype=self._dtype, device=device)
        self._stepper = self.config.resume(self._field, saved["stepper"], like)
        self._bar = self._new_bar(self._stepper.right)
        self._bar.load_state_dict(saved["bar"])
        load_plain(self, _PLAIN, saved)
        self.status = Status(saved["status"])
        before, now = (tuple(map(float, at)) for at in saved["losses"])
        self._losses = (before, now)  # type: ignore[assignment]
        self._field.loss, self._field.loss_rate = saved["last_loss"]

    @property
    def _dtype(self) -> torch.dtype:
        return self._narrow if self._low else self.config.dtype

    def _new_bar(self, node: Node) -> ErrorBar:
        if self._low:
            return LowStorageBar(self._errors, node)
        return ErrorBar(self._errors, node, self._narrow)

    @property
    def solver(self) -> str:
        """Name of the solver in use."""
        return self._stepper.name

    @property
    def rough(self) -> bool:
        """Whether kinks were found in the field."""
        return self._stepper.rough

    @property
    def alive(self) -> bool:
        """Whether the flow can be continued; :attr:`behind` says if it has yet to catch up."""
        return self.status is Status.OK

    @property
    def error(self) -> float:
        """Error bar on the shadow as far as it is integrated, in the units of θ."""
        own = self._own_error
        return self._bar.value if own is None else own

    @property
    def _narrow(self) -> torch.dtype:
        """Dtype for what need not be exact: the parameters', but float32 at least."""
        return narrow(self._field.objective.layout)

    @property
    def _own_error(self) -> float | None:
        stepper = self._stepper
        return stepper.error if isinstance(stepper, SelfGrading) else None

    def advance(self, time: float, lambda_max: float | None = None) -> bool:
        """Integrate past ``time``; say whether the shadow is known there.

        Args:
            time: Flow time of the run, not before the last one.
            lambda_max: Largest Hessian eigenvalue last seen by a probe, if any.
        """
        # records may be sparse; under a schedule that lowers η there are more steps than this
        steps = self._steps_of_run
        if time > self._now:
            ahead = round((time - self._origin) / self._step_size)
            self._steps_of_run, self._now = max(steps + 1, ahead), time
        self.behind = ""
        try:
            with self._field.objective.ledger.limited():
                self._run_to(time, lambda_max, max(self._steps_of_run - steps, 1))
        except OverBudgetError as over:
            self._stop(Status.TRUNCATED, str(over))
        return self.alive and not self.behind

    def state(self, time: float) -> Tensor:
        """Return θ̃(time), shape ``[d]``, at a time reached by :meth:`advance`."""
        return self._stepper.interpolate(time)

    def distance(self, layout: Layout, time: float) -> float:
        """Return ‖θ − θ̃(time)‖₂ for the parameters as they are."""
        flow, stepper = self._field.flow, self._stepper
        if isinstance(stepper, Blended) and self._low and not isinstance(flow, FlowWithMemory):
            return layout.distance([(v, -w) for v, w in stepper.blend(time)])
        theta = layout.current(self.config.dtype)
        return float(torch.linalg.vector_norm(theta - position(flow, self.state(time))))

    def loss(self, time: float) -> float:
        """Return f(θ̃(time)) from the losses and slopes at the solver's own nodes, O(h⁴)."""
        (t0, f0, r0), (t1, f1, r1) = self._losses
        h = t1 - t0
        if h <= 0.0:
            return f1
        s = (time - t0) / h
        cubic = (1 + 2 * s) * (1 - s) ** 2 * f0 + s * s * (3 - 2 * s) * f1
        return cubic + h * s * (1 - s) * ((1 - s) * r0 - s * r1)

    def inherit(self, before: Scaled) -> None:
        """Go on from where ``before`` stands: its error bar and its scale are taken over."""
        self._scale = before.scale
        self._bar.add_norm(before.error)

    def hand_over(self) -> Tensor | None:
        """Return an error as long as the bar, pointing as it does by estimate, shape ``[d]``."""
        stepper = self._stepper
        if self._own_error is not None and isinstance(stepper, HandingOver):
            return stepper.hand_over()
        return self._bar.hand_over()

    def take_over(self, error: Tensor | None) -> None:
        """Add an error of :meth:`hand_over` to the bar."""
        self._bar.inherit(error)

    def spectral(self, field: Field) -> SpectralRadius:
        """Return what the solver knows of the stiffness, for another solver on ``field``."""
        known = getattr(self._stepper, "spectral", None)
        out = SpectralRadius(field)
        if isinstance(known, SpectralRadius) and known.radius is not None:
            out.load_state_dict(known.state_dict(), self._stepper.right.state)
        return out

    @property
    def next_step(self) -> float:
        """Length of the solver's next step."""
        return self._stepper.next_step

    @property
    def last_nodes(self) -> tuple[Node, Node]:
        """Where the solver's last step began and ended."""
        return self._stepper.left, self._stepper.right

    @property
    def reached(self) -> float:
        """Time up to which the flow is integrated."""
        return self._stepper.right.time

    @property
    def scale(self) -> float:
        """The discrepancy that has to be resolved."""
        return self._scale

    def known_loss(self) -> tuple[Tensor, float]:
        """Return the newest node of the solver, shape ``[d]``, and f there."""
        return self._stepper.right.state, self._losses[1][1]

    @property
    def low_storage(self) -> bool:
        """Whether the solution is kept in low storage."""
        return self._low

    def observe(self, discrepancy: float) -> None:
        """Take in the discrepancy just measured: the scale that has to be resolved."""
        if math.isfinite(discrepancy) and discrepancy > 0.0:
            # below this, rounding of θ̃ itself is all there is to resolve
            self._scale = max(discrepancy, 1e-12 * self._first_norm)

    def _run_to(self, time: float, lambda_max: float | None, steps: int) -> None:
        limit, before, start = self._limit(), self._evals, self._stepper.right.time
        burst = (
            math.inf
            if math.isinf(limit)
            else (self.config.max_burst or math.inf) * steps * self.dear
        )
        while self.alive and (now := self._stepper.right.time) < time:
            if self._evals > limit:
                self._stop(
                    Status.TRUNCATED,
                    f"{self._evals} evaluations did not bring {self.solver} to t = {time:.6g}; it "
                    f"stands at {now:.6g}",
                )
                break
            self._step(time, lambda_max)
            now = self._stepper.right.time
            if now >= time:
                break
            if self._evals - before >= burst and not math.isfinite(self._field.loss):
                self._stop(Status.NON_FINITE, f"the loss is not finite after t = {now:.6g}")
            elif self._evals - before >= burst:
                self._fall_behind(time, now - start, steps, self._evals - before)
                break

    def _fall_behind(self, time: float, way: float, steps: int, spent: int) -> None:
        """Stop for this step; for good if as much every step would never catch up."""
        left = (time - self._stepper.right.time) / self._step_size
        gained = max(way, self._stepper.next_step)  # the first steps of a solver are short
        if gained < _HOPELESS * steps * self._step_size or left > _FARTHEST:
            self._stop(
                Status.TRUNCATED,
                f"{spent} evaluations, the most for {steps} of the run's steps, took {self.solver} "
                f"{way / self._step_size:.2g} steps further, to t = "
                f"{self._stepper.right.time:.6g}; {left:.2g} are left",
            )
        else:
            self.behind = f"{left:.2g} steps of the run behind"

    def _step(self, time: float, lambda_max: float | None) -> None:
        stepper = self._stepper
        tolerance = self.config.tolerance(stepper.right)
        if tolerance is None:
            tolerance = self._tolerance()
        shortest, longest = self._limits(lambda_max)
        if isinstance(self._bar, LowStorageBar) and isinstance(stepper, Blended):
            stepper.release()
            self._bar.catch_up(stepper.right)
        counts = self._field.objective.ledger.grads
        before = counts["flow"]
        accepted = stepper.step(tolerance, shortest, longest, lambda_max)
        spent = counts["flow"] - before
        self._evals += spent
        if self._bar.value > 0.0 and isinstance(stepper, SelfGrading) and stepper.error is not None:
            error = self._bar.hand_over()
            if error is not None:
                stepper.inherit(error)
        if accepted:
            node, h = stepper.right, stepper.right.time - stepper.left.time
            self._losses = (self._losses[1], self._loss_at(node.time))
            if self._own_error is None:
                self._bar.two_sided = stepper.rough
                curvature = stepper.stiffness
                if curvature is None:
                    known = abs(lambda_max) if lambda_max is not None else self._curvature
                    curvature = 1.2 * known
                h_lambda = min(stepper.stability, h * curvature)
                if isinstance(self._bar, LowStorageBar) and isinstance(stepper, Blended):
                    self._bar.add_terms(stepper.error_terms, node, h_lambda, self._scale, spent)
                else:
                    self._bar.add(
                        stepper.local_error, node, h_lambda, self._scale, stepper.ungraded, spent
                    )
            self._check(node)
        elif stepper.next_step < 1e-12 * max(self._step_size, time):
            finite = math.isfinite(self._field.loss)  # of the attempt; the last node always is
            self._stop(
                Status.STIFF if finite else Status.NON_FINITE,
                f"step size {stepper.next_step:.2e} at t = {stepper.right.time:.6g}",
            )

    def _target(self) -> float:
        """Error bar aimed at."""
        default = KINK_RESOLUTION if self._stepper.rough else 0.1
        return 0.8 * (self.resolution or default) * self._scale

    def _tolerance(self) -> float:
        """Local error allowed to the next step, from what is left of the error allowance."""
        target = self._target()
        if self._own_error is not None:
            return target
        return _SHARE * max(target - self._bar.value, _FLOOR * target)

    def _limits(self, lambda_max: float | None) -> tuple[float, float]:
        """Shortest and longest step worth taking."""
        if not self._stepper.rough:
            return 0.5 * self._step_size, math.inf
        # AB2 is stable up to 1/λ, and its companion takes twice the step; the curvature along the
        # flow is known from the start, and no more than λ
        curvature = 0.25 * self._curvature if lambda_max is None else lambda_max
        longest = _KINK_LONGEST * self._step_size
        if curvature > 0.0:
            longest = min(longest, 0.4 / curvature)
        default, asked = (
            (_KINK_DEFAULT, _KINK_ASKED) if self._field.smooth else (_ROOT_DEFAULT, _ROOT_ASKED)
        )
        pace = default if self.resolution is None else asked
        shortest = pace.shortest(self._evals, self._steps_of_run, self._step_size)
        return min(shortest, longest), longest

    def _limit(self) -> float:
        """Evaluations allowed so far: the average per step is capped, a burst is not."""
        if self.config.max_evals is None:
            return math.inf
        return self.config.max_evals * (self._steps_of_run + 20)

    def _local_scale(self, node: Node) -> float:
        """Return ½ηδ, the discrepancy that the run's first step will make, for one gradient."""
        if self._low:
            ahead = node.field.neg()
            self._field.add_to(ahead, node.shifted(node.field, self._step_size), 1.0)
        else:
            ahead = self._field(node.state + self._step_size * node.field) - node.field
        defect = float(torch.linalg.vector_norm(ahead))
        speed = float(torch.linalg.vector_norm(node.field))
        # curvature along the flow; the largest eigenvalue is some times that
        self._curvature = 4.0 * defect / max(self._step_size * speed, 1e-300)
        tiny = 1e-14 * max(self._first_norm, 1e-3)
        return max(0.5 * self._step_size * defect, tiny) if math.isfinite(defect) else tiny

    def _loss_at(self, time: float) -> tuple[float, float, float]:
        return time, self._field.loss, self._field.loss_rate

    def _check(self, node: Node) -> None:
        size = float(torch.linalg.vector_norm(node.state))
        if not math.isfinite(size) or not math.isfinite(self._field.loss):
            self._stop(Status.NON_FINITE, f"the flow is not finite at t = {node.time:.6g}")
        elif size > _BLOW_UP * max(self._first_norm, 1.0):
            self._stop(Status.BLOW_UP, f"‖θ̃‖ = {size:.2e} at t = {node.time:.6g}")

    def _stop(self, status: Status, detail: str) -> None:
        self.status, self.detail = status, detail


def narrow(layout: Layout) -> torch.dtype:
    """Return the dtype for what need not be exact: the parameters', but float32 at least."""
    return torch.promote_types(layout.dtype, torch.float32)


def _ordered(known: tuple[float, Tensor], theta: Tensor) -> tuple[float, Tensor, Tensor]:
    loss, grad = known
    return loss, theta, grad
