"""Does ``solver_error`` hold in mode ``batch``? Runs on minibatches against float64 references.

Each case is a loop as a user writes it: a batch is drawn, observed and stepped on. The reference
follows each step's own field for the length of the step: on smooth networks by SciPy's DOP853 at
rtol 1e-12, on networks with kinks by Heun's method with many short steps. The claim is that of
``calibration.py``: a bar that covers the true error in at least 95 % of the records and is, at the
median, at most ten times as large.

    python -m benchmarks.calibration_batch            # the whole suite, some ten minutes
    python -m benchmarks.calibration_batch --small    # the part that is a test
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import torch_gfshadow as gfs
from benchmarks.calibration import (
    COVERAGE,
    F64,
    HEADS,
    RATIO,
    Problem,
    cast,
    conv,
    cross_entropy,
    dense,
    grouped,
    slope_of,
    totals,
)
from benchmarks.tables import Table
from torch_gfshadow.flows.base import lifted, position

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Slope = Callable[[np.ndarray], np.ndarray]
SUBSTEPS = 60


def sgd(lr: float, **options: Any) -> Make:
    """SGD with these options."""
    return lambda params: torch.optim.SGD(params, lr=lr, **options)


class Case(NamedTuple):
    """A network, its optimizer and its loop."""

    name: str
    build: Callable[[int], Problem]
    make: Make
    steps: int = 60
    batch: int = 8
    clip: float = math.inf
    accumulate: int = 1
    flow: str = "auto"
    small: bool = False
    by_class: bool = False
    """Whether every batch is of one class: rows that are neighbours by their first target."""


class Result(NamedTuple):
    """What one run showed; ``gradients`` is their number per step, the audit's one included."""

    case: str
    seed: int
    dtype: str
    records: int
    cover: float
    ratio: float
    share: float
    gradients: float

    @property
    def holds(self) -> bool:
        """Whether the claim holds in this run."""
        return self.cover >= COVERAGE and self.ratio <= RATIO


def logistic(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy with the largest output as label."""
    return cross_entropy(model, (batch[0], batch[1].argmax(1)))


def labelled(build: Callable[[int], Problem]) -> Callable[[int], Problem]:
    """Return the same network as a classifier."""
    return lambda seed: build(seed)._replace(loss=logistic)


def normed(activation: Callable[[], nn.Module]) -> Callable[[int], Problem]:
    """Return a network with batch normalisation; every batch has its own statistics."""

    def build(seed: int) -> Problem:
        model, loss, data = dense(activation)(seed)
        first, *rest = model
        return Problem(nn.Sequential(first, nn.BatchNorm1d(8, dtype=F64), *rest), loss, data)

    return build


def dropping(activation: Callable[[], nn.Module]) -> Callable[[int], Problem]:
    """Return a network with dropout; every batch has its own mask."""

    def build(seed: int) -> Problem:
        model, loss, data = dense(activation)(seed)
        *rest, last = model
        return Problem(nn.Sequential(*rest, nn.Dropout(0.3), last), loss, data)

    return build


ADAM = {"betas": (0.9, 0.99)}
SUITE = [
    Case("tanh", dense(nn.Tanh), sgd(0.05), small=True),
    Case("tanh, slow", dense(nn.Tanh), sgd(0.002)),
    Case("tanh, fast", dense(nn.Tanh), sgd(0.3), small=True),
    Case("tanh, edge", dense(nn.Tanh), sgd(0.6)),
    Case("tanh, wide", dense(nn.Tanh, (6, 24, 24, 4), 64), sgd(0.15)),
    Case("tanh, three layers", dense(nn.Tanh, (4, 8, 8, 8, 2)), sgd(0.2)),
    Case("gelu", dense(nn.GELU), sgd(0.1), small=True),
    Case("gelu, classes", labelled(dense(nn.GELU)), sgd(0.5)),
    Case("linear", dense(nn.Identity), sgd(0.05)),
    Case("conv", conv(nn.Tanh, 30), sgd(0.2), small=True),
    Case("decay, clipped", dense(nn.Tanh), sgd(0.1, weight_decay=0.05), clip=0.5, small=True),
    Case("accumulated", dense(nn.Tanh), sgd(0.1), accumulate=3),
    Case("momentum", dense(nn.Tanh), sgd(0.02, momentum=0.9)),
    Case("heavy ball", dense(nn.Tanh), sgd(0.01, momentum=0.9), flow="heavy_ball", small=True),
    Case("rmsprop", dense(nn.Tanh), lambda p: torch.optim.RMSprop(p, lr=0.003, alpha=0.9)),
    Case("adam", dense(nn.Tanh), lambda p: torch.optim.Adam(p, lr=0.003, **ADAM), small=True),
    Case("relu", dense(nn.ReLU, (4, 10, 2), 24), sgd(0.05), small=True),
    Case("relu, slow", dense(nn.ReLU, (4, 8, 8, 2)), sgd(0.005)),
    Case("relu, deep", dense(nn.ReLU, (4, 8, 8, 2)), sgd(0.05), small=True),
    Case("relu, fast", dense(nn.ReLU, (4, 8, 8, 2)), sgd(0.2)),
    Case("relu, wide", dense(nn.ReLU, (6, 32, 32, 4), 128), sgd(0.1), batch=32),
    Case("relu, three layers", dense(nn.ReLU, (4, 8, 8, 8, 2)), sgd(0.1)),
    Case("relu, classes", labelled(dense(nn.ReLU, (4, 16, 4), 64)), sgd(0.3), batch=16),
    Case("relu, conv", conv(nn.ReLU, 24), sgd(0.1)),
    Case("relu, momentum", dense(nn.ReLU, (4, 8, 8, 2)), sgd(0.01, momentum=0.9)),
    Case("relu, batches of 4", dense(nn.ReLU, (4, 8, 8, 2)), sgd(0.05), batch=4, small=True),
    Case("relu, slow, of 2", dense(nn.ReLU, (4, 8, 8, 2)), sgd(0.005), batch=2),
    Case("relu, by class", dense(nn.ReLU, (4, 8, 8, 2)), sgd(0.05), by_class=True),
    Case("relu, accumulated", dense(nn.ReLU, (4, 8, 8, 2)), sgd(0.05), batch=4, accumulate=3),
    Case("relu, normed", normed(nn.ReLU), sgd(0.05)),
    Case("relu, dropout", dropping(nn.ReLU), sgd(0.05)),
    Case("tanh, batches of 4", dense(nn.Tanh), sgd(0.1), batch=4),
    Case("tanh, by class", dense(nn.Tanh), sgd(0.1), by_class=True),
    Case("tanh, normed", normed(nn.Tanh), sgd(0.1)),
    Case("tanh, dropout", dropping(nn.Tanh), sgd(0.1)),
]


def run(case: Case, seed: int, dtype: torch.dtype, substeps: int = SUBSTEPS) -> Result:
    """Train on minibatches with the shadow beside the run; compare every record."""
    model, loss, data = cast(case.build(seed), dtype)
    exact = cast(Problem(model, loss, data), F64)
    kinked = any(isinstance(part, nn.ReLU) for part in model.modules())
    for part in exact.model.modules():
        if isinstance(part, nn.BatchNorm1d):  # statistics of the batch alone
            part.running_mean = part.running_var = part.num_batches_tracked = None
    optimizer = case.make(model.parameters())
    shadow = gfs.attach(
        optimizer, model, loss, flow=case.flow, probes=(), bounds=(), on_error="raise"
    )
    flow, layout = shadow._parts.flow, shadow._parts.watched.layout
    draw, state = torch.Generator().manual_seed(seed + 100), None
    bars, errors, discrepancies = [], [], []
    for _ in range(case.steps):
        rows, pieces = rows_of(case, data, draw), []
        optimizer.zero_grad()
        for row in rows:
            piece = exact._replace(data=(exact.data[0][row], exact.data[1][row]))
            pieces.append(replayed(slope_of(piece)))
            batch = (data[0][row], data[1][row])
            shadow.observe(batch)
            (loss(model, batch) / case.accumulate).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), case.clip)
        factor = min(1.0, case.clip / (float(norm) + 1e-6))
        slope = mean_of(pieces)
        if state is None:
            theta = layout.current(F64)
            used = factor * torch.from_numpy(-slope(theta.numpy()))
            flow.configure(optimizer.param_groups, layout)
            state = lifted(flow, theta, used, optimizer.state, layout)

        def field(y: Tensor, slope: Any = slope, factor: float = factor) -> Tensor:
            return flow.field(y, torch.from_numpy(-factor * slope(position(flow, y).numpy())))

        span = flow.step_size(optimizer.param_groups)
        optimizer.step()
        state = across(field, state, span, substeps if kinked else 0)
        record = shadow.records[-1]
        if record.solver_error is None:
            raise RuntimeError(f"{case.name}: no shadow at step {record.step}: {record}")
        missed = shadow._tracker.shadow.theta.to(F64) - position(flow, state)
        bars.append(record.solver_error)
        errors.append(float(missed.norm()))
        discrepancies.append(record.discrepancy)
    shadow.detach()
    grads = shadow.summary()["by_purpose"]["grads"]
    return Result(
        case.name,
        seed,
        str(dtype).removeprefix("torch."),
        len(bars),
        sum(bar >= error for bar, error in zip(bars, errors, strict=True)) / len(bars),
        statistics.median(b / max(e, 1e-300) for b, e in zip(bars, errors, strict=True)),
        statistics.median(b / d for b, d in zip(bars, discrepancies, strict=True)),
        sum(n for purpose, n in grads.items() if purpose != "setup") / case.steps,
    )


def rows_of(case: Case, data: tuple[Tensor, Tensor], draw: torch.Generator) -> Tensor:
    """Return the rows of a step's batches, one batch a row."""
    if not case.by_class:
        return torch.randint(len(data[0]), (case.accumulate, case.batch), generator=draw)
    targets = data[1] if data[1].ndim == 1 else data[1][:, 0]
    first = torch.randint(len(targets) - case.batch, (case.accumulate,), generator=draw)
    return torch.stack([targets.argsort()[at : at + case.batch] for at in first.tolist()])


def replayed(slope: Slope) -> Slope:
    """Return ``slope`` with the random numbers of this moment, whenever it is called."""
    state = torch.get_rng_state()

    def again(y: np.ndarray) -> np.ndarray:
        with torch.random.fork_rng(devices=()):
            torch.set_rng_state(state)
            return slope(y)

    return again


def mean_of(slopes: Sequence[Slope]) -> Slope:
    """Return the mean of the slopes of a step's batches."""
    return lambda y: sum(slope(y) for slope in slopes) / len(slopes)


def across(field: Callable[[Tensor], Tensor], y: Tensor, span: float, substeps: int) -> Tensor:
    """Return the state at the end of one piece; ``substeps`` of Heun, or DOP853 for none."""
    if substeps:
        h = span / substeps
        for _ in range(substeps):
            first = field(y)
            y = y + 0.5 * h * (first + field(y + h * first))
        return y
    out = solve_ivp(
        lambda _, y: field(torch.from_numpy(y.copy())).numpy(),
        (0.0, span),
        y.numpy(),
        "DOP853",
        rtol=1e-12,
        atol=1e-14,
    )
    return torch.from_numpy(out.y[:, -1].copy())


def suite(seeds: Sequence[int], *, small: bool = False, named: str = "") -> Iterator[Result]:
    """Yield one result per case, seed and dtype."""
    for case, seed in itertools.product(SUITE, seeds):
        if (case.small or not small) and named in case.name:
            yield from (run(case, seed, dtype) for dtype in (F64, torch.float32))


def tables(size: str) -> list[Table]:
    """Return the table of coverage and tightness in mode ``batch``, by kinks and dtype."""
    if size == "tiny":
        some = [case for case in SUITE if case.small][:2]
        runs = [
            run(case._replace(steps=6), 0, dtype) for case in some for dtype in (F64, torch.float32)
        ]
    else:
        runs = list(suite([0] if size == "quick" else range(4), small=size == "quick"))
    rows = grouped(runs, lambda r: ("kinks" if "relu" in r.case else "smooth", r.dtype))
    note = (
        "Mode `batch`: the flow of every step's own minibatch; SGD, momentum, RMSprop, Adam, "
        "decay, clipping and accumulation are among them. Columns as in the table before. "
        f"{'A part of the suite' if size != 'full' else 'The whole suite'}."
    )
    return [Table("calibration batch", ["networks", "dtype", *HEADS], rows, note)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--small", action="store_true", help="the part that is a test")
    parser.add_argument("--named", default="", help="only cases whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("case               seed dtype    records  cover bar/true bar/disc. grads/step")
    results = []
    for r in suite(options.seeds, small=options.small, named=options.named):
        results.append(r)
        print(
            f"{r.case:18s} {r.seed:4d} {r.dtype:8s} {r.records:7d} {r.cover:6.1%} {r.ratio:8.1f}"
            f" {r.share:9.2%} {r.gradients:10.2f}{'' if r.holds else '  outside'}",
            flush=True,
        )
    print(totals(results))


if __name__ == "__main__":
    main()
