"""The contract of probes, on a quadratic whose Hessian is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_gfshadow.curvature import Curvature
from torch_gfshadow.layouts import layout_of
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.loggers.base import to_json_ready
from torch_gfshadow.objective import Objective
from torch_gfshadow.probes import Point, Probe
from torch_gfshadow.record import FIELDS
from torch_gfshadow.testing.isolation import random_states, same


def quadratic_point(hessian: Tensor, theta: Tensor, *, step_size: float | None = 0.1) -> Point:
    """Return a point on f(θ) = ½θᵀAθ, at which ∇f = Aθ and ∇²f = A.

    Args:
        hessian: A, symmetric, shape ``[d, d]``.
        theta: The point, shape ``[d]``, in the dtype of A.
        step_size: η of the run, as probes see it.
    """
    model = _Vector(theta)
    layout = layout_of(torch.optim.SGD(model.parameters(), lr=step_size or 0.1), model)
    objective = Objective(model, _half_form, hessian[None], layout, Ledger())
    return Point(
        step=3,
        time=0.3,
        step_size=step_size,
        theta=theta.clone(),
        objective=objective,
        curvature=Curvature(objective),
    )


def assert_probe_contract(
    make: Callable[[], Probe],
    expected: Callable[[Tensor, Tensor], Mapping[str, float]] | None = None,
    *,
    rtol: float = 1e-6,
) -> None:
    """Assert what the tracker relies on in a probe.

    It has a name and a period; it returns JSON-ready numbers under text keys, the same at the
    same point, in float32 and float64, in one dimension and in several; it changes nothing and
    draws from no global random state.

    Args:
        make: Builds the probe.
        expected: Values by key, from the Hessian and θ, in closed form; checked in float64.
        rtol: Relative tolerance of that check.
    """
    probe = make()
    if not isinstance(probe, Probe):
        raise AssertionError(f"{probe!r} has no name, every and measure")
    if not (isinstance(probe.name, str) and probe.name):
        raise AssertionError(f"name must be text, got {probe.name!r}")
    for dtype in (torch.float64, torch.float32):
        for eigenvalues in ([2.0, -0.5, 1.0, 0.25], [3.0]):
            hessian, theta = _matrix(eigenvalues, dtype), torch.ones(len(eigenvalues), dtype=dtype)
            measured = _assert_measures(make, hessian, theta)
            if expected is not None and dtype is torch.float64:
                _assert_close(measured, expected(hessian, theta), rtol)


def _assert_measures(
    make: Callable[[], Probe], hessian: Tensor, theta: Tensor
) -> Mapping[str, Any]:
    point = quadratic_point(hessian, theta)
    before = random_states()
    measured = make().measure(point)
    after = random_states()
    for name, value in before.items():
        if not same(value, after[name]):
            raise AssertionError(f"a probe must draw random numbers of its own, not {name}")
    if not torch.equal(point.theta, theta):
        raise AssertionError("a probe must change nothing, got another theta")
    if not isinstance(measured, Mapping) or not all(isinstance(key, str) for key in measured):
        raise AssertionError(f"measure() must return text → value, got {measured!r}")
    for key, value in measured.items():
        if key in FIELDS and not (value is None or isinstance(value, float)):
            raise AssertionError(f"{key} is a field of Record and must be a float, got {value!r}")
        json.dumps(to_json_ready(value))
        if isinstance(value, Tensor):
            raise AssertionError(f"{key} must be a number or a list, got a tensor")
    again = make().measure(quadratic_point(hessian, theta))
    if to_json_ready(measured) != to_json_ready(again):
        raise AssertionError(f"a probe must repeat itself, got {measured!r} and {again!r}")
    return measured


def _assert_close(measured: Mapping[str, Any], expected: Mapping[str, float], rtol: float) -> None:
    for key, value in expected.items():
        if key not in measured:
            raise AssertionError(f"measure() must return {key!r}, got {', '.join(measured)}")
        if not abs(measured[key] - value) <= rtol * max(abs(value), 1e-12):
            raise AssertionError(f"{key} must be {value!r}, got {measured[key]!r}")


def _matrix(eigenvalues: list[float], dtype: torch.dtype) -> Tensor:
    """Return a dense symmetric matrix: the eigenvalues, reflected at a fixed plane."""
    n = len(eigenvalues)
    normal = torch.arange(1.0, n + 1.0, dtype=torch.float64)
    mirror = torch.eye(n, dtype=torch.float64) - 2.0 * torch.outer(normal, normal) / normal.dot(
        normal
    )
    matrix = mirror @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ mirror
    return (0.5 * (matrix + matrix.T)).to(dtype)


class _Vector(nn.Module):
    """A model that is nothing but its parameter."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())

    def forward(self) -> Tensor:
        return self.theta


def _half_form(model: nn.Module, batch: Tensor) -> Tensor:
    theta: Tensor = model()
    form: Tensor = 0.5 * theta @ (batch[0] @ theta)
    return form
