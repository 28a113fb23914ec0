"""The limits of λ_min of ReLU-like and of weight-sharing networks against dense Hessians."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from torch_gfshadow.bounds import convolution, nonlinear
from torch_gfshadow.experiments.soundness.closed_forms import Array

_SLOPES = (0.0, 0.0, 0.1, 0.5, -1.0)


def nonlinear_simple(rng: np.random.Generator, n: int) -> Array:
    """The limit by norms / −λ_min, fully connected."""
    return _connected(int(rng.integers(2**31)), n)["rhs"]


def nonlinear_tight(rng: np.random.Generator, n: int) -> Array:
    """The limit by blocks / −λ_min, fully connected."""
    return _connected(int(rng.integers(2**31)), n)["rhs_C_im2col"]


def convolution_simple(rng: np.random.Generator, n: int) -> Array:
    """The limit by multiplicities / −λ_min, circular convolutions."""
    return _shared(int(rng.integers(2**31)), n)["rhs"]


def convolution_kappa(rng: np.random.Generator, n: int) -> Array:
    """The limit by κ / −λ_min, circular convolutions."""
    return _shared(int(rng.integers(2**31)), n)["rhs_kappa"]


def convolution_tight(rng: np.random.Generator, n: int) -> Array:
    """The limit by blocks / −λ_min, circular convolutions."""
    return _shared(int(rng.integers(2**31)), n)["rhs_C_im2col"]


@lru_cache(maxsize=2)  # the studies of one family compare the same networks
def _connected(seed: int, n: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)

    def network() -> Mapping[str, Any]:
        dims = rng.integers(1, 5, int(rng.integers(3, 5)))
        weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in pairwise(dims)]
        return nonlinear.evaluate(weights, *_data(rng, dims), slope_negative=_slope(rng)).value

    return _ratios(network, n, ("rhs", "rhs_C_im2col"))


@lru_cache(maxsize=2)
def _shared(seed: int, n: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)

    def network() -> Mapping[str, Any]:
        size, kernel = int(rng.integers(4, 7)), int(rng.integers(2, 4))
        circular = np.full((size, size), -1)
        for p in range(size):
            circular[p, (p + np.arange(kernel)) % size] = np.arange(kernel)
        outputs = int(rng.integers(1, 3))
        full = np.arange(outputs * size).reshape(outputs, size)
        weights = [rng.normal(size=kernel), rng.normal(size=outputs * size) / np.sqrt(size)]
        x, y = _data(rng, [size, outputs])
        index, shared = [circular.tolist(), full.tolist()], [w.tolist() for w in weights]
        return convolution.evaluate(index, shared, x, y, slope_negative=_slope(rng)).value

    return _ratios(network, n, ("rhs", "rhs_kappa", "rhs_C_im2col"))


def _ratios(network: Any, n: int, names: tuple[str, ...]) -> dict[str, Array]:
    found: list[Mapping[str, Any]] = []
    while len(found) < n:
        value = network()
        if value["lambda_min"] < -1e-9:
            found.append(value)
    truth = np.array([value["lambda_min"] for value in found])
    return {name: np.array([value[name] for value in found]) / truth for name in names}


def _data(rng: np.random.Generator, dims: Any) -> tuple[Any, Any]:
    samples = int(rng.integers(1, 6))
    return rng.normal(size=(samples, dims[0])), rng.normal(size=(samples, dims[-1]))


def _slope(rng: np.random.Generator) -> float:
    return float(rng.choice(_SLOPES))
