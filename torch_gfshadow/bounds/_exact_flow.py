"""The flow from a balanced start at the ends of many short cells, by quadrature in logarithms.

Equations and setting are in exact_dynamics.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch_gfshadow.bounds._balanced import Setting
from torch_gfshadow.errors import AssumptionError, must

Array = NDArray[np.float64]

_NODES, _WEIGHTS = (np.asarray(a, np.float64) for a in np.polynomial.legendre.leggauss(6))
_MOST_CELLS = 400_000
_SUBSTEPS = 16  # of a cell: n·Δτ is at most 0.5 there
MINIMUM = 1e-28
"""Loss above the minimum that is rounding of r and ν."""


@dataclass(frozen=True, eq=False)
class Path:
    """The flow at the ends of many short cells; arrays of one length, the start first.

    Attributes:
        n: Number of weight matrices.
        times: t, increasing from 0.
        r: ‖W_{n:1}‖_F.
        nu: Its alignment with Λ_yx.
        transverse: √(1 − ν²), kept apart because 1 − ν² cancels.
    """

    n: int
    times: Array
    r: Array
    nu: Array
    transverse: Array

    @property
    def gap(self) -> Array:
        """Loss above its minimum, decreasing."""
        return np.asarray(0.5 * ((self.r - self.nu) ** 2 + self.transverse**2))

    def taken(self, indices: Any) -> Path:
        """Return the path at some of its nodes: what is largest over a cell stays so."""
        arrays = (self.times, self.r, self.nu, self.transverse)
        return Path(self.n, *(array[indices] for array in arrays))

    def thinned(self, cells: int) -> Path:
        """Return the path with about so many cells, or as many as it has."""
        every = max(1, (len(self.times) - 1) // cells)
        kept = np.arange(0, len(self.times) - 1, every)
        return self.taken(np.append(kept, len(self.times) - 1))


def follow(setting: Setting, *, gap: float = 0.0, time: float = math.inf) -> Path:
    """Follow the flow until its loss is ``gap`` above the minimum or ``time`` is reached.

    The last cell ends beyond the one or the other, or where the loss is the minimum to rounding.

    Raises:
        AssumptionError: If that takes too many cells: the start is too near ν = −1.
    """
    cells = max(200, 50 * setting.n)
    aligned = setting.nu >= 1.0
    begin = _logit(setting.r0) if aligned else math.atanh(setting.nu)
    cell = min(0.02, 0.5 / setting.n)
    blocks: list[Path] = []
    state = _State(begin, 0.0, -math.inf)
    while True:
        with np.errstate(over="ignore"):
            block, state = (_aligned if aligned else _turning)(setting, state, cell, cells)
        blocks.append(block)
        if len(blocks) * cells > _MOST_CELLS or not math.isfinite(block.times[-1]):
            fix = "Ask for a shorter time or a larger loss."
            got = f"{block.times[-1]:g} after {len(blocks) * cells} cells"
            raise AssumptionError(must("time to follow", "shorter", got, fix))
        if block.gap[-1] <= max(gap, MINIMUM) or block.times[-1] > time:
            return _joined(setting, blocks)


def time_of(path: Path, gap: float) -> float:
    """Return when the loss comes down to ``gap``; 0 if it starts below."""
    index = int(np.argmax(path.gap <= gap))
    if index == 0:
        return 0.0
    low, high = float(path.times[index - 1]), float(path.times[index])
    above, below = (math.log(path.gap[i] / gap) for i in (index - 1, index))
    side = 0
    for _ in range(60):  # the logarithm is nearly straight: regula falsi, Illinois
        middle = (low * below - high * above) / (below - above)
        if not low < middle < high:
            break
        r, cosine, sine = between(path, np.array([middle]))
        value = math.log(0.5 * float((r[0] - cosine[0]) ** 2 + sine[0] ** 2) / gap)
        if value <= 0.0:
            high, below, above = middle, value, above / (1 + (side == 1))
            side = 1
        else:
            low, above, below = middle, value, below / (1 + (side == -1))
            side = -1
        if high - low <= 1e-14 * high or abs(value) <= 1e-14:
            break
    return high


@dataclass(frozen=True, slots=True)
class _State:
    """Where a block begins: the clock τ (or logit r), the time, and log ∫ cosh^n so far."""

    clock: float
    time: float
    log_integral: float


def _turning(setting: Setting, state: _State, cell: float, cells: int) -> tuple[Path, _State]:
    n, start = setting.n, math.atanh(setting.nu)
    edges = state.clock + cell * np.arange(cells + 1)
    inside = edges[:-1, None] + 0.5 * cell * (_NODES + 1.0)
    steps = _log_sum(n * _log_cosh(inside) + np.log(0.5 * cell * _WEIGHTS))
    log_integral = np.logaddexp.accumulate(np.r_[state.log_integral, steps])
    # from an edge to each node within its cell: the same rule on the shorter interval
    parts = 0.5 * (inside - edges[:-1, None])
    finer = edges[:-1, None, None] + parts[..., None] * (_NODES + 1.0)
    partial = _log_sum(n * _log_cosh(finer) + np.log(parts[..., None] * _WEIGHTS))
    at_nodes = np.logaddexp(log_integral[:-1, None], partial)

    def log_r(tau: Any, integral: Any) -> Array:
        first = n * _log_cosh(np.array(start)) - math.log(setting.r0)
        return np.asarray(n * _log_cosh(tau) - np.logaddexp(first, math.log(n) + integral))

    pace = np.exp(-(1.0 - 2.0 / n) * log_r(inside, at_nodes))
    times = state.time + np.r_[0.0, np.cumsum(0.5 * cell * (pace @ _WEIGHTS))]
    r = np.exp(log_r(edges, log_integral))
    path = Path(n, times, r, np.tanh(edges), np.exp(-_log_cosh(edges)))
    return path, _State(float(edges[-1]), float(times[-1]), float(log_integral[-1]))


def _aligned(setting: Setting, state: _State, cell: float, cells: int) -> tuple[Path, _State]:
    n = setting.n
    edges = state.clock + cell * np.arange(cells + 1)
    inside = edges[:-1, None] + 0.5 * cell * (_NODES + 1.0)
    pace = np.exp(-(1.0 - 2.0 / n) * -np.logaddexp(0.0, -inside)) / n
    times = state.time + np.r_[0.0, np.cumsum(0.5 * cell * (pace @ _WEIGHTS))]
    r = np.exp(-np.logaddexp(0.0, -edges))
    path = Path(n, times, r, np.ones_like(r), np.zeros_like(r))
    return path, _State(float(edges[-1]), float(times[-1]), 0.0)


def _joined(setting: Setting, blocks: Sequence[Path]) -> Path:
    def all_of(name: str) -> Array:
        first = getattr(blocks[0], name)
        return np.concatenate([first, *(getattr(block, name)[1:] for block in blocks[1:])])

    return Path(setting.n, *(all_of(name) for name in ("times", "r", "nu", "transverse")))


def between(path: Path, times: Array) -> tuple[Array, Array, Array]:
    """Return r, ν and √(1 − ν²) at these times: from the node before each, by small steps."""
    times = np.minimum(times, path.times[-1])
    index = np.maximum(np.searchsorted(path.times, times, "right") - 1, 0)
    n, h = path.n, (times - path.times[index]) / _SUBSTEPS
    with np.errstate(divide="ignore"):  # τ is infinite at ν = 1, and stays there
        tau = np.arcsinh(path.nu[index] / path.transverse[index])
    state = np.stack([np.log(path.r[index]), tau])

    def field(y: Array) -> Array:
        pace = np.exp((1.0 - 2.0 / n) * y[0])
        return np.stack([n * pace * (np.tanh(y[1]) - np.exp(y[0])), pace])

    for _ in range(_SUBSTEPS):  # the classical Runge–Kutta method
        a = field(state)
        b = field(state + 0.5 * h * a)
        c = field(state + 0.5 * h * b)
        state = state + h / 6 * (a + 2 * b + 2 * c + field(state + h * c))
    return np.exp(state[0]), np.tanh(state[1]), np.exp(-_log_cosh(state[1]))


def _log_cosh(x: Any) -> Array:
    size_ = np.abs(x)
    return np.asarray(size_ + np.log1p(np.exp(-2.0 * size_)) - math.log(2.0))


def _log_sum(logs: Array) -> Array:
    top = logs.max(-1)
    return np.asarray(top + np.log(np.exp(logs - top[..., None]).sum(-1)))


def _logit(r: float) -> float:
    return math.log(r) - math.log1p(-r)
