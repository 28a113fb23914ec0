"""Proposition 2 of Elkabetz & Cohen (Equation 14): curvature along a flow from near zero.

A deep linear network (n layers, convex loss φ of the end-to-end matrix W) that started at
‖θ_s‖ ≤ ε ≤ 1/(2n) and follows the flow has, at every later time::

    λ_min ≥ −A ‖W‖^{1−2/n} − c ε^{1−2/n}                                               (14)
    A = (n−1) √min(d_0, d_n) ‖∇φ(W)‖_F,   c = (4n / (4n)^{2/n}) A max{1, max_j ‖W_j‖}^{2(n−2)}

Sharper, for any ε ≥ ‖θ_s‖ (derived here): W_{j+1}ᵀW_{j+1} − W_jW_jᵀ is conserved, hence
max_j ‖W_j‖² ≤ ‖W‖^{2/n} + 2ε², and with it λ_min ≥ −(n−1) ‖∇φ(W)‖ (‖W‖^{2/n} + 2ε²)^{(n−2)/2}.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch_gfshadow.bounds._phi import exp, log, log_add
from torch_gfshadow.bounds._scalars import (
    ROUNDING,
    depth,
    distance,
    held,
    not_negative,
    number,
    size,
    vouched,
)
from torch_gfshadow.bounds.base import Evaluation
from torch_gfshadow.errors import AssumptionError, must


def proposition2(
    n: int,
    d0: int,
    dn: int,
    grad_fro: float,
    grad_spec: float,
    end_to_end_spec: float,
    W_specs: Sequence[float],  # noqa: N803 - the key of the shared format
    eps: float,
    *,
    weight_decay: float = 0.0,
) -> Evaluation:
    """Bound λ_min from below on a flow that started near zero.

    It holds on the flow, not at GD's iterates: a step changes the conserved matrices by
    η²(g_{j+1}ᵀg_{j+1} − g_jg_jᵀ); see :func:`sharpened` for a slack that counts it.

    Args:
        n: Number of weight matrices, at least 2.
        d0: Input dimension.
        dn: Output dimension.
        grad_fro: ‖∇φ(W)‖_F.
        grad_spec: ‖∇φ(W)‖, the spectral norm.
        end_to_end_spec: ‖W‖, the spectral norm of the end-to-end matrix.
        W_specs: ‖W_1‖, …, ‖W_n‖.
        eps: ε in (0, 1/(2n)], at least the norm of the starting point θ_s.
        weight_decay: Coefficient w of (w/2)‖θ‖²; it adds w to λ_min, and the conserved matrices
            only shrink.

    Returns:
        ``rhs_eq14`` and ``rhs_tight``: lower limits of λ_min, the second never below the first.
        Where one overflows it is −inf, and ``log_minus_<name>`` has the logarithm of its size.

    Raises:
        AssumptionError: If a number is out of range.

    References:
        Elkabetz & Cohen 2021, Proposition 2 and Equation 14; the sharper form is derived.
    """
    layers = depth(n)
    smallest = min(size("d0", d0), size("dn", dn))
    fro, spec = distance("grad_fro", grad_fro), distance("grad_spec", grad_spec)
    if spec > fro * (1.0 + 1e-9):
        fix = "The spectral norm is the smaller one: were the two exchanged?"
        raise AssumptionError(must("grad_spec", f"at most grad_fro = {fro!r}", repr(spec), fix))
    end = distance("end_to_end_spec", end_to_end_spec)
    if not hasattr(W_specs, "__len__") or len(W_specs) != layers:
        got = f"{len(W_specs)} values" if hasattr(W_specs, "__len__") else repr(W_specs)
        raise AssumptionError(must("W_specs", f"one norm per layer ({layers})", got, "Check n."))
    norms = [distance(f"W_specs[{i}]", w) for i, w in enumerate(W_specs)]
    largest = 1.0 / (2 * layers)
    radius = number(
        "eps",
        eps,
        f"in (0, 1/(2n)] = (0, {largest:g}]",
        lambda x: 0.0 < x <= largest * (1.0 + ROUNDING),
        "Proposition 2 is about starts near zero; the sharper form takes any: sharpened().",
    )
    decay = not_negative("weight_decay", weight_decay, "It is the factor of ‖θ‖²/2.")
    power = 1.0 - 2.0 / layers
    log_a = math.log(layers - 1) + 0.5 * math.log(smallest) + log(fro)
    log_c = power * math.log(4 * layers) + log_a + 2 * (layers - 2) * max(0.0, log(max(norms)))
    logs = {
        "rhs_eq14": log_add(log_a + _times(power, log(end)), log_c + power * math.log(radius)),
        "rhs_tight": sharpened(layers, spec, end, 2.0 * radius**2),
    }
    value = {name: decay - exp(size_) for name, size_ in logs.items()}
    overflow = {f"log_minus_{k}": v for k, v in logs.items() if math.isinf(value[k])}
    assumptions = (
        held("ε ≤ 1/(2n)", f"ε = {radius:g}, 1/(2n) = {largest:g}"),
        vouched("deep linear network, φ convex"),
        vouched("the point lies on a gradient flow that started at ‖θ_s‖ ≤ ε"),
    )
    return Evaluation({**value, **overflow}, assumptions)


def sharpened(n: int, grad_spec: float, end_to_end_spec: float, slack: float) -> float:
    """Return log of (n−1) ‖∇φ(W)‖ (‖W‖^{2/n} + slack)^{(n−2)/2}, an upper limit of log(−λ_min).

    Args:
        n: Number of weight matrices, at least 2.
        grad_spec: ‖∇φ(W)‖.
        end_to_end_spec: ‖W‖.
        slack: By how much max_j ‖W_j‖² may exceed ‖W‖^{2/n}: 2ε² on a flow from ‖θ_s‖ ≤ ε. With
            the matrices D_j = W_{j+1}ᵀW_{j+1} − W_jW_jᵀ at hand, anywhere: the sum over j < n of
            the negative part of λ_min(D_j) plus max_k of the sum over j < k of the positive part
            of λ_max(D_j).
    """
    widest = log_add(_times(2.0 / n, log(end_to_end_spec)), log(slack))
    return math.log(n - 1) + log(grad_spec) + _times((n - 2) / 2, widest)


def _times(factor: float, log_value: float) -> float:
    """Return log(x^factor) with 0⁰ = 1."""
    return factor * log_value if factor else 0.0
