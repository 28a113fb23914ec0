"""Measured overhead of ``budget=`` on ResNet-18 and Fashion-MNIST in minibatches of 128.

    python -m benchmarks budget

The images are found as in ``benchmarks/scaling.py``. Overhead is our seconds over the loop's own,
as the shadow measures both; it is a time, and other work on the machine disturbs it.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

import torch_gfshadow as gfs
from benchmarks.networks import fashion, resnet18
from benchmarks.tables import Table

BUDGETS = {"tiny": (0.5,), "quick": (0.1,), "full": (0.05, 0.1, 0.2)}
SECONDS = {"tiny": 3.0, "quick": 250.0, "full": 900.0}
EXAMPLES = {"tiny": 64, "quick": 60_000, "full": 60_000}
BATCH = {"tiny": 16, "quick": 128, "full": 128}


def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy of a batch."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def network(size: str) -> nn.Module | None:
    """Return ResNet-18 for one channel, a small network at size tiny, ``None`` without either."""
    if size == "tiny":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.Tanh(), nn.Linear(16, 10))
    model = resnet18()
    if model is not None:
        model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        model.train()
    return model


def measure(size: str, budget: float) -> list[object]:
    """Train for a while beside a budgeted shadow; return a row."""
    torch.manual_seed(0)
    model = network(size)
    if model is None:
        return [f"{budget:.0%}", "torchvision is not installed", *[None] * 5]
    (rows, labels), _ = fashion(EXAMPLES[size])
    images = rows.view(-1, 1, 28, 28)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    steps, stop = 0, time.perf_counter() + SECONDS[size]
    with gfs.attach(
        optimizer, model, objective, budget=budget, probes=(), on_error="raise"
    ) as shadow:
        while time.perf_counter() < stop:
            drawn = torch.randint(0, len(images), (BATCH[size],))
            batch = shadow.observe((images[drawn], labels[drawn]))
            optimizer.zero_grad()
            objective(model, batch).backward()
            optimizer.step()
            steps += 1
        summary = shadow.summary()
        ends = [r for r in shadow.records if r.discrepancy]  # windows begin with 0
    last = ends[-1] if ends else None
    return [
        f"{budget:.0%}",
        f"{summary['overhead']:.1%}",
        steps,
        len(ends),
        sum(summary["by_purpose"]["grads"].values()),
        None if last is None else last.discrepancy,
        None if last is None else last.solver_error,
    ]


def tables(size: str) -> list[Table]:
    """Return the table of budgets asked for and taken."""
    heads = ["budget", "taken", "steps", "windows with a number", "gradients", "last discrepancy"]
    rows = [measure(size, budget) for budget in BUDGETS[size]]
    name = "A small tanh network" if size == "tiny" else "ResNet-18 in training mode"
    note = (
        f"{name} on {fashion(EXAMPLES[size])[1]}, SGD at 0.05, minibatches of {BATCH[size]}, "
        f"{SECONDS[size]:.0f} s each."
    )
    return [Table("budget", [*heads, "solver error"], rows, note)]
