"""Costs: what a shadow beside this model would take, in counts and paired time ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from torch_gfshadow.curvature import Curvature
from torch_gfshadow.handle import Shadow
from torch_gfshadow.objective import Objective

PROBE_EVERY = 100
"""Steps between probes the estimate assumes."""
_REPEATS = 5


def estimate(
    objective: Objective, curvature: Curvature, shadow: Shadow, step: Callable[[], Any]
) -> dict[str, Any]:
    """Return counts per step and per probe, and their times in units of one training step.

    Args:
        objective: The objective; evaluated a few times.
        curvature: Its Hessian products; evaluated a few times.
        shadow: Of a short run: what its flow and its last probe took.
        step: Takes one training step of another model of the same make.

    Returns:
        ``parameters``, ``forward_passes_per_gradient``, ``flow_gradients_per_step`` (over the
        steps of the short run, the dearest of any), ``products_per_probe`` (warm),
        ``gradient_over_step``, ``product_over_gradient`` (time ratios, medians of runs taken in
        turn), and ``share_of_loop``: the part of the loop's time the shadow would take, probing
        every ``probe_every`` steps.
    """
    theta = objective.layout.current()
    product = curvature.at(theta)
    vector = torch.ones_like(theta) / theta.numel() ** 0.5
    gradient_over_step, product_over_gradient = [], []
    for _ in range(_REPEATS):
        of_step = _seconds(step)
        of_gradient = _seconds(lambda: objective.loss_and_grad(theta, "setup"))
        of_product = _seconds(lambda: product(vector))
        gradient_over_step.append(of_gradient / of_step)
        product_over_gradient.append(of_product / of_gradient)
    per_step = statistics.median(gradient_over_step)
    per_gradient = statistics.median(product_over_gradient)
    records = shadow.records
    steps = max(records[-1].step, 1)
    cost = shadow.summary()["by_purpose"]
    following = sum(n for purpose, n in cost["grads"].items() if purpose in ("flow", "error"))
    probed = [r.n_hvps for r in records if r.lambda_min is not None]
    products = probed[-1] - probed[-2] if len(probed) > 1 else None
    probing = (1.0 + (products or 0) * per_gradient) / PROBE_EVERY
    extra = per_step * (following / steps + probing)
    return {
        "parameters": objective.layout.dim,
        "forward_passes_per_gradient": objective.n_chunks,
        "flow_gradients_per_step": following / steps,
        "products_per_probe": products,
        "gradient_over_step": per_step,
        "product_over_gradient": per_gradient,
        "probe_every": PROBE_EVERY,
        "share_of_loop": extra / (1.0 + extra),
    }


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
