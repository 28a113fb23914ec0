"""The gradients the steps used: two in a row give the defect and the curvature for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._plain import load_attributes, saved_attributes
from torch_gfshadow.watched import Watched


class UsedGradients:
    """The last two gradients the optimizer consumed and the parameters they were taken at.

    Attributes:
        now: The last one, shape ``[d]``; ``None`` if it was not read.
        before: The one of the step before, if that was read, too.
    """

    def __init__(self) -> None:
        self.now: Tensor | None = None
        self.step_length = 0.0
        self.before: Tensor | None = None
        self._at: Tensor | None = None
        self._moved: Tensor | None = None

    state: tuple[str, ...] = ("now", "before", "_at", "_moved")

    @property
    def norm(self) -> float | None:
        """Norm of the last gradient, if it was read."""
        return None if self.now is None else norm(self.now)

    def leave(self, watched: Watched) -> None:
        """Nothing: the parameters were copied with the gradient."""

    def stepped(self, watched: Watched) -> Tensor | None:
        """Nothing: the next gradient is read with the parameters it was taken at."""
        return None

    def settle(self, watched: Watched) -> None:
        """Nothing: gradients are copied when they are read."""

    def read(self, watched: Watched) -> Tensor | None:
        """Take in the gradient the step is about to use."""
        self.before, self.now = self.now, watched.gradient()
        at, self._at = self._at, watched.layout.current()
        self._moved = self._at - at if at is not None else None
        return self.now

    def skip(self) -> None:
        """Let a step pass unread."""
        self.now = self._at = None

    def compared(self) -> None:
        """Let go of what only the present record needs: two vectors of the size of θ."""
        self.before = self._moved = None

    def state_dict(self) -> dict[str, Any]:
        """Return both gradients and where they were taken."""
        return saved_attributes(self, self.state)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        load_attributes(self, self.state, saved)

    def defect(self) -> float | None:
        """Return δ = ‖g_k − g_{k−1}‖₂, the defect of the polygon, if both were read."""
        if self.now is None or self.before is None:
            return None
        return norm(self.now - self.before)

    def secant(self) -> dict[str, Any]:
        """Return what two gradients tell of the path: turning, and the curvature along it."""
        out: dict[str, Any] = {}
        if self.now is None or self.before is None:
            return out
        size = norm(self.now) * norm(self.before)
        if size > 0.0:
            out["gradient_cosine"] = float(torch.dot(self.now, self.before)) / size
        if self._moved is not None and norm(self._moved) > 0.0:
            bend = float(torch.dot(self.now - self.before, self._moved))
            out["secant_curvature"] = bend / norm(self._moved) ** 2
        return out


def norm(vector: Tensor) -> float:
    """Return the 2-norm of a flat vector as a number."""
    return float(torch.linalg.vector_norm(vector))
