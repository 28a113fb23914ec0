"""What can be said of step sizes with the flow at hand: measured beside it, or estimated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.bounds import Evaluation, corollary1, theorem3
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.eigen import extreme_eigenpairs
from torch_gfshadow.errors import GFShadowError
from torch_gfshadow.experiments.deep_linear import largest_step
from torch_gfshadow.flows import GradientFlow
from torch_gfshadow.objective import Objective
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.solvers import Auto


@dataclass(frozen=True, slots=True)
class Limit:
    """One answer.

    Attributes:
        name: Which result, or ``"measured"``.
        kind: ``"certified"``, ``"estimated"`` or ``"measured"``.
        step_size: η; None if there is none.
        log_step_size: Its logarithm, where η itself is too small for a float.
        status: ``"ok"``, or why there is none, or what it rests on.
    """

    name: str
    kind: str
    step_size: float | None
    log_step_size: float | None
    status: str = "ok"


def measured(target: Objective, horizon: float, eps: float, max_steps: int) -> Limit:
    """Bisect for the largest step with which gradient descent stays within ε of a shadow."""
    reason = ""

    def holds(step_size: float, n_steps: int) -> bool:
        nonlocal reason
        flow, theta = _shadow(target, step_size), start_of(target)
        for k in range(1, n_steps + 1):
            theta = theta - step_size * target.loss_and_grad(theta, "flow")[1].double()
            now = min(horizon, k * step_size)
            if not bool(theta.isfinite().all()):
                reason = f"gradient descent leaves the range of a float at η = {step_size:.3g}"
                return False
            if not flow.advance(now):
                reason = f"the flow could not be followed beyond t = {now:.3g}"
                return False
            apart = float((theta - flow.state(now).double()).norm())
            flow.observe(apart)
            if not apart + flow.error <= eps:
                reason = f"at η = {step_size:.3g}: {apart:.3g} ± {flow.error:.1g} at t = {now:.3g}"
                return False
        return True

    found = largest_step(holds, horizon, least=horizon / max_steps)
    if not found:
        return Limit("measured", "measured", None, None, f"none with {max_steps} steps; {reason}")
    return Limit("measured", "measured", found, math.log(found), "holds for this step size")


def estimated(target: Objective, horizon: float, eps: float, samples: int) -> list[Limit]:
    """Feed Theorem 3 and Corollary 1 with what is sampled on the flow."""
    names = ("theorem3", "theorem3, half step", "corollary1")
    times = [horizon * i / (samples - 1) for i in range(samples)]
    curvature, flow = Curvature(target), _shadow(target, horizon / 1000)
    m, beta, gamma = [], 0.0, 0.0
    try:
        for time in times:
            if time and not flow.advance(time):
                raise GFShadowError(f"The flow could not be followed beyond t = {time:.3g}.")
            theta = flow.state(time) if time else start_of(target)
            product = curvature.at(theta, "bounds")
            ends = extreme_eigenpairs(product.eigen, target.layout.dim, dtype=theta.dtype,
                                      device=theta.device, tol=0.01)  # fmt: skip
            m.append(ends.residual_min - ends.lambda_min)
            top = max(abs(ends.lambda_min), abs(ends.lambda_max))
            beta = max(beta, top + max(ends.residual_min, ends.residual_max), m[-1])
            gamma = max(gamma, float(product.grad.norm()))
    except GFShadowError as error:
        return [Limit(name, "estimated", None, None, str(error)) for name in names]
    if gamma == 0.0 or beta == 0.0:
        words = "no gradient or no curvature on the flow: nothing limits the step"
        return [Limit(name, "estimated", None, None, words) for name in names]
    rates = [max(pair) for pair in pairwise(m)]
    rest = f"curvature and gradients at {samples} points of the flow, not on the balls around it"
    if target.kinked:
        rest += "; f has kinks, across which the theorem does not hold"
    options: dict[str, Any] = {"constants_are": "sampled"}
    loss = target.initial[0]
    found = [
        _limit(names[0], theorem3(times, rates, beta, gamma, eps, **options), rest),
        _limit(names[1], theorem3(times, rates, beta, gamma, eps, half_step=True, **options), rest),
    ]
    if loss < 0.0:
        words = f"f must be at least 0, got {loss:.3g}; subtract its infimum"
        return [*found, Limit(names[2], "estimated", None, None, words)]
    constant = corollary1(max(m), beta, loss, eps, 0.0, horizon, **options)
    return [*found, _limit(names[2], constant, rest + "; inf f taken as 0")]


def _limit(name: str, found: Evaluation, rest: str) -> Limit:
    eta, log_eta = found.value["eta"], found.value["log_eta"]
    if log_eta is None:
        return Limit(name, "estimated", None, None, found.status)
    return Limit(name, "estimated", eta or None, log_eta, rest)


def _shadow(target: Objective, step_size: float) -> ShadowFlow:
    flow = GradientFlow()
    flow.configure([{"params": target.layout.params}], target.layout)
    return ShadowFlow(
        target, flow, Auto(), start_of(target), target.initial,
        time=0.0, step_size=step_size, resolution=None,
    )  # fmt: skip


def start_of(target: Objective) -> Tensor:
    """Return the present parameters, in float64."""
    return target.layout.current(torch.float64)
