"""Where the exponential in Theorem 3 is needed: a curved ridge, and a refuted printed formula.

On the ridge the flow stays and gradient descent leaves like e^{μ}: any step size that keeps the two
within ε up to T falls exponentially with T, as Equation 7 says. Corollary 1 as printed, for m > 0,
does not fall with T; a pendulum at its upper rest refutes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from torch_gfshadow.bounds import theorem3
from torch_gfshadow.bounds.worst_case import gradient, hessian, necessary_step_size, ridge
from torch_gfshadow.experiments import pendulum
from torch_gfshadow.experiments.deep_linear import Array, largest_step
from torch_gfshadow.experiments.study import Number, Study, Table
from torch_gfshadow.plotting.studies import draw_curves
from torch_gfshadow.plotting.style import BLUE, FONT, VERMILLION, new_figure

HORIZONS = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
_COLUMNS = {
    "horizon": "T",
    "needed": "largest η within ε, in truth",
    "predicted": "asymptotics",
    "equation7": "Eq. 7",
    "needed_over_equation7": "truth / Eq. 7",
    "corollary1": "Corollary 1, corrected",
    "printed": "Corollary 1, printed",
    "printed_over_needed": "printed / truth",
}


def run(
    *,
    a: float = 0.3,
    m: float = 1.0,
    eps: float = 0.02,
    horizons: Sequence[float] = HORIZONS,
    quick: bool = False,
) -> Study:
    """Run the study.

    Args:
        a: Amplitude of the ridge.
        m: Curvature across it.
        eps: ε, the distance from the flow to be kept.
        horizons: Times T.
        quick: Only the first four times.

    Returns:
        The study, ``worst-case``.
    """
    chosen = horizons[:4] if quick else horizons
    beta, steepest, curvature = _constants(a, m, eps)
    rows: list[dict[str, Number]] = []
    for horizon in chosen:
        needed = _needed(a, m, eps, horizon)
        cells = np.linspace(0.0, horizon, max(2, round(50 * horizon)) + 1)
        rates = [max(pair) for pair in pairwise(_along(a, m, eps, cells))]
        found = theorem3(cells.tolist(), rates, beta, steepest, eps, constants_are="sampled")
        equation7 = float(found.value["eta"])
        # f is unbounded below: instead of √(2β f_0) + βε the limit of the gradient itself
        scale = eps * curvature / (beta * steepest)
        printed = scale / -math.expm1(-curvature * horizon)
        rows.append(
            {
                "horizon": horizon,
                "needed": needed,
                "predicted": float(necessary_step_size(a, m, eps, horizon).value["eta"]),
                "equation7": equation7,
                "needed_over_equation7": needed / equation7,
                "corollary1": scale / math.expm1(curvature * horizon),
                "printed": printed,
                "printed_over_needed": printed / needed,
            }
        )
    fallen = [pendulum.deviations(horizon) for horizon in (5.0, 10.0, 20.0)]
    times = [float(row["horizon"] or 0.0) for row in rows]
    logs = [math.log(float(row["needed"] or math.nan)) for row in rows]
    slope = float(np.polyfit(times[1:], logs[1:], 1)[0])
    ratios = [float(row["needed_over_equation7"] or 0.0) for row in rows]
    findings = [
        f"The largest step size that stays within ε = {eps:g} falls like e^({slope:.3f} T), where "
        f"e^({-m * (1 + a * a / 2):.3f} T) was predicted.",
        f"Equation 7 is below it by a factor of {min(ratios):.0f} to {max(ratios):.0f} at every T: "
        "its exponential is needed.",
        f"Corollary 1 as printed exceeds it by a factor of "
        f"{float(rows[-1]['printed_over_needed'] or 0):.1f} at T = {times[-1]:g}. On f = 1 − cos x "
        f"its step size deviates by {float(fallen[-1]['printed_deviation'] or 0):.2f} ε at "
        f"T = {fallen[-1]['horizon']:g}, the corrected one by "
        f"{float(fallen[-1]['corrected_deviation'] or 0):.0e} ε.",
    ]
    return Study(
        "worst-case",
        {
            "a": a,
            "m": m,
            "eps": eps,
            "beta": beta,
            "gamma": steepest,
            "minus_lambda_min": curvature,
        },
        [
            Table(f"The ridge, a = {a:g}, m = {m:g}, ε = {eps:g}", _COLUMNS, rows),
            Table(
                pendulum.TITLE,
                pendulum.COLUMNS,
                fallen,
            ),
        ],
        findings,
        partial(_draw, rows, eps),
    )


def _descend(a: float, m: float, step_size: float, n_steps: int) -> Array:
    """Return gradient descent on the ridge from the origin, one point per row."""
    path = np.zeros((n_steps + 1, 2))
    x = y = 0.0
    for k in range(1, n_steps + 1):
        gx, gy = gradient(a, m, x, y)
        x, y = x - step_size * gx, y - step_size * gy
        path[k] = x, y
    return path


def _needed(a: float, m: float, eps: float, horizon: float) -> float:
    def holds(step_size: float, n_steps: int) -> bool:
        path = _descend(a, m, step_size, n_steps)
        t = step_size * np.arange(n_steps + 1)
        return bool((np.hypot(path[:, 0] - t, path[:, 1] - a * np.sin(t)) <= eps).all())

    return largest_step(holds, horizon, least=1e-6, tol=0.01)


def _constants(a: float, m: float, eps: float) -> tuple[float, float, float]:
    """Return the largest ‖∇²f‖, ‖∇f‖ and −λ_min within ε of the ridge over one period, sampled."""
    beta, steepest, curvature = 0.0, 0.0, -math.inf
    for x in np.linspace(0.0, 2 * math.pi, 400):
        for place in _ball(a, eps, float(x)):
            low, high = _spectrum(a, m, *place)
            beta, curvature = max(beta, -low, high), max(curvature, -low)
            steepest = max(steepest, math.hypot(*gradient(a, m, *place)))
    return beta, steepest, curvature


def _along(a: float, m: float, eps: float, times: Array) -> list[float]:
    """Return −λ_min, the largest of samples on the ε-ball around the flow, at each time."""
    return [max(-_spectrum(a, m, *p)[0] for p in _ball(a, eps, float(t))) for t in times]


def _ball(a: float, eps: float, x: float) -> list[tuple[float, float]]:
    centre = x, a * math.sin(x)
    angles = np.linspace(0.0, 2 * math.pi, 13)[:-1]
    around = [(x + eps * math.cos(t), centre[1] + eps * math.sin(t)) for t in angles]
    return [centre, *around]


def _spectrum(a: float, m: float, x: float, y: float) -> tuple[float, float]:
    xx, xy, yy = hessian(a, m, x, y)
    centre, half = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    return centre - half, centre + half


def _draw(rows: Sequence[dict[str, Number]], eps: float, path: Path) -> None:
    figure = new_figure(9.2, 3.6)
    left, right = figure.subplots(1, 2)
    times = [float(row["horizon"] or 0.0) for row in rows]

    def column(key: str) -> tuple[list[float], list[float]]:
        return times, [float(row[key] or math.nan) for row in rows]

    draw_curves(
        left,
        {
            "in truth": column("needed"),
            "asymptotics": column("predicted"),
            "Eq. 7": column("equation7"),
            "Corollary 1, corrected": column("corollary1"),
            "Corollary 1, printed (refuted)": column("printed"),
        },
        x="time $T$ up to which",
        y=rf"largest $\eta$ that stays within $\varepsilon={eps:g}$",
        title="(a) Step sizes on the ridge",
        styles={
            "in truth": {"color": "black", "marker": "o", "ms": 4},
            "asymptotics": {"color": "black", "ls": ":"},
            "Corollary 1, printed (refuted)": {"ls": "--"},
        },
    )
    xs, ys = np.meshgrid(np.linspace(0, 12, 240), np.linspace(-5, 5, 160))
    heights = [
        ridge(1.0, 1.0, x, y) for x, y in zip(xs.ravel().tolist(), ys.ravel().tolist(), strict=True)
    ]
    # without its slope along the ridge, or nothing else could be seen
    level = np.reshape(heights, xs.shape) + 1.5 * xs
    right.contourf(xs, ys, level, levels=24, cmap="Greys", alpha=0.55)
    t = np.linspace(0, 12, 400)
    right.plot(t, np.sin(t), color=VERMILLION, lw=2, label="gradient flow")
    for step_size, dashes in ((0.1, (5, 2)), (0.001, (2, 1))):
        walk = _descend(1.0, 1.0, step_size, round(12 / step_size))
        label = rf"descent, $\eta={step_size:g}$"
        right.plot(walk[:, 0], walk[:, 1], color=BLUE, dashes=dashes, label=label)
    right.set(xlim=(0, 12), ylim=(-5, 5))
    right.set_xlabel("$x$", fontsize=FONT)
    right.set_ylabel("$y$", fontsize=FONT)
    right.set_title("(b) The ridge, $a=m=1$, its slope taken out", fontsize=FONT + 1, loc="left")
    right.legend(fontsize=FONT - 1, loc="lower left")
    right.tick_params(labelsize=FONT - 1)
    figure.savefig(path, dpi=200)
