"""Theorem 4 on real data: its step size, certified ones that can be run, and the largest.

Deep linear regression on whitened digits from balanced weights (Procedure 1). Up to orthogonal
changes of coordinates such a problem is known by its depth n, the size r_0 of its start and its
cosine ν with the target. So gradient descent runs on the digits themselves, and what needs many
runs or dense Hessians is evaluated in three coordinates; the study says how well both agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_gfshadow.balance import balanced_factors
from torch_gfshadow.bounds import Square, theorem3, theorem4, tight_step
from torch_gfshadow.bounds._chain import Chain, unflat
from torch_gfshadow.bounds._deep_linear import Point
from torch_gfshadow.experiments.data import Digits
from torch_gfshadow.experiments.deep_linear import (
    Array,
    DenseFlow,
    Problem,
    balanced_problem,
    largest_step,
    largest_true_step,
    largest_tube_step,
)
from torch_gfshadow.experiments.study import Number, Study, Table
from torch_gfshadow.plotting.studies import draw_curves, draw_dots
from torch_gfshadow.plotting.style import FONT, GREY, new_figure
from torch_gfshadow.whitening import Whitened, whiten

DEPTHS, NUS, R0 = (2, 3, 4, 5), (0.9, 0.5, 0.0, -0.5), 0.2
_HIDDEN = 8
_SAMPLES = 16  # on each sphere, for the measured constants
_COLUMNS = {
    "n": "n",
    "nu": "ν",
    "theorem4": "Theorem 4",
    "exact_flow": "Theorem 3, exact flow (certified)",
    "measured": "Theorem 3, measured constants (estimate)",
    "tube": "tube C (certified)",
    "within": "stays within ε, in truth",
    "works": "converges, in truth",
    "orders": "orders of magnitude, Theorem 4 to truth",
    "k_theorem4": "k of Theorem 4",
    "k_tube": "steps needed at the tube's η",
}
_METHODS = ("theorem4", "exact_flow", "measured", "tube", "within", "works")

Curves = dict[str, tuple[list[float], list[float]]]


def run(
    digits: Digits,
    *,
    depths: Sequence[int] = DEPTHS,
    nus: Sequence[float] = NUS,
    eps_tilde: float = 0.1,
    seed: int = 0,
    quick: bool = False,
    on_case: Callable[[str], None] | None = None,
) -> Study:
    """Run the study.

    Args:
        digits: Real digits; the labels are +1 for even and −1 for odd ones.
        depths: Numbers of layers n.
        nus: Cosines ν between start and target.
        eps_tilde: ε̃, the loss above its minimum to be reached.
        seed: Seed of the start and of the samples for the measured constants.
        quick: Only depths 2 and 3, and only the first two ν.
        on_case: Called with the name of each case before it begins.

    Returns:
        The study, ``convergence``.
    """
    if quick:
        depths, nus = depths[:2], nus[:2]
    labels = 1.0 - 2.0 * (digits.labels % 2).double()
    data = whiten(digits.images.reshape(len(digits.images), -1), labels)
    rows: list[dict[str, Number]] = []
    curves: Curves = {}
    worst = 0.0
    for n in depths:
        for nu in nus:
            if on_case is not None:
                on_case(f"n = {n}, ν = {nu:g}")
            row, problem, horizon = _case(n, nu, eps_tilde, seed)
            step_size = float(row["tube"] or 0.0)
            n_steps = round(horizon / step_size)
            gaps = _on_digits(data, n, nu, step_size, n_steps, seed)
            worst = max(worst, float(np.abs(gaps - _gaps(problem, step_size, n_steps)).max()))
            reached = int(np.argmax(gaps <= eps_tilde))
            row["k_tube"] = reached if gaps[reached] <= eps_tilde else None
            rows.append(row)
            if nu == nus[min(1, len(nus) - 1)]:
                label = rf"$n={n}$, $\eta={step_size:.2g}$"
                curves[label] = list(range(1, n_steps + 1)), gaps[1:].tolist()
    orders = [float(row["orders"] or 0.0) for row in rows]
    gains = [math.log10(float(r["works"] or 1.0) / float(r["tube"] or 1.0)) for r in rows]
    findings = [
        f"Between the step size of Theorem 4 and the largest that converges lie {min(orders):.0f} "
        f"to {max(orders):.0f} orders of magnitude; between the tube's and the largest that "
        f"converges, {min(gains):.1f} to {max(gains):.1f}.",
        f"On {digits.source}, whitened to {data.rank} coordinates, the losses differ from those in "
        f"three coordinates by at most {worst:.0e}.",
        f"At the tube's step size gradient descent reached min f + {eps_tilde:g} on the digits in "
        f"{sum(row['k_tube'] is not None for row in rows)} of {len(rows)} cases.",
    ]
    title = f"Largest step size η by each method, ε̃ = {eps_tilde:g}, r₀ = {R0:g}"
    return Study(
        "convergence",
        {"eps_tilde": eps_tilde, "r0": R0, "seed": seed, "data": digits.source, "rank": data.rank},
        [Table(title, _COLUMNS, rows)],
        findings,
        partial(_draw, curves, rows, eps_tilde, nus[min(1, len(nus) - 1)]),
    )


def radius_for(n: int, eps_tilde: float) -> float:
    """Return an ε so small that weights within ε of balanced ones with loss min + ε̃/2 have min + ε̃.

    The end-to-end row of balanced weights, of size at most 1, moves by at most
    (1 + ε/√n)^n − 1, and the loss above its minimum is half the squared distance from the target.
    """
    slack = math.sqrt(2 * eps_tilde) - math.sqrt(eps_tilde)
    return float(math.sqrt(n) * ((1 + slack) ** (1 / n) - 1))


def _case(
    n: int, nu: float, eps_tilde: float, seed: int
) -> tuple[dict[str, Number], Problem, float]:
    """Evaluate every method for one depth and one start."""
    theory = theorem4(n, R0, nu, eps_tilde).value
    exact = tight_step(n, R0, nu, eps_tilde).value
    horizon, eps = float(exact["horizon"]), radius_for(n, eps_tilde)
    problem = balanced_problem((3, *[2] * (n - 1), 1), R0, nu)
    flow = DenseFlow(problem, horizon)

    def converges(step_size: float, n_steps: int) -> bool:
        return bool(_gaps(problem, step_size, n_steps)[-1] <= eps_tilde)

    works = largest_step(converges, horizon)
    row: dict[str, Number] = {
        "n": n,
        "nu": nu,
        "theorem4": float(theory["eta"]),
        "exact_flow": float(exact["eta"]),
        "measured": _measured(problem, flow, eps, seed),
        "tube": largest_tube_step(problem, horizon, eps, "C"),
        "within": largest_true_step(problem, flow, eps),
        "works": works,
        "orders": (math.log(works) - float(theory["log_eta"])) / math.log(10.0),
        "k_theorem4": f"{float(theory['k']):.1e}",
    }
    return row, problem, horizon


def _gaps(problem: Problem, step_size: float, n_steps: int) -> Array:
    """Return the loss above its minimum, ½‖W − Λ_yx‖², along gradient descent."""
    path = problem.descend(step_size, n_steps)
    ends = Chain(unflat(path, problem.weights)).end
    assert isinstance(problem.loss, Square)
    return np.asarray(0.5 * ((ends - problem.loss.lyx) ** 2).sum((-2, -1)))


def _measured(problem: Problem, flow: DenseFlow, eps: float, seed: int) -> float:
    """Return Theorem 3's step size with m, β, γ sampled on spheres around the flow: an estimate."""
    rng = np.random.default_rng(seed)
    chosen = np.unique(np.linspace(0, len(flow.nodes) - 1, 60).astype(int))
    m, beta, gamma = [], 0.0, 0.0
    for y in flow.nodes[chosen]:
        around = rng.normal(size=(_SAMPLES, y.size))
        around *= eps / np.linalg.norm(around, axis=1, keepdims=True)
        point = Point(Chain(unflat(np.vstack([y, y + around]), problem.weights)), problem.loss)
        spectrum = np.linalg.eigvalsh(point.hessian())
        steep = sum((g**2).sum((-2, -1)) for g in point.gradient())
        m.append(float(-spectrum[:, 0].min()))
        beta = max(beta, float(np.abs(spectrum).max()))
        gamma = max(gamma, float(np.sqrt(steep).max()))
    rates = [max(pair) for pair in pairwise(m)]
    times = (flow.spacing * chosen).tolist()
    found = theorem3(times, rates, beta, gamma, eps, half_step=True, constants_are="sampled")
    return float(found.value["eta"])


def _on_digits(
    data: Whitened, n: int, nu: float, step_size: float, n_steps: int, seed: int
) -> Array:
    """Return the loss above its minimum along gradient descent on the digits themselves."""
    generator = torch.Generator().manual_seed(seed)
    target = (data.targets.T @ data.inputs / len(data.inputs)).reshape(-1)
    other = torch.randn(data.rank, generator=generator, dtype=torch.float64)
    other -= (other @ target) * target / (target @ target)
    row = R0 * (nu * target + math.sqrt(1 - nu**2) * other / torch.linalg.vector_norm(other))
    dims = (data.rank, *[_HIDDEN] * (n - 1), 1)
    layers = balanced_factors(row[None], dims, turn=True, generator=generator)
    loss = Square.of(data.inputs, data.targets)
    problem = Problem(tuple(w.numpy() for w in layers), loss)
    gaps, theta = [], problem.start
    for _ in range(n_steps + 1):
        gaps.append(problem.value(theta) - data.minimum)
        theta = theta - step_size * problem.gradient(theta)
    return np.array(gaps)


def _draw(
    curves: Curves, rows: Sequence[dict[str, Any]], eps_tilde: float, nu: float, path: Path
) -> None:
    figure = new_figure(10.5, 1.8 + max(2.2, 0.22 * len(rows)))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 0.8, 1.3))
    draw_curves(
        left,
        curves,
        x="gradient descent step $k$",
        y=r"$f(\theta_k)-\min f$",
        title=rf"(a) Digits, $\nu={nu:g}$, at the tube's step size",
        log_x=True,
    )
    left.axhline(eps_tilde, color=GREY, ls="--", lw=0.8)
    left.text(1.1, eps_tilde, r"$\tilde\varepsilon$", va="bottom", fontsize=FONT, color=GREY)
    names = {key: _COLUMNS[key] for key in _METHODS}
    values = {
        name: {f"n = {row['n']}, ν = {row['nu']:g}": row[key] for row in rows}
        for key, name in names.items()
    }
    estimates = [names["measured"], names["within"], names["works"]]
    both = ["theorem4", "works"]
    draw_dots(
        middle,
        {names[key]: values[names[key]] for key in both},
        x=r"step size $\eta$",
        title="(b) Theorem 4",
        hollow=estimates,
        styles={names[key]: _METHODS.index(key) for key in both},
    )
    draw_dots(
        right, values, x=r"step size $\eta$", title="(c) The others, enlarged", hollow=estimates
    )
    right.set_yticks(range(len(rows)), [""] * len(rows))
    lowest = min(float(row["exact_flow"]) for row in rows)
    right.set_xlim(0.5 * lowest, 5.0)
    right.legend(
        loc="upper right", bbox_to_anchor=(1.0, -0.12), ncols=2, fontsize=FONT - 1, frameon=False
    )
    figure.savefig(path, dpi=200)
