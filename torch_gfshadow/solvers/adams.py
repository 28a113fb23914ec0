"""Two-step Adams–Bashforth across kinks, with a second solution of twice the step beside it.

On ReLU and max-pool networks the field jumps, and the error of every method is the sum of many
jumps that it sees a little early or late. What then counts is the spacing of the evaluations, so
the cheapest method is one that evaluates once a step, at points of the solution itself. Where
the field can average the slopes of its activations over the step (``field.averaged``, see
``_kinks``), most of the timing error goes, and the same accuracy takes steps four times as long.

No estimate from one solution sees everything that goes wrong across kinks: jumps timed badly,
chatter along a kink that attracts from both sides, a branch taken at one that repels. So a second
solution is carried with twice the step, half as much again in cost, and the distance between the
two is the estimate: it grows and shrinks with the flow as the error itself does. Between first
and second order it is one to three times the error of the finer solution.

Source: step doubling, Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, II.4,
applied to the global error; averaged slopes: derived.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._kinks import Glance
from torch_gfshadow.solvers.base import (
    AveragingField,
    Field,
    Node,
    averaged_over,
    check_saved,
    hermite,
    load_plain,
    save_plain,
)
from torch_gfshadow.solvers.branches import Branches

_GAIN = 0.3
SAFETY, ON_A_BRANCH, _OF_ROOTS = 1.2, 1.5, 2.4
"""Error bar over the distance of the two solutions; where the companion was sent down another
branch, as there it is an error of its own away from the flow; and with the root of a running mean
in the field, which is bent most in the first steps, where both solutions err to the same side."""
_GROW, _SHRINK = 1.2, 0.8
_NEGLIGIBLE = 0.03
# attributes that are numbers, saved as they are
_PLAIN = ("ungraded", "next_step", "_increment", "_gap", "_done")


class _Line:
    """One Adams–Bashforth solution: its newest node, and the slope before it."""

    def __init__(self, field: Field, node: Node) -> None:
        self.node = node
        self._field = field
        self._previous: Tensor | None = None
        self._last_step = 0.0

    def ahead(self, h: float, glance: Glance) -> Node:
        """Return the node a step ``h`` from here, one evaluation; two from the very first."""
        node = self.node
        if self._previous is None:  # Heun, to have a second slope
            trial = self._field(node.state + h * node.field)
            state = node.state + (0.5 * h) * (node.field + trial)
        else:
            ratio = 0.5 * h / self._last_step
            state = node.state + (h * (1.0 + ratio)) * node.field
            state.sub_(self._previous, alpha=h * ratio)
        if not isinstance(self._field, AveragingField):
            return Node(node.time + h, state, self._field(state))
        # the slope stands for half a step on either side of the node
        entered = torch.sub(state, node.field, alpha=0.5 * h)
        return Node(node.time + h, state, averaged_over(self._field, state, entered, glance))

    def take(self, node: Node) -> None:
        """Go to a node that :meth:`ahead` returned."""
        self._previous, self._last_step = self.node.field, node.time - self.node.time
        self.node = node

    def refresh(self) -> None:
        """Evaluate the field anew at the newest node, and forget the slope before it."""
        node = self.node
        self.node = Node(node.time, node.state, self._field(node.state))
        self._previous = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {
            "node": self.node.state_dict(),
            "previous": self._previous,
            "last_step": self._last_step,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        like, previous = self.node.state, saved["previous"]
        self.node = Node.from_state(saved["node"], like)
        self._previous = None if previous is None else previous.to(like)
        self._last_step = saved["last_step"]


class AdamsStepper:
    """Variable-step AB2 and its companion; after every second step the two are compared.

    Attributes:
        local_error: What the last two steps added to the distance between the two solutions.
    """

    name = "adams2"
    order = 2
    stability = 1.0
    rough = True
    stiffness: float | None = None

    def __init__(
        self, field: Field, node: Node, first_step: float, left: Node | None = None
    ) -> None:
        self.left = left or node
        self.local_error: Tensor | None = None
        self.ungraded = 0.0
        self.next_step = first_step
        self._fine, self._coarse = _Line(field, node), _Line(field, node)
        self._safety, self._branches = safety_of(field), Branches()
        self._increment = 0.0
        self._gap = 0.0
        self._done = 0.0

    @property
    def right(self) -> Node:
        """End of the last step."""
        return self._fine.node

    @property
    def error(self) -> float:
        """Error bar, in the units of θ: the distance of the two solutions and some more."""
        safety = max(ON_A_BRANCH, self._safety) if self._branches.taken else self._safety
        return safety * self.distance

    @property
    def distance(self) -> float:
        """Distance of the two solutions, and how much of it the last steps brought."""
        return math.hypot(self._gap, self._increment)

    def inherit(self, error: Tensor) -> None:
        """Take over the error of the solution so far: the companion starts that far away."""
        node = self._coarse.node
        error = error / self._safety
        self._coarse.node = Node(node.time, node.state - error, node.field)
        self._gap = math.hypot(self._gap, float(torch.linalg.vector_norm(error)))

    def hand_over(self) -> Tensor | None:
        """Return an error as long as the bar, pointing as it does by estimate, shape ``[d]``."""
        apart = (self.left if self._done else self.right).state - self._coarse.node.state
        size = float(torch.linalg.vector_norm(apart))
        return apart * (self.error / size) if size > 0.0 else None

    def shift(self, offset: Tensor) -> None:
        """Move both solutions; their slopes are left to :meth:`refresh`."""
        for line in (self._fine, self._coarse):
            node = line.node
            line.node = Node(node.time, node.state + offset, node.field)

    def refresh(self) -> None:
        """Evaluate the field anew where the two solutions stand: it has changed."""
        self._fine.refresh()
        self._coarse.refresh()

    def step(
        self,
        tolerance: float,
        shortest: float = 0.0,
        longest: float = math.inf,
        lambda_max: float | None = None,
    ) -> bool:
        """Take one step; after two, lengthen or shorten the next.

        Unlike an embedded pair, which is given the error of one step, this is held to an error
        bar: ``tolerance`` is what :attr:`error` may come to. A step is rejected only where the
        field is not finite.
        """
        h, start = min(self.next_step, longest), self._fine.node
        closes, whole, time = self._done > 0.0, self._done + h, start.time + h
        self.local_error = None
        # the companion first: whoever reads loss and slope of the last evaluation gets ours
        look, steer = self._branches.look(h), self._branches.steer(time, whole)
        partner = self._coarse.ahead(whole, steer) if closes else None
        node = self._fine.ahead(h, look)
        if not bool(torch.isfinite(node.field).all()):
            self.next_step = 0.1 * h
            return False
        self._fine.take(node)
        if partner is None:
            self._done, self.ungraded = h, self._increment
        else:
            self._compare(self.left.state - self._coarse.node.state, partner)
            # of the distance only so much is error of our own as was asked for
            self._branches.compare(look, steer, tolerance / max(self._gap, 1e-300))
            self._resize(h, tolerance, shortest, longest)
        self._branches.go_on(look, time, h)
        self.left = start
        return True

    def interpolate(self, time: float) -> Tensor:
        """Return the cubic Hermite interpolant of the last step."""
        return hermite(self.left, self.right, time)

    def state_dict(self) -> dict[str, Any]:
        """Return nodes, step size and both solutions as tensors and numbers."""
        return save_plain(self, _PLAIN) | {
            "solver": self.name,
            "left": self.left.state_dict(),
            "right": self.right.state_dict(),
            "fine": self._fine.state_dict(),
            "coarse": self._coarse.state_dict(),
            "local_error": self.local_error,
            "branches": self._branches.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        check_saved(self.name, saved)
        like = self.right.state
        load_plain(self, _PLAIN, saved)
        self._fine.load_state_dict(saved["fine"])
        self._coarse.load_state_dict(saved["coarse"])
        self.left = Node.from_state(saved["left"], like)
        error = saved["local_error"]
        self.local_error = None if error is None else error.to(like)
        if "branches" in saved:
            self._branches.load_state_dict(saved["branches"], like)

    def _compare(self, before: Tensor, partner: Node) -> None:
        """Close a pair of steps: note how far the two solutions have moved apart since the last."""
        node = self.right
        if bool(torch.isfinite(partner.field).all()):
            self._coarse.take(partner)
        else:  # only the longer step leaves: stay as far away as before
            self._coarse.take(Node(node.time, node.state - before, node.field))
        distance = node.state - self._coarse.node.state
        self._gap = float(torch.linalg.vector_norm(distance))
        self.local_error = distance - before
        self._increment = float(torch.linalg.vector_norm(self.local_error))
        self.ungraded = 0.0

    def _resize(self, h: float, tolerance: float, shortest: float, longest: float) -> None:
        self._done = 0.0
        self.next_step = resized(h, self.error, self._increment, tolerance, shortest, longest)


def safety_of(field: Field) -> float:
    """Return the error bar of two solutions of ``field`` over their distance."""
    return SAFETY if getattr(field, "smooth", True) else _OF_ROOTS


def resized(
    h: float, error: float, increment: float, tolerance: float, shortest: float, longest: float
) -> float:
    """Return the length of the next steps after steps of length ``h``.

    Args:
        h: In flow time, as ``shortest`` and ``longest`` are.
        error: The error bar.
        increment: What the last steps added to the distance of the two solutions.
        tolerance: What the error bar may come to.
        shortest: Lower limit.
        longest: Upper limit, below the other one where both cannot be kept.
    """
    wanted = h * math.pow(tolerance / max(error, 1e-300), _GAIN)
    if wanted < h and increment <= _NEGLIGIBLE * tolerance:
        wanted = h  # the error is of old; shorter steps would not lessen it
    wanted = max(min(wanted, longest), shortest)
    return min(max(wanted, h * _SHRINK), h * _GROW)
