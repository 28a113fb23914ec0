"""Does ``solver_error`` hold? A fixed suite of flows against float64 references at rtol 1e-12.

Each case is gradient descent with a shadow beside it, as a user attaches it. At every record the
shadow's true error, its distance from the reference, is compared with the record's
``solver_error``. The claim is a bar that covers the true error in at least 95 % of the records and
is, at the median, at most ten times as large.

References: e^{−At}θ_0 for quadratics; for smooth networks SciPy's DOP853 at rtol 1e-12, atol 1e-14;
both in float64 on gradients by plain ``torch.func``, which shares nothing with the shadow. A ReLU
flow may slide along a kink, where no error controller gets anywhere: there it is Heun's method
with a sixtieth of the step.

    python -m benchmarks.calibration            # the whole suite, about six minutes
    python -m benchmarks.calibration --small    # the part that is a test
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import torch_gfshadow as gfs
from benchmarks.tables import Table

F64 = torch.float64
Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
COVERAGE, RATIO = 0.95, 10.0
SUBSTEPS = 60


class Problem(NamedTuple):
    """A float64 model, its loss and its data."""

    model: nn.Module
    loss: Loss
    data: Batch


class Case(NamedTuple):
    """A problem for every seed, and how it is trained."""

    name: str
    family: str
    build: Callable[[int], Problem]
    step_size: float
    steps: int
    small: bool = False

    def result(self, seed: int, dtype: torch.dtype, solver: str = "auto") -> Result:
        """Run the case; its reference starts where a model of ``dtype`` does."""
        problem = cast(self.build(seed), dtype)
        times = [self.step_size * k for k in range(1, self.steps + 1)]
        return measure(self, problem, reference(cast(problem, F64), times), seed, solver)


class Result(NamedTuple):
    """What one run showed; ``cover`` is the share of records whose true error is under the bar."""

    case: str
    family: str
    seed: int
    dtype: str
    records: int
    cover: float
    ratio: float
    discrepancy: float
    evaluations: float

    @property
    def holds(self) -> bool:
        """Whether the claim holds in this run."""
        return self.cover >= COVERAGE and self.ratio <= RATIO


class Quadratic(nn.Module):
    """½ θᵀAθ with given eigenvalues in a random basis."""

    def __init__(self, eigenvalues: Sequence[float], seed: int) -> None:
        super().__init__()
        draw, n = torch.Generator().manual_seed(seed), len(eigenvalues)
        basis, _ = torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=F64))
        self.register_buffer(
            "matrix", basis @ torch.diag(torch.tensor(eigenvalues).to(F64)) @ basis.T
        )
        self.theta = nn.Parameter(torch.randn(n, generator=draw, dtype=F64))

    def forward(self) -> Tensor:
        """Return the loss."""
        return 0.5 * self.theta @ (self.matrix @ self.theta)


class Chain(nn.Module):
    """w_1·…·w_n, a deep linear network with one unit per layer."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        w = torch.tensor(weights, dtype=F64)
        self.w = nn.Parameter(w * (1.0 + 0.1 * torch.rand(len(weights), generator=draw, dtype=F64)))

    def forward(self) -> Tensor:
        """Return the product."""
        return self.w.prod()


def quadratic(*eigenvalues: float) -> Callable[[int], Problem]:
    """Quadratic losses with these eigenvalues."""
    nothing = (torch.zeros(1, dtype=F64),) * 2
    return lambda seed: Problem(Quadratic(eigenvalues, seed), lambda m, _: m(), nothing)


def chain(*weights: float) -> Callable[[int], Problem]:
    """½ (Π w − 1)², started near these weights."""
    one = (torch.ones(1, dtype=F64),) * 2
    return lambda seed: Problem(
        Chain(weights, seed), lambda m, batch: 0.5 * (m() - batch[0][0]) ** 2, one
    )


def squared(model: nn.Module, batch: Batch) -> Tensor:
    """½ ‖output − y‖², averaged over the examples."""
    return 0.5 * ((model(batch[0]) - batch[1]) ** 2).flatten(1).sum(1).mean()


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy with labels."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def dense(
    activation: Callable[[], nn.Module],
    widths: Sequence[int] = (4, 8, 8, 2),
    samples: int = 32,
    scale: float = 1.0,
    bias: bool = True,
) -> Callable[[int], Problem]:
    """Fully connected networks on a smooth regression problem, weights of size scale/√fan-in."""

    def build(seed: int) -> Problem:
        draw = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            linear = nn.Linear(inner, outer, bias=bias, dtype=F64)
            for p in linear.parameters():
                noise = torch.randn(p.shape, generator=draw, dtype=F64)
                p.data = noise * (scale / math.sqrt(inner))
            layers += [linear, activation()]
        x = torch.randn(samples, widths[0], generator=draw, dtype=F64)
        y = torch.sin(x @ torch.randn(widths[0], widths[-1], generator=draw, dtype=F64))
        return Problem(nn.Sequential(*layers[:-1]), squared, (x, y))

    return build


def conv(activation: Callable[[], nn.Module], samples: int) -> Callable[[int], Problem]:
    """A convolution, average pooling and a linear layer on pictures of blobs in three places."""

    def build(seed: int) -> Problem:
        draw = torch.Generator().manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1, dtype=F64),
            activation(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(27, 3, dtype=F64),
        )
        for p in model.parameters():
            p.data = torch.randn(p.shape, generator=draw, dtype=F64) / math.sqrt(p[0].numel())
        y = torch.randint(0, 3, (samples,), generator=draw)
        x = 0.3 * torch.randn(samples, 1, 6, 6, generator=draw, dtype=F64)
        for i, label in enumerate(y.tolist()):
            x[i, 0, 2 * label : 2 * label + 2] += 1.0
        return Problem(model, cross_entropy, (x, y))

    return build


SUITE = [
    Case("mild", "quadratic", quadratic(0.1, 0.5, 1.0, 2.0), 0.02, 300),
    Case("stiff", "quadratic", quadratic(0.01, 0.1, 1.0, 10.0, 50.0), 0.02, 400, True),
    Case("edge", "quadratic", quadratic(0.01, 0.1, 1.0, 10.0, 95.0), 0.02, 400),
    Case("saddle", "quadratic", quadratic(-1.0, -0.2, 0.5, 3.0), 0.01, 400, True),
    Case("stiff saddle", "quadratic", quadratic(-0.5, 0.1, 1.0, 40.0), 0.02, 400),
    Case("bulk", "quadratic", quadratic(*np.linspace(0.01, 20, 40)), 0.02, 500),
    Case("escape", "deep linear", chain(0.6, 0.7, 0.8, 0.9), 0.02, 400, True),
    Case("plateau", "deep linear", chain(0.2, 0.1, 0.3), 0.1, 400),
    Case("matrices", "deep linear", dense(nn.Identity, bias=False), 0.05, 300, True),
    Case("matrices, stiff", "deep linear", dense(nn.Identity, scale=1.5, bias=False), 0.02, 300),
    Case("near zero", "deep linear", dense(nn.Identity, scale=0.3, bias=False), 0.1, 400),
    Case("mild", "tanh", dense(nn.Tanh), 0.05, 200, True),
    Case("stiff", "tanh", dense(nn.Tanh), 0.3, 200, True),
    Case("wide", "tanh", dense(nn.Tanh, (6, 24, 24, 4), 64), 0.15, 150),
    Case("few examples", "relu", dense(nn.ReLU, (4, 10, 2), 24), 0.02, 60, True),
    Case("two layers", "relu", dense(nn.ReLU, (4, 8, 8, 2), 16), 0.02, 100),
    Case("tanh", "conv", conv(nn.Tanh, 30), 0.1, 150, True),
    Case("relu", "conv", conv(nn.ReLU, 6), 0.05, 60),
]


def slope_of(problem: Problem) -> Callable[[np.ndarray], np.ndarray]:
    """Return −∇f of flat parameters, by plain autograd."""
    model = copy.deepcopy(problem.model)
    names, params = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in params]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, data: Batch) -> Tensor:
            return problem.loss(self.inner, data)

    whole = Whole()

    def loss(flat: Tensor) -> Tensor:
        parts = zip(names, params, flat.split(sizes), strict=True)
        own = {f"inner.{name}": part.view_as(p) for name, p, part in parts}
        return torch.func.functional_call(whole, own, (problem.data,))

    grad = torch.func.grad(loss)
    return lambda y: -grad(torch.from_numpy(y.copy())).numpy()


def reference(problem: Problem, times: Sequence[float]) -> list[Tensor]:
    """Return the flow at ``times``."""
    model = problem.model
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    if isinstance(model, Quadratic):
        values, vectors = torch.linalg.eigh(model.matrix)
        along = vectors.T @ start
        return [vectors @ (torch.exp(-values * t) * along) for t in times]
    slope = slope_of(problem)
    if any(isinstance(part, nn.ReLU) for part in model.modules()):
        return heun(slope, start.numpy(), times)
    out = solve_ivp(
        lambda _, y: slope(y),
        (0.0, times[-1]),
        start.numpy(),
        "DOP853",
        t_eval=times,
        rtol=1e-12,
        atol=1e-14,
    )
    if not out.success:
        raise RuntimeError(out.message)
    return list(torch.from_numpy(out.y.T.copy()))


def heun(
    slope: Callable[[np.ndarray], np.ndarray], y: np.ndarray, times: Sequence[float]
) -> list[Tensor]:
    """Return the flow at evenly spaced ``times``, by Heun's method with many steps to each."""
    out, h = [], times[0] / SUBSTEPS
    for _ in times:
        for _ in range(SUBSTEPS):
            first = slope(y)
            y = y + 0.5 * h * (first + slope(y + h * first))
        out.append(torch.from_numpy(y))
    return out


def cast(problem: Problem, dtype: torch.dtype) -> Problem:
    """Return a copy of the problem in ``dtype``."""
    x, y = problem.data
    y = y.to(dtype) if y.is_floating_point() else y
    return Problem(copy.deepcopy(problem.model).to(dtype), problem.loss, (x.to(dtype), y))


def measure(case: Case, problem: Problem, exact: list[Tensor], seed: int, solver: str) -> Result:
    """Train with the shadow beside the run and compare its records with ``exact``."""
    model, loss, data = problem
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.SGD(model.parameters(), lr=case.step_size)
    bars, errors = [], []
    with gfs.attach(
        optimizer,
        model,
        loss,
        data=data,
        probes=(),
        bounds=(),
        solver=solver,
        audit=False,
        on_error="raise",
    ) as shadow:
        for k in range(case.steps):
            optimizer.zero_grad()
            loss(model, data).backward()
            optimizer.step()
            record = shadow.records[-1]
            if record.solver_error is None:
                raise RuntimeError(f"{case.family} {case.name}: no shadow at step {k}: {record}")
            theta = torch.cat([part.flatten() for part in (shadow.theta() or {}).values()])
            bars.append(record.solver_error)
            errors.append(float((theta.to(F64) - exact[k]).norm()))
        grads = shadow.summary()["by_purpose"]["grads"]
        discrepancy = shadow.records[-1].discrepancy or math.nan
    pairs = list(zip(bars, errors, strict=True))
    return Result(
        case.name,
        case.family,
        seed,
        str(dtype).removeprefix("torch."),
        len(pairs),
        sum(bar >= error for bar, error in pairs) / len(pairs),
        statistics.median(bar / max(error, 1e-300) for bar, error in pairs),
        bars[-1] / discrepancy,
        sum(grads.values()) / case.steps,
    )


def suite(seeds: Iterable[int], *, small: bool = False, solver: str = "auto") -> Iterator[Result]:
    """Yield one result per case, seed and dtype."""
    for case, seed in itertools.product(SUITE, seeds):
        if case.small or not small:
            yield from (case.result(seed, dtype, solver) for dtype in (F64, torch.float32))


class Judged(Protocol):
    """What :func:`totals` reads of a run."""

    @property
    def records(self) -> int:
        """How many records were compared."""

    @property
    def cover(self) -> float:
        """Share of them under the bar."""

    @property
    def ratio(self) -> float:
        """Median of bar over true error."""

    @property
    def holds(self) -> bool:
        """Whether both are as claimed."""


Run = TypeVar("Run", bound=Judged)


def totals(results: Sequence[Judged]) -> str:
    """Return the last line of a table: all records together, and the runs outside the claim."""
    records = sum(r.records for r in results)
    cover = sum(r.cover * r.records for r in results) / records
    ratio = statistics.median(r.ratio for r in results)
    outside = sum(not r.holds for r in results)
    return (
        f"all: {records} records, {cover:.1%} covered, median of medians {ratio:.1f}; "
        f"{outside} of {len(results)} runs outside {COVERAGE:.0%} and {RATIO:g}"
    )


HEADS = ["runs", "records", "covered", "least", "bar / error", "most", "runs outside"]


def grouped(runs: Sequence[Run], key: Callable[[Run], tuple[str, ...]]) -> list[list[object]]:
    """Return a row per key: the key, and what ``HEADS`` says of its runs."""
    rows: list[list[object]] = []
    for group in dict.fromkeys(map(key, runs)):
        some = [r for r in runs if key(r) == group]
        records = sum(r.records for r in some)
        covered = sum(r.cover * r.records for r in some) / records
        ratios = [r.ratio for r in some]
        row = [len(some), records, f"{covered:.1%}", f"{min(r.cover for r in some):.1%}"]
        outside = sum(not r.holds for r in some)
        rows.append([*group, *row, statistics.median(ratios), max(ratios), outside])
    return rows


def tables(size: str) -> list[Table]:
    """Return the table of coverage and tightness, by family and dtype."""
    if size == "tiny":
        runs = [
            case._replace(steps=20).result(0, dtype)
            for case in SUITE
            if case.small
            for dtype in (F64, torch.float32)
        ]
    else:
        runs = list(suite([0] if size == "quick" else range(5)))
    rows = grouped(runs, lambda r: (r.family, r.dtype))
    note = (
        "True error of the shadow against references at rtol 1e-12, default solver: share "
        f"of records under `solver_error` (claimed {COVERAGE:.0%}), all and worst run; median "
        f"of bar over true error (claimed at most {RATIO:g}), in the median run and the worst."
    )
    return [Table("calibration", ["family", "dtype", *HEADS], rows, note)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--small", action="store_true", help="the part that is a test")
    parser.add_argument("--solver", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "family       case              seed dtype    records cover  bar/true bar/disc. evals/step"
    )
    results = []
    for r in suite(options.seeds, small=options.small, solver=options.solver):
        results.append(r)
        print(
            f"{r.family:12s} {r.case:17s} {r.seed:4d} {r.dtype:8s} {r.records:7d} {r.cover:6.1%}"
            f" {r.ratio:8.1f} {r.discrepancy:9.1%} {r.evaluations:9.2f}"
            f"{'' if r.holds else '  outside'}",
            flush=True,
        )
    print(totals(results))


if __name__ == "__main__":
    main()
