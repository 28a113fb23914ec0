"""Derivatives: the library's gradient and Hessian product against the referee's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torch_gfshadow.curvature import Curvature
from torch_gfshadow.doctor.findings import Finding
from torch_gfshadow.doctor.really import Really
from torch_gfshadow.errors import CurvatureError
from torch_gfshadow.objective import Objective

# Half precision rounds whatever is computed in another order.
_GRADIENT = {torch.float64: 1e-9, torch.float32: 1e-4}
_PRODUCT = {torch.float64: 1e-5, torch.float32: 1e-3}
_HALF = 5e-2
# The referee is a difference itself: within so many of its own errors, a disagreement is its.
_REFEREES_OWN = 3.0
_AWAY = 1e-2
_KEEPS = (
    "The model does not depend on its parameters alone: look for tensors it keeps outside "
    "parameters and buffers, caches, and state that a forward pass leaves on its data."
)


def check_derivatives(
    objective: Objective, curvature: Curvature, make: Callable[[], nn.Module], seed: int
) -> list[Finding]:
    """Compare at parameters the model is not at, where a wrong host swap would show.

    Args:
        objective: Whose gradient is judged.
        curvature: Whose products are judged.
        make: Makes another model of the same kind, for the referee to change.
        seed: Of the point and the direction.

    Returns:
        One finding for the gradient, one for the Hessian product.
    """
    generator = torch.Generator().manual_seed(seed)
    theta = objective.layout.current()
    noise = torch.randn(theta.shape, generator=generator, dtype=torch.float64).to(theta)
    theta = theta + _AWAY * theta.norm() / noise.norm() * noise
    direction = torch.randn(theta.shape, generator=generator, dtype=torch.float64).to(theta)
    direction = direction / direction.norm()
    referee = Really(make(), objective)
    return [
        _gradient(objective, referee, theta),
        _product(objective, curvature, make, theta, direction),
    ]


def _gradient(objective: Objective, referee: Really, theta: Tensor) -> Finding:
    loss, grad = objective.loss_and_grad(theta, "setup")
    loss_there, grad_there = referee(theta)
    error = max(_relative(grad, grad_there), abs(loss - loss_there) / max(abs(loss_there), 1e-300))
    found = f"{error:.1e} away from setting the parameters and calling backward()."
    if error <= _GRADIENT.get(theta.dtype, _HALF):
        return Finding("gradient", "ok", found)
    return Finding("gradient", "wrong", found, _KEEPS)


def _product(
    objective: Objective,
    curvature: Curvature,
    make: Callable[[], nn.Module],
    theta: Tensor,
    direction: Tensor,
) -> Finding:
    check = "Hessian product"
    try:
        ours = curvature.at(theta)(direction)
    except CurvatureError as refusal:
        return Finding(check, "wrong", str(refusal))
    reference, doubt, precision = _referees_product(objective, make, theta, direction)
    error = _relative(ours.to(reference), reference)
    found = f"Backend {curvature.backend!r}, {error:.1e} away from differences in {precision}"
    found += f" (good to {doubt:.0e})." if doubt > 0.1 * error else "."
    for name, why in curvature.rejected.items():
        found += f" Not {name!r}: {why}."
    if error <= _PRODUCT.get(theta.dtype, _HALF):
        return Finding(check, "ok", found)
    if error <= _REFEREES_OWN * doubt:
        fix = "Kinks or rounding limit the differences here; the library's own check passed."
        return Finding(check, "unknown", found, fix)
    fix = 'Attach with hvp="difference", and please report this model.'
    fix = _KEEPS if curvature.backend == "difference" else fix
    return Finding(check, "wrong", found, fix)


def _referees_product(
    objective: Objective, make: Callable[[], nn.Module], theta: Tensor, direction: Tensor
) -> tuple[Tensor, float, str]:
    """Return product, its relative doubt and the precision; float64 where the model runs in it."""
    if theta.device.type != "mps":
        try:
            wide = Really(make(), objective, torch.float64)
            product, doubt = wide.hessian_product(theta.double(), direction.double())
        except Exception:  # a constant of the wrong precision raises what it likes
            pass
        else:
            if bool(product.isfinite().all()):
                return product, doubt, "float64"
    own = Really(make(), objective)
    return *own.hessian_product(theta, direction), str(theta.dtype).removeprefix("torch.")


def _relative(value: Tensor, reference: Tensor) -> float:
    size = float(reference.norm())
    distance = float((value - reference).norm())
    return distance / size if size else distance
