"""The tube beside a run: a certified limit of the discrepancy of a deep linear network.

The certificate is about the polygon through the probed iterates, whatever steps led from one to
the next: the longer between probes, the larger its defect. Theorem in tube.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch_gfshadow.bounds._losses import Loss, Square, frobenius, loss_of
from torch_gfshadow.bounds._scalars import choice
from torch_gfshadow.bounds.base import BoundValue
from torch_gfshadow.bounds.tube import Tube
from torch_gfshadow.bounds.view import View
from torch_gfshadow.network import NetworkPoint, NotCovered
from torch_gfshadow.record import Record

_DENSE = 300
"""Number of weights up to which mode C, which needs the dense Hessian, is worth its price."""

_EXACT = 1e-9  # what was told from float64 derivatives may be off by; labels are then exact


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
        if not off <= _EXACT * (frobenius(known) + network.signal):
            return "φ cannot be told from the samples, or changed during the run."
        if self._tube is None:
            size = sum(w.size for w in weights)
            mode = ("C" if size <= _DENSE else "B") if self.mode == "auto" else self.mode
            self._tube = Tube(weights, self._loss, mode=mode)
        elif record.time > self._time:
            self._tube.step(weights, record.time - self._time)
        self._time = record.time
        return ""


def told_loss(network: NetworkPoint) -> Loss | str:
    """Return φ, told from outputs and slopes at one point, or why it cannot be."""
    samples = network.samples
    if samples is None:
        return "φ cannot be told: too many samples to keep."
    x, h, p = (t.cpu().numpy() for t in (samples.inputs, samples.outputs, samples.slopes))
    count = len(x)
    if network.loss == {"square"} and samples.bends is not None:
        s = samples.bends.cpu().numpy()
        if not (s > 0).all() or np.ptp(s, axis=1).max() > 1e-12 * s.max():
            return "φ cannot be told: the outputs are weighted."
        scale = np.sqrt(count * s[:, :1])
        made = Square.of(scale * x, scale * (h - p / s))
        slack = 1e-11 * float((np.linalg.norm(p, axis=1) * np.linalg.norm(x, axis=1)).sum())
        fields = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
        return _Told(**fields, slack=slack + 1e-13 * float(frobenius(made.lyx)))
    if network.loss == {"cross-entropy"}:
        shifted = np.exp(h - h.max(1, keepdims=True))
        targets = shifted / shifted.sum(1, keepdims=True) - count * p
        labels = targets.argmax(1)
        if np.abs(targets - np.eye(h.shape[1])[labels]).max() > _EXACT:
            return "φ cannot be told: the cross-entropy is weighted or has soft labels."
        return loss_of(x, labels, "cross_entropy", n_outputs=h.shape[1])
    if network.loss == {"logistic"} and h.shape[1] == 1:
        signs: NDArray[Any] = -np.sign(p)
        if np.abs(count * p + signs / (1.0 + np.exp(signs * h))).max() > _EXACT:
            return "φ cannot be told: the logistic loss is weighted or scaled."
        return loss_of(x, signs, "logistic")
    return f"The tube has no constants for the loss ({', '.join(sorted(network.loss)) or 'none'})."


@dataclasses.dataclass(frozen=True, eq=False)
class _Told(Square):
    """A square loss whose targets were told from slopes, so that they are rounded."""

    slack: float = 0.0

    def gradient_error(self, end_norm: Any, end_error: Any) -> Any:
        return super().gradient_error(end_norm, end_error) + self.slack
