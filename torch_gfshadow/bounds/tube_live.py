"""The tube beside a run: a certified limit of the discrepancy of a deep linear network.

The certificate is about the polygon through the probed iterates, whatever steps led from one to
the next: the longer between probes, the larger its defect. Theorem in tube.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from torch_gfshadow.bounds._losses import Loss
from torch_gfshadow.bounds._norms import frobenius
from torch_gfshadow.bounds._scalars import choice
from torch_gfshadow.bounds._told import EXACT, loss_from, loss_state, told_loss
from torch_gfshadow.bounds.base import BoundValue
from torch_gfshadow.bounds.tube import Tube
from torch_gfshadow.bounds.view import View
from torch_gfshadow.network import NotCovered
from torch_gfshadow.record import Record

_DENSE = 300
"""Number of weights up to which mode C, which needs the dense Hessian, is worth its price."""


class LiveTube:
    """The tube along a run, at probes; certified until it breaks down, and it says when.

    For deep linear networks under the square, cross-entropy or logistic loss, followed by plain
    gradient flow. φ is told from the samples and checked against the gradient at every probe.

    Args:
        mode: ``"A"``, ``"B"``, ``"C"`` as in :class:`~torch_gfshadow.bounds.tube.Tube`;
            ``"auto"`` is C for up to 300 weights and B above.

    Raises:
        ValueError: If ``mode`` is none of these.
    """

    name = "tube"
    requires: frozenset[str] = frozenset()

    def __init__(self, mode: str = "auto") -> None:
        self.mode = choice("mode", mode, ("auto", "A", "B", "C"))
        self._tube: Tube | None = None
        self._loss: Loss | None = None
        self._time = 0.0
        self._ended = ""

    def update(self, record: Record, view: View | None = None) -> BoundValue:
        """Return the radius at a probed record."""
        if view is None:
            return BoundValue(math.inf, (), "No value between probes.")
        self._ended = self._ended or self._advance(record, view)
        if self._ended or self._tube is None:
            return BoundValue(math.inf, (), self._ended)
        return self._tube.value()

    def state_dict(self) -> dict[str, Any]:
        """Return the tube and the loss as plain values."""
        return {
            "time": self._time,
            "ended": self._ended,
            "loss": None if self._loss is None else loss_state(self._loss),
            "mode": None if self._tube is None else self._tube.mode,
            "tube": None if self._tube is None else self._tube.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._time, self._ended = saved["time"], saved["ended"]
        self._loss = None if saved["loss"] is None else loss_from(saved["loss"])
        self._tube = None
        if saved["tube"] is not None and self._loss is not None:
            self._tube = Tube(saved["tube"]["weights"], self._loss, mode=saved["mode"])
            self._tube.load_state_dict(saved["tube"])

    def _advance(self, record: Record, view: View) -> str:
        """Carry the tube to this record; return why that is not possible."""
        network = view.network
        if isinstance(network, NotCovered):
            return network.reason
        matrices = network.matrices()
        if matrices is None or network.depth < 2:
            return "The tube is for networks of two or more linear layers without activations."
        if not view.plain or record.mode != "reference":
            return (
                "The tube is for plain gradient flow of one objective: no weight decay, one rate."
            )
        if any(name.startswith("fixed matrix") for name in network.names):
            return "The tube is for networks all of whose layers are trained."
        weights = [w.cpu().numpy() for w in matrices]
        if self._loss is None:
            found = told_loss(network)
            if isinstance(found, str):
                return found
            self._loss = found
        end = np.linalg.multi_dot(weights[::-1]) if len(weights) > 1 else weights[0]
        assert network.gradient is not None
        known = network.gradient.cpu().numpy()
        off = frobenius(self._loss.gradient(end) - known)
        if not off <= EXACT * (frobenius(known) + network.signal):
            return "φ cannot be told from the samples, or changed during the run."
        if self._tube is None:
            size = sum(w.size for w in weights)
            mode = ("C" if size <= _DENSE else "B") if self.mode == "auto" else self.mode
            self._tube = Tube(weights, self._loss, mode=mode)
        elif record.time > self._time:
            self._tube.step(weights, record.time - self._time)
        self._time = record.time
        return ""
