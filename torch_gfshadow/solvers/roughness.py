"""Tell a field with kinks from a smooth one, by how its second differences scale.

Along a straight line a smooth field has second differences ∝ h², so doubling h multiplies their
mean square by 16; a field with many kinks is a random walk, and doubling h multiplies it by 2.
"""

from __future__ import annotations

import math

import torch

from torch_gfshadow.solvers.base import Field, Node

SAMPLES = 16
_ROUGH_BELOW = 2.5
_NOISE = 3e-6


def roughness(field: Field, node: Node, spacing: float) -> float:
    """Return log₂ of the growth of squared second differences when the spacing doubles.

    Args:
        field: Right-hand side F; costs ``SAMPLES`` evaluations.
        node: Where to look; the line runs along F(node).
        spacing: Distance between samples, in flow time.

    Returns:
        About 4 for a smooth field, about 1 for one with many kinks, infinity if the second
        differences drown in rounding (then kinks, if any, are too small to matter).
    """
    values = [node.field]
    values += [field(node.state + (i * spacing) * node.field) for i in range(1, SAMPLES + 1)]
    floor = _NOISE * float(torch.linalg.vector_norm(node.field))

    def mean_square(stride: int) -> float:
        bends = [
            float(
                torch.linalg.vector_norm(
                    values[i + 2 * stride] - 2 * values[i + stride] + values[i]
                )
            )
            for i in range(0, SAMPLES + 1 - 2 * stride, stride)
        ]
        return sum(bend**2 for bend in bends) / len(bends)

    fine, coarse = mean_square(2), mean_square(4)
    if not math.isfinite(coarse) or coarse <= floor**2:
        return math.inf
    return math.log2(coarse / max(fine, floor**2 / 64.0))


def is_rough(field: Field, node: Node, spacing: float) -> bool:
    """Say whether kinks, not curvature, limit the accuracy of a step near ``spacing``."""
    return roughness(field, node, spacing) < _ROUGH_BELOW
