"""Dense output and local errors of an explicit pair, from its own nodes.

torchdiffeq's quartic is of order four whatever the pair, and the embedded estimate is that of the
pair's lower order: both are off by more than the solution, and on nonlinear fields the estimate is
off in direction as well, now too large, now too small. The last nodes hold better, at no
evaluation (``differences``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.solvers.base import Node
from torch_gfshadow.solvers.differences import blend, bubble, divided, shares

_GRADED = 4
"""Nodes that grade the step between the middle two: errors of order six, against y⁽⁷⁾."""
_NOISY = 1e4
_TRUSTED, _LEAST = 2.0, 0.05
"""Of the embedded estimate: most and least that a graded error may be. Steps too long for an
expansion have differences that mean nothing, and two terms of one may cancel."""
_WORST = 4.0
"""Of the embedded estimate, most that the control of the step believes."""
_AHEAD = 1.5
"""Of the embedded estimate, most that the newest step's error is taken for because it is longer."""
_QUARTIC = 0.5
"""Of dopri5's embedded estimate, what its quartic is off inside the step: on θ' = λθ between 0.6
and 1.6 of that for every h·λ up to 3, and the bar multiplies by 2.4."""
_INSIDE = (0.3, 0.5, 0.7)


class DenseNodes:
    """The newest nodes of a pair.

    Args:
        node: Where the pair starts. Nodes before it are another method's, with its errors.
        order: Of the pair; half of it, rounded up, is how many nodes the interpolant goes through.

    Attributes:
        local_error: What the last step got wrong, shape ``[d]``; ``None`` while it waits.
        ungraded: Norm of what steps and interpolant may be off beyond that.
        graded: Length and error of the newest step that the nodes tell of; zeros if of none.
        waiting: Sum of embedded estimates, but for the newest, that nothing has graded yet.
    """

    def __init__(self, node: Node, order: int) -> None:
        self.local_error: Tensor | None = None
        self.waiting: Tensor | None = None
        self.ungraded, self._share = 0.0, 1.0
        self.graded = (0.0, 0.0)
        self._newest: Tensor | None = None
        self._wide = (order + 1) // 2
        self._graded = order <= 5
        self._nodes = [node]
        self._before: tuple[float, Tensor] | None = None

    @property
    def power(self) -> int:
        """Power of the step that ``graded`` errors go with."""
        return 6 if self._graded else 4 if self.young else 2 * min(len(self._nodes), self._wide)

    @property
    def empty(self) -> bool:
        """Whether the pair has taken no step yet."""
        return len(self._nodes) < 2

    @property
    def young(self) -> bool:
        """Whether there are too few nodes for an interpolant of their own."""
        return len(self._nodes) < 3

    @property
    def untold(self) -> bool:
        """Whether the next step will be graded by nothing but the embedded estimate."""
        return self._graded and len(self._nodes) < _GRADED - 1

    def take(self, node: Node, embedded: Tensor, quartic: Tensor) -> None:
        """Take in an accepted step.

        Args:
            node: Where it ended.
            embedded: The pair's estimate, numerical minus exact, shape ``[d]``.
            quartic: torchdiffeq's interpolant in the middle of the step, shape ``[d]``.
        """
        self._nodes = [*self._nodes[1 - max(_GRADED, self._wide) :], node]
        between = self._between(embedded, quartic)
        if not self._graded:
            self.local_error, self.ungraded = embedded, between
            self.graded = self._nodes[-1].time - self._nodes[-2].time, between
            return
        self.graded = (0.0, 0.0)
        self.local_error = self._grade()
        self._add_waiting(embedded)
        self.ungraded = math.hypot(between, self._foreseen())

    def _grade(self) -> Tensor | None:
        """Return the error of order six of the step before the last, and of those that waited."""
        waiting, newest = self.waiting, self._newest
        if len(self._nodes) < _GRADED or newest is None:
            return None
        nodes = self._nodes[-_GRADED:]
        weight, noise = shares([n.time for n in nodes], 6)
        if noise > _NOISY:
            return None
        error = divided(nodes).mul_(weight)
        rough, size = _norm(newest), _norm(error)
        self.graded = nodes[2].time - nodes[1].time, min(size, _WORST * rough)
        self._share = min(max(size / max(rough, 1e-300), _LEAST), _TRUSTED)
        error = error * (self._share * rough / size) if size > 0.0 else newest * self._share
        if waiting is not None:  # the share of a later, longer step is more than their own
            error = error.add(waiting, alpha=self._share)
        self.waiting = self._newest = None
        return error

    def _add_waiting(self, embedded: Tensor) -> None:
        if self._newest is not None:
            self.waiting = self._newest if self.waiting is None else self.waiting + self._newest
        self._newest = embedded

    @property
    def owed(self) -> Tensor | None:
        """Error of the steps that no later one has graded, by estimate; shape ``[d]``."""
        if self._newest is None:
            return None
        owed = self._newest if self.waiting is None else self._newest + self.waiting
        return owed * self._growing_share()

    def _growing_share(self) -> float:
        """Return the share of the embedded estimate that the newest step's error may be."""
        times = [n.time for n in self._nodes]
        growth = (times[-1] - times[-2]) / (times[-2] - times[-3]) if len(times) > 2 else 1.0
        return min(self._share * max(growth, 1.0), max(_AHEAD, self._share))

    def _foreseen(self) -> float:
        owed = self.owed
        return 0.0 if owed is None else _norm(owed)

    def interpolate(self, time: float) -> Tensor:
        """Return the solution inside the last step, from three nodes on."""
        return blend(self._nodes[-self._wide :], time)

    def _between(self, embedded: Tensor, quartic: Tensor) -> float:
        """Return the size of the interpolant's error inside the last step."""
        nodes = self._nodes[-self._wide :]
        left, right = nodes[-2].time, nodes[-1].time
        middle = 0.5 * (left + right)
        before, self._before = self._before, None
        if len(nodes) < 3:
            if self._graded:
                return _QUARTIC * _norm(embedded)
            return _norm(quartic - blend(nodes, middle))
        here = divided(nodes)
        if len(nodes) == self._wide:
            self._before = (nodes[0].time, here)
        apart = _norm(quartic - blend(nodes, middle))
        if before is None:
            return apart
        following = (here - before[1]).div_(right - before[0])
        times = [n.time for n in nodes]
        size = _norm(following) * max(bubble(times, left + x * (right - left)) for x in _INSIDE)
        return min(size, apart + _QUARTIC * _norm(embedded)) if self._graded else size

    def state_dict(self) -> dict[str, Any]:
        """Return nodes and grading as tensors and numbers."""
        return {
            "nodes": [n.state_dict() for n in self._nodes],
            "local_error": self.local_error,
            "waiting": self.waiting,
            "ungraded": self.ungraded,
            "newest": self._newest,
            "share": self._share,
            "before": None if self._before is None else list(self._before),
        }

    def load_state_dict(self, saved: Mapping[str, Any], like: Tensor) -> None:
        """Go on from a saved state, on the device and in the dtype of ``like``."""
        self._nodes = [Node.from_state(n, like) for n in saved["nodes"]]
        error, waiting, before = saved["local_error"], saved["waiting"], saved["before"]
        self.local_error = None if error is None else error.to(like)
        self.waiting = None if waiting is None else waiting.to(like)
        self.ungraded, self._share = saved["ungraded"], saved["share"]
        newest = saved["newest"]
        self._newest = None if newest is None else newest.to(like)
        self._before = None if before is None else (before[0], before[1].to(like))


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))
