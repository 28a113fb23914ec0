"""How tight the bounds on other networks are: activations, shared weights, flows from near zero.

Bound over truth as in tightness.py, whose study these tables are a part of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from torch_gfshadow.bounds import Square, proposition2
from torch_gfshadow.bounds import _homogeneous as homogeneous
from torch_gfshadow.bounds._chain import Chain
from torch_gfshadow.bounds._deep_linear import Point
from torch_gfshadow.bounds._norms import spectral_norm
from torch_gfshadow.bounds.lemma2 import smoothness
from torch_gfshadow.experiments.soundness.closed_forms import Array
from torch_gfshadow.experiments.soundness.networks import runge_kutta
from torch_gfshadow.experiments.study import Number
from torch_gfshadow.network import NetworkPoint
from torch_gfshadow.network.layers import Dense, Layer, Shared

FORMS = {
    "simple": "by norms, √N",
    "kappa": "by norms, √κ",
    "sums": "C_sums",
    "stacked": "C_im2col",
}
FLOWS = {"eq14": "Eq. 14", "sharper": "sharper"}
_SAMPLES = 6
_NETWORKS: tuple[tuple[str, tuple[int, ...], float, str], ...] = (
    ("4-5-5-3, ReLU", (4, 5, 5, 3), 0.0, "square"),
    ("4-5-5-3, ReLU", (4, 5, 5, 3), 0.0, "cross_entropy"),
    ("4-5-5-5-3, ReLU", (4, 5, 5, 5, 3), 0.0, "square"),
    ("4-5-5-3, absolute value", (4, 5, 5, 3), -1.0, "square"),
)
_WINDOW = 3
_CONVOLUTIONS = (
    ("8, two convolutions of 3, 2", False, "square"),
    ("8, two convolutions of 3, 2", False, "cross_entropy"),
    ("the same, circular", True, "square"),
    ("the same, circular", True, "cross_entropy"),
)
_FLOW_SHAPES = ((5, 4, 4, 1), (5, 4, 4, 3), (4, 4, 4, 4, 4, 2), (5, 4, 3))
_STARTS = (1.0, 0.1, 0.01)
_STEPS, _EVERY = 240, 12
_STEP = 0.3  # times ‖∇²f‖, of each network by itself: near zero nothing moves for long


def with_activations(trials: int, seed: int) -> list[dict[str, Number]]:
    """Return one row per network with activations: medians of bound over λ_min."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Number]] = []
    for name, dims, slope, loss in _NETWORKS:
        layers = [Dense(a, b) for a, b in pairwise(dims)]
        shapes = [(b, a) for a, b in pairwise(dims)]
        rows.append(_row(name, layers, shapes, (dims[0], dims[-1]), slope, loss, trials, generator))
    for name, circular, loss in _CONVOLUTIONS:
        shared = _convolutions(circular=circular)
        sizes = [(layer.n_weights,) for layer in shared]
        rows.append(_row(name, shared, sizes, (8, 2), 0.0, loss, trials, generator))
    return rows


def along_flows(trials: int, seed: int) -> list[dict[str, Number]]:
    """Return one row per network and start: Equation 14 over λ_min on flows from near zero."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Number]] = []
    for dims in _FLOW_SHAPES:
        for share in _STARTS:
            found = list(_on_flows(dims, share / (2 * (len(dims) - 1)), trials, rng))
            medians = {
                key: float(np.median(np.concatenate([ratios[key] for ratios in found])))
                for key in FLOWS
            }
            network = "-".join(map(str, dims))
            rows.append({"network": network, "start": f"{share:g}/(2n)", **medians})
    return rows


def _row(
    name: str,
    layers: Sequence[Layer],
    shapes: Sequence[tuple[int, ...]],
    ends: tuple[int, int],
    slope: float,
    loss: str,
    trials: int,
    generator: torch.Generator,
) -> dict[str, Number]:
    found: dict[str, list[float]] = {key: [] for key in FORMS}
    for _ in range(trials):
        weights = [_normal(shape, generator) / math.sqrt(shape[-1]) for shape in shapes]
        x, y = (_normal((_SAMPLES, size), generator) for size in ends)
        target = y.argmax(1) if loss == "cross_entropy" else y
        apply = [
            homogeneous.applied_by(layer.matrix)
            if isinstance(layer, Shared)
            else homogeneous.dense_apply
            for layer in layers
        ]
        point, smallest, _ = homogeneous.given_point(
            layers, weights, apply, x, target, loss, (slope, 1.0)
        )
        for key, limit in _limits(point).items():
            if limit > smallest + 1e-9 * abs(limit):
                raise ArithmeticError(f"bound {key} is above λ_min on {name}")
            if smallest < -1e-9:
                found[key].append(limit / smallest)
    medians = {key: float(np.median(values)) for key, values in found.items()}
    return {"network": name, "loss": loss.replace("_", "-"), **medians}


def _limits(point: NetworkPoint) -> dict[str, float]:
    counts, kappa = zip(*(layer.sharing() for layer in point.layers), strict=True)
    return {
        "simple": homogeneous.by_norms(point, counts, point.norms),
        "kappa": homogeneous.by_norms(point, kappa, point.norms),
        "sums": homogeneous.by_blocks(point, summed=True),
        "stacked": homogeneous.by_blocks(point),
    }


def _convolutions(*, circular: bool) -> list[Shared]:
    """Return two convolutions of one channel on 8 inputs and a full layer of 2 outputs."""
    layers, size = [], 8
    for _ in range(2):
        places = size if circular else size - _WINDOW + 1
        rows = []
        for place in range(places):
            row = [-1] * size
            for tap in range(_WINDOW):
                row[(place + tap) % size] = tap
            rows.append(tuple(row))
        layers.append(Shared(tuple(rows), _WINDOW))
        size = places
    full = tuple(tuple(range(size * r, size * (r + 1))) for r in range(2))
    return [*layers, Shared(full, 2 * size)]


def _on_flows(
    dims: Sequence[int], eps: float, trials: int, rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    """Follow flows from ‖θ‖ = ε to the minimum; yield bound over λ_min at points on the way."""
    inputs = rng.normal(size=(12, dims[0]))
    target = rng.normal(size=(trials, dims[-1], dims[0]))
    target /= np.linalg.norm(target, axis=(1, 2))[:, None, None]
    loss = Square(inputs.T @ inputs / 12, target)
    weights = [rng.normal(size=(trials, b, a)) for a, b in pairwise(dims)]
    size = np.sqrt(sum((w**2).sum((1, 2)) for w in weights))
    weights = [w * (eps / size)[:, None, None] for w in weights]
    for step in range(_STEPS):
        point = Point(Chain(weights), loss)
        if step % _EVERY == 0:
            yield _compared(point, eps)
        weights = runge_kutta(weights, loss, (_STEP / smoothness(point))[:, None, None])


def _compared(point: Point, eps: float) -> dict[str, Array]:
    weights, widths = point.chain.weights, point.chain.widths
    spectrum = np.linalg.eigvalsh(point.hessian())
    norms = np.stack([np.asarray(spectral_norm(w)) for w in weights], 1)
    end, outer = spectral_norm(point.chain.end), point.outer
    found: dict[str, list[float]] = {key: [] for key in FLOWS}
    for i, smallest in enumerate(spectrum[:, 0]):
        if smallest > -1e-10 * np.abs(spectrum[i]).max():
            continue  # zero up to rounding
        value = proposition2(
            len(weights), widths[0], widths[-1], float(np.linalg.norm(outer[i])),
            float(np.linalg.norm(outer[i], 2)), float(end[i]), norms[i].tolist(), eps,
        ).value  # fmt: skip
        for key, name in (("eq14", "rhs_eq14"), ("sharper", "rhs_tight")):
            if value[name] > smallest * (1 - 1e-9):
                raise ArithmeticError(f"{FLOWS[key]} is above λ_min on a flow")
            found[key].append(value[name] / smallest)
    return {key: np.array(values) for key, values in found.items()}


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
