"""Local errors of a low-order step, from the field at nodes the solver has anyway.

A step from y_n to y_{n+1} should equal ∫F(θ(t))dt. The cubic through the field at four
neighbouring nodes integrates that to O(h⁵), one order beyond Bogacki–Shampine, so the difference
is the true local error to leading order. The pair's own embedded estimate is the error of a
second-order method instead, and 30 times too large on the paper's linear network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.solvers.base import Node


def cubic_weights(times: list[float], left: float, right: float) -> list[float]:
    """Return w with ∫_left^right p = Σ w_i p(times[i]) for every cubic p.

    Args:
        times: Four distinct times.
        left: Lower limit.
        right: Upper limit.

    Returns:
        Four weights, in units of time.
    """
    h = right - left
    scaled = torch.tensor([(t - left) / h for t in times], dtype=torch.float64, device="cpu")
    powers = torch.stack([scaled**k for k in range(4)])
    moments = torch.tensor([1.0 / (k + 1) for k in range(4)], dtype=torch.float64, device="cpu")
    return [h * w for w in torch.linalg.solve(powers, moments).tolist()]


_TRUSTED = 3.0


class NodeQuadrature:
    """Remembers the last four nodes and grades the step between the middle two."""

    def __init__(self, node: Node, left: Node | None = None) -> None:
        self._nodes = [node] if left is None else [left, node]
        self._embedded: Tensor | None = None
        self._ratio = 1.0

    def grade(self, node: Node, embedded: Tensor) -> Tensor:
        """Take in a new node; return the local error of the step before it.

        Args:
            node: Where the last accepted step ended.
            embedded: The pair's own estimate, for the first steps, shape ``[d]``.

        Returns:
            Numerical minus exact increment of the step before, shape ``[d]``.
        """
        nodes = self._nodes = [*self._nodes[-3:], node]
        previous, self._embedded = self._embedded, embedded
        if len(nodes) < 4 or previous is None:
            return embedded
        left, right = nodes[1], nodes[2]
        weights = cubic_weights([n.time for n in nodes], left.time, right.time)
        error = right.state - left.state
        for weight, known in zip(weights, nodes, strict=True):
            error.sub_(known.field, alpha=weight)
        # away from the stability limit the embedded estimate is too large; near it, for modes of
        # h·λ > ½, it is too small by up to _TRUSTED, and beyond it the cubic overestimates
        norm = torch.linalg.vector_norm
        graded, estimated = float(norm(error)), float(norm(previous))
        self._ratio = min(_TRUSTED, graded / estimated) if estimated > 0.0 else 1.0
        return error if graded < _TRUSTED * estimated else previous.mul(_TRUSTED)

    def ungraded(self, embedded: Tensor) -> float:
        """Return the size of the newest step's error, which the next node will grade.

        The embedded estimate, times the share of it that the step before turned out to be; that
        share falls and rises with the step.
        """
        nodes = self._nodes
        growth = 1.0
        if len(nodes) >= 3 and nodes[-2].time > nodes[-3].time:
            growth = (nodes[-1].time - nodes[-2].time) / (nodes[-2].time - nodes[-3].time)
        share = min(_TRUSTED, self._ratio * max(growth, 1.0))
        return share * float(torch.linalg.vector_norm(embedded))

    def state_dict(self) -> dict[str, Any]:
        """Return the nodes and what was estimated of the newest step."""
        return {
            "nodes": [n.state_dict() for n in self._nodes],
            "embedded": self._embedded,
            "ratio": self._ratio,
        }

    def load_state_dict(self, saved: Mapping[str, Any], like: Tensor) -> None:
        """Go on from a saved state, on the device and in the dtype of ``like``."""
        self._nodes = [Node.from_state(n, like) for n in saved["nodes"]]
        embedded = saved["embedded"]
        self._embedded = None if embedded is None else embedded.to(like)
        self._ratio = saved["ratio"]
