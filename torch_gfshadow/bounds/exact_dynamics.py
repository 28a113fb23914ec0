"""The flow from a balanced start in closed form: the tight side of Proposition 3 and Theorem 4.

In the setting of ``_balanced`` the end-to-end row stays in the plane of its start and Λ_yx; its
size r and alignment ν satisfy, with ν = tanh τ (derived; Proposition 3 bounds the same flow)::

    r' = n r^{2−2/n} (ν − r),   τ' = r^{1−2/n},   loss − min = (r² − 2rν + 1)/2
    r(τ) = cosh^n τ / (cosh^n τ_0 / r_0 + n ∫_{τ_0}^τ cosh^n)

At ν = 1, where τ is infinite, r' = n r^{2−2/n}(1 − r), and logit r takes the place of τ. Every
eigenvalue of the Hessian along the flow is known as well, and so are limits on balls around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from torch_gfshadow.bounds._balanced import Setting
from torch_gfshadow.bounds._exact_flow import MINIMUM, Array, between, follow, time_of
from torch_gfshadow.bounds._scalars import listed, not_negative, number, size
from torch_gfshadow.bounds.base import Evaluation
from torch_gfshadow.errors import AssumptionError, must


def exact_dynamics(
    n: int,
    r0: float,
    nu: float,
    times: float | Sequence[float] | None = None,
    eps_bar: float | None = None,
    *,
    width: int = 2,
) -> Evaluation:
    """Follow the flow of Proposition 3 exactly.

    Args:
        n: Number of weight matrices, at least 2.
        r0: ‖W_{n:1}‖_F at the start, in (0, 0.2].
        nu: Cosine between W_{n:1} at the start and Λ_yx, in (−1, 1].
        times: When to look, one time or several, not negative …
        eps_bar: … or the loss above the minimum, to be told when it is reached.
        width: The smallest hidden width; with 1 there are fewer directions of escape.

    Returns:
        ``t``, ``r``, ``nu``, ``gap`` (loss above the minimum) and ``lambda_min`` of the Hessian,
        lists as long as ``times``. Accurate to about eleven digits, not an interval.

    Raises:
        AssumptionError: If a number is out of range, or neither or both of ``times`` and
            ``eps_bar`` are given.
    """
    setting = Setting.of(n, r0, nu)
    wide = size("width", width) >= 2
    if (times is None) == (eps_bar is None):
        fix = "Ask for times, or for the time at which a loss is reached."
        raise AssumptionError(must("times, eps_bar", "one of the two", "both or neither", fix))
    if eps_bar is not None:
        target = number(
            "eps_bar",
            eps_bar,
            f"above {MINIMUM:g} and finite",
            lambda x: x > MINIMUM,
            "Below, the loss is the minimum to rounding.",
        )
        path = follow(setting, gap=target)
        asked = np.array([time_of(path, target)])
    else:
        several = listed("times", times) if hasattr(times, "__len__") else [times]
        asked = np.array([not_negative("times", t, "Time starts at 0.") for t in several])
        path = follow(setting, time=float(asked.max(initial=0.0)))
    r, cosine, sine = between(path, asked)
    value = {
        "t": asked.tolist(),
        "r": r.tolist(),
        "nu": cosine.tolist(),
        "gap": (0.5 * ((r - cosine) ** 2 + sine**2)).tolist(),
        "lambda_min": lambda_min(setting.n, r, cosine, sine, wide=wide).tolist(),
    }
    return Evaluation(value, setting.assumptions)


def lambda_min(n: int, r: Array, nu: Array, transverse: Array, *, wide: bool = True) -> Array:
    """Return the smallest eigenvalue of the Hessian at balanced weights, exactly (derived).

    Args:
        n: Number of weight matrices.
        r: ‖W_{n:1}‖_F.
        nu: Cosine between W_{n:1} and Λ_yx.
        transverse: √(1 − ν²).
        wide: Whether a hidden layer has two units or more.
    """
    a = r ** (1.0 / n)
    big, small = a ** (2 * n - 2), a ** (n - 2)
    along, force = r - nu, np.hypot(r - nu, transverse)
    root = math.sqrt(n - 1)
    blocks = np.zeros((*np.shape(r), 3, 3))
    blocks[..., 0, 0] = big
    blocks[..., 0, 1] = blocks[..., 1, 0] = root * (big + small * along)
    blocks[..., 1, 1] = (n - 1) * big + (n - 2) * small * along
    blocks[..., 1, 2] = blocks[..., 2, 1] = root * small * transverse
    blocks[..., 2, 2] = big
    smallest = np.linalg.eigvalsh(blocks)[..., 0]
    if n >= 3:
        smallest = np.minimum(smallest, -small * along)
    if wide:
        smallest = np.minimum(smallest, -small * force)
    return np.asarray(smallest)
