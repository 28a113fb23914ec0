"""Advice: the largest step size that keeps gradient descent within ε of the flow.

Each answer says whether it is certified, estimated or measured. A certificate is proven; an
estimate is a theorem fed with samples; a measurement is gradient descent beside a shadow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from torch_gfshadow._tree import Layout
from torch_gfshadow.bounds import Evaluation, corollary1, theorem3
from torch_gfshadow.bounds._losses import loss_of
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.eigen import extreme_eigenpairs
from torch_gfshadow.errors import GFShadowError, must
from torch_gfshadow.experiments.deep_linear import Problem, largest_step, largest_tube_step
from torch_gfshadow.flows import GradientFlow
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.network import NotCovered, recognise
from torch_gfshadow.objective import Objective
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.solvers import Auto

_DENSE = 300
"""Parameters up to which the tube's sharpest mode, with a dense Hessian per step, is used."""


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


@dataclass(frozen=True, slots=True)
class StepSizeAdvice:
    """All answers for one model, objective, horizon and ε.

    Attributes:
        horizon: T, in flow time.
        eps: ε, in θ.
        limits: One per result, the certified ones first.
        n_grad_evals: Gradients it took.
    """

    horizon: float
    eps: float
    limits: tuple[Limit, ...]
    n_grad_evals: int

    def __getitem__(self, name: str) -> Limit:
        """Return the answer of one result."""
        return next(limit for limit in self.limits if limit.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return everything JSON-ready."""
        return asdict(self)


def step_size_advice(
    model: nn.Module,
    objective: Callable[[nn.Module, Any], Tensor],
    data: Any,
    *,
    horizon: float,
    eps: float,
    samples: int = 9,
    max_steps: int = 20_000,
) -> StepSizeAdvice:
    """Ask every applicable bound, and measure, how large the step size may be.

    Gradient descent is to stay within ε of the gradient flow of the full objective from the
    model's present parameters up to time T. The model is not changed.

    * *measured*: step sizes T/K are tried by doubling and bisecting K; gradient descent runs beside
      a shadow, and the discrepancy plus its error bar must stay below ε. It holds for the step
      size found (to 4 %), not necessarily for every smaller one.
    * *estimated*: Theorem 3 and Corollary 1 with curvature and gradients sampled on the flow.
    * *certified*: for deep linear networks with a convex loss, the tube certificate.

    Args:
        model: The module to be trained.
        objective: ``objective(model, batch)`` → scalar mean loss.
        data: As in ``attach``.
        horizon: T, in flow time, positive.
        eps: ε, positive, in θ.
        samples: Points on the flow at which curvature is sampled, at least 2.
        max_steps: Largest number K of steps to try.

    Raises:
        ValueError: If a number is out of range.
        ObjectiveError: If the objective cannot be evaluated.
    """
    for name, value in (("horizon", horizon), ("eps", eps)):
        if not 0.0 < value < math.inf:
            raise ValueError(must(name, "positive and finite", repr(value), f"Pass {name}=1.0."))
    for name, number, least in (("samples", samples, 2), ("max_steps", max_steps, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            fix = "It is a number of points." if name == "samples" else "Try 20000."
            raise ValueError(must(name, f"an integer of at least {least}", repr(number), fix))
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    layout = Layout([n for n, _ in named], [p for _, p in named])
    ledger = Ledger()
    with torch.inference_mode(False), torch.no_grad():
        target = Objective(model, objective, data, layout, ledger)
        limits = [
            _certified(target, data, horizon, eps),
            *_estimated(target, horizon, eps, samples),
            _measured(target, horizon, eps, max_steps),
        ]
    return StepSizeAdvice(horizon, eps, tuple(limits), ledger.n_grads)


def _measured(target: Objective, horizon: float, eps: float, max_steps: int) -> Limit:
    reason = ""

    def holds(step_size: float, n_steps: int) -> bool:
        nonlocal reason
        flow, theta = _shadow(target, step_size), _start(target)
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


def _estimated(target: Objective, horizon: float, eps: float, samples: int) -> list[Limit]:
    names = ("theorem3", "theorem3, half step", "corollary1")
    times = [horizon * i / (samples - 1) for i in range(samples)]
    curvature, flow = Curvature(target), _shadow(target, horizon / 1000)
    m, beta, gamma = [], 0.0, 0.0
    try:
        for time in times:
            if time and not flow.advance(time):
                raise GFShadowError(f"The flow could not be followed beyond t = {time:.3g}.")
            theta = flow.state(time) if time else _start(target)
            product = curvature.at(theta, "bounds")
            ends = extreme_eigenpairs(product, target.layout.dim, dtype=theta.dtype,
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


def _certified(target: Objective, data: Any, horizon: float, eps: float) -> Limit:
    problem, scale, why = _deep_linear(target, data)
    if problem is None:
        return Limit("tube", "certified", None, None, f"not covered: {why}")
    mode = "C" if target.layout.dim <= _DENSE else "B"
    # the flow of s·φ up to T is that of φ up to sT
    found = largest_tube_step(problem, scale * horizon, eps, mode) / scale
    if not found:
        return Limit("tube", "certified", None, None, f"no tube of mode {mode} stays within eps")
    words = f"mode {mode}; the objective is {scale:g} × a convex loss of the product ({why})"
    return Limit("tube", "certified", found, math.log(found), words)


def _deep_linear(target: Objective, data: Any) -> tuple[Problem | None, float, str]:
    """Return the problem the objective is, a factor, and how that was checked or why not."""
    start = _start(target)
    seen = recognise(target, start)
    if isinstance(seen, NotCovered):
        return None, 1.0, str(seen.reason)
    matrices = seen.matrices()
    if matrices is None or len(matrices) < 2:
        return None, 1.0, "a certificate needs a deep linear network"
    if not (isinstance(data, (list, tuple)) and len(data) == 2):
        return None, 1.0, "data must be a pair of tensors (X, y)"
    weights = tuple(w.detach().double().cpu().numpy() for w in matrices)
    noise = torch.Generator().manual_seed(0)
    points = [start] + [
        start + 0.1 * torch.randn(start.shape, generator=noise, dtype=start.dtype) for _ in range(2)
    ]
    for name in seen.loss & {"square", "cross_entropy", "logistic"}:
        try:
            problem = Problem(weights, loss_of(data[0], data[1], name))  # type: ignore[arg-type]
            slopes = [torch.from_numpy(problem.gradient(p.numpy())) for p in points]
        except (ValueError, TypeError):
            continue
        grads = [target.loss_and_grad(p, "bounds")[1].double().cpu() for p in points]
        scale = float(grads[0] @ slopes[0] / slopes[0].square().sum())
        tol = 1e-9 if target.layout.dtype == torch.float64 else 1e-4
        pairs = list(zip(grads, slopes, strict=True))
        if scale > 0.0 and all(
            float((a - scale * b).norm()) <= tol * float(a.norm()) for a, b in pairs
        ):
            return problem, scale, f"{name}, by its gradients at 3 points to {tol:g}"
    return None, 1.0, "the objective is no square, cross-entropy or logistic loss of the product"


def _limit(name: str, found: Evaluation, rest: str) -> Limit:
    eta, log_eta = found.value["eta"], found.value["log_eta"]
    if log_eta is None:
        return Limit(name, "estimated", None, None, found.status)
    return Limit(name, "estimated", eta or None, log_eta, rest)


def _shadow(target: Objective, step_size: float) -> ShadowFlow:
    flow = GradientFlow()
    flow.configure([{"params": target.layout.params}], target.layout)
    return ShadowFlow(
        target, flow, Auto(), _start(target), target.initial,
        time=0.0, step_size=step_size, resolution=None,
    )  # fmt: skip


def _start(target: Objective) -> Tensor:
    return target.layout.current(torch.float64)
