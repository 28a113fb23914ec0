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
    SolverConfig,
    Stepper,
    add_field,
    check_saved,
    load_plain,
    save_plain,
)
from torch_gfshadow.solvers.rkc import rkc_increment_by
from torch_gfshadow.solvers.rkc2 import RKC2Stepper, error_scale
from torch_gfshadow.solvers.spectral import SpectralRadius

SMALL = 2_000_000
"""Up to this many parameters copies of them are nothing, and states are float64 vectors."""
_PLAIN = ["next_step", "stages", "_last_step", "_last_ratio", "_times"]


def is_large(config: SolverConfig, dim: int) -> bool:
    """Say whether every copy of the ``dim`` parameters counts, or the solver was told that."""
    return dim > SMALL or getattr(config, "storage", "auto") == "low"


class Displaced(Node):
    """A node whose state is the sum of two vectors, made when it is asked for."""

    __slots__ = ("base", "moved")
    base: Tensor
    moved: Tensor

    def __init__(self, time: float, base: Tensor, moved: Tensor, field: Tensor) -> None:
        for name, value in (("time", time), ("base", base), ("moved", moved), ("field", field)):
            object.__setattr__(self, name, value)

    @property
    def state(self) -> Tensor:
        """θ̃, a new vector."""
        return self.base + self.moved

    def shifted(self, offset: Tensor, scale: float) -> Tensor:
        """Return θ̃ + scale·offset, and make no other vector."""
        return torch.add(self.base, self.moved).add_(offset, alpha=scale)

    def state_dict(self) -> dict[str, Any]:
        """Return the node as tensors and numbers."""
        base = {"time": self.time, "state": self.base, "field": self.field}
        return base | {"moved": self.moved.clone()}  # it is changed in place


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
        base = node.base if isinstance(node, Displaced) else node.state
        moved = node.moved if isinstance(node, Displaced) else torch.zeros_like(base)
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
        return _Before(self._times[0], self._base, self._moved, self._left_slope, self._increment)

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


class _Before(Displaced):
    """The node at the start of the last step."""

    __slots__ = ("increment",)
    increment: Tensor

    def __init__(
        self,
        time: float,
        base: Tensor,
        moved: Tensor,
        field: Tensor | None,
        increment: Tensor | None,
    ) -> None:
        assert field is not None
        assert increment is not None
        super().__init__(time, base, moved, field)
        object.__setattr__(self, "increment", increment)

    @property
    def state(self) -> Tensor:
        """θ̃ there, a new vector."""
        return (self.base + self.moved).sub_(self.increment)


@dataclass(frozen=True, kw_only=True)
class RKC2(SolverConfig):
    """Runge–Kutta–Chebyshev of order two: evaluations grow like √(h·λ_max), for stiff flows.

    The field's Jacobian must have a real spectrum, as gradient flows have.

    Args:
        storage: ``"full"`` keeps states of ``dtype``; ``"low"`` a displacement in the parameters'
            own dtype, at most eight copies of the parameters for the whole shadow instead of
            thirty; ``"auto"`` is low beyond two million parameters.

    Source: Sommeijer, Shampine & Verwer, J. Comput. Appl. Math. 88 (1998).
    """

    storage: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.storage not in ("auto", "low", "full"):
            raise ValueError(
                f"storage must be 'auto', 'low' or 'full', got {self.storage!r}. "
                "Leave it out for the default."
            )

    def is_low(self, field: Field, dim: int) -> bool:
        """Say whether states of ``dim`` entries are kept in low storage."""
        return self.storage == "low" or (self.storage == "auto" and dim > SMALL)

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return the live method."""
        if self.is_low(field, node.field.numel()):
            return LowStorageRKC2(field, node, first_step)
        return RKC2Stepper(field, node, first_step)
