"""Measured overhead of ``budget=`` on ResNet-18 and Fashion-MNIST in minibatches of 128.

    python benchmarks/budget.py FOLDER --budget 0.05 --seconds 600

FOLDER holds ``train-images-idx3-ubyte.gz`` and ``train-labels-idx1-ubyte.gz`` (Debian:
``dataset-fashion-mnist``). Prints steps, windows and overhead: our seconds over the loop's own.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

import torch_gfshadow as gfs


def images(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 60,000 images, standardised, and their labels."""
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28).copy()
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return (torch.from_numpy(x).float() / 255 - 0.286) / 0.353, torch.from_numpy(y)


def objective(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the mean cross-entropy of a batch."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def main() -> None:
    """Train for a while beside a budgeted shadow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--probes", action="store_true")
    options = parser.parse_args()
    x, y = images(options.folder)
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probes = ("lambda_min", "lambda_max") if options.probes else ()
    shadow = gfs.attach(
        optimizer, model, objective, budget=options.budget, probes=probes, on_error="raise"
    )
    stop, steps = time.perf_counter() + options.seconds, 0
    while time.perf_counter() < stop:
        rows = torch.randint(0, len(x), (128,))
        batch = shadow.observe((x[rows], y[rows]))
        optimizer.zero_grad()
        objective(model, batch).backward()
        optimizer.step()
        steps += 1
    summary = shadow.summary()
    ends = [r for r in shadow.records if r.discrepancy]
    print(f"{len(x)} images, {steps} steps, {len(ends)} windows")
    print(f"asked {options.budget:.1%}, took {summary['overhead']:.2%}; {summary['by_purpose']}")
    for record in ends[-3:]:
        print(f"step {record.step}: {record.discrepancy:.3g} ± {record.solver_error:.1g}")


if __name__ == "__main__":
    main()
