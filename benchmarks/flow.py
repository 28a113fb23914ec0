"""Gradients per step of gradient descent against true error: our shadow and other integrators.

All follow the flow of the same float32 loss in a float64 state, to the same ten times. The
reference is the flow of the loss in float64: torchdiffeq's dopri8 at rtol 1e-9, and Heun's method
with an eighth of the step where the field jumps. Errors are in units of the discrepancy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

import torch_gfshadow as gfs
from benchmarks import flow_peers
from benchmarks.networks import CASES, Batch, Case, batch_of, digits, objective_of
from benchmarks.tables import Table
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.eigen import Spectrum, extreme_eigenpairs
from torch_gfshadow.objective import Objective

RECORDS = 10
STEPS = {"tiny": 10, "quick": 200, "full": 1000}
_DIGITS = {"tiny": 40, "quick": 1000, "full": 1000}
_REFINEMENT = 8
TOLERANCES = (1e-3, 1e-5)


class Followed(NamedTuple):
    """Where a method was at the records, and what that took."""

    states: Tensor
    gradients: int
    products: int
    seconds: float
    bar: float | None = None


def reference(case: Case, batch: Batch, steps: int) -> Tensor:
    """Return the flow in float64 at the records, shape ``[RECORDS, d]``."""
    wide = (batch[0].double(), batch[1])
    objective = objective_of(case.model(torch.float64), case.loss, wide)

    def field(theta: Tensor) -> Tensor:
        return -objective.loss_and_grad(theta, "setup")[1]

    theta, out = objective.layout.current(), []
    if not case.kinked:
        span = torch.linspace(0.0, steps * case.step_size, RECORDS + 1, dtype=torch.float64)
        options = {"rtol": 1e-9, "atol": 1e-11, "method": "dopri8"}
        flow: Tensor = odeint(lambda _, x: field(x), theta, span, **options)
        return flow[1:]
    h = case.step_size / _REFINEMENT
    for n in range(1, steps * _REFINEMENT + 1):
        slope = field(theta)
        theta = theta + 0.5 * h * (slope + field(theta + h * slope))
        if n % (_REFINEMENT * (steps // RECORDS)) == 0:
            out.append(theta)
    return torch.stack(out)


def descent(case: Case, batch: Batch, steps: int) -> tuple[Tensor, float]:
    """Return bare gradient descent at the records, and its seconds."""
    model = case.model(torch.float32)
    optimizer, found = torch.optim.SGD(model.parameters(), lr=case.step_size), []
    start = time.perf_counter()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        torch.autograd.backward(case.loss(model, batch))
        optimizer.step()
        if step % (steps // RECORDS) == 0:
            found.append(_flat(dict(model.named_parameters())))
    return torch.stack(found), time.perf_counter() - start


def shadowed(case: Case, batch: Batch, steps: int, resolution: float | None) -> Followed:
    """Follow by ``gfs.attach`` beside gradient descent, as a user would."""
    model = case.model(torch.float32)
    optimizer, found = torch.optim.SGD(model.parameters(), lr=case.step_size), []
    period = steps // RECORDS
    shadow = gfs.attach(
        optimizer,
        model,
        case.loss,
        data=batch,
        every=period,
        probe_every=period,
        resolution=resolution,
        probes=["lambda_max"],
        bounds=[],
        on_error="raise",
    )
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        torch.autograd.backward(case.loss(model, batch))
        optimizer.step()
        if step % period == 0:
            found.append(_flat(shadow.theta() or {}))
    shadow.detach()
    cost, bar = shadow.summary(), shadow.records[-1].solver_error
    spent = cost["by_purpose"]["grads"]
    gradients = sum(spent.values()) - spent.get("probes", 0)
    return Followed(torch.stack(found), gradients, cost["n_hvps"], cost["seconds"], bar)


def followed(
    objective: Objective, method: Callable[..., Tensor], *arguments: object, sharp: bool = False
) -> Followed:
    """Follow by another method, its gradients and its products for λ counted."""
    curvature, products = Curvature(objective), 0
    known: Spectrum | tuple[()] = ()

    def field(theta: Tensor) -> Tensor:
        return -objective.loss_and_grad(theta.detach().float(), "flow")[1].double()

    def sharpness(theta: Tensor) -> float:
        nonlocal known, products
        product, device = curvature.at(theta.float()), theta.device
        known = extreme_eigenpairs(
            product, theta.numel(), dtype=torch.float32, device=device, start=known
        )
        products += known.n_products
        return known.lambda_max

    begin = time.perf_counter()
    extra = {"sharpness": sharpness} if sharp else {}
    states = method(field, objective.layout.current(torch.float64), *arguments, **extra)
    took = time.perf_counter() - begin
    return Followed(states, objective.ledger.grads["flow"], products, took)


def methods(case: Case, batch: Batch, steps: int) -> dict[str, Callable[[], Followed]]:
    """Return every way to follow the flow of a case, by what it is called in the table."""
    times = [case.step_size * steps * k / RECORDS for k in range(1, RECORDS + 1)]

    def peer(method: Callable[..., Tensor], *arguments: object, sharp: bool = False) -> Followed:
        objective = objective_of(case.model(torch.float32), case.loss, batch)
        return followed(objective, method, times, *arguments, sharp=sharp)

    out: dict[str, Callable[[], Followed]] = {
        "**gfshadow**, default": lambda: shadowed(case, batch, steps, None),
        "**gfshadow**, `resolution=0.5`": lambda: shadowed(case, batch, steps, 0.5),
    }
    for tol in TOLERANCES:
        out[f"torchdiffeq, a call per step, rtol {tol:g}"] = lambda tol=tol: peer(
            flow_peers.per_step, steps, tol
        )
        out[f"torchdiffeq, one call, rtol {tol:g}"] = lambda tol=tol: peer(
            flow_peers.one_call, steps, tol
        )
        out[f"torchode, one call, rtol {tol:g}"] = lambda tol=tol: peer(
            flow_peers.torchode_once, steps, tol
        )
    out["edge-of-stability's scheme: RK4, h = 1/λ"] = lambda: peer(
        flow_peers.runge_kutta, sharp=True
    )
    out["centralflows' scheme: max(4, ⌈2ηλ⌉) Euler"] = lambda: peer(
        flow_peers.euler_substeps, steps, sharp=True
    )
    return out


def measure(name: str, size: str) -> Table:
    """Return the table of one network."""
    case, steps, data = CASES[name], STEPS[size], digits(_DIGITS[size])
    batch = batch_of(data, torch.float32)
    exact = reference(case, batch, steps)
    rows = []
    for label, follow in methods(case, batch, steps).items():
        run, bare = descent(case, batch, steps)  # anew for each: the time ratio is a paired one
        scale = float((run[-1] - exact[-1]).norm())
        try:
            found = follow()
        except ImportError as missing:
            rows.append([f"{label}: no {missing.name}", *[None] * 5])
            continue
        error = float((found.states[-1] - exact[-1]).norm()) / scale
        bar = None if found.bar is None else found.bar / scale
        per = found.gradients / steps
        row = [label, per, found.products / steps, error, bar, found.seconds / bare]
        rows.append(row)
    note = (
        f"{name.capitalize()}, η = {case.step_size:g}, {steps} steps, {data.source.split(' (')[0]};"
        f" discrepancy at the end {scale:.2e}."
    )
    heads = ["method", "gradients per step", "products per step"]
    heads += ["true error / discrepancy", "claimed", "time / bare loop"]
    return Table(f"flow {name}", heads, rows, note)


def tables(size: str) -> Iterator[Table]:
    """Yield one table per network."""
    return (measure(name, size) for name in CASES)


def _flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.detach().flatten().double() for part in parts.values()])
