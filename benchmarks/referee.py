"""Are the ends that probes report the ends? ``scipy.sparse.linalg.eigsh`` at 1e-6 says so.

A residual r says that some eigenvalue lies within r of the value. The share of probes counted here
is that where the extreme one does not: where a search ended on an eigenvector that is not the
last. Probes follow one another as in a run; at some of them the referee is asked, from a random
vector and with a basis of ``BASIS`` vectors, and so are a cold search and a refresh.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from benchmarks.networks import CASES, batch_of, digits, objective_of
from benchmarks.tables import Table
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.eigen import Spectrum, extreme_eigenpairs
from torch_gfshadow.products import HessianProduct

BASIS = 60
SEEDS = {"tiny": range(1), "quick": range(5), "full": range(10)}
RUNS = {
    "tiny": {1: (1, 2)},
    "quick": {10: (50, 100, 150, 200), 100: (300, 600, 1000)},
    "full": {10: (50, 100, 150, 200), 100: (300, 600, 1000, 2000)},
}
"""Steps between probes → where the referee is asked."""
_DIGITS = {"tiny": 40, "quick": 1000, "full": 1000}


class Verdict(NamedTuple):
    """One probe beside the true ends."""

    ends: Spectrum
    low: float
    high: float

    @property
    def rounding(self) -> float:
        """What products in float32 leave open."""
        return 1e-5 * max(abs(self.low), abs(self.high))

    @property
    def missed(self) -> tuple[bool, bool]:
        """Whether each true end lies outside the value and its residual."""
        low = self.ends.lambda_min - self.ends.residual_min - self.rounding > self.low
        high = self.ends.lambda_max + self.ends.residual_max + self.rounding < self.high
        return low, high

    @property
    def unbounded(self) -> bool:
        """Whether the true λ_min lies below the lower bound."""
        return self.ends.lower_bound - self.rounding > self.low


def referee(product: HessianProduct) -> tuple[float, float]:
    """Return both ends, each by a search of its own that knows nothing of ours."""
    dim = product.theta.numel()

    def image(v: np.ndarray) -> np.ndarray:
        out: np.ndarray = product(torch.from_numpy(v.reshape(-1)).float()).double().numpy()
        return out

    operator = LinearOperator((dim, dim), matvec=image, dtype=np.float64)
    start = np.random.default_rng(7).standard_normal(dim)
    low, high = (
        eigsh(operator, k=1, which=which, tol=1e-6, ncv=BASIS, v0=start, maxiter=200)[0][0]
        for which in ("SA", "LA")
    )
    return float(low), float(high)


def probe(product: HessianProduct, start: Spectrum | None, fresh: bool, seed: int) -> Spectrum:
    """Probe as the shadow does."""
    theta = product.theta
    return extreme_eigenpairs(
        product,
        theta.numel(),
        dtype=theta.dtype,
        device=theta.device,
        start=start or (),
        fresh=fresh,
        seed=seed,
    )


def follow(
    name: str, seed: int, period: int, at: tuple[int, ...], size: str
) -> Iterator[tuple[str, Verdict]]:
    """Probe along one run; yield what the referee says, by the kind of search."""
    case, batch = CASES[name], batch_of(digits(_DIGITS[size]), torch.float32)
    model = case.model(torch.float32, seed=seed)
    objective = objective_of(model, case.loss, batch)
    curvature, last = Curvature(objective), None
    optimizer = torch.optim.SGD(model.parameters(), lr=case.step_size)
    for step in range(max(at) + 1):
        if step % period == 0:
            product = curvature.at(objective.layout.current())
            before, last = last, probe(product, last, False, step)
            if step in at:
                true = referee(product)
                yield f"warm, {period} steps", Verdict(last, *true)
                yield "refresh", Verdict(probe(product, before, True, step), *true)
                yield "cold", Verdict(probe(product, None, False, step), *true)
        optimizer.zero_grad()
        torch.autograd.backward(case.loss(model, batch))
        optimizer.step()


def tables(size: str) -> Iterator[Table]:
    """Yield one table: networks and kinds of search against what the referee found."""
    rows: list[list[object]] = []
    for name in CASES:
        kinds: dict[str, list[Verdict]] = defaultdict(list)
        for seed in SEEDS[size]:
            for period, at in RUNS[size].items():
                for kind, verdict in follow(name, seed, period, at, size):
                    kinds[kind].append(verdict)
        rows += [[f"{name}, {kind}", *_row(found)] for kind, found in kinds.items()]
    heads = ["network, search", "probes", "products, mean", "most", "1 % not met"]
    note = (
        f"Seeds 0 to {len(SEEDS[size]) - 1}, of 100 products at most. Missed: the true end lies "
        "outside value ± residual; only among probes that met 1 %."
    )
    more = ["λ_min missed", "λ_max missed", "lower bound failed"]
    yield Table("eigen referee", [*heads, *more], rows, note)


def _row(found: list[Verdict]) -> list[object]:
    spent = [verdict.ends.n_products for verdict in found]
    met = [verdict for verdict in found if verdict.ends.converged]
    bounded = [verdict for verdict in found if verdict.ends.failure_probability is not None]
    return [
        len(found),
        sum(spent) / len(spent),
        max(spent),
        len(found) - len(met),
        sum(verdict.missed[0] for verdict in met),
        sum(verdict.missed[1] for verdict in met),
        sum(verdict.unbounded for verdict in bounded) if bounded else None,
    ]
