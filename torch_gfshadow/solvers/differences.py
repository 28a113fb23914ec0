"""Divided differences through a solver's nodes, each taken twice: dense output and local errors.

A node holds a state and its slope, so k of them carry a Hermite polynomial of degree 2k − 1, and
the divided difference of order 2k − 1 over all of them vanishes on every polynomial of lower
degree. Two uses, neither of which costs an evaluation or trusts a method's own coefficients:

- between the last two nodes the polynomial is the dense output, and what the next order would add
  to it is its error;
- local errors break the states' agreement with the slopes. The highest difference sees them before
  it sees the solution: through four nodes, errors of order six and y⁽⁷⁾.

Source: de Boor, A Practical Guide to Splines (1978), chapter I (osculatory interpolation).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_gfshadow.solvers.base import Node


def weights(times: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return (a, b) with Σ aᵢ p(tᵢ) + bᵢ p′(tᵢ) = p[t₁, t₁, …, t_k, t_k], for distinct times."""
    a, b = [], []
    for i, here in enumerate(times):
        gaps = [here - other for j, other in enumerate(times) if j != i]
        b.append(1.0 / math.prod(gaps) ** 2)
        a.append(-2.0 * b[-1] * sum(1.0 / gap for gap in gaps))
    return a, b


def divided(nodes: Sequence[Node]) -> Tensor:
    """Return the divided difference of order 2k − 1 through k nodes, shape ``[d]``."""
    start = nodes[0].time
    a, b = weights([n.time - start for n in nodes])
    out = torch.zeros_like(nodes[0].state)
    for i, node in enumerate(nodes):
        if i:  # Σ a = 0: only the distances from the first state count, as does their rounding
            out.add_(node.state - nodes[0].state, alpha=a[i])
        out.add_(node.field, alpha=b[i])
    return out


def blend(nodes: Sequence[Node], time: float) -> Tensor:
    """Return the Hermite polynomial through k nodes at ``time``, shape ``[d]``."""
    last = nodes[-1]
    out = last.state.clone()
    for i, node in enumerate(nodes):
        others = [n.time for j, n in enumerate(nodes) if j != i]
        basis = math.prod((time - t) / (node.time - t) for t in others) ** 2
        slope = 2.0 * sum(1.0 / (node.time - t) for t in others)
        ahead = time - node.time
        if i < len(nodes) - 1:  # the state's weights add up to one
            out.add_(node.state - last.state, alpha=basis * (1.0 - slope * ahead))
        out.add_(node.field, alpha=basis * ahead)
    return out


def bubble(times: Sequence[float], time: float) -> float:
    """Return Π (time − tᵢ)²: the interpolant's error over its divided difference of order 2k."""
    return math.prod(time - t for t in times) ** 2


def shares(times: Sequence[float], order: int) -> tuple[float, float]:
    """Return what the divided difference through four nodes says of the middle step's error.

    With an error e of that step, and of the others in proportion to their length to the power of
    ``order``, the difference is e/w. Errors that decay from step to step, as those of stiff modes
    do, weigh on both sides; of the last step they would be overrated by those before.

    Returns:
        w, and Σ|bᵢ|·|w| over the step: what noise in the slopes is multiplied by.
    """
    steps = [after - before for before, after in itertools.pairwise(times)]
    a, b = weights(times)
    middle = steps[len(steps) // 2]
    total = sum(sum(a[k + 1 :]) * (step / middle) ** order for k, step in enumerate(steps))
    return 1.0 / total, sum(b) / abs(total) / middle
