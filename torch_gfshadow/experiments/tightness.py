"""How tight the bounds at a point are: bound over truth, medians over random networks.

Deep linear networks: λ_min from below by Eq. 13 and its tightenings, ‖∇²f‖ from above, and the
constants of balls against the largest of samples in them. Other networks: tightness_rest.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from torch_gfshadow.bounds import Square
from torch_gfshadow.bounds._ball import Ball, Node
from torch_gfshadow.bounds._chain import Chain, flat, unflat
from torch_gfshadow.bounds._deep_linear import Point, top_eigenvalue
from torch_gfshadow.bounds.lemma2 import blocks_matrix, by_norms, norms_matrix, smoothness
from torch_gfshadow.experiments import tightness_rest as rest
from torch_gfshadow.experiments.study import Number, Study, Table
from torch_gfshadow.plotting.studies import draw_dots
from torch_gfshadow.plotting.style import FONT, new_figure

SHAPES = ((5, 4, 4, 1), (5, 4, 4, 3), (6, 5, 5, 5, 5, 4))
SCALES = {"large": 1.0, "small": 0.1}
"""Standard deviation of the weights, in units of 1/√d_{j−1}."""
RADII = (0.01, 0.1, 0.5)
_SAMPLES = 20
_LAMBDA_MIN = {
    "eq13": "Eq. 13",
    "spectral": "spectral",
    "C_norms": "C_norms",
    "C_blocks": "C_blocks",
    "N": "λ_min(N)",
    "smoothness": "‖∇²f‖ by norms",
}
_BALL = {"B": "−λ_min, mode B", "beta": "β", "slope": "L_H", "gamma": "γ"}


def run(*, trials: int = 400, balls: int = 60, seed: int = 0, quick: bool = False) -> Study:
    """Run the study.

    Args:
        trials: Random networks per shape and scale, each with targets of its own.
        balls: Random balls per radius, of 20 pairs of points each.
        seed: Seed of everything.
        quick: A tenth of both.

    Returns:
        The study, ``tightness``.
    """
    if quick:
        trials, balls = max(1, trials // 10), max(1, balls // 10)
    rng = np.random.default_rng(seed)
    points: list[dict[str, Number]] = [
        {"network": "-".join(map(str, dims)), "start": name, **_at_points(dims, scale, trials, rng)}
        for name, scale in SCALES.items()
        for dims in SHAPES
    ]
    inside: list[dict[str, Number]] = [
        {"radius": radius, **_in_balls(radius, balls, seed)} for radius in RADII
    ]
    bent = rest.with_activations(max(1, trials // 2), seed)
    flows = rest.along_flows(max(1, trials // 4), seed)
    loosest = max(points, key=lambda row: float(row["eq13"] or 0.0))
    findings = [
        f"Eq. 13 gives {float(loosest['eq13'] or 0):.1f} times −λ_min on {loosest['network']} from "
        f"a {loosest['start']} start, the norms of the blocks "
        f"{float(loosest['C_blocks'] or 0):.2f} times; no bound was below the truth in "
        f"{trials * len(points):,} networks.",
        f"On balls of radius {RADII[0]:g} the constants are within "
        f"{max(float(inside[0][key] or 0) for key in _BALL):.1f} times the largest of "
        f"{2 * _SAMPLES} samples, at {RADII[-1]:g} within "
        f"{max(float(inside[-1][key] or 0) for key in _BALL):.0f} times.",
        f"With activations or shared weights the limit by norms is "
        f"{min(float(row['simple'] or 0) for row in bent):.0f} to "
        f"{max(float(row['simple'] or 0) for row in bent):.0f} times λ_min, that by stacked blocks "
        f"{min(float(row['stacked'] or 0) for row in bent):.1f} to "
        f"{max(float(row['stacked'] or 0) for row in bent):.1f} times.",
    ]
    return Study(
        "tightness",
        {"trials": trials, "balls": balls, "seed": seed},
        [
            Table(
                "Bound / truth at random points, medians",
                {"network": "network", "start": "start", **_LAMBDA_MIN},
                points,
            ),
            Table(
                "Constant of a ball / largest of samples in it, 5-4-4-1, medians",
                {"radius": "radius (θ)", **_BALL},
                inside,
            ),
            Table(
                "λ_min with activations and shared weights, bound / truth, medians",
                {"network": "network", "loss": "loss", **rest.FORMS},
                bent,
            ),
            Table(
                "λ_min along flows from ‖θ‖ = ε, bound / truth, medians",
                {"network": "network", "start": "ε", **rest.FLOWS},
                flows,
            ),
        ],
        findings,
        partial(_draw, points, inside),
    )


def _at_points(
    dims: Sequence[int], scale: float, trials: int, rng: np.random.Generator
) -> dict[str, Number]:
    """Return median bound over truth; raise if a bound is below the truth."""
    weights = [scale * rng.normal(size=(trials, b, a)) / math.sqrt(a) for a, b in pairwise(dims)]
    inputs = rng.normal(size=(12, dims[0]))
    targets = rng.normal(size=(trials, 12, dims[-1]))
    loss = Square(inputs.T @ inputs / 12, np.swapaxes(targets, -1, -2) @ inputs / 12)
    point = Point(Chain(weights), loss)
    spectrum = np.linalg.eigvalsh(point.hessian())
    bottom = -spectrum[:, 0]
    eq13, spectral = by_norms(point)
    bounds = {
        "eq13": eq13,
        "spectral": spectral,
        "C_norms": top_eigenvalue(norms_matrix(point)),
        "C_blocks": top_eigenvalue(blocks_matrix(point)),
        "N": -np.linalg.eigvalsh(point.hessian(gauss_newton=False))[:, 0] + point.hessian_error(),
    }
    ratios: dict[str, Number] = {}
    negative = bottom > 0
    for key, bound in bounds.items():
        if (bound < bottom).any():
            raise ArithmeticError(f"bound {key} is below the truth on {dims}")
        ratios[key] = float(np.median((bound / bottom)[negative]))
    norm = np.abs(spectrum).max(-1)
    above = smoothness(point)
    if (above < norm).any():
        raise ArithmeticError(f"the bound on the norm of the Hessian is below the truth on {dims}")
    ratios["smoothness"] = float(np.median(above / norm))
    return ratios


def _in_balls(radius: float, balls: int, seed: int) -> dict[str, Number]:
    # the same networks and directions at every radius
    rng, dims = np.random.default_rng(seed), SHAPES[0]
    found: dict[str, list[float]] = {key: [] for key in _BALL}
    for _ in range(balls):
        weights = [rng.normal(size=(b, a)) / math.sqrt(a) for a, b in pairwise(dims)]
        inputs, targets = rng.normal(size=(12, dims[0])), rng.normal(size=(12, dims[-1]))
        node = Node(Point(Chain(weights), Square.of(inputs, targets)))
        ball = Ball(node, radius)
        off = rng.normal(size=(2, _SAMPLES, node.size))
        off *= radius / np.linalg.norm(off, axis=-1, keepdims=True)
        first, second = (
            Point(Chain(unflat(node.theta + o, weights)), node.point.loss) for o in off
        )
        dense = first.hessian()
        spectrum = np.linalg.eigvalsh(dense)
        turned = np.linalg.norm(dense - second.hessian(), 2, axis=(-2, -1))
        slope = turned / np.linalg.norm(off[0] - off[1], axis=-1)
        steep = np.linalg.norm(flat(first.gradient()), axis=-1)
        found["B"].append(ball.curvature_by_blocks / float(-spectrum[:, 0].min()))
        found["beta"].append(ball.smoothness / float(np.abs(spectrum).max()))
        found["slope"].append(ball.hessian_slope / float(slope.max()))
        found["gamma"].append(ball.steepest / float(steep.max()))
    return {key: float(np.median(values)) for key, values in found.items()}


def _draw(
    points: Sequence[dict[str, Number]], inside: Sequence[dict[str, Number]], path: Path
) -> None:
    figure = new_figure(9.2, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    for axes, columns, rows, groups, title in (
        (
            left,
            _LAMBDA_MIN,
            points,
            [f"{row['network']}\n{row['start']}" for row in points],
            r"(a) $\lambda_{\min}$ and $\Vert\nabla^2 f\Vert$ at a point",
        ),
        (
            right,
            _BALL,
            inside,
            [f"radius {row['radius']:g}" for row in inside],
            "(b) Constants of a ball, against samples",
        ),
    ):
        values = {
            label: {
                group: float(row[key] or math.nan) for group, row in zip(groups, rows, strict=True)
            }
            for key, label in columns.items()
        }
        draw_dots(axes, values, x="bound / truth (1 is exact)", title=title)
        axes.axvline(1.0, color="black", lw=0.8)
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=3,
            fontsize=FONT - 1,
            frameon=False,
        )
    figure.savefig(path, dpi=200)
