"""Cost against the number of parameters and of examples, with the exponent of a fitted power law.

Times are seconds of the shadow and of one bare training step, taken in turn; their quotient is
what stays constant if the shadow scales as training does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import torch_gfshadow as gfs
from benchmarks.networks import Batch, fashion, objective_of, resnet18
from benchmarks.tables import Table, seconds
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.experiments.networks import cross_entropy
from torch_gfshadow.plotting.style import BLUE, GREEN, GREY, PURPLE, VERMILLION, finish, new_figure

WIDTHS = {
    "tiny": (4, 8),
    "quick": (50, 160, 500, 1100, 2800),
    "full": (50, 160, 500, 1100, 2800),
}
EXAMPLES = {
    "tiny": (20, 40),
    "quick": (1000, 4000, 15_000, 60_000),
    "full": (1000, 2000, 4000, 8000, 15_000, 30_000, 60_000),
}
_FIXED = {"tiny": 10, "quick": 200, "full": 1000}
_STEPS = {"tiny": 2, "quick": 5, "full": 20}
FIGURE = Path(__file__).parent.parent / "docs" / "pictures" / "scaling.png"


class Point(NamedTuple):
    """One size, and seconds: ``own`` is what the hooks take beyond gradients, per step."""

    size: int
    step: float
    gradient: float
    product: float
    own: float


PARTS: dict[str, Callable[[Point], float]] = {
    "bare backward pass": lambda p: p.step,
    "gradient of the flow": lambda p: p.gradient,
    "Hessian product": lambda p: p.product,
    "solver beyond gradients": lambda p: p.own,
}


def network(width: int) -> nn.Module:
    """Return 784-width-width-10 with tanh: 42,310 parameters at 50, 10 million at 2,800."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(784, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(width, 10))


def point(model: nn.Module, batch: Batch, steps: int, size: int) -> Point:
    """Measure one size: medians over a few steps."""
    objective = objective_of(model, cross_entropy, batch)
    product = Curvature(objective).at(objective.layout.current())
    vector = torch.ones(objective.layout.dim)
    vector /= vector.norm()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    shadow = gfs.attach(
        optimizer,
        model,
        cross_entropy,
        data=batch,
        probes=[],
        bounds=[],
        audit=False,
        solver="rkc2",
        on_error="raise",
    )

    def descend() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model, batch))

    of_step, of_gradient, of_product, of_own = [], [], [], []
    for _ in range(steps):
        theta = objective.layout.current()
        of_gradient.append(seconds(lambda theta=theta: objective.loss_and_grad(theta, "setup")))
        of_product.append(seconds(lambda: product(vector)))
        of_step.append(seconds(descend))
        before, spent = shadow.summary(), seconds(optimizer.step)
        after = shadow.summary()
        evaluations = sum(_counted(after)) - sum(_counted(before))
        of_own.append(max(spent - evaluations * of_gradient[-1], 1e-9))
    shadow.detach()
    medians = [statistics.median(x) for x in (of_step, of_gradient, of_product, of_own)]
    return Point(size, *medians)


def _counted(summary: dict[str, dict[str, dict[str, int]]]) -> list[int]:
    return list(summary["by_purpose"]["grads"].values())


def exponent(points: Sequence[Point], what: Callable[[Point], float]) -> float:
    """Return p of the least-squares fit seconds = c · size^p in logarithms."""
    xs = [math.log(p.size) for p in points]
    ys = [math.log(what(p)) for p in points]
    slope, _ = statistics.linear_regression(xs, ys)
    return slope


def _cells(p: Point) -> list[float]:
    times = [1e3 * part(p) for part in PARTS.values()]
    return [*times, p.gradient / p.step, p.product / p.gradient]


def _table(
    name: str, points: Sequence[Point], heading: str, note: str, extra: Point | None
) -> Table:
    rows: list[list[object]] = []
    for p in points:
        rows.append([f"{p.size:,}", *_cells(p)])
    if extra is not None:
        rows.append([f"ResNet-18, {extra.size:,}", *_cells(extra)])
    fits = [exponent(points, part) for part in PARTS.values()]
    rows.append(["**exponent fitted**", *fits, None, None])
    heads = [heading, *(f"{part}, ms" for part in PARTS)]
    heads += ["gradient / backward", "product / gradient"]
    curves = {
        name: ([p.size for p in points], [part(p) for p in points]) for name, part in PARTS.items()
    }
    return Table(name, heads, rows, note, curves)


def parameters(size: str) -> Table:
    """Return cost against the number of parameters, and ResNet-18's beside it."""
    (images, labels), source = fashion(_FIXED[size])
    points = []
    for width in WIDTHS[size]:
        model = network(width)
        n = sum(p.numel() for p in model.parameters())
        points.append(point(model, (images, labels), _STEPS[size], n))
    model, convolutional = resnet18() if size != "tiny" else None, None
    if model is not None:
        few: Tensor = images[:32].reshape(-1, 1, 28, 28).expand(-1, 3, -1, -1)
        n = sum(p.numel() for p in model.parameters())
        convolutional = point(model, (few, labels[:32]), _STEPS[size], n)
    note = (
        f"784-w-w-10 with tanh on {len(labels):,} examples ({source}); ResNet-18 on 32 of them, "
        "which reuses its parameters and is left out of the fit.\n\n"
        "![Seconds against parameters and against examples, with the exponents fitted]"
        "(pictures/scaling.png)"
    )
    return _table("scaling parameters", points, "parameters", note, convolutional)


def examples(size: str) -> Table:
    """Return cost against the number of examples."""
    (images, labels), source = fashion(EXAMPLES[size][-1])
    points = []
    for n in EXAMPLES[size]:
        batch = (images[:n], labels[:n])
        points.append(point(network(50), batch, _STEPS[size], n))
    note = f"784-50-50-10 with tanh, {source}."
    return _table("scaling examples", points, "examples", note, None)


def draw(tables: Sequence[Table], path: Path) -> None:
    """Draw both tables' curves in logarithms beside a line of slope one."""
    figure = new_figure(7.5, 3.2)
    for axes, table in zip(figure.subplots(1, len(tables)), tables, strict=True):
        for colour, mark, (label, (xs, ys)) in zip(
            (GREY, VERMILLION, BLUE, PURPLE), "s^oD", table.curves.items(), strict=True
        ):
            slope = statistics.linear_regression([*map(math.log, xs)], [*map(math.log, ys)]).slope
            axes.loglog(xs, ys, mark + "-", color=colour, ms=4, lw=1, label=f"{label}: {slope:.2f}")
        first = table.curves["bare backward pass"][1][-1] * 0.3
        line = [first * x / xs[-1] for x in xs]
        axes.loglog(xs, line, "--", color=GREEN, lw=1, label="slope 1")
        axes.set_xlabel(table.columns[0])
        axes.set_ylabel("seconds")
        axes.legend(fontsize=7, frameon=False, title="exponent fitted", title_fontsize=7)
        finish(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def tables(size: str) -> list[Table]:
    """Return both tables; draw the figure unless this is the smoke test."""
    found = [parameters(size), examples(size)]
    if size != "tiny":
        draw(found, FIGURE)
    return found
