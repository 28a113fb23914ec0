"""Corollary 2 of Elkabetz & Cohen: convergence from a random balanced start.

Draw the end-to-end row A from a continuous distribution with ‖A‖_F ≤ 0.2, balance it (Procedure
1), and Theorem 4 holds with probability one: A ≠ 0, and ν = −1 has probability zero, which needs
d_0 ≥ 2 (with one input ν is ±1, each with probability ½). The default draws a uniform direction
and a uniform radius in (0, 0.2].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch_gfshadow.balance import balanced_factors, uniform_radius
from torch_gfshadow.bounds._balanced import LARGEST_START, labels, tensor
from torch_gfshadow.bounds._scalars import held, listed, number, size
from torch_gfshadow.bounds.base import Evaluation
from torch_gfshadow.bounds.theorem4 import theorem4
from torch_gfshadow.errors import AssumptionError, must


def corollary2(
    dims: Sequence[int],
    X: Any,  # noqa: N803 - the keys of the shared format
    Y: Any,  # noqa: N803
    eps_tilde: float,
    *,
    A: Any = None,  # noqa: N803
    seed: int = 0,
    loss: str = "square",
) -> Evaluation:
    """Draw a balanced start and evaluate Theorem 4 there.

    Args:
        dims: d_0, d_1, …, d_n with d_0 ≥ 2 and d_n = 1.
        X: Whitened inputs, one row each.
        Y: Labels, scaled so that ‖Λ_yx‖_F = 1.
        eps_tilde: ε̃ > 0, loss above the minimum to be reached.
        A: The end-to-end row, if it is already drawn.
        seed: Of the draw.
        loss: What the labels are fitted by; must be the square loss.

    Returns:
        ``A`` and ``Ws``, the start; ``r0`` and ``nu``; ``eta``, ``log_eta`` and ``k``.

    Raises:
        AssumptionError: If d_0 < 2, d_n ≠ 1, ‖A‖_F > 0.2, or a hypothesis of Theorem 4 fails.

    References:
        Elkabetz & Cohen 2021, Corollary 2 and Procedure 1.
    """
    widths = [size(f"dims[{i}]", d) for i, d in enumerate(listed("dims", dims, "widths"))]
    if len(widths) < 3:
        fix = "dims are d_0, d_1, …, d_n, and the result is about products of layers."
        raise AssumptionError(must("depth n", "at least 2", len(widths) - 1, fix))
    if widths[0] < 2:
        fix = "With one input the start is opposite to the target with probability 1/2."
        raise AssumptionError(must("d_0", "at least 2", widths[0], fix))
    if widths[-1] != 1:
        raise AssumptionError(must("d_n", "1", widths[-1], "Theorem 4 is about one output."))
    if A is None:
        whole = number("seed", seed, "an integer from 0 to 2⁶³ − 1",
                       lambda s: 0 <= s < 2**63 and s == int(s), "It starts the draw.")  # fmt: skip
        generator = torch.Generator().manual_seed(int(whole))
        row = uniform_radius((1, widths[0]), LARGEST_START, generator=generator)
    else:
        row = tensor("A", A)
    norm = float(torch.linalg.vector_norm(row))
    if norm > LARGEST_START * (1.0 + 1e-12):
        fix = "Scale it down; Corollary 2 is about small starts."
        raise AssumptionError(must("‖A‖_F", f"at most {LARGEST_START}", norm, fix))
    layers = balanced_factors(row, widths)
    found = theorem4(eps_tilde=eps_tilde, Ws=layers, X=X, Y=Y, loss=loss)
    inputs = tensor("X", X)
    target = labels(Y, len(inputs)) @ inputs
    lengths = norm * float(torch.linalg.vector_norm(target))
    value = {
        "A": row.tolist(),
        "Ws": [w.tolist() for w in layers],
        "r0": norm,
        "nu": float(row.reshape(-1) @ target) / lengths,
        **found.value,
    }
    drawn = held("d_0 ≥ 2, d_n = 1, ‖A‖_F ≤ 0.2", f"d_0 = {widths[0]}, ‖A‖_F = {norm:g}")
    return Evaluation(value, (drawn, *found.assumptions))
