"""Advice: the largest step size that keeps gradient descent within ε of the flow.

Each answer says whether it is certified, estimated or measured. A certificate is proven; an
estimate is a theorem fed with samples; a measurement is gradient descent beside a shadow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_gfshadow._advised import Limit, estimated, measured, start_of
from torch_gfshadow._tree import Layout
from torch_gfshadow.bounds._told import told_loss
from torch_gfshadow.errors import must
from torch_gfshadow.experiments.deep_linear import Problem, largest_tube_step
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.network import NotCovered, recognise
from torch_gfshadow.objective import Objective

_DENSE = 300
"""Parameters up to which the tube's sharpest mode, with a dense Hessian per step, is used."""


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
            _certified(target, horizon, eps),
            *estimated(target, horizon, eps, samples),
            measured(target, horizon, eps, max_steps),
        ]
    return StepSizeAdvice(horizon, eps, tuple(limits), ledger.n_grads)


def _certified(target: Objective, horizon: float, eps: float) -> Limit:
    problem, why = _deep_linear(target)
    if problem is None:
        return Limit("tube", "certified", None, None, f"not covered: {why}")
    mode = "C" if target.layout.dim <= _DENSE else "B"
    found = largest_tube_step(problem, horizon, eps, mode)
    if not found:
        return Limit("tube", "certified", None, None, f"no tube of mode {mode} stays within eps")
    words = f"mode {mode}; the objective is a convex loss of the product ({why})"
    return Limit("tube", "certified", found, math.log(found), words)


def _deep_linear(target: Objective) -> tuple[Problem | None, str]:
    """Return the problem the objective is, and of what loss, or why it is none."""
    seen = recognise(target, start_of(target))
    if isinstance(seen, NotCovered):
        return None, seen.reason.removeprefix("Not covered: ").rstrip(".")
    matrices = seen.matrices()
    if matrices is None or len(matrices) < 2:
        return None, "a certificate needs a deep linear network"
    if any(name.startswith("fixed matrix") for name in seen.names):
        return None, "a certificate needs all layers trained"
    loss = told_loss(seen)
    if isinstance(loss, str):
        return None, loss
    weights = tuple(w.detach().double().cpu().numpy() for w in matrices)
    return Problem(weights, loss), f"{', '.join(sorted(seen.loss))}, told from the samples"
