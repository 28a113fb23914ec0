"""Journey: how far the run has come, from where it began and along its way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torch_gfshadow._plain import load_attributes, saved_attributes
from torch_gfshadow._tree import Layout
from torch_gfshadow.layouts import carried
from torch_gfshadow.used import UsedGradients
from torch_gfshadow.watched import Watched

_STATE = ("_origin", "_last_theta", "_path")


class Journey:
    """Where the run began, its last record, and the length of the way from record to record.

    Args:
        watched: The run.
        lean: Whether to do without a copy of the last record's parameters where the step that
            begins there is read anyway.

    """

    def __init__(self, watched: Watched, *, lean: bool) -> None:
        self._watched, self._lean = watched, lean
        # in the parameters' own dtype, which holds them exactly in half the space
        self._origin = watched.layout.current()
        # of the last record; None while the step to come begins there and will be read
        self._last_theta: Tensor | None = self._origin
        self._path = 0.0
        self._recorded = False

    @property
    def origin(self) -> Tensor:
        """The parameters at attach, shape ``[d]``; of those trained later, their values then."""
        return self._origin

    @property
    def length(self) -> float:
        """Length of the way so far: the polygon through the records."""
        return self._path

    def distance(self) -> float:
        """Return ‖θ_k − θ_0‖."""
        return self._watched.layout.distance([(self._origin, -1.0)])

    def arrive(self, used: UsedGradients) -> None:
        """Add the way from the last record to here, and let go of the point it began at."""
        if self._last_theta is None:
            self._path += used.step_length
        else:
            self._path += self._watched.layout.distance([(self._last_theta, -1.0)])
        self._last_theta, self._recorded = None, True

    @property
    def begins(self) -> bool:
        """Whether the step under way began at the last record, and no copy of that is kept."""
        return self._last_theta is None

    def leave(self, start: Tensor | None) -> None:
        """Keep where the step began that was taken, if that is the last record."""
        if self._last_theta is None:
            self._last_theta = start

    def settle(self, *, read: bool) -> None:
        """Copy the last record's parameters before a step changes them.

        Args:
            read: Whether the gradient of the step to come will be read, and its length with it.
        """
        recorded, self._recorded = self._recorded, False
        if recorded and not (self._lean and read):
            self._last_theta = self._watched.layout.current()

    def keep(self) -> None:
        """Remember where the run is, if the step to come will not be read after all."""
        if self._last_theta is None:
            self._last_theta = self._watched.layout.current()

    def relaid(self, before: Layout, *, lean: bool) -> None:
        """Go on with the parameters of another layout; those that join it begin here."""
        now, last = self._watched.layout, self._last_theta
        if last is not None and tuple(p.shape for p in before.params) == before.shapes:
            self._path += before.distance([(last, -1.0)])
        self._lean, self._last_theta = lean, now.current()
        self._origin = carried(before, self._origin, now)

    def state_dict(self) -> dict[str, Any]:
        """Return both points and the length."""
        return saved_attributes(self, _STATE)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        load_attributes(self, _STATE, saved)
