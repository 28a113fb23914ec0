"""What a shadow costs over several ranks: gradients, samples, bytes, by rank count.

One objective (1,000 real digits, 784-50-50-10, tanh) is spread over the ranks by DDP. Each rank
evaluates its own part, so the samples a rank walks fall as 1/R; each gradient and each Hessian
product is one all-reduce of θ. Counts are exact and the same on every machine; the last column is
the time of the loop with the shadow over that without, taken in turn on the same ranks.

    python -m benchmarks.ranks --ranks 1 2 4 --steps 30
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import torch_gfshadow as gfs
from benchmarks.tables import Table
from torch_gfshadow.experiments.data import mnist_digits
from torch_gfshadow.experiments.networks import cross_entropy

DIGITS, STEP_SIZE, PROBE_EVERY = 1000, 0.01, 10


def worker(steps: int, out: str) -> None:
    """Run the loop bare and shadowed on this rank; rank 0 writes what it took."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    digits = mnist_digits(DIGITS)
    mine = digits.images[rank::size], digits.labels[rank::size]
    bare, _ = _timed_loop(mine, steps, shadowed=False)
    shadowed, shadow = _timed_loop(mine, steps, shadowed=True)
    assert shadow is not None
    summary = shadow.summary()
    last = shadow.records[-1]
    ranks = shadow._parts.ranks
    row = {
        "ranks": size,
        "gradients_per_step": summary["grad_evals_per_step_without_probes"],
        "products": summary["n_hvps"],
        "samples_per_gradient": len(mine[1]),
        "megabytes_per_step": ranks.bytes_sent / steps / 1e6 if ranks is not None else 0.0,
        "discrepancy": last.discrepancy,
        "solver_error": last.solver_error,
        "time_ratio": shadowed / bare,
    }
    if rank == 0:
        Path(out).write_text(json.dumps(row), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def _timed_loop(
    mine: tuple[Tensor, Tensor], steps: int, *, shadowed: bool
) -> tuple[float, gfs.Shadow | None]:
    torch.manual_seed(0)
    layers = [nn.Linear(784, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10)]
    model = DistributedDataParallel(nn.Sequential(*layers))
    optimizer = torch.optim.SGD(model.parameters(), lr=STEP_SIZE)
    shadow = None
    if shadowed:
        shadow = gfs.attach(
            optimizer, model, cross_entropy, data=mine, probe_every=PROBE_EVERY, on_error="raise"
        )
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model, mine))
        optimizer.step()
    seconds = time.perf_counter() - start
    if shadow is not None:
        shadow.detach()
    return seconds, shadow


def measured(ranks: int, steps: int) -> dict[str, Any]:
    """Return the row of so many ranks, from a run of its own under torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "row.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(ranks), "-m", "benchmarks.ranks"]
        command += ["--worker", out]
        root = str(Path(__file__).parents[1])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        subprocess.run([*command, "--steps", str(steps)], check=True, env=env)
        row: dict[str, Any] = json.loads(Path(out).read_text(encoding="utf-8"))
        return row


RANKS = {"tiny": (1, 2), "quick": (1, 2, 4), "full": (1, 2, 4)}
STEPS = {"tiny": 3, "quick": 30, "full": 100}


def tables(size: str) -> list[Table]:
    """Return the table of costs by rank count; each row is a run of its own under torchrun."""
    keys = {
        "ranks": "ranks",
        "gradients per step": "gradients_per_step",
        "products": "products",
        "samples per gradient and rank": "samples_per_gradient",
        "MB sent per step": "megabytes_per_step",
        "discrepancy": "discrepancy",
        "solver error": "solver_error",
        "time of the loop with / without": "time_ratio",
    }
    rows = [measured(ranks, STEPS[size]) for ranks in RANKS[size]]
    note = (
        f"{DIGITS:,} real digits, 784-50-50-10, tanh, DDP over gloo, {STEPS[size]} steps, both "
        f"eigenvalues every {PROBE_EVERY} steps. Where there are more ranks than cores, they wait "
        "for each other, with and without a shadow."
    )
    return [Table("ranks", list(keys), [[row[k] for k in keys.values()] for row in rows], note)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        worker(chosen.steps, chosen.worker)
        return
    print(
        "ranks  gradients/step  products  samples/gradient  MB sent/step  discrepancy  time ratio"
    )
    for ranks in chosen.ranks:
        row = measured(ranks, chosen.steps)
        print(
            f"{row['ranks']:5d}  {row['gradients_per_step']:14.2f}  {row['products']:8d}  "
            f"{row['samples_per_gradient']:16d}  {row['megabytes_per_step']:12.2f}  "
            f"{row['discrepancy']:.3e} ± {row['solver_error']:.0e}  {row['time_ratio']:.1f}"
        )


if __name__ == "__main__":
    main()
