"""What an attached shadow costs at a step at which nothing is due.

``optimizer.step()`` of the demo network is timed with the shadow attached and without, in turn,
on two models of the same make; forward and backward passes are timed apart, once in every round,
because their own scatter is larger than what is measured.
"""

from __future__ import annotations

import statistics

import torch

import torch_gfshadow as gfs
from benchmarks.networks import CASES, batch_of, digits
from benchmarks.tables import Table, seconds

ROUNDS = {"tiny": 20, "quick": 400, "full": 3000}
_DIGITS = {"tiny": 40, "quick": 1000, "full": 1000}
_NEVER = 10**9
MODES = {
    "with data, `every` far": {"reference": True},
    "passive, `every` far": {"reference": False},
}


def measure(label: str, size: str) -> list[object]:
    """Return a row: microseconds added per step, their share of a whole step, gradients added."""
    case, batch = CASES["linear"], batch_of(digits(_DIGITS[size]), torch.float32)
    models = [case.model(torch.float32) for _ in range(2)]
    bare, shadowed = (torch.optim.SGD(m.parameters(), lr=1e-6) for m in models)
    if MODES[label]["reference"]:
        arguments = {"model": models[1], "objective": case.loss, "data": batch}
        shadow = gfs.attach(
            shadowed, **arguments, every=_NEVER, probe_every=_NEVER, on_error="raise"
        )
    else:
        shadow = gfs.attach(shadowed, every=_NEVER, on_error="raise")
    before, differences, whole = shadow.summary(), [], []

    def passes() -> None:
        bare.zero_grad()
        torch.autograd.backward(case.loss(models[0], batch))

    passes()
    for one, other in zip(models[1].parameters(), models[0].parameters(), strict=True):
        one.grad = other.grad.clone() if other.grad is not None else None
    for _ in range(ROUNDS[size]):
        of_passes = seconds(passes)
        of_bare, of_shadowed = seconds(bare.step), seconds(shadowed.step)
        differences.append(of_shadowed - of_bare)
        whole.append(of_passes + of_bare)
    # steps 1 and 2 are due: the first warms up, probes may fall on both
    added, step = statistics.median(differences[3:]), statistics.median(whole)
    after = shadow.summary()
    shadow.detach()
    spent = after["by_purpose"]["grads"]
    gradients = sum(spent.values()) - sum(before["by_purpose"]["grads"].values())
    return [label, added * 1e6, f"{added / step:.2%}", step * 1e3, gradients]


def tables(size: str) -> list[Table]:
    """Return the table of idle overheads."""
    rows = [measure(label, size) for label in MODES]
    heads = ["shadow", "µs added per step", "of a step", "ms of a bare step"]
    note = f"The demo's linear network, {ROUNDS[size]} pairs of steps, medians of differences."
    return [Table("idle", [*heads, "gradients added in all"], rows, note)]
