"""Copies of the parameters that a solver holds, at rest and at its peak; growth of the records.

Every allocation of torch is counted by its profiler, so the figures are exact and the same on
every machine. One copy is one float32 vector of all parameters; states are float64 unless said
otherwise, so that each of their vectors counts two. What training itself holds (parameters,
gradients) is left out; activations of the small batch count, and are a few thousandths.
"""

from __future__ import annotations

import gc
import math
import tracemalloc
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

import torch_gfshadow as gfs
from benchmarks import flow_peers
from benchmarks.networks import Batch, objective_of, squared
from benchmarks.tables import Table

WIDTH = {"tiny": 20, "quick": 1000, "full": 1000}
_STEPS = {"tiny": 3, "quick": 2, "full": 12}
_RECORDS = {"tiny": 200, "quick": 15_000, "full": 100_000}
_DEPTH, _STEP_SIZE = 10, 0.05
_TRAINING = "training's own passes"


def network(size: str, activation: Callable[[], nn.Module] = nn.Tanh) -> tuple[nn.Module, Batch]:
    """Return ten layers (10 million parameters unless tiny) and eight examples."""
    width, draw = WIDTH[size], torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(_DEPTH):
        layer = nn.utils.skip_init(nn.Linear, width, width, bias=False)
        nn.init.xavier_uniform_(layer.weight, generator=draw)
        layers += [layer, activation()]
    data = torch.randn(8, width, generator=draw), torch.arange(8) % width
    return nn.Sequential(*layers), data


def allocated(function: Callable[[], object]) -> tuple[int, int]:
    """Return the most bytes held while ``function`` runs, and those still held after it.

    What training's own passes take while they run is left out (blocks recorded as ``_TRAINING``).
    What it returns is kept alive until then.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = function()
        gc.collect()
    results = profiler.profiler
    assert results is not None
    events = results.kineto_results.events()
    changes = [e for e in events if e.name() == "[memory]"]
    passes = sorted((e.start_ns(), e.end_ns()) for e in events if e.name() == _TRAINING)
    held = peak = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        held += event.nbytes()
        last = bisect_right(passes, (event.start_ns(), math.inf)) - 1
        if last < 0 or event.start_ns() > passes[last][1]:
            peak = max(peak, held)
    del kept
    return peak, held


def plain(model: nn.Module) -> torch.optim.Optimizer:
    """Return plain gradient descent."""
    return torch.optim.SGD(model.parameters(), lr=_STEP_SIZE)


def shadow_memory(
    size: str,
    activation: Callable[[], nn.Module] = nn.Tanh,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = plain,
    **options: object,
) -> tuple[float, float]:
    """Return the copies at peak and at rest of a shadow beside a few steps of training."""
    model, batch = network(size, activation)
    stepped = optimizer(model)
    copy = sum(p.numel() * p.element_size() for p in model.parameters())
    chosen = {"probes": [], "bounds": [], "data": batch, **options}
    observed = chosen.get("mode") in ("batch", "local")
    if observed:
        del chosen["data"]
    torch.autograd.backward(squared(model, batch))
    stepped.step()  # what the optimizer keeps is not ours

    def run() -> object:
        shadow = gfs.attach(stepped, model, squared, on_error="raise", **chosen)
        for _ in range(_STEPS[size]):
            stepped.zero_grad(set_to_none=False)
            if observed:
                shadow.observe(batch)
            with record_function(_TRAINING):
                torch.autograd.backward(squared(model, batch))
            stepped.step()
        return shadow

    peak, rest = allocated(run)
    return peak / copy, rest / copy


def peer_memory(size: str, method: Callable[..., Tensor], *arguments: object) -> tuple[float, None]:
    """Return the copies at peak of another integrator over the same stretch of the flow."""
    model, batch = network(size)
    objective = objective_of(model, squared, batch)
    copy = objective.layout.dim * 4

    def field(theta: Tensor) -> Tensor:
        return -objective.loss_and_grad(theta.detach().float(), "flow")[1].double()

    steps = _STEPS[size]
    start, times = objective.layout.current(torch.float64), [steps * _STEP_SIZE]
    peak, _ = allocated(lambda: method(field, start, times, *arguments))
    return peak / copy + 2.0, None  # the start itself


def solvers(size: str) -> Table:
    """Return the table of copies."""
    own: dict[str, dict[str, object]] = {
        "**gfshadow**, default (`auto`)": {},
        "**gfshadow**, `rkc2`": {"solver": "rkc2"},
        "**gfshadow**, `rkc2`, full storage": {"solver": gfs.solvers.RKC2(storage="full")},
        "**gfshadow**, `adams2`": {"solver": "adams2"},
        "**gfshadow**, `bosh3`": {"solver": "bosh3"},
        "**gfshadow**, `dopri5`": {"solver": "dopri5"},
        "**gfshadow**, `dopri8`": {"solver": "dopri8"},
        "**gfshadow**, default, with probes": {"probes": ["lambda_min", "lambda_max"]},
        "**gfshadow**, mode `batch`": {"mode": "batch"},
        "**gfshadow**, mode `local`": {"mode": "local"},
    }
    rows: list[list[object]] = [
        [label, *shadow_memory(size, **options)] for label, options in own.items()
    ]
    steps = _STEPS[size]
    peers: dict[str, tuple[Callable[..., Tensor], tuple[object, ...]]] = {
        "torchdiffeq dopri5": (flow_peers.one_call, (steps, 1e-5)),
        "torchode dopri5": (flow_peers.torchode_once, (steps, 1e-5)),
        "edge-of-stability's scheme: RK4": (flow_peers.runge_kutta, (lambda _: 1.0,)),
        "centralflows' scheme: Euler": (flow_peers.euler_substeps, (steps, lambda _: 1.0)),
    }
    for label, (method, arguments) in peers.items():
        try:
            rows.append([label, *peer_memory(size, method, *arguments)])
        except ImportError as missing:
            rows.append([f"{label}: no {missing.name}", None, None])
    n = WIDTH[size] ** 2 * _DEPTH
    note = f"Copies of {n:,} float32 parameters, over {steps} steps of η = {_STEP_SIZE:g}."
    return Table("memory", ["method", "copies at peak", "at rest"], rows, note)


def records(size: str) -> Table:
    """Return how memory grows with the number of records."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1e-6)
    shadow = gfs.attach(optimizer, on_error="raise")
    parameter.grad = torch.ones(2)
    rows: list[list[object]] = []
    tracemalloc.start()
    for block in (1, 2, 3, 4):
        for _ in range(_RECORDS[size]):
            optimizer.step()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] / 1e6
        rows.append([f"{block * _RECORDS[size]:,}", len(shadow.records), held])
    tracemalloc.stop()
    shadow.detach()
    heads = ["steps, a record each", "records kept in memory", "MB of Python objects"]
    note = "A passive shadow of two parameters that records every step; loggers get every record."
    return Table("records", heads, rows, note)


def tables(size: str) -> list[Table]:
    """Return the tables of copies and of records."""
    return [solvers(size), records(size)]
