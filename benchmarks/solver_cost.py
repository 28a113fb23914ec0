"""What a shadow costs per step of the run on smooth fields, near and beyond the edge of stability.

Counted as everything the flow takes: gradients for the flow and for its error bar, and the
products or differences spent on λ_max. Accuracy is the error bar over the discrepancy, at worst
over the second half of the records.

    python benchmarks/solver_cost.py

Networks 784-50-50-10 with squared error on 1,000 MNIST digits, in float32:

- ``tanh``: η = 0.036, 400 steps, which is ηλ_max ≈ 1.6.
- ``linear``: the paper's, η = 0.001, 10,000 steps.
- ``beyond``: the tanh network's flow sampled at intervals of 16/λ_max. Gradient descent with such
  steps would diverge, so there is no run; the flow is resolved to a tenth of what the run's first
  step would make of the discrepancy, ½ηδ.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn

import torch_gfshadow as gfs
from torch_gfshadow._tree import Layout
from torch_gfshadow.experiments.data import Digits, mnist_digits
from torch_gfshadow.experiments.networks import cross_entropy, fully_connected
from torch_gfshadow.flows import GradientFlow
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.solvers import Auto

BEYOND = 16.0


class Row(NamedTuple):
    """Evaluations per step, by purpose, and the accuracy they bought."""

    name: str
    steps: int
    flow: float
    error: float
    total: float
    accuracy: float
    solver: str


def tanh_network(seed: int) -> nn.Sequential:
    """The paper's fully connected network with tanh."""
    layers: list[nn.Module] = []
    for part in fully_connected("linear", seed=seed):
        layers += [part, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """½ ‖output − one-hot label‖², averaged over the examples."""
    target = nn.functional.one_hot(batch[1].long(), 10).to(batch[0].dtype)
    out: Tensor = 0.5 * (model(batch[0]) - target).square().sum(1).mean()
    return out


def trained(name: str, seed: int, steps: int, digits: Digits) -> Row:
    """Train with a shadow beside the run, as a user would."""
    linear = name == "linear"
    model = fully_connected("linear", seed=seed) if linear else tanh_network(seed)
    loss = cross_entropy if linear else squared
    data = (digits.images.float(), digits.labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3 if linear else 0.036)
    with gfs.attach(
        optimizer,
        model,
        loss,
        data=data,
        every=max(1, steps // 100),
        probes=(),
        bounds=(),
        audit=False,
        on_error="raise",
    ) as shadow:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model, data).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        grads = shadow.summary()["by_purpose"]["grads"]
        late = list(shadow.records)[len(shadow.records) // 2 :]
        bars = [(r.solver_error or 0.0) / r.discrepancy for r in late if r.discrepancy]
        solver = str(late[-1].solver)
    flow, error = grads.get("flow", 0) / steps, grads.get("error", 0) / steps
    return Row(name, steps, flow, error, flow + error, max(bars), solver)


def beyond(seed: int, steps: int, digits: Digits) -> Row:
    """Follow the flow alone, at intervals of 16/λ_max."""
    model = tanh_network(seed)
    names, params = zip(*model.named_parameters(), strict=True)
    layout, ledger = Layout(list(names), list(params)), Ledger()
    data = (digits.images.float(), digits.labels)
    objective = Objective(model, squared, data, layout, ledger)
    flow = GradientFlow()
    flow.configure([{"params": layout.params}], layout)

    def start(step_size: float) -> ShadowFlow:
        return ShadowFlow(
            objective,
            flow,
            Auto(),
            layout.current(torch.float64),
            objective.initial,
            time=0.0,
            step_size=step_size,
            resolution=None,
        )

    scout = start(0.036)
    scout.advance(20 * 0.036)
    interval = BEYOND / (scout._stepper.stiffness or 1.0) * 1.2  # stiffness has a margin of 1.2
    shadow = start(interval)
    scale, before = shadow._scale, dict(ledger.grads)
    bars = []
    for k in range(1, steps + 1):
        if not shadow.advance(k * interval):
            raise RuntimeError(shadow.detail)
        bars.append(shadow.error / scale)
    used = {p: (ledger.grads[p] - before.get(p, 0)) / steps for p in ("flow", "error")}
    total = used["flow"] + used["error"]
    name, accuracy = "beyond", max(bars[steps // 2 :])
    return Row(name, steps, used["flow"], used["error"], total, accuracy, shadow.solver)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["tanh", "beyond", "linear"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of 400 and 10,000")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = mnist_digits(1000, download=False)
    print("case   seed steps   flow  error  total  bar/discrepancy  solver at the end")
    for name in options.cases:
        for seed in options.seeds:
            if name == "beyond":
                row = beyond(seed, options.steps or 100, digits)
            else:
                steps = options.steps or {"tanh": 400, "linear": 10_000}[name]
                row = trained(name, seed, steps, digits)
            print(
                f"{row.name:7s} {seed:3d} {row.steps:5d} {row.flow:6.3f} {row.error:6.3f}"
                f" {row.total:6.3f} {row.accuracy:16.1%}  {row.solver}",
                flush=True,
            )


if __name__ == "__main__":
    main()
