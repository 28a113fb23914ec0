"""What a shadow across kinks costs, and whether its error bar holds.

Networks with ReLU and max-pool on real digits, each followed by gradient descent with a shadow
beside it and by a reference: Heun's method in float64 with an eighth of the step, on plain
gradients, which knows nothing of averaged slopes. One row per network, seed and resolution.

At a kink that repels, a reference can stray as well as the shadow. So it is run at a quarter of
the step, too, and a record is judged only where the distance of the two references cannot turn
the verdict: it is less than what lies between the error and the bar.

    python -m benchmarks.kinks --steps 1500 --seeds 0 1 2 --cache /tmp/kinks

The references take 24 gradients per step and are kept in the cache directory.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import torch_gfshadow as gfs
from benchmarks.tables import Table
from torch_gfshadow._tree import Layout
from torch_gfshadow.experiments.data import Digits, mnist_digits
from torch_gfshadow.experiments.networks import cross_entropy, fully_connected
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective

N_RECORDS = 30
REFINEMENTS = (4, 8)


class Case(NamedTuple):
    """A network, its data and its step size."""

    make: Callable[[int, torch.dtype], nn.Module]
    data: Callable[[Digits, torch.dtype], tuple[Tensor, Tensor]]
    step_size: float


def full(digits: Digits, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The paper's batch: 1,000 digits of 784 pixels."""
    return digits.images.to(dtype), digits.labels


def reduced(digits: Digits, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """200 digits of 7 x 7 pixels."""
    images, labels = pictures(digits, dtype)
    return nn.functional.avg_pool2d(images, 2).flatten(1), labels


def pictures(digits: Digits, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """200 digits as pictures of 14 x 14 pixels."""
    images = digits.images[:200].reshape(-1, 1, 28, 28).to(dtype)
    return nn.functional.avg_pool2d(images, 2), digits.labels[:200]


def convolutional(seed: int, dtype: torch.dtype) -> nn.Module:
    """Two convolutions with ReLU and max-pool, one linear layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 12, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12 * 9, 10),
        ).to(dtype)


CASES = {
    "paper": Case(lambda seed, dtype: fully_connected("relu", seed=seed, dtype=dtype), full, 1e-3),
    "small": Case(
        lambda seed, dtype: fully_connected("relu", (49, 30, 30, 10), seed, dtype), reduced, 2.5e-3
    ),
    "conv": Case(convolutional, pictures, 1e-2),
}


class Row(NamedTuple):
    """What one run showed.

    ``cover`` is the share of the judged records whose error lies under the bar, ``judged`` how
    many those are, ``unsure`` the first step that the references leave open, if any. ``error`` is
    NaN where they leave the last one open.
    """

    name: str
    seed: int
    resolution: float | None
    gradients: float
    forwards: float
    cover: float
    judged: int
    unsure: int | None
    ratio: float
    bar: float
    error: float


def flow_of(case: Case, seed: int, digits: Digits) -> Objective:
    """The objective in float64."""
    model = case.make(seed, torch.float64)
    names, params = zip(*model.named_parameters(), strict=True)
    data = case.data(digits, torch.float64)
    return Objective(model, cross_entropy, data, Layout(names, params), Ledger())


def reference(objective: Objective, step_size: float, steps: int, refinement: int) -> list[Tensor]:
    """The flow at ``N_RECORDS`` times, by Heun's method with η/``refinement``."""
    theta, h, out = objective.layout.current(torch.float64), step_size / refinement, []
    for n in range(1, steps * refinement + 1):
        slope = objective.loss_and_grad(theta, "setup")[1]
        ahead = objective.loss_and_grad(theta - h * slope, "setup")[1]
        theta = theta - 0.5 * h * (slope + ahead)
        if n % (refinement * (steps // N_RECORDS)) == 0:
            out.append(theta)
    return out


class Exact(NamedTuple):
    """The flow at ``N_RECORDS`` times, and how far the coarser reference is from it there."""

    thetas: list[Tensor]
    doubts: list[float]


def exact_flow(case: Case, seed: int, steps: int, digits: Digits) -> Exact:
    """Run both references."""
    objective = flow_of(case, seed, digits)
    coarse, fine = (reference(objective, case.step_size, steps, r) for r in REFINEMENTS)
    return Exact(fine, [float((a - b).norm()) for a, b in zip(coarse, fine, strict=True)])


def judge(bars: list[float], errors: list[float], doubts: list[float]) -> list[bool | None]:
    """Say of every record whether its bar held; ``None`` where the references leave it open."""
    return [
        bar >= error if abs(bar - error) > doubt else None
        for bar, error, doubt in zip(bars, errors, doubts, strict=True)
    ]


def run(
    name: str, seed: int, steps: int, resolution: float | None, exact: Exact, digits: Digits
) -> Row:
    """Train by gradient descent with the shadow beside it; compare the two with the flow."""
    case = CASES[name]
    model = case.make(seed, torch.float32)
    data = case.data(digits, torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=case.step_size)
    period, bars, errors = steps // N_RECORDS, [], []
    with gfs.attach(
        optimizer,
        model,
        cross_entropy,
        data=data,
        every=min(10, period),
        probe_every=max(1, steps // 30),
        resolution=resolution,
        on_error="raise",
    ) as shadow:
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            cross_entropy(model, data).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % period == 0:
                bars.append(shadow.records[-1].solver_error or 0.0)
                theta = torch.cat([part.flatten() for part in (shadow.theta() or {}).values()])
                errors.append(float((theta - exact.thetas[len(bars) - 1]).norm()))
        counts = shadow.summary()["by_purpose"]
        discrepancy = shadow.records[-1].discrepancy or float("nan")
    grads = counts["grads"]
    verdicts = judge(bars, errors, exact.doubts)
    sure = [k for k, verdict in enumerate(verdicts) if verdict is not None]
    return Row(
        name,
        seed,
        resolution,
        (sum(grads.values()) - grads.get("probes", 0)) / steps,
        sum(counts["losses"].values()) / steps,
        statistics.mean(bool(verdicts[k]) for k in sure) if sure else math.nan,
        len(sure),
        next((period * (k + 1) for k, verdict in enumerate(verdicts) if verdict is None), None),
        statistics.median(bars[k] / errors[k] for k in sure) if sure else math.nan,
        bars[-1] / discrepancy,
        errors[-1] / discrepancy if verdicts[-1] is not None else math.nan,
    )


def cover(row: Row) -> str:
    """How many of the judged records held, and where the references leave the rest open."""
    if not row.judged:
        return "reference not converged"
    held = f"{row.cover:.0%} of {row.judged}"
    return held if row.unsure is None else f"{held}; reference not converged at step {row.unsure}"


def error_of(row: Row) -> str:
    """The true error over the discrepancy, if the references know it."""
    return "–" if math.isnan(row.error) else f"{row.error:.0%}"


_STEPS = {"tiny": 30, "quick": 600, "full": 1500}
_SEEDS = {"tiny": (0,), "quick": (0,), "full": (0, 1, 2)}


def tables(size: str) -> list[Table]:
    """Return cost, coverage and tightness of every case; references are not kept."""
    steps, rows, digits = _STEPS[size], [], mnist_digits(1000, download=False)
    for name in ["small"] if size == "tiny" else CASES:
        for seed in _SEEDS[size]:
            exact = exact_flow(CASES[name], seed, steps, digits)
            for resolution in (None, 0.5, 0.1):
                row = run(name, seed, steps, resolution, exact, digits)
                asked = "default" if resolution is None else f"{resolution:g}"
                shares = [cover(row), row.ratio, f"{row.bar:.0%}", error_of(row)]
                label = f"{name}, seed {seed}, {asked}"
                rows.append([label, row.gradients, row.forwards, *shares])
    heads = ["network, seed, resolution", "gradients per step", "forward passes per step"]
    heads += ["records under the bar", "bar / true error", "bar / discrepancy"]
    note = (
        f"{steps} steps, {N_RECORDS} records each, probes left out of the counts. Judged are the "
        "records whose verdict does not change by as much as the two references differ."
    )
    return [Table("kinks", [*heads, "true error / discrepancy"], rows, note)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500, help="a multiple of 30")
    parser.add_argument("--resolutions", nargs="+", type=float, default=[0.5, 0.1])
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = mnist_digits(1000, download=False)
    options.cache.mkdir(parents=True, exist_ok=True)
    print(f"{digits.source}; {options.steps} steps, every figure per step, probes left out")
    print("network seed asked  gradients forwards bar/true  bar/disc. true/disc.  under the bar")
    for name in options.cases:
        for seed in options.seeds:
            path = options.cache / f"{name}-{seed}-{options.steps}-checked.pt"
            if not path.exists():
                torch.save(tuple(exact_flow(CASES[name], seed, options.steps, digits)), path)
            exact = Exact(*torch.load(path))
            for resolution in (None, *options.resolutions):
                row = run(name, seed, options.steps, resolution, exact, digits)
                asked = "default" if row.resolution is None else f"{row.resolution:g}"
                print(
                    f"{name:8s} {seed:3d} {asked:7s} {row.gradients:8.2f} {row.forwards:8.2f}"
                    f" {row.ratio:8.1f} {row.bar:9.0%} {error_of(row):>9s}  {cover(row)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
