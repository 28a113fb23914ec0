"""The error bar: local errors of the solver, carried along the flow as a vector.

The error ε of the numerical flow obeys, to leading order, ε' = F(θ̃ + ε) − F(θ̃) + (local errors):
it decays where the loss is convex, grows where it is not, and turns with the Hessian. Adding up
norms sees none of this and is useless after a few time constants. So ε is integrated: local
errors are summed as vectors, and every ``BLOCK`` steps ε is carried over the block by one RKC2
step, whose number of field evaluations grows only like the square root of the block's length.
That is up to a third on top of what the flow itself costs, and 18 % on the paper's linear network.

Source: solving for the correction, Dormand, Duckers & Prince, IMA J. Numer. Anal. 4 (1984).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.solvers.base import Field, Node, load_plain, save_plain
from torch_gfshadow.solvers.rkc import STRONG, first_order, rkc_step, stages_for

BLOCK = 16
_CARRY_SHARE, _DECAYED = 0.25, 1.5
_WIDE, _WIDE_SHARE = 0.075, 0.4
"""A bar that nears the default resolution shortens the flow's own steps: carrying it pays then."""
_ROUGH_BLOCK = 48
SAFETY = 2.4
"""The bar is ``SAFETY`` times the norm of ε: local error estimates are right to a factor."""
MAX_STAGES = 200
UNSTABLE = 1.25
MARGIN = 1.2
_DEAR, _NARROW = 8, 0.04
"""Beyond so many stages a block is carried by the method of first order, which takes two thirds of
them, and only if the bar is not small beside the discrepancy anyway."""
DAMPING, _PER_SQUARE = 2.0, 1.05
"""Of the first-order carrier: stiff modes shrink to a quarter, and its interval is 0.96·s²."""
_ACROSS_KINKS = 10.0
# attributes that are numbers, saved as they are
_PLAIN = ["two_sided", "_start", "_now", "_h_lambda", "_steps", "_norm", "_recent", "_ungraded"]
_PLAIN += ["_growth", "_linear", "_scale", "_evaluations"]


class ErrorBar:
    """Estimate of θ̃ − θ beside a stepper.

    Args:
        field: Right-hand side F, counted as error control.
        node: Where the error is zero.
        dtype: Of ε and of what is not carried yet: it need not be that of the state, since ε is
            good to a factor. ``None`` for the state's.

    Attributes:
        two_sided: Difference the field on both sides of θ̃. A solution that slides along a kink
            stands on one side of it, and a one-sided difference takes the jump for growth.
    """

    def __init__(self, field: Field, node: Node, dtype: torch.dtype | None = None) -> None:
        self.two_sided = False
        self._field = field
        self._error = self._zeros(node.state, dtype)
        self._start = node.time
        self._pending = self._zeros(self._error, self._error.dtype)
        self._h_lambda = 0.0
        self._steps, self._evaluations = 0, 0
        self._norm = 0.0
        self._recent = 0.0
        self._ungraded = 0.0
        self._growth, self._now = 0.0, node.time
        self._linear = 0.0
        self._scale = 0.0

    @property
    def value(self) -> float:
        """Error bar, in the units of θ: an upper limit for ‖θ̃ − θ‖₂, by estimate."""
        # within a block ε goes on growing as it did over the last one
        grown = self._norm * math.exp(min(self._growth * (self._now - self._start), 50.0))
        return SAFETY * math.hypot(grown, self._recent, self._ungraded) + self._linear

    def add(
        self,
        local_error: Tensor | None,
        node: Node,
        h_lambda: float,
        scale: float,
        ungraded: float = 0.0,
        evaluations: int = 3,
    ) -> None:
        """Add one accepted step that ended in ``node``.

        Args:
            local_error: What the step got wrong, shape ``[d]``; ``None`` if not known yet.
            node: Where the solver now is.
            h_lambda: Upper limit for the step's h·λ_max.
            ungraded: Norm of what ``local_error`` does not hold yet.
            scale: Distance between iterate and shadow, over which the field is differenced.
            evaluations: What the step has cost: carrying ε costs a share of that.
        """
        self._steps += 1
        self._scale = scale
        self._ungraded = ungraded
        self._now = node.time
        self._h_lambda += h_lambda
        self._evaluations += evaluations
        if local_error is not None:
            self._pending.add_(local_error)
            size = float(torch.linalg.vector_norm(local_error))
            self._recent = max(size, 0.8 * self._recent)
            self._norm = float(torch.linalg.vector_norm(self._error + self._pending))
        if self._is_due():
            self._carry(node)

    def add_norm(self, size: float) -> None:
        """Add an error of which only the norm is known (a change of solver, rounding)."""
        self._linear += size

    def hand_over(self) -> Tensor | None:
        """Return ε as long as the bar, shape ``[d]``, and start again from zero.

        For a stepper that carries its own estimate from here. ``None`` where there is no error.
        Recent local errors are part of ε and do not count twice: their share of the bar passes,
        and what is handed over stays.
        """
        error = self._error + self._pending
        norm = float(torch.linalg.vector_norm(error))
        size = SAFETY * math.hypot(norm, self._ungraded) + self._linear
        self._error, self._pending = (self._zeros(error, error.dtype) for _ in range(2))
        self._norm = self._recent = self._ungraded = self._linear = 0.0
        return error * (size / norm) if norm > 0.0 else None

    def inherit(self, error: Tensor | None) -> None:
        """Add an error as long as the bar is to be, as :meth:`hand_over` returns it."""
        if error is not None:
            self._pending.add_(error.to(self._pending), alpha=1.0 / SAFETY)
            self._norm = float(torch.linalg.vector_norm(self._error + self._pending))

    def state_dict(self) -> dict[str, Any]:
        """Return ε and what was not carried yet, as tensors and numbers."""
        return save_plain(self, _PLAIN) | {"error": self._error, "pending": self._pending.clone()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        load_plain(self, _PLAIN, saved)
        self._error = saved["error"].to(self._error)
        self._pending = saved["pending"].to(self._pending, copy=True)

    def _zeros(self, like: Tensor, dtype: torch.dtype | None) -> Tensor:
        return torch.zeros_like(like, dtype=dtype)

    def _is_due(self) -> bool:
        if self.two_sided:
            return self._steps >= _ROUGH_BLOCK
        # sooner where errors have had the time to decay
        waited = self._steps >= BLOCK or self._h_lambda >= _DECAYED
        if self._needed() > _DEAR and self.value < _NARROW * self._scale:
            return False
        share = _WIDE_SHARE if self.value > _WIDE * self._scale else _CARRY_SHARE
        return waited and self._needed() <= share * self._evaluations

    def _needed(self) -> int:
        """Return the stages that carrying ε over the block takes."""
        fine = stages_for(MARGIN * self._h_lambda, STRONG)
        if self.two_sided:
            return fine
        return max(min(fine, _DEAR), stages_roughly(self._h_lambda))

    @staticmethod
    def _length(vector: Tensor) -> float:
        return float(torch.linalg.vector_norm(vector))

    def _carry(self, node: Node) -> None:
        """Take ε over the block, the pending local errors spread evenly across it."""
        span = node.time - self._start
        if self._norm > 0.0 and span > 0.0:
            plain = self._length(self._error) + self._length(self._pending)
            stages = min(self._needed(), MAX_STAGES)
            carried = self._carried(node, span, stages)
            size = self._length(carried)
            if not size <= UNSTABLE * plain and stages < MAX_STAGES:
                # growth, or λ_max was underrated: only more stages can tell
                carried = self._carried(node, span, min(2 * stages, MAX_STAGES))
                size = self._length(carried)
            self._take(carried, size, plain, span)
        self._begin_block(node)

    def _along(
        self, node: Node, span: float, stages: int, damping: float
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield where the stages of a carrier of first order stand, 0 to 1, and ε there."""
        scale = self._probe_size(node) / self._norm
        mu, nu, mu_t = first_order(stages, damping)
        forcing = self._pending / span

        def slope(error: Tensor) -> Tensor:
            moved = self._field(node.state + scale * error)
            return moved.sub_(node.field).div_(scale).to(error.dtype).add_(forcing)

        first = slope(self._error) if bool(self._error.any()) else forcing
        before, current = self._error, self._error + (mu_t[1] * span) * first
        earlier, now = 0.0, mu_t[1]
        yield now, current
        for j in range(2, stages + 1):
            following = mu[j] * current + nu[j] * before
            before, current = current, following.add_(slope(current), alpha=mu_t[j] * span)
            earlier, now = now, mu[j] * now + nu[j] * earlier + mu_t[j]
            yield now, current

    def _carried(self, node: Node, span: float, stages: int) -> Tensor:
        """Return ε at ``node``, the end of a block of length ``span``, shape ``[d]``."""
        if not self.two_sided and stages_for(MARGIN * self._h_lambda, STRONG) > stages:
            *_, (_, carried) = self._along(node, span, stages, DAMPING)
            return carried
        scale = self._probe_size(node) / self._norm
        forcing = self._pending / span

        def error_field(error: Tensor) -> Tensor:
            moved = self._field(node.state + scale * error)
            if not self.two_sided:
                return moved.sub_(node.field).div_(scale).to(error.dtype).add_(forcing)
            moved.sub_(self._field(node.state - scale * error))
            return moved.div_(2.0 * scale).to(error.dtype).add_(forcing)

        slope = error_field(self._error) if bool(self._error.any()) else forcing
        return rkc_step(error_field, self._error, slope, span, stages, STRONG)

    def _take(self, carried: Tensor, size: float, plain: float, span: float) -> None:
        """Go on with the ε carried over ``span``, or with the plain sum if it is not finite.

        Args:
            carried: ε at the end of the block, shape ``[d]``.
            size: Its norm.
            plain: Sum of the norms that went in.
            span: Length of the block in flow time.
        """
        if math.isfinite(size):
            self._error, self._norm = carried.to(self._error.dtype), size
            self._growth = max(0.0, math.log(max(size, 1e-300) / plain)) / span
        else:
            self._error = self._error + self._pending
            self._norm = plain

    def _begin_block(self, node: Node) -> None:
        self._pending = self._zeros(self._error, self._error.dtype)
        self._start, self._h_lambda, self._steps, self._evaluations = node.time, 0.0, 0, 0

    def _probe_size(self, node: Node) -> float:
        """Length of the perturbation that stands for ε.

        That of the bar, where rounding allows it: at a distance of the discrepancy the field may
        bend the other way, and an error that decays was taken for one that grows. Across kinks
        long enough that they average out: between two points a distance p apart the jumps add up
        to √p, so their share of the difference quotient falls as 1/√p, and a short quotient takes
        single crossings for curvature. (From 10 to 40 discrepancies the error bar does not change;
        at 1 it is three times too large.)
        """
        rounding = min(max(math.sqrt(torch.finfo(self._error.dtype).eps), 1e-5), 3e-4)
        floor = rounding * float(torch.linalg.vector_norm(node.state)) + 1e-12
        wide = _ACROSS_KINKS * self._scale if self.two_sided else 0.0
        return max(SAFETY * self._norm, wide, floor)


def stages_roughly(h_lambda: float) -> int:
    """Return the stages that the method of first order takes over ``h_lambda``."""
    return max(2, math.ceil(math.sqrt(1.0 + _PER_SQUARE * MARGIN * h_lambda)))
