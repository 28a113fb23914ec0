"""How far certified step sizes are from what works, and how tight a tube is (maths of the tube).

Two deep linear networks from balanced starts. On the first, tubes along one run beside the true
distance, which the reference tube certifies on both sides; on both, the largest step size that
provably, and that truly, keeps gradient descent within ε of the flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from torch_gfshadow.balance import balanced_factors
from torch_gfshadow.bounds import ReferenceTube, Square, Tube
from torch_gfshadow.experiments.deep_linear import (
    Array,
    DenseFlow,
    Problem,
    balanced_problem,
    distances,
    largest_true_step,
    largest_tube_step,
    theorem3_steps,
)
from torch_gfshadow.experiments.study import Number, Study, Table
from torch_gfshadow.plotting.studies import draw_curves, draw_dots
from torch_gfshadow.plotting.style import FONT, new_figure

HORIZON, NU, R0 = 6.0, -0.1, 0.2
Curves = dict[str, tuple[list[float], list[float]]]
METHODS = {
    "eq13": "Theorem 3, Eq. 13",
    "constant": "Theorem 3, one m",
    "tight": "Theorem 3, tight m",
    "half_step": "… and half steps",
    "B": "tube B",
    "C": "tube C",
    "truth": "in truth",
}


def run(
    *,
    eps: float = 0.1,
    step_sizes: Sequence[float] = (1e-2, 1e-3),
    horizon: float = HORIZON,
    nu: float = NU,
    seed: int = 0,
    quick: bool = False,
) -> Study:
    """Run the study.

    Args:
        eps: ε, the distance from the flow to be kept.
        step_sizes: Step sizes of the runs that tubes are drawn around; the first is in the figure.
        horizon: T.
        nu: Cosine between start and target of the first network.
        seed: Seed of the second network.
        quick: Only the first step size and the first network.

    Returns:
        The study, ``certificates``.
    """
    three = balanced_problem((5, 4, 4, 1), R0, nu)
    flow = DenseFlow(three, horizon)
    tubes: list[dict[str, Number]] = []
    curves: Curves = {}
    for step_size in step_sizes[:1] if quick else step_sizes:
        rows, drawn = _along(three, flow, step_size)
        tubes += rows
        curves = curves or drawn
    problems = {"n = 3, widths 5-4-4-1": three}
    if not quick:
        problems["n = 4, widths 5-4-4-4-2"] = _two_outputs((5, 4, 4, 4, 2), R0, seed)
    steps: list[dict[str, Number]] = []
    for name, problem in problems.items():
        steps.append({"network": name, **_largest(problem, horizon, eps, 0.1 if quick else 0.04)})
    first = steps[0]
    worst = [float(r["R_over_actual_max"] or math.nan) for r in tubes if r["mode"] == "C"]
    findings = [
        f"To stay within ε = {eps:g} up to T = {horizon:g} on {name}, the largest step size is "
        f"{_short(row['truth'])} in truth, {_short(row['C'])} by the tube in mode C and "
        f"{_short(row['eq13'])} by Theorem 3 with Eq. 13."
        for name, row in zip(problems, steps, strict=True)
    ]
    findings.append(
        f"In mode C the radius is at most {max(worst):.0f} times the true distance over the runs "
        f"of the first network; the tube gains a factor of "
        f"{float(first['C'] or 0) / float(first['eq13'] or math.nan):,.0f} over Theorem 3."
    )
    return Study(
        "certificates",
        {"eps": eps, "horizon": horizon, "nu": nu, "r0": R0, "seed": seed},
        [
            Table(
                f"Tubes around descent, n = 3, widths 5-4-4-1, ν = {nu:g}, T = {horizon:g}",
                {
                    "step_size": "η",
                    "mode": "mode",
                    "certified_until": "certified until t",
                    "actual_max": "largest distance (θ)",
                    "R_over_actual_median": "R / distance, median",
                    "R_over_actual_max": "R / distance, largest",
                    "reference": "distance certified to ± (relative)",
                },
                tubes,
            ),
            Table(
                f"Largest step size that keeps gradient descent within ε = {eps:g} up to T",
                {"network": "network", **METHODS},
                steps,
            ),
        ],
        findings,
        partial(_draw, curves, steps, step_sizes[0], eps),
    )


def _along(
    problem: Problem, flow: DenseFlow, step_size: float
) -> tuple[list[dict[str, Number]], Curves]:
    n_steps = round(flow.horizon / step_size)
    path = problem.descend(step_size, n_steps)
    times = step_size * np.arange(n_steps + 1)
    actual = distances(problem, flow, step_size, n_steps)
    rows: list[dict[str, Number]] = []
    curves: Curves = {}
    certified = _certified(problem, flow, step_size, path)
    for mode in "ABC":
        tube = Tube(problem.weights, problem.loss, mode=mode)
        radii = np.array([tube.step(problem.matrices(t), step_size) for t in path[1:]])
        ratio = (radii / actual[1:])[np.isfinite(radii)]
        rows.append(
            {
                "step_size": step_size,
                "mode": mode,
                "certified_until": round(tube.certified_until, 6),
                "actual_max": float(actual.max()),
                "R_over_actual_median": float(np.median(ratio)),
                "R_over_actual_max": float(ratio.max()),
                "reference": certified,
            }
        )
        shown = np.where(np.isfinite(radii), radii, math.nan)
        curves[f"tube {mode}"] = times[1:].tolist(), shown.tolist()
    curves["true distance"] = times[1:].tolist(), actual[1:].tolist()
    return rows, curves


def _certified(problem: Problem, flow: DenseFlow, step_size: float, path: Array) -> float:
    """Return the relative half-width of the two-sided certificate of the distance, the median."""
    reference = ReferenceTube(problem.weights, problem.loss)
    every = max(1, round(flow.spacing / step_size))
    widths = []
    for k in range(every, len(path), every):
        time = k * step_size
        reference.step(problem.matrices(flow(time)), time - reference.time)
        low, high = reference.discrepancy(problem.matrices(path[k]))
        widths.append((high - low) / (high + low))
    return float(np.median(widths))


def _largest(problem: Problem, horizon: float, eps: float, tol: float) -> dict[str, Number]:
    flow = DenseFlow(problem, horizon)
    found: dict[str, Number] = {
        key: math.exp(value) for key, value in theorem3_steps(problem, flow, eps).items()
    }
    for mode in "BC":
        found[mode] = largest_tube_step(problem, horizon, eps, mode, tol)
    found["truth"] = largest_true_step(problem, flow, eps)
    return found


def _two_outputs(dims: Sequence[int], r0: float, seed: int) -> Problem:
    """Return whitened regression with several outputs from a random balanced start."""
    rng = np.random.default_rng(seed)
    target, start = rng.normal(size=(2, dims[-1], dims[0]))
    target /= np.linalg.norm(target)
    start *= r0 / np.linalg.norm(start)
    layers = balanced_factors(torch.from_numpy(start), dims)
    return Problem(tuple(w.numpy() for w in layers), Square(np.eye(dims[0]), target))


def _draw(
    curves: Curves,
    steps: Sequence[dict[str, Number]],
    step_size: float,
    eps: float,
    path: Path,
) -> None:
    figure = new_figure(9.2, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    styles = {"true distance": {"color": "black", "lw": 1.8}}
    draw_curves(
        left,
        curves,
        x="flow time $t$",
        y=r"$\Vert\theta_k-\theta(t_k)\Vert$ and certified radii (units of $\theta$)",
        title=rf"(a) Tubes around gradient descent, $\eta={step_size:g}$",
        styles=styles,
    )
    left.set_ylim(top=3.0)
    values = {
        label: {str(row["network"]).replace(", ", "\n"): _positive(row[key]) for row in steps}
        for key, label in METHODS.items()
    }
    draw_dots(
        right,
        values,
        x=r"step size $\eta$",
        title=rf"(b) Largest $\eta$ that stays within $\varepsilon={eps:g}$ of the flow",
        annotate=True,
        hollow=["in truth"],
    )
    right.legend(
        loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=4, fontsize=FONT - 1, frameon=False
    )
    figure.savefig(path, dpi=200)


def _positive(value: Number) -> float | None:
    return value if isinstance(value, float) and value > 0 else None


def _short(value: Number) -> str:
    return f"{value:.1e}" if isinstance(value, float) and value < 0.01 else f"{value:.2g}"
