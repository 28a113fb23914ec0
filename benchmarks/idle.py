"""What an attached shadow costs at a step at which nothing is due.

Two loops of the same make run in turn, one with the shadow attached and one without. Only
``optimizer.step()`` is timed, each time right after the backward pass of its own loop, when the
processor's caches hold nothing of ours: forward and backward passes scatter by more than what is
measured. Which loop goes first alternates. The control is the same with no shadow in either. Warm
is step after step without passes between them; these differences depend less on who else computes
on the machine. Of ResNet-18, whose step alone scatters by more than a millisecond, the hooks are
timed by themselves, before and after the step of their own loop.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import torch_gfshadow as gfs
from benchmarks.networks import CASES, Batch, batch_of, digits, resnet18
from benchmarks.tables import Table, seconds
from torch_gfshadow.experiments.networks import cross_entropy

ROUNDS = {"tiny": 20, "quick": 400, "full": 3000}
_DIGITS = {"tiny": 40, "quick": 1000, "full": 1000}
_NEVER = 10**9


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-6)


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([{"params": [p]} for p in model.parameters()], lr=1e-6)


@dataclass(frozen=True)
class Loop:
    """One comparison: network, optimizer and what is attached to one of the two."""

    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = _sgd
    mode: str = "reference"
    residual: bool = False

    def attach(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, loss: Any, batch: Batch
    ) -> gfs.Shadow | None:
        """Attach what is measured, with everything it does due far away."""
        if self.mode == "none":
            return None
        if self.mode == "passive":
            return gfs.attach(optimizer, every=_NEVER, on_error="raise")
        return gfs.attach(
            optimizer,
            model,
            loss,
            data=batch,
            every=_NEVER,
            probe_every=_NEVER,
            probes=(),
            solver="dopri5",  # a shadow fed by the run's gradients has something due at every step
            on_error="raise",
        )


LOOPS = {
    "control: none in either": Loop(mode="none"),
    "with data, `every` far": Loop(),
    "passive, `every` far": Loop(mode="passive"),
    "with data, Adam, a group per tensor": Loop(_adam),
    "with data, ResNet-18, 62 tensors (hooks alone)": Loop(residual=True),
}


@dataclass
class Times:
    """Seconds: of both passes and of a bare step; what the shadow added, cold and warm."""

    passes: list[float]
    bare: list[float]
    added: list[float]
    warm: list[float]


def _pairs(
    models: list[nn.Module],
    optimizers: list[torch.optim.Optimizer],
    loss: Callable[..., torch.Tensor],
    batch: Batch,
    rounds: int,
) -> Times:
    """Time the steps of two loops that run in turn, the second with the shadow."""
    times, turns = Times([], [], [], []), {0: (0, 1), 1: (1, 0)}
    for turn in range(rounds):
        took = [0.0, 0.0]
        for which in turns[turn % 2]:
            times.passes.append(seconds(partial(_backward, models[which], loss, batch)))
            took[which] = seconds(optimizers[which].step)
        times.bare.append(took[0])
        times.added.append(took[1] - took[0])
    for _ in range(rounds):
        took = [seconds(optimizer.step) for optimizer in optimizers]
        times.warm.append(took[1] - took[0])
    return times


def _hooks_alone(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[..., torch.Tensor],
    batch: Batch,
    rounds: int,
) -> Times:
    """Time what torch calls before and after the step of one loop, apart from the step."""
    step: Any = type(optimizer).step
    before = partial(_call, optimizer, "_optimizer_step_pre_hooks")
    after = partial(_call, optimizer, "_optimizer_step_post_hooks")
    times = Times([], [], [], [])
    for _ in range(rounds):
        times.passes.append(seconds(partial(_backward, model, loss, batch)))
        took = seconds(before)
        times.bare.append(seconds(partial(step.__wrapped__, optimizer)))
        times.added.append(took + seconds(after))
    times.warm = [seconds(before) + seconds(after) for _ in range(rounds)]
    return times


def _backward(model: nn.Module, loss: Callable[..., torch.Tensor], batch: Batch) -> None:
    model.zero_grad()
    torch.autograd.backward(loss(model, batch))


def _call(optimizer: torch.optim.Optimizer, hooks: str) -> None:
    for hook in getattr(optimizer, hooks).values():
        hook(optimizer, (optimizer,), {})


def measure(label: str, size: str) -> list[object]:
    """Return a row: microseconds added per step, their share of a whole step, gradients added."""
    loop, case, rounds = LOOPS[label], CASES["linear"], ROUNDS[size]
    loss, batch = case.loss, batch_of(digits(_DIGITS[size]), torch.float32)
    models: list[nn.Module] = [case.model(torch.float32) for _ in range(2)]
    network = resnet18() if loop.residual else None
    if network is not None:
        draw = torch.Generator().manual_seed(0)
        batch = torch.randn(2, 3, 32, 32, generator=draw), torch.arange(2)
        models, loss, rounds = [network], cross_entropy, max(5, rounds // 10)
    optimizers = [loop.optimizer(model) for model in models]
    shadow = loop.attach(optimizers[-1], models[-1], loss, batch)
    before = shadow.summary() if shadow is not None else None
    for _ in range(3):  # steps 1 and 2 are due
        for model, optimizer in zip(models, optimizers, strict=True):
            _backward(model, loss, batch)
            optimizer.step()
    if network is not None:
        times = _hooks_alone(network, optimizers[0], loss, batch, rounds)
    else:
        times = _pairs(models, optimizers, loss, batch, rounds)
    low, added, high = statistics.quantiles(times.added, n=4)
    error = 1.2 * (high - low) / 1.35 / len(times.added) ** 0.5  # of a median, if normal
    step = statistics.median(times.passes) + statistics.median(times.bare)
    gradients = 0
    if shadow is not None and before is not None:
        spent = shadow.summary()["by_purpose"]["grads"]
        gradients = sum(spent.values()) - sum(before["by_purpose"]["grads"].values())
        shadow.detach()
    warm = statistics.median(times.warm)
    share = f"{added / step:.2%}"
    return [label, added * 1e6, error * 1e6, share, warm * 1e6, step * 1e3, gradients]


def tables(size: str) -> list[Table]:
    """Return the table of idle overheads."""
    rows = [
        measure(label, size)
        for label, loop in LOOPS.items()
        if not loop.residual or (size != "tiny" and resnet18() is not None)
    ]
    heads = ["shadow", "µs added per step", "±", "of a step", "warm, µs", "ms of a bare step"]
    note = (
        "The demo's linear network with plain SGD where nothing else is said; "
        f"{ROUNDS[size]} pairs of steps (ResNet-18: a tenth), medians of differences with their "
        "standard error."
    )
    return [Table("idle", [*heads, "gradients added in all"], rows, note)]
