"""torchdiffeq's embedded Runge–Kutta pairs, driven step by step. The only importer of torchdiffeq.

torchdiffeq offers no public way to keep a solver alive between calls; its maintainer names
`_advance` as the way (issues 232 and 248). We drive `_adaptive_step`, one level below, because we
need the error vector of every step and a tolerance that follows the discrepancy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchdiffeq._impl.bosh3 import Bosh3Solver
from torchdiffeq._impl.dopri5 import Dopri5Solver
from torchdiffeq._impl.dopri8 import Dopri8Solver
from torchdiffeq._impl.interp import _interp_evaluate
from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, _RungeKuttaState

from torch_gfshadow.solvers.base import Field, Node, SolverConfig, Stepper, check_saved, hermite
from torch_gfshadow.solvers.dense import DenseNodes
from torch_gfshadow.solvers.quadrature import NodeQuadrature

_REJECT = 1e10
_UNTOLD, _FASTEST = 2.5, 4.0
"""Longest next step over the last one, before and after there are nodes that grade it."""
_WORSE, _CAREFUL = 1.5, 0.9


class _Callable:
    """The shape of function torchdiffeq's solvers call; hands out a known F(θ_0) for nothing."""

    def __init__(self, field: Field, known: Tensor) -> None:
        self.field = field
        self.known: Tensor | None = known

    def __call__(self, t: Tensor, y: Tensor, *, perturb: Any = None) -> Tensor:
        if self.known is not None:
            known, self.known = self.known, None
            return known
        return self.field(y)

    def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None: ...

    def callback_accept_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None: ...

    def callback_reject_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None: ...


class _Bosh3(Bosh3Solver):  # type: ignore[misc]
    """bosh3 without torchdiffeq's interpolant, which is not used and costs five copies of θ."""

    def _interp_fit(self, y0: Tensor, y1: Tensor, k: Tensor, dt: Tensor) -> list[Tensor]:
        return []


class EmbeddedStepper:
    """One of torchdiffeq's adaptive pairs, kept alive."""

    rough = False
    stiffness: float | None = None

    def __init__(
        self,
        solver: type[RKAdaptiveStepsizeODESolver],
        name: str,
        stability: float,
        field: Field,
        node: Node,
        first_step: float,
        left: Node | None = None,
    ) -> None:
        self.name, self.stability = name, stability
        self.order = int(solver.order)
        self.left, self.right = left or node, node
        self.local_error: Tensor | None = None
        self.ungraded = 0.0
        self._error: Tensor | None = None
        self._quadrature = NodeQuadrature(node, left)
        self._dense = DenseNodes(node, self.order)
        self._solver = solver(
            _Callable(field, node.field),
            node.state,
            rtol=0.0,
            atol=1.0,
            first_step=first_step,
            norm=self._norm,
            ifactor=_FASTEST,
        )
        self._solver._before_integrate(self._clock(node.time).unsqueeze(0))

    @property
    def next_step(self) -> float:
        """Size of the next attempt."""
        return float(self._solver.rk_state.dt)

    def _norm(self, scaled_error: Tensor) -> Tensor:
        self._error = scaled_error
        size = torch.linalg.vector_norm(scaled_error)
        # a trial step into non-finite territory is a rejected step, not a poisoned step size
        return torch.where(torch.isfinite(size), size, torch.full_like(size, _REJECT))

    def step(
        self,
        tolerance: float,
        shortest: float = 0.0,
        longest: float = math.inf,
        lambda_max: float | None = None,
    ) -> bool:
        """Try one step; the local error's 2-norm is held under ``tolerance``.

        ``shortest`` is left to methods for kinks: a pair that gives up accuracy there would
        report an embedded estimate that means nothing.
        """
        if self._dense.untold and self.left.time < self.right.time:
            longest = min(longest, _UNTOLD * (self.right.time - self.left.time))
        self._solver.max_step.fill_(longest)
        self._solver.atol = self._clock(tolerance)
        before = self.right.time
        state = self._solver.rk_state = self._solver._adaptive_step(self._solver.rk_state)
        accepted = float(state.t1) > before
        if accepted:
            self.left = self.right
            self.right = Node(float(state.t1), state.y1, state.f1)
            assert self._error is not None
            embedded = self._error * tolerance
            if self.order < 4:
                self.local_error = self._quadrature.grade(self.right, embedded)
                self.ungraded = self._quadrature.ungraded(embedded)
            else:
                middle = 0.5 * (self.left.time + self.right.time)
                self._dense.take(self.right, embedded, self._quartic(middle))
                self.local_error = self._dense.local_error
                self.ungraded = self._dense.ungraded
                self._restrain(tolerance)
        else:
            self.local_error = None
        self._error = None
        return accepted

    def _restrain(self, tolerance: float) -> None:
        """Keep the next step short enough for what was graded, not for the embedded estimate alone.

        On nonlinear fields long steps can be worse than that by a factor of five, and so can
        interpolants between nodes of high order.
        """
        state, dense = self._solver.rk_state, self._dense
        length, size = dense.graded
        if size > 0.0:
            most = _CAREFUL * length * (_WORSE * tolerance / size) ** (1.0 / dense.power)
            # in the control's usual bounds: the graded step is not always the last one
            most = max(most, 0.2 * (self.right.time - self.left.time))
            self._solver.rk_state = state._replace(dt=self._clock(min(float(state.dt), most)))

    def interpolate(self, time: float) -> Tensor:
        """Return the solution inside the last step.

        torchdiffeq's quartic serves until there are three nodes. It passes through a midpoint that
        is only second order for bosh3, where the cubic through both nodes and slopes is better.
        """
        if time >= self.right.time:
            return self.right.state
        if self.order < 4 or self._dense.empty:
            return hermite(self.left, self.right, time)
        return self._quartic(time) if self._dense.young else self._dense.interpolate(time)

    def _quartic(self, time: float) -> Tensor:
        span = self._clock(self.left.time), self._clock(self.right.time)
        polynomial = self._solver.rk_state.interp_coeff
        out: Tensor = _interp_evaluate(polynomial, *span, self._clock(time))
        return out

    @property
    def owed(self) -> Tensor | None:
        """Error of steps that no later one has graded yet: what a change of solver must keep."""
        return self._dense.owed

    def state_dict(self) -> dict[str, Any]:
        """Return nodes, step size, interpolant and grading as tensors and numbers."""
        keep = self.order >= 4 and self._dense.young
        return {
            "solver": self.name,
            "left": self.left.state_dict(),
            "right": self.right.state_dict(),
            "next_step": self.next_step,
            "interpolant": list(self._solver.rk_state.interp_coeff) if keep else [],
            "local_error": self.local_error,
            "ungraded": self.ungraded,
            "quadrature": self._quadrature.state_dict(),
            "dense": self._dense.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        check_saved(self.name, saved)
        like = self.right.state
        self.left, self.right = (Node.from_state(saved[side], like) for side in ("left", "right"))
        error = saved["local_error"]
        self.local_error = None if error is None else error.to(like)
        self.ungraded = saved["ungraded"]
        self._quadrature.load_state_dict(saved["quadrature"], like)
        self._dense.load_state_dict(saved["dense"], like)
        self._solver.rk_state = _RungeKuttaState(
            self.right.state,
            self.right.field,
            self._clock(self.left.time),
            self._clock(self.right.time),
            self._clock(saved["next_step"]),
            [c.to(like) for c in saved["interpolant"]],
        )

    def _clock(self, value: float) -> Tensor:
        """Times and step sizes are float64 scalars on the state's device."""
        return torch.tensor(value, dtype=torch.float64, device=self.right.state.device)


def bosh3(field: Field, node: Node, first_step: float, left: Node | None = None) -> EmbeddedStepper:
    """Return a live Bogacki–Shampine pair at ``node``; ``left`` is the solution's node before."""
    return EmbeddedStepper(_Bosh3, "bosh3", 2.51, field, node, first_step, left)


def dopri5(
    field: Field, node: Node, first_step: float, left: Node | None = None
) -> EmbeddedStepper:
    """Return a live Dormand–Prince pair at ``node``; ``left`` is the solution's node before."""
    return EmbeddedStepper(Dopri5Solver, "dopri5", 3.31, field, node, first_step, left)


@dataclass(frozen=True, kw_only=True)
class Bosh3(SolverConfig):
    """Bogacki–Shampine 3(2): 3 evaluations a step, the cheapest where stability sets the step."""

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return the live pair."""
        return bosh3(field, node, first_step)


@dataclass(frozen=True, kw_only=True)
class Dopri5(SolverConfig):
    """Dormand–Prince 5(4): 6 evaluations a step, for small errors on smooth fields."""

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return the live pair."""
        return dopri5(field, node, first_step)


@dataclass(frozen=True, kw_only=True)
class Dopri8(SolverConfig):
    """Dormand–Prince 8(7): 13 evaluations a step, for references near rounding."""

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return the live pair."""
        return EmbeddedStepper(Dopri8Solver, self.name, 6.0, field, node, first_step)
