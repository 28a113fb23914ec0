"""Derivatives: the library's gradient and Hessian product against the referee's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torch_gfshadow._linearise import LINEARISE
from torch_gfshadow._symmetry import without
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
_RESET = (
    "If each batch is to start anew, reset it at the beginning of the objective and of the loop's "
    "own forward pass; otherwise the audit says how much of the gradient it is."
)
_NOT_A_GRADIENT = (
    " The gradient is not that of a function: its Jacobian is not symmetric, so it is no Hessian. "
    "Eigenvalues are those of its symmetric part where little is missing, and refused elsewhere."
)
_NO_EIGENVALUES = (
    "Look for detach(), straight-through estimators, reversed gradients, spectral normalisation, "
    "nn.Embedding(max_norm=…), tied padding rows. The shadow follows such a gradient as it is; "
    "probes=() does without the eigenvalues."
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
        One finding for the gradient, one for the Hessian product, one for what the model carries
        from one forward pass into the next, if it does.
    """
    generator = torch.Generator().manual_seed(seed)
    theta = objective.layout.current()
    noise = torch.randn(theta.shape, generator=generator, dtype=torch.float64).to(theta)
    theta = theta + _AWAY * theta.norm() / noise.norm() * noise
    direction = torch.randn(theta.shape, generator=generator, dtype=torch.float64).to(theta)
    direction = direction / direction.norm()
    referee = Really(make(), objective)
    findings = [
        _gradient(objective, referee, theta),
        _product(objective, curvature, make, theta, direction),
    ]
    carried = referee.carried()
    if carried:
        found = (
            f"A forward pass leaves {', '.join(carried[:3])} for the next, which changes its loss. "
            "The run goes on with it; the flow's loss holds it as it is at each evaluation."
        )
        findings.append(Finding("state", "note", found, _RESET))
    return findings


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
        product = curvature.at(theta)
        direction = without(direction, product.still)  # as the flow leaves them
        ours = product(direction)
    except CurvatureError as refusal:
        return Finding(check, "wrong", str(refusal))
    reference, doubt, precision = _referees_product(objective, make, theta, direction)
    error = _relative(ours.to(reference), reference)
    found = f"Backend {curvature.backend!r}, {error:.1e} away from differences in {precision}"
    found += f" (good to {doubt:.0e})." if doubt > 0.1 * error else "."
    for name, why in curvature.rejected.items():
        found += f" Not {name!r}: {why}."
    if error <= _PRODUCT.get(theta.dtype, _HALF):
        if not product.symmetric:
            return Finding(check, "note", found + _NOT_A_GRADIENT, _NO_EIGENVALUES)
        return Finding(check, "ok", found)
    if precision == "float64" and theta.dtype != torch.float64 and curvature.backend in LINEARISE:
        wide = _in_float64(objective, curvature.backend, theta, direction)
        exact = _relative(without(wide, product.still), reference)
        if exact <= max(_PRODUCT[torch.float64], _REFEREES_OWN * doubt) and error <= _HALF:
            return Finding(check, "ok", f"{found} All of it rounding: {exact:.1e} in float64.")
    if error <= _REFEREES_OWN * doubt:
        fix = "Kinks or rounding limit the differences here; the library's own check passed."
        return Finding(check, "unknown", found, fix)
    fix = 'Attach with hvp="difference", and please report this model.'
    fix = _KEEPS if curvature.backend == "difference" else fix
    return Finding(check, "wrong", found, fix)


def _in_float64(objective: Objective, backend: str, theta: Tensor, direction: Tensor) -> Tensor:
    """Return the product by ``backend`` of the model cast to float64."""
    sandbox, wide = objective.sandbox, torch.float64
    total = torch.zeros(theta.shape, dtype=wide, device=theta.device)
    with objective.guard():
        params = sandbox.params_at(theta.double(), wide)
        along = sandbox.params_at(direction.double(), wide)
        for batch, weight in objective.chunks():
            parts = LINEARISE[backend](sandbox, params, batch, wide).product(along)
            total.add_(objective.layout.flatten(parts, wide), alpha=weight)
    return total


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
