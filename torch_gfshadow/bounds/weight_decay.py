"""Weight decay in Theorem 3: f + (w/2)‖θ‖², the loss that ``weight_decay=w`` trains (derived).

At the same θ the Hessian gains w·I, exactly: λ_min and λ_max both rise by w, and the gradient
grows by at most w‖θ‖. So::

    m → m − w,   β → β + w,   γ → γ + w sup‖θ‖

where w > m for good, the limit of Equation 7 does not shrink with the horizon any more. But the
flow is another one: m taken along the flow without decay gives an estimate. A penalty w‖θ‖²
without the half counts as 2w. For plain gradient descent coupled and decoupled decay agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch_gfshadow.bounds._scalars import GIVEN, choice, distance, not_negative, pieces
from torch_gfshadow.bounds.base import Assumption, Evaluation
from torch_gfshadow.bounds.theorem3 import Curve, theorem3

FLOWS = ("decayed", "plain")


def weight_decay(
    breaks: Sequence[float],
    m: Curve,
    beta: Curve,
    gamma: Curve,
    eps: float,
    init_dist: float = 0.0,
    *,
    weight_decay: float,
    theta_norm: float,
    along: str = "decayed",
    half_step: bool = False,
    constants_are: str = GIVEN,
) -> Evaluation:
    """Bound the step size by Equation 7 for a loss with weight decay.

    Args:
        breaks: Times 0 ≤ t_0 ≤ … ≤ t_K = T.
        m: Upper limit of −λ_min of the loss without decay, on each piece, in 1/t.
        beta: Upper limit of ‖∇²f‖ of the loss without decay.
        gamma: Upper limit of ‖∇f‖ of the loss without decay.
        eps: ε, the distance from the flow to be kept, in θ.
        init_dist: ρ = ‖θ_0 − θ(0)‖, in θ.
        weight_decay: w, as in ``torch.optim.SGD(weight_decay=w)``, not negative.
        theta_norm: sup ‖θ‖ on the ε-balls around the flow.
        along: Which flow m, β, γ were taken around: ``"decayed"``, the one that decays, or
            ``"plain"``, the one without; then the result is an estimate.
        half_step: As in Theorem 3.
        constants_are: As in Theorem 3.

    Returns:
        What Theorem 3 returns.

    Raises:
        AssumptionError: If a number is out of range or a length disagrees.

    References:
        Elkabetz & Cohen 2021, Theorem 3; the shift is derived.
    """
    decay = not_negative("weight_decay", weight_decay, "It is the factor of ‖θ‖²/2.")
    size = distance("theta_norm", theta_norm)
    kept, (rates, betas, gammas) = pieces(breaks, ("m", m), ("beta", beta), ("gamma", gamma))
    found = theorem3(
        kept,
        [rate - decay for rate in rates],
        [b + decay for b in betas],
        [g + decay * size for g in gammas],
        eps,
        init_dist,
        half_step=half_step,
        constants_are=constants_are,
    )
    same = choice("along", along, FLOWS) == "decayed"
    how = "given by the caller" if same else "failed: they are those of the flow without decay"
    flow = Assumption("m, β, γ hold around the flow that decays", how, same)
    return Evaluation(found.value, (*found.assumptions, flow), found.status)
