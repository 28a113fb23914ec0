"""Corollary 1 as printed, refuted: a pendulum beside its upper rest, f = 1 − cos x."""

from __future__ import annotations

import math

from torch_gfshadow.bounds import corollary1
from torch_gfshadow.experiments.study import Number

EPS = 0.1
TITLE = f"f = 1 − cos x from e^{{−(T−½)}} beside its maximum, ε = {EPS:g}"
COLUMNS = {
    "horizon": "T",
    "printed": "η, printed",
    "printed_deviation": "deviation at it (ε)",
    "corrected": "η, corrected",
    "corrected_deviation": "deviation at it (ε)",
}


def deviations(horizon: float) -> dict[str, Number]:
    """Run gradient descent on 1 − cos x at the printed and at the corrected step size."""
    eps, off = EPS, math.exp(-(horizon - 0.5))
    f0 = 1.0 + math.cos(off)
    corrected = float(corollary1(1.0, 1.0, f0, eps, 0.0, horizon).value["eta"])
    printed = corrected * math.exp(horizon)
    found: dict[str, Number] = {"horizon": horizon}
    for name, step_size in (("printed", printed), ("corrected", corrected)):
        found[name] = step_size
        found[f"{name}_deviation"] = _fallen(off, min(step_size, horizon), horizon) / eps
    return found


def _fallen(off: float, step_size: float, horizon: float) -> float:
    """Return the largest distance from the flow up to the horizon, start ``off`` from the top."""
    # sub-sampled: beyond a million steps the deviation, of order η, is extrapolated
    coarse = max(step_size, horizon / 1e6)
    y, largest = off, 0.0  # y = π − x, y' = sin y, tan(y/2) = tan(y_0/2) e^t
    slope = math.tan(off / 2)
    for k in range(1, int(horizon / coarse) + 1):
        y += coarse * math.sin(y)
        exact = 2 * math.atan(slope * math.exp(k * coarse))
        largest = max(largest, abs(y - exact))
    return largest * step_size / coarse
