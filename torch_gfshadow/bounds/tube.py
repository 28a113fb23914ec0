"""The tube certificate: a radius around gradient descent that provably contains the flow.

Let θ̄ be the polygon through the iterates. If f ∈ C² and, at every time::

    R' ≥ M(t, R) R + δ(t),   R(0) ≥ ‖θ(0) − θ̄(0)‖
    M(t, ρ) ≥ sup { −λ_min(∇²f(q)) : ‖q − θ̄(t)‖ ≤ ρ },   δ(t) ≥ ‖θ̄'(t) + ∇f(θ̄(t))‖

then the flow exists and ‖θ(t) − θ̄(t)‖ ≤ R(t) as long as R is finite: the segment from θ̄ to θ lies
in the ball whose radius is their distance. Theorem 3 charges the curvature of the whole ε-ball from
the start; the tube charges only the radius it has accumulated. The flow is never integrated.

One step of the polygon costs a handful of small matrix products (modes A and B) or one dense
eigenvalue problem (mode C). Derived here.

What is covered by "certified": floating-point rounding in norms, eigenvalues, gradients, Hessians
and in the recursion, each rounded up by a bound on what it can have lost. The iterates are taken as
they are stored, so their own rounding, noise, momentum or a step-size schedule are part of the
defect that is measured. Relied upon: IEEE float64 arithmetic without underflow, and LAPACK's
backward stability with constants of at most d (the number of parameters).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torch_gfshadow.bounds._ball import Ball, Node
from torch_gfshadow.bounds._norms import UNIT
from torch_gfshadow.bounds._scalars import finite, held, not_negative
from torch_gfshadow.bounds._tube import UP, Carried, TubeStep, curvature, grow
from torch_gfshadow.bounds._tube_step import tube_step
from torch_gfshadow.bounds.base import Assumption, Evaluation


def evaluate(R: Any, h: Any, m: Any, c0: Any, c1: Any = 0.0, c2: Any = 0.0) -> Evaluation:  # noqa: N803
    """Evaluate one step of the tube: ``R_next``.

    Raises:
        AssumptionError: If a number is not finite, or one but m is negative.
    """
    norm = "It is the norm of a vector, or a limit of one."
    radius = not_negative("R", R, norm)
    length = not_negative("h", h, "Time goes forward.")
    defect = [not_negative(k, v, norm) for k, v in (("c0", c0), ("c1", c1), ("c2", c2))]
    rate = finite("m", m)
    value = tube_step(radius, length, rate, *defect)
    rests = Assumption("−λ_min ≤ m and ‖θ̄' + ∇f‖ ≤ c0 + c1 s + c2 s²", "given", certain=True)
    return Evaluation({"R_next": value}, (held("R, h, c0, c1, c2 ≥ 0", "all of them"), rests))


class Tube(Carried):
    """The certificate along one run of gradient descent on a deep linear network.

    Call :meth:`step` once per step of the optimizer. Whatever made the step, the certificate is
    about the polygon through the weights it was given and the time it was told.

    Args:
        weights: W_1, …, W_n at the start, n ≥ 2.
        loss: φ, convex, with its constants.
        mode: Where the limit of −λ_min comes from. ``"A"``: Eq. 13. ``"B"``: norms of the
            Hessian's blocks. ``"C"``: the smallest eigenvalue at the iterate and the slope of the
            Hessian, or B where that is smaller; needs the dense d × d Hessian.
        start: R(0) ≥ ‖θ(0) − θ_0‖, in θ.
        weight_decay: w of the flow of f + (w/2)‖θ‖², in 1/t.

    Attributes:
        time: Where the polygon is.
        radius: R(time): the flow is no farther away. ``inf`` after a breakdown.
        certified_until: The last time at which ``radius`` was finite.
        steps: The steps so far.

    Raises:
        AssumptionError: If the weights do not chain, a number is out of range, or the mode is
            unknown.

    References:
        Derived; constants in ``_ball.py``.

    Example:
        >>> import numpy as np
        >>> from torch_gfshadow.bounds import Square, Tube
        >>> loss = Square(np.eye(1), np.eye(1))  # ½(w₂w₁ − 1)² + constant
        >>> w = [np.array([[0.5]]), np.array([[0.5]])]
        >>> tube = Tube(w, loss)
        >>> for _ in range(10):
        ...     g = w[0] * w[1] - 1
        ...     w = [w[0] - 0.01 * g * w[1], w[1] - 0.01 * g * w[0]]
        ...     radius = tube.step(w, 0.01)
        >>> 0 < radius < 1e-3
        True
    """

    def advance(self, following: Node, h: float) -> TubeStep:
        """Carry the radius over one step of the polygon."""
        node, decay = self.node, self.weight_decay
        velocity = (following.theta - node.theta) / h
        speed = float(np.linalg.norm(velocity)) * UP
        size = float(np.linalg.norm(node.theta))
        off = velocity + node.gradient + decay * node.theta
        c0 = (
            float(np.linalg.norm(off)) * UP
            + node.gradient_error
            + 4 * UNIT * (speed + decay * size)
        )

        def constants(ball: Ball, radius: float) -> tuple[float, float, float, float]:
            m = curvature(ball, self.mode, h * speed + radius / 2) - decay
            if self.mode != "C":
                return m, c0, (ball.smoothness + decay) * speed, 0.0
            turned = node.hessian @ velocity + decay * velocity
            c1 = float(np.linalg.norm(turned)) * UP + node.hessian_error * speed
            return m, c0, c1, ball.hessian_slope * speed**2 / 2 * UP

        guess = self.guess(self.steps[-1].defect if self.steps else (c0, 0.0, 0.0), h)
        return grow(node, self.radius, h, h * speed * UP, constants, guess, self.time)
