"""Theorem 2 of Elkabetz & Cohen (arXiv:2107.06608): Euler's error against local curvature.

If −λ_min(∇²f) ≤ m between flow and polygon, and the polygon violates θ' = −∇f(θ) by at most δ,
then the discrepancy R obeys R' = m·R + δ. Piece by piece, with m and δ constant, that solves to::

    R_{i+1} = e^{m_i h} R_i + δ_i ∫_0^h e^{m_i s} ds,    h = t_{i+1} − t_i

evaluated by logarithms, because the factors overflow long before their product does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch_gfshadow.bounds._phi import exp, log, log_add, log_integral
from torch_gfshadow.bounds._scalars import GIVEN, constants, listed, vouched
from torch_gfshadow.bounds._scalars import finite as numeric
from torch_gfshadow.bounds.base import Evaluation, finite
from torch_gfshadow.errors import must


@dataclass(frozen=True, slots=True)
class RadiusCurve:
    """The bound at every breakpoint.

    Inside a piece R' keeps its sign, so the larger of two neighbours bounds all between them.

    Attributes:
        times: The breakpoints t_0 < … < t_K.
        log_R: Natural logarithm of the bound there; −∞ for 0.
    """

    times: tuple[float, ...]
    log_R: tuple[float, ...]  # noqa: N815 - the key in the golden file

    @property
    def R(self) -> tuple[float, ...]:  # noqa: N802 - the paper's letter
        """The bound itself; ``inf`` where it exceeds the range of a float."""
        return tuple(exp(value) for value in self.log_R)


def theorem2(
    breaks: Sequence[float],
    m: Sequence[float],
    delta: Sequence[float],
    R0: float = 0.0,  # noqa: N803 - the paper's letter
) -> RadiusCurve:
    """Bound ‖θ(t) − θ̄(t)‖ between the gradient flow and a curve beside it.

    The result is a theorem where ``m`` and ``delta`` really are upper limits on each piece, and
    an estimate where they were sampled. Needs f ∈ C² on the segments [θ(t), θ̄(t)]; it fails
    across the kink of a ReLU.

    Args:
        breaks: Times t_0 < … < t_K, at least one.
        m: Upper limit of −λ_min on each of the K pieces, in 1/t; negative where f is convex.
        delta: Upper limit of ‖θ̄' + ∇f(θ̄)‖ on each piece, in θ/t, not negative.
        R0: ‖θ(t_0) − θ̄(t_0)‖, in θ, not negative.

    Returns:
        The bound and its logarithm at every breakpoint.

    Raises:
        ValueError: If the breaks do not increase, the lengths disagree, a number is not finite,
            or ``delta`` or ``R0`` is negative.

    References:
        Elkabetz & Cohen 2021, Theorem 2.

    Example:
        Constant m and δ from R_0 = 0 give δ(e^{mt} − 1)/m:

        >>> theorem2([0.0, 1.0, 2.0], m=[1.0, 1.0], delta=[0.1, 0.1]).R[-1]
        0.638905609893065
    """
    times, rates, defects = finite("breaks", breaks), finite("m", m), finite("delta", delta)
    (start,) = finite("R0", [R0])
    _check(times, rates, defects, start)
    log_radius = log(start)
    radii = [log_radius]
    for (begin, end), rate, defect in zip(pairwise(times), rates, defects, strict=True):
        log_radius = advance(log_radius, end - begin, rate, defect)
        radii.append(log_radius)
    return RadiusCurve(times, tuple(radii))


def evaluate(
    breaks: Sequence[float],
    m: Sequence[float],
    delta: Sequence[float],
    R0: float = 0.0,  # noqa: N803 - the paper's letter
    *,
    constants_are: str = GIVEN,
) -> Evaluation:
    """Evaluate Theorem 2 on given numbers; arguments and errors are those of :func:`theorem2`.

    With ``constants_are="sampled"`` m and δ are the largest of some samples, and the result is an
    estimate.

    Returns:
        ``log_R`` at every break (``None`` for the logarithm of 0), and ``R`` unless one overflows.
    """
    times, rates, defects = (
        [numeric(f"{name}[{i}]", item) for i, item in enumerate(listed(name, given))]
        for name, given in (("breaks", breaks), ("m", m), ("delta", delta))
    )
    curve = theorem2(times, rates, defects, numeric("R0", R0))
    value: dict[str, object] = {"log_R": [r if r > -math.inf else None for r in curve.log_R]}
    if all(math.isfinite(r) for r in curve.R):
        value["R"] = list(curve.R)
    assumptions = (
        constants("−λ_min ≤ m between flow and curve, ‖θ̄' + ∇f(θ̄)‖ ≤ δ", constants_are),
        vouched("f ∈ C² between flow and curve (no ReLU kink)"),
    )
    return Evaluation(value, assumptions)


def advance(log_radius: float, duration: float, m: float, delta: float) -> float:
    """Carry log R over one piece of length ``duration`` on which m and δ are constant."""
    if duration == 0.0:  # a learning rate of zero is a step too
        return log_radius
    carried = log_radius + m * duration if log_radius > -math.inf else -math.inf
    added = log(delta) + log_integral(m, duration) if delta > 0.0 else -math.inf
    return log_add(carried, added)


def _check(
    times: Sequence[float], rates: Sequence[float], defects: Sequence[float], start: float
) -> None:
    if not times:
        raise ValueError(must("breaks", "at least one time", "none", "Begin with t_0."))
    for index, (begin, end) in enumerate(pairwise(times)):
        if end <= begin:
            got = f"{begin} followed by {end} at index {index}"
            raise ValueError(must("breaks", "increasing", got, "Sort them and drop repetitions."))
    n_pieces = len(times) - 1
    for argument, values in (("m", rates), ("delta", defects)):
        if len(values) != n_pieces:
            condition = f"one value per piece ({n_pieces} for {len(times)} breaks)"
            fix = "A piece lies between two neighbouring breaks."
            raise ValueError(must(argument, condition, f"{len(values)} values", fix))
    for argument, value in (*((f"delta[{i}]", d) for i, d in enumerate(defects)), ("R0", start)):
        if value < 0.0:
            raise ValueError(must(argument, "not negative", value, "It is the norm of a vector."))
