"""Hessian products per probe of both ends of the spectrum, and what one product costs.

Asked for: λ_min and λ_max, each with a residual of 1 % of itself. Cold at the start of training
and after some steps; warm ten steps later, from what the probe before left. Residuals in the
table are measured anew, with our product, whatever a method claims. hessian-eigenthings and
PyHessian cannot be asked for a residual: the former takes a number of iterations, and gets the
smallest in ``ITERATIONS`` that meets 1 % (which nobody knows beforehand), the latter gives the
eigenvalue largest in size only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import CASES, Batch, Case, batch_of, digits, objective_of, resnet18
from benchmarks.tables import Table, paired_ratio
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.eigen import Spectrum, extreme_eigenpairs
from torch_gfshadow.experiments.networks import cross_entropy
from torch_gfshadow.objective import Objective
from torch_gfshadow.products import HessianProduct

TOL = 0.01
ITERATIONS = (10, 20, 30, 40, 60, 90, 130)
STEPS = {"tiny": 2, "quick": 100, "full": 1000}
PERIODS = {"tiny": (1,), "quick": (10, 100), "full": (10, 50, 100)}
_DIGITS = {"tiny": 40, "quick": 1000, "full": 1000}
_REPEATS = {"tiny": 2, "quick": 15, "full": 40}
_IMAGES = {"tiny": 0, "quick": 8, "full": 64}


class Probe(NamedTuple):
    """Unit vectors of the two ends (``None``: not to be had), and products spent."""

    low: Tensor | None
    high: Tensor | None
    products: int


class Place(NamedTuple):
    """A point of a run: the model there, and our product."""

    model: nn.Module
    case: Case
    batch: Batch
    product: HessianProduct


def places(name: str, size: str) -> dict[str, Place]:
    """Return the start of a run, a point later on, and one ten steps after that."""
    case, batch = CASES[name], batch_of(digits(_DIGITS[size]), torch.float32)
    model, found = case.model(torch.float32), {}
    optimizer = torch.optim.SGD(model.parameters(), lr=case.step_size)
    for step in range(STEPS[size] + 11):
        for label, at in (("start", 0), ("later", STEPS[size]), ("next", STEPS[size] + 10)):
            if step == at:
                twin = case.model(torch.float32)
                twin.load_state_dict(model.state_dict())
                objective = objective_of(twin, case.loss, batch)
                product = Curvature(objective).at(objective.layout.current())
                found[label] = Place(twin, case, batch, product)
        optimizer.zero_grad()
        torch.autograd.backward(case.loss(model, batch))
        optimizer.step()
    return found


def ours(place: Place, start: Spectrum | tuple[()] = ()) -> tuple[Probe, Spectrum]:
    """Probe as the shadow does."""
    theta = place.product.theta
    ends = extreme_eigenpairs(
        place.product, theta.numel(), dtype=theta.dtype, device=theta.device, start=start, tol=TOL
    )
    return Probe(ends.vector_min, ends.vector_max, ends.n_products), ends


def _arpack(matvec: Callable[[Tensor], Tensor], dim: int, start: Probe | None) -> Probe:
    count, ends = 0, []

    def counted(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        out: np.ndarray = matvec(torch.from_numpy(v.reshape(-1)).float()).double().numpy()
        return out

    operator = LinearOperator((dim, dim), matvec=counted, dtype=np.float64)
    rng = np.random.default_rng(0)
    for which, known in (("SA", start and start.low), ("LA", start and start.high)):
        v0 = rng.standard_normal(dim) if known is None else known.double().numpy()
        _, vector = eigsh(operator, k=1, which=which, tol=TOL, v0=v0)
        ends.append(torch.from_numpy(vector[:, 0]).float())
    return Probe(ends[0], ends[1], count)


def scipy_eigsh(place: Place, start: Probe | None = None) -> Probe:
    """``scipy.sparse.linalg.eigsh``, once for each end, on our product."""
    return _arpack(place.product, place.product.theta.numel(), start)


def curvlinops_eigsh(place: Place, start: Probe | None = None) -> Probe:
    """``eigsh`` on curvlinops' Hessian; the four data passes of its check are not counted."""
    from curvlinops import HessianLinearOperator

    criterion, batch = criterion_of(place)
    params = [p for p in place.model.parameters() if p.requires_grad]
    operator = HessianLinearOperator(
        place.model, criterion, params, [batch], check_deterministic=False
    )
    return _arpack(lambda v: (operator @ v).detach(), place.product.theta.numel(), start)


def eigenthings(place: Place, start: Probe | None = None) -> Probe:
    """hessian-eigenthings' Lanczos, once for each end; it has no warm start."""
    from hessian_eigenthings import HessianOperator, lanczos

    operator, count, ends = HessianOperator(place.model, [place.batch], place.case.loss), 0, []
    for which in ("SA", "LA"):
        for most in ITERATIONS:
            found = lanczos(operator, k=1, max_iter=most, which=which, seed=0)
            vector = found.eigenvectors[0].detach()
            spent = int(found.iterations)
            if residual(place.product, vector) <= TOL:
                break
        count += spent
        ends.append(vector)
    return Probe(ends[0], ends[1], count)


def pyhessian(place: Place, start: Probe | None = None) -> Probe:
    """PyHessian's power iteration: one end, the larger in size, at its own stopping rule."""
    # the package hides its module behind the class of the same name
    module: Any = import_module("pyhessian.hessian")
    count, product = 0, module.hessian_vector_product

    def counted(*arguments: object) -> object:
        nonlocal count
        count += 1
        return product(*arguments)

    criterion, batch = criterion_of(place)
    module.hessian_vector_product = counted
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backward(create_graph=True)
            torch.manual_seed(0)
            probe = module.hessian(place.model, criterion, data=batch, cuda=False)
            values, vectors = probe.eigenvalues(maxIter=100, tol=1e-3)
    finally:
        module.hessian_vector_product = product
        place.model.zero_grad(set_to_none=True)
    vector = torch.cat([part.detach().flatten() for part in vectors[0]])
    return Probe(None, vector, count) if values[0] > 0 else Probe(vector, None, count)


def criterion_of(place: Place) -> tuple[nn.Module, Batch]:
    """Return loss and data as peers take them; ½ ‖·‖² is five times torch's MSELoss."""
    images, labels = place.batch
    if place.case.loss is cross_entropy:
        return nn.CrossEntropyLoss(), place.batch
    return nn.MSELoss(), (images, nn.functional.one_hot(labels, 10).to(images))


PEERS: dict[str, Callable[..., Probe]] = {
    "scipy eigsh, LA and SA": scipy_eigsh,
    "curvlinops and eigsh, LA and SA": curvlinops_eigsh,
    "hessian-eigenthings, LA and SA, iterations known": eigenthings,
    "PyHessian, one end": pyhessian,
}


def residual(product: HessianProduct, vector: Tensor | None) -> float | None:
    """Return ‖Hv − λv‖/|λ| with λ the Rayleigh quotient."""
    if vector is None:
        return None
    vector = vector / vector.norm()
    image = product(vector)
    value = torch.dot(vector, image)
    return float((image - value * vector).norm() / value.abs())


def measure(name: str, size: str) -> Table:
    """Return the table of one network."""
    at, rows = places(name, size), []
    cold, _ = ours(at["start"])
    later, ends = ours(at["later"])
    warm, _ = ours(at["next"], ends)
    rows.append(_row("**gfshadow**, both ends at once", at, cold, later, warm))
    for label, method in PEERS.items():
        try:
            cold, later = method(at["start"]), method(at["later"])
            warm = method(at["next"], later) if "eigsh" in label else None
        except ImportError as missing:
            rows.append([f"{label}: no {missing.name}", *[None] * 5])
            continue
        rows.append(_row(label, at, cold, later, warm))
    note = (
        f"{name.capitalize()}, {STEPS[size]} steps of η = {CASES[name].step_size:g} between "
        "start and later; residuals are those of the probe at the start."
    )
    heads = ["method", "cold, start", "cold, later", "warm, ten steps on"]
    return Table(f"eigen {name}", [*heads, "residual λ_min", "residual λ_max"], rows, note)


def _row(
    label: str, at: dict[str, Place], cold: Probe, later: Probe, warm: Probe | None
) -> list[object]:
    left = [residual(at["start"].product, vector) for vector in (cold.low, cold.high)]
    return [label, cold.products, later.products, warm and warm.products, *left]


def along(size: str) -> Table:
    """Return what warm probes cost over runs of twenty of them, close ones and distant ones."""
    rows: list[list[object]] = []
    for name in CASES:
        for period in PERIODS[size]:
            found = _probed(name, size, period)
            spent = [ends.n_products for ends in found]
            warm = spent[1:]
            short = sum(not ends.converged for ends in found)
            ratio = -found[-1].lambda_min / found[-1].lambda_max
            costs = [spent[0], sum(warm) / len(warm), median(warm), max(warm)]
            rows.append([name, period, *costs, short, ratio])
    heads = ["network", "steps between", "cold, first", "warm, mean", "warm, median", "most"]
    note = "Products per probe over 20 warm probes from the start of training on; of 100 at most."
    return Table("eigen along", [*heads, "1 % not met", "−λ_min/λ_max, last"], rows, note)


def _probed(name: str, size: str, period: int) -> list[Spectrum]:
    case, batch = CASES[name], batch_of(digits(_DIGITS[size]), torch.float32)
    model = case.model(torch.float32)
    objective = objective_of(model, case.loss, batch)
    curvature, found = Curvature(objective), list[Spectrum]()
    optimizer = torch.optim.SGD(model.parameters(), lr=case.step_size)
    for step in range(20 * period + 1):
        if step % period == 0:
            place = Place(model, case, batch, curvature.at(objective.layout.current()))
            found.append(ours(place, found[-1] if found else ())[1])
        optimizer.zero_grad()
        torch.autograd.backward(case.loss(model, batch))
        optimizer.step()
    return found


def products(size: str) -> Table:
    """Return what one Hessian product takes, in units of a gradient."""
    rows: list[list[object]] = []
    models = [(name, case.model(torch.float32), case.loss) for name, case in CASES.items()]
    batches = [batch_of(digits(_DIGITS[size]), torch.float32)] * len(models)
    network = resnet18() if _IMAGES[size] else None
    if network is not None:
        draw = torch.Generator().manual_seed(0)
        images = torch.randn(_IMAGES[size], 3, 64, 64, generator=draw)
        models.append((f"ResNet-18, {len(images)} images of 64 × 64", network, cross_entropy))
        batches.append((images, torch.arange(len(images)) % 10))
    for (name, model, loss), batch in zip(models, batches, strict=True):
        objective = objective_of(model, loss, batch)
        curvature, theta = Curvature(objective), objective.layout.current()
        product, vector = curvature.at(theta), torch.ones_like(theta) / theta.numel() ** 0.5
        pairs = _REPEATS[size] if theta.numel() < 1e6 else max(2, _REPEATS[size] // 3)
        ratio, spread = paired_ratio(
            lambda product=product, vector=vector: product(vector),
            lambda objective=objective, theta=theta: objective.loss_and_grad(theta, "setup"),
            pairs,
        )
        taken, least = arithmetic(objective, product)
        rows.append([name, theta.numel(), curvature.backend, ratio, spread, pairs, taken, least])
    heads = ["network", "parameters", "backend", "time of a product / a gradient", "±", "pairs"]
    note = (
        "Median of runs taken in turn; the linearisation is made once per probe and not counted. "
        "Operations are those of convolutions and matrix products, counted by torch."
    )
    return Table("product", [*heads, "operations, ratio", "least possible"], rows, note)


def arithmetic(objective: Objective, product: HessianProduct) -> tuple[float, float]:
    """Return the operations of a product over those of a gradient, and the least they can be.

    A gradient takes three matrix products in a layer y = Wx with cotangent g: Wx, Wᵀg, gxᵀ. The
    derivative of the last two in a direction takes six, W·dx, dW·x, Wᵀdg, dWᵀg, dg·xᵀ and g·dxᵀ;
    in a layer that the data enter, where dx = 0 and nobody asks for Wᵀg, it is two against two.
    So with F operations forward and B backward, F + B against no less than 4B − 2F.
    """
    theta = product.theta
    forward = _operations(lambda: objective.loss(theta, "setup"))
    gradient = _operations(lambda: objective.loss_and_grad(theta, "setup"))
    taken = _operations(lambda: product(torch.ones_like(theta)))
    least = 4 * (gradient - forward) - 2 * forward
    return taken / gradient, least / gradient


def _operations(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def tables(size: str) -> Iterator[Table]:
    """Yield one table per network, and that of one product."""
    yield from (measure(name, size) for name in CASES)
    yield along(size)
    yield products(size)
