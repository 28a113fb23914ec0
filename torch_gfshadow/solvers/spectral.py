"""How stiff the field is: an upper estimate of its Jacobian's spectral radius.

A stabilised method is stable as long as h·λ lies inside an interval that its stages pay for, so it
needs λ from above. Two sources: λ_max of the latest Hessian probe, which is free, and a power
iteration on differences of the field, which starts from the last eigenvector and then takes one or
two evaluations. Both come from below, so a margin is added, and the estimate is measured anew when
it has served for a while or a step fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.solvers.base import Field, Node, add_field, load_plain, save_plain

MARGIN = 1.2
"""What is asked of the stability interval beyond the eigenvalue found."""
_LIFE = 24
_COLD, _WARM = 24, 4
_CLOSE = 0.03
_ALIGNED, _SAME = 0.9, 0.97
_PLAIN = ["radius", "_age", "_hint"]


class SpectralRadius:
    """Estimate of ρ(∂F) beside a solver.

    Args:
        field: Right-hand side F.
        kept: Dtype the vector is kept in between measurements; it is only where the next one
            starts. ``None`` for the state's.

    Attributes:
        life: Evaluations of the solver after which it is measured anew.
        radius: Largest |eigenvalue| last found; ``None`` before the first measurement.
    """

    def __init__(self, field: Field, kept: torch.dtype | None = None) -> None:
        self.life = _LIFE
        self.radius: float | None = None
        self._field, self._kept = field, kept
        self._vector: Tensor | None = None
        self._age = 0
        self._hint: float | None = None

    @property
    def bound(self) -> float:
        """The radius with its margin."""
        return MARGIN * (self.radius or 0.0)

    def hint(self, lambda_max: float | None) -> None:
        """Take in the latest probe's λ_max; one that was seen before says nothing new."""
        if lambda_max is None or lambda_max == self._hint or not math.isfinite(lambda_max):
            return
        self._hint = lambda_max
        self.radius, self._age = max(lambda_max, 0.0), 0

    def spend(self, evaluations: int) -> None:
        """Age by what a step of the solver has cost."""
        self._age += evaluations

    def distrust(self) -> None:
        """Have it measured anew before the next use, unless that was done just now."""
        if self._age > 0:
            self._age = self.life

    def measure(self, node: Node) -> None:
        """Measure at ``node`` if there is no estimate yet or it is out of date."""
        if self.radius is not None and self._age < self.life:
            return
        cold = self._vector is None
        start = _mixed(node.field) if self._vector is None else self._vector.to(node.field)
        norm = float(torch.linalg.vector_norm(start))
        if not norm > 0.0:
            self.radius, self._age = self.radius or 0.0, 0
            return
        size = 1e-4 * max(float(torch.linalg.vector_norm(node.state)), 1e-3)
        known, found, vector = self.radius, 0.0, start
        del start  # a vector less while the field is evaluated
        for turn in range(_COLD if cold else _WARM):
            difference = self._difference(node, vector, size / norm)
            norm = float(torch.linalg.vector_norm(difference))
            last, found = found, norm / size
            if not (math.isfinite(found) and norm > 0.0):
                break
            near = last if turn else known
            close = near is not None and abs(found - near) <= _CLOSE * found
            # an old direction may give the old figure by chance: it must still be an eigenvector
            if not (turn or cold):
                along = abs(float(torch.dot(difference, vector)))
                along /= norm * float(torch.linalg.vector_norm(vector))
                close = along >= (_ALIGNED if close else _SAME)
            vector = difference
            if close:
                break
        if math.isfinite(found):
            self.radius, self._vector = found, vector.to(self._kept or vector.dtype)
        self._age = 0

    def _difference(self, node: Node, vector: Tensor, scale: float) -> Tensor:
        """Return F(θ̃ + scale·v) − F(θ̃)."""
        if self._kept is None:
            return self._field(node.state + vector * scale).sub_(node.field)
        out = node.field.neg()
        add_field(self._field, out, node.shifted(vector, scale), 1.0)
        return out

    def state_dict(self) -> dict[str, Any]:
        """Return the estimate and the vector it goes on from."""
        return save_plain(self, _PLAIN) | {"vector": self._vector}

    def load_state_dict(self, saved: Mapping[str, Any], like: Tensor) -> None:
        """Go on from a saved state, on the device and in the dtype of ``like``."""
        load_plain(self, _PLAIN, saved)
        vector = saved["vector"]
        kept = self._kept or like.dtype
        self._vector = None if vector is None else vector.to(like.device, kept)


def _mixed(field: Tensor) -> Tensor:
    """Return F and a random vector in equal parts.

    F is rich in the outliers of a network's Hessian, where a random vector is poor; but a smooth
    F may lack the stiffest modes altogether. The global random state is not touched.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(field.shape, generator=generator, dtype=torch.float32, device="cpu")
    noise = noise.to(field)
    norm = torch.linalg.vector_norm
    return noise.mul_(norm(field) / norm(noise)).add_(field)
