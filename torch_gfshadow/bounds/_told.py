"""φ of a deep linear network told from its samples, and as plain values for a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch_gfshadow.bounds._losses import Loss, Square, loss_of
from torch_gfshadow.bounds._norms import frobenius
from torch_gfshadow.bounds._scores import CrossEntropy, Logistic
from torch_gfshadow.network import NetworkPoint

EXACT = 1e-9
"""What was told from float64 derivatives may be off by; labels are then exact."""


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
        if np.abs(targets - np.eye(h.shape[1])[labels]).max() > EXACT:
            return "φ cannot be told: the cross-entropy is weighted or has soft labels."
        return loss_of(x, labels, "cross_entropy", n_outputs=h.shape[1])
    if network.loss == {"logistic"} and h.shape[1] == 1:
        signs: NDArray[Any] = -np.sign(p)
        if np.abs(count * p + signs / (1.0 + np.exp(signs * h))).max() > EXACT:
            return "φ cannot be told: the logistic loss is weighted or scaled."
        return loss_of(x, signs, "logistic")
    return f"The tube has no constants for the loss ({', '.join(sorted(network.loss)) or 'none'})."


@dataclasses.dataclass(frozen=True, eq=False)
class _Told(Square):
    """A square loss whose targets were told from slopes, so that they are rounded."""

    slack: float = 0.0

    def gradient_error(self, end_norm: Any, end_error: Any) -> Any:
        return super().gradient_error(end_norm, end_error) + self.slack


_SCORES = {"cross_entropy": CrossEntropy, "logistic": Logistic}


def loss_state(loss: Loss) -> dict[str, Any]:
    """Return a loss that was told as a dictionary of arrays and numbers."""
    if isinstance(loss, _Told):
        return {"name": "square"} | {
            f.name: getattr(loss, f.name) for f in dataclasses.fields(loss)
        }
    for name, kind in _SCORES.items():
        if isinstance(loss, kind):
            return {"name": name, "inputs": loss.inputs, "targets": loss.targets}
    raise TypeError(type(loss).__name__)


def loss_from(saved: Mapping[str, Any]) -> Loss:
    """Return the loss that :func:`loss_state` was given."""
    fields = dict(saved)
    name = fields.pop("name")
    if name == "square":
        return _Told(**fields)
    return CrossEntropy(**fields) if name == "cross_entropy" else Logistic(**fields)
