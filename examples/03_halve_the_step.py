"""Halve the step, halve the discrepancy: gradient descent is Euler's method, of order one.

A small network is trained to the same flow time with η, η/2, η/4 and η/8. Each halving halves the
discrepancy from gradient flow, so what a smaller learning rate buys can be told before paying it.

    python examples/03_halve_the_step.py
"""

import torch
from matplotlib.figure import Figure
from torch import nn

import torch_gfshadow as gfs

ETA, TIME = 0.2, 10.0


def train(eta: float) -> gfs.Shadow:
    """Train to flow time TIME with step size eta; the start is the same every time."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(64, 2, generator=generator, dtype=torch.float64) * 4 - 2
    targets = (inputs[:, :1] * inputs[:, 1:]).sin()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)

    def objective(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    batch, steps = [inputs, targets], round(TIME / eta)
    with gfs.attach(
        optimizer, model, objective, data=batch, every=max(1, steps // 50), probes=()
    ) as shadow:
        for _ in range(steps):
            optimizer.zero_grad()
            objective(model, batch).backward()
            optimizer.step()
    return shadow


def main() -> None:
    """Train four times, print the ratios, draw the discrepancies."""
    runs = {ETA / r: train(ETA / r) for r in (1, 2, 4, 8)}
    print(f"discrepancy from gradient flow at t = {TIME:g}")
    print("      η    steps   discrepancy          over the next   gradients per step")
    last = None
    for eta, shadow in runs.items():
        record, cost = shadow.records[-1], shadow.summary()["grad_evals_per_step"]
        shown = f"{record.discrepancy:.3e} ± {record.solver_error:.0e}"
        ratio = f"{last / record.discrepancy:.3f}" if last else ""
        print(f"{eta:7.4f} {record.step:8d}   {shown:20s} {ratio:>13s}   {cost:18.2f}")
        last = record.discrepancy

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    curves, order = figure.subplots(1, 2)
    for eta, shadow in runs.items():
        rows = [r for r in shadow.records if r.discrepancy]
        curves.semilogy([r.time for r in rows], [r.discrepancy for r in rows])
        end = (rows[-1].time, rows[-1].discrepancy)
        curves.annotate(f"η = {eta:g}", end, (4, 0), textcoords="offset points", va="center")
    curves.set(xlabel="flow time t", ylabel="discrepancy (units of θ)", xlim=(0, 1.3 * TIME))
    etas = list(runs)
    ends = [shadow.records[-1] for shadow in runs.values()]
    order.loglog(etas, [r.discrepancy for r in ends], "o-", label="measured")
    slope = [ends[-1].discrepancy * eta / etas[-1] for eta in etas]
    order.loglog(etas, slope, "--", color="gray", label="proportional to η")
    order.set(xlabel="step size η", ylabel=f"discrepancy at t = {TIME:g}")
    order.set_xticks(etas, [f"{eta:g}" for eta in etas])
    order.minorticks_off()
    order.legend(frameon=False)
    figure.savefig("03_halve_the_step.png", dpi=150)


if __name__ == "__main__":
    main()
