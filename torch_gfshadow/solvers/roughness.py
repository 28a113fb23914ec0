"""Tell a field with kinks from a smooth one, by how its second differences scale.

Along a straight line a smooth field has second differences ∝ h², so doubling h multiplies their
mean square by 16; a field with many kinks is a random walk, and doubling h multiplies it by 2.
"""

from __future__ import annotations

import math
from collections import deque

import torch

from torch_gfshadow.solvers.base import Field, Node

SAMPLES = 8
_ROUGH_BELOW = 2.5
_NOISE = 3e-6


def roughness(field: Field, node: Node, spacing: float) -> float:
    """Return log₂ of the growth of squared second differences when the spacing doubles.

    Args:
        field: Right-hand side F; costs ``SAMPLES`` evaluations, of which five are kept at a time.
        node: Where to look; the line runs along F(node).
        spacing: Half the distance between samples, in flow time.

    Returns:
        About 4 for a smooth field, about 1 for one with many kinks, infinity if the second
        differences drown in rounding (then kinks, if any, are too small to matter).
    """
    start, values = node.state, deque([node.field], maxlen=5)
    squares: dict[int, list[float]] = {1: [], 2: []}
    for i in range(1, SAMPLES + 1):
        values.append(field(torch.add(start, node.field, alpha=2.0 * i * spacing)))
        for stride, found in squares.items():
            if i % stride == 0 and i >= 2 * stride:
                middle = values[-1 - stride]
                bend = values[-1] - middle
                bend.sub_(middle).add_(values[-1 - 2 * stride])
                found.append(float(torch.linalg.vector_norm(bend)) ** 2)
    floor = _NOISE * float(torch.linalg.vector_norm(node.field))
    fine, coarse = (sum(found) / len(found) for found in squares.values())
    if not math.isfinite(coarse) or coarse <= floor**2:
        return math.inf
    return math.log2(coarse / max(fine, floor**2 / 64.0))


def is_rough(field: Field, node: Node, spacing: float) -> bool:
    """Say whether kinks, not curvature, limit the accuracy of a step near ``spacing``."""
    return roughness(field, node, spacing) < _ROUGH_BELOW
