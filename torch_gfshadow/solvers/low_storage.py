"""RKC2 in five vectors: what ``rkc2`` does, for models of which twenty copies are too many.

The solution is kept as start + displacement, both in the parameters' own dtype: float32 rounds
a displacement to 6e-8 of the distance travelled, where it would round the parameters to 6e-8 of
their size; and the start is the vector the run keeps anyway. Of the last step there are the
increment and the slopes at both ends, from which the dense output is summed when it is asked for.
What rounding the displacement took off a step stays in the increment, and so in the local error.

While a step is computed the last one is gone: two stage vectors take the place of increment and
slope, the stages' fields are added to them layer by layer, and one vector lends the model its
parameters. In copies of the parameters: 6 and the largest layer's gradient at the peak, 5 at
rest, both with the start; a half for the spectral vector, one for the error bar (``low_bar``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._blocks import Terms, blocks, combined, length_of
from torch_gfshadow.solvers.base import (
    AddingField,
    Field,
    Node,
    Stepper,
    add_field,
    check_saved,
    load_plain,
    save_plain,
)
from torch_gfshadow.solvers.rkc import rkc_increment_by
from torch_gfshadow.solvers.rkc2 import RKC2Stepper, error_scale
from torch_gfshadow.solvers.spectral import SpectralRadius
from torch_gfshadow.solvers.storage import Displaced, StoredConfig, Summed, start_of

_PLAIN = ["next_step", "stages", "_last_step", "_last_ratio", "_times"]


class LowStorageRKC2(RKC2Stepper):
    """RKC2 on a displacement.

    Args:
        field: Right-hand side F.
        node: Where to start; its state is kept, not copied.
        first_step: Size of the first attempt.
        spectral: What is known of the field's stiffness.
    """

    def __init__(
        self, field: Field, node: Node, first_step: float, spectral: SpectralRadius | None = None
    ) -> None:
        base, moved = start_of(node)
        radius = spectral or SpectralRadius(field, kept=torch.bfloat16)
        super().__init__(field, node, first_step, spectral=radius)
        self._base, self._moved = base, moved
        self._slope = node.field
        self._increment: Tensor | None = None
        self._left_slope: Tensor | None = None
        self._attempted: tuple[Tensor, Tensor] | None = None
        self._times = (node.time, node.time)
        self.right = Displaced(node.time, base, moved, node.field)
        self.left = self.right

    def release(self) -> None:
        """Let go of the last step."""
        self._increment = self._left_slope = None
        self.left = self.right

    @property
    def error_terms(self) -> Terms | None:
        """Local error of the last step, as a sum."""
        if self._increment is None or self._left_slope is None:
            return None
        h, scale = self._times[1] - self._times[0], error_scale(self.stages)
        ends = (self._left_slope, -0.5 * h * scale), (self._slope, -0.5 * h * scale)
        return [(self._increment, scale), *ends]

    def _attempt(self, h: float, stages: int) -> float:
        self.release()

        def add(current: Tensor, out: Tensor, weight: float) -> None:
            add_field(self._field, out, self._point(current), weight)

        increment, slope = rkc_increment_by(add, self._slope, h, stages)
        if isinstance(self._field, AddingField):
            self._field.write(slope, self._point(increment))
        else:
            slope = self._field(self._point(increment))
        self._attempted = increment, slope
        half = -0.5 * h
        terms = [(increment, 1.0), (self._slope, half), (slope, half)]
        return error_scale(stages) * length_of(terms)

    def _point(self, increment: Tensor) -> Tensor:
        return self.right.shifted(increment, 1.0)

    def _accept(self, h: float) -> None:
        assert self._attempted is not None
        (increment, slope), self._attempted = self._attempted, None
        moved = self._moved
        for at in blocks(moved.numel()):
            there = moved[at] + increment[at]
            increment[at] = there - moved[at]  # what was added, rounded
            moved[at] = there
        self._increment, self._left_slope, self._slope = increment, self._slope, slope
        time = self.right.time
        self._times = (time, time + h)
        self.right = Displaced(time + h, self._base, moved, slope)
        self.left = self._left_node()

    def _left_node(self) -> Node:
        assert self._left_slope is not None
        return Summed(self._times[0], self.blend(self._times[0]), self._left_slope)

    def _reject(self) -> None:
        self._attempted = None

    def blend(self, time: float) -> Terms:
        """Return the cubic Hermite interpolant of the last step as a sum."""
        terms: list[tuple[Tensor, float]] = [(self._base, 1.0), (self._moved, 1.0)]
        left, right = self._times
        if time >= right or self._increment is None or self._left_slope is None:
            return terms
        h = right - left
        s = (time - left) / h
        terms.append((self._increment, -(1 + 2 * s) * (1 - s) ** 2))
        terms.append((self._left_slope, h * s * (1 - s) ** 2))
        terms.append((self._slope, h * s * s * (s - 1)))
        return terms

    def interpolate(self, time: float) -> Tensor:
        """Return the solution at ``time``, one new vector."""
        return combined(self.blend(time), dtype=self._base.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return the vectors, step control and spectral estimate as tensors and numbers."""
        return save_plain(self, _PLAIN) | {
            "solver": self.name,
            "right": self.right.state_dict(),
            "increment": self._increment,
            "left_slope": self._left_slope,
            "spectral": self.spectral.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        check_saved(self.name, saved)
        load_plain(self, _PLAIN, saved)
        self._times = tuple(saved["times"])
        like = self._base
        self._moved = saved["right"]["moved"].to(like, copy=True)
        self._increment, self._left_slope = (
            None if saved[key] is None else saved[key].to(like)
            for key in ("increment", "left_slope")
        )
        self._slope = saved["right"]["field"].to(like)
        self.spectral.load_state_dict(saved["spectral"], like)
        self.right = Displaced(self._times[1], self._base, self._moved, self._slope)
        self.left = self.right if self._increment is None else self._left_node()


@dataclass(frozen=True, kw_only=True)
class RKC2(StoredConfig):
    """Runge–Kutta–Chebyshev of order two: evaluations grow like √(h·λ_max), for stiff flows.

    The field's Jacobian must have a real spectrum, as gradient flows have.

    Source: Sommeijer, Shampine & Verwer, J. Comput. Appl. Math. 88 (1998).
    """

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return the live method."""
        if self.is_low(field, node.field.numel()):
            return LowStorageRKC2(field, node, first_step)
        return RKC2Stepper(field, node, first_step)
