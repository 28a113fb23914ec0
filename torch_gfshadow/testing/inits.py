"""The contract of initialisers, and what theorems ask of one: balance and scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from torch_gfshadow.inits import Init
from torch_gfshadow.testing.isolation import own_random_state, random_states, same


def assert_init_contract(
    make: Callable[[], Init], module: Callable[[], nn.Module] | None = None
) -> None:
    """Assert what every initialiser keeps to.

    It changes parameters in place and returns the module: the same parameters, dtype and leaf
    state as before, finite values, buffers untouched. torch's seed decides the outcome; no other
    random state moves. A module that it cannot initialise is a ValueError that names ``module``.

    Args:
        make: Builds the initialiser.
        module: Builds a module it applies to; by default convolution, normalisation and linear
            layers, with and without bias.
    """
    build = module or _small_network
    for dtype in (torch.float32, torch.float64):
        model = build().to(dtype)
        parameters = dict(model.named_parameters())
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        with own_random_state():
            before = random_states()
            returned = make()(model)
            after = random_states()
        if returned is not model:
            raise AssertionError(f"an initialiser must return its module, got {returned!r}")
        for name in ("NumPy's random state", "Python's random state"):
            if not same(before[name], after[name]):
                raise AssertionError(f"an initialiser must draw from torch alone, not {name}")
        _assert_kept(model, parameters, dtype)
        changed = [name for name, b in model.named_buffers() if not torch.equal(b, buffers[name])]
        if changed:
            raise AssertionError(f"buffers must be left alone, got {', '.join(changed)} changed")
        _assert_seed_decides(make, build, dtype)
    _assert_refuses_nothing(make)


def assert_init_balanced(init: Init, *, tol: float, width: int = 6, depth: int = 3) -> None:
    """Assert that deep linear networks start balanced: ‖WᵀW of a layer − WWᵀ of the next below‖.

    Balancedness is conserved by gradient flow, and the convergence theorems for deep linear
    networks assume it (Arora, Cohen, Golowich & Hu 2019, Definition 1).

    Args:
        init: The initialiser.
        tol: Largest Frobenius norm allowed, in units of W².
        width: Width of every layer.
        depth: Number of layers.
    """
    layers = [nn.Linear(width, width, bias=False, dtype=torch.float64) for _ in range(depth)]
    with own_random_state():
        init(nn.Sequential(*layers))
    for index, (below, above) in enumerate(pairwise(layers)):
        off = above.weight.T @ above.weight - below.weight @ below.weight.T
        size = float(torch.linalg.matrix_norm(off.detach()))
        if not size <= tol:
            got = f"{size:.3g} between layers {index} and {index + 1}"
            raise AssertionError(f"imbalance must be at most {tol:.3g}, got {got}")


def assert_init_scales(
    make: Callable[[float], Init], scales: Sequence[float] = (1.0, 0.1, 0.01)
) -> None:
    """Assert that the weights are proportional to the scale, from the same seed.

    Args:
        make: Builds the initialiser with a scale.
        scales: What to try.
    """
    directions = []
    for scale in scales:
        layer = nn.Linear(5, 4, bias=False, dtype=torch.float64)
        with own_random_state():
            make(scale)(layer)
        directions.append(layer.weight.detach() / scale)
    for scale, direction in zip(scales, directions, strict=True):
        if not torch.allclose(direction, directions[0], rtol=1e-9, atol=1e-12):
            raise AssertionError(f"weights must be proportional to scale, got others at {scale}")


def _small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 16),
        nn.Linear(16, 3, bias=False),
    )


def _assert_kept(model: nn.Module, before: dict[str, nn.Parameter], dtype: torch.dtype) -> None:
    for name, parameter in model.named_parameters():
        if parameter is not before.get(name):
            raise AssertionError(f"{name} must be changed in place, got a new parameter")
        if parameter.dtype != dtype or parameter.grad_fn is not None or not parameter.requires_grad:
            raise AssertionError(f"{name} must stay a {dtype} leaf that requires gradients")
        if not bool(parameter.isfinite().all()):
            raise AssertionError(f"{name} must be finite")


def _assert_seed_decides(
    make: Callable[[], Init], build: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    def weights(seed: int) -> list[Tensor]:
        model = build().to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:  # what it does not fill shows
                    parameter.fill_(math.nan)
        with own_random_state(seed):
            make()(model)
        return [p.detach() for p in model.parameters() if p.ndim > 1]

    first, second = weights(0), weights(0)
    if not all(bool(w.isfinite().all()) for w in first):
        raise AssertionError("every weight must be filled, got one that kept its old values")
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        raise AssertionError("torch's seed must decide the outcome, got two from one seed")


def _assert_refuses_nothing(make: Callable[[], Init]) -> None:
    try:
        make()(nn.ReLU())
    except ValueError as error:
        if "module" not in str(error):
            raise AssertionError(f"the message must name module, got {error}") from error
        return
    raise AssertionError("a module without anything to initialise must be a ValueError")
