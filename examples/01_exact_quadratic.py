"""Gradient descent against gradient flow where both are known exactly.

On f(θ) = ½ Σ hᵢθᵢ² gradient descent is θ_k = (1 − ηh)^k θ_0 and the flow is θ(t) = e^{−ht} θ_0,
so the discrepancy has a closed form, and the shadow's error bar can be checked against it.

    python examples/01_exact_quadratic.py
"""

import torch
from matplotlib.figure import Figure
from torch import nn

import torch_gfshadow as gfs

ETA, STEPS = 0.05, 200


class Quadratic(nn.Module):
    """Holds θ; the objective below is f."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(3, dtype=torch.float64))


def f(model: nn.Module, curvatures: torch.Tensor) -> torch.Tensor:
    """Return ½ Σ hᵢθᵢ²."""
    return 0.5 * (curvatures * model.theta**2).sum()


def main() -> None:
    """Run, and print the reported discrepancy beside the exact one."""
    h = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
    with gfs.attach(optimizer, model, f, data=h) as shadow:
        for _ in range(STEPS):
            optimizer.zero_grad()
            f(model, h).backward()
            optimizer.step()

    def exact_at(k: int) -> float:
        return float(((1 - ETA * h) ** k - torch.exp(-h * ETA * k)).norm())

    print("  step        reported          exact   bar holds")
    for record in shadow.records[:: STEPS // 10]:
        k, exact = record.step, exact_at(record.step)
        holds = abs(record.discrepancy - exact) <= record.solver_error + 1e-14
        bar = f"{record.discrepancy:.3e} ± {record.solver_error:.0e}"
        print(f"{k:6d}  {bar}  {exact:.3e}   {'yes' if holds else 'NO'}")

    rows = shadow.records[1:]
    times = [r.time for r in rows]
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    low = [r.discrepancy - r.solver_error for r in rows]
    high = [r.discrepancy + r.solver_error for r in rows]
    axes.fill_between(times, low, high, color="#D55E00", alpha=0.3, lw=0, label="error bar")
    axes.plot(times, [r.discrepancy for r in rows], color="#D55E00", label="reported")
    axes.plot(times, [exact_at(r.step) for r in rows], "--", color="black", label="exact")
    axes.set(xlabel="flow time t", ylabel="discrepancy (units of θ)", yscale="log")
    axes.legend(frameon=False)
    figure.savefig("01_exact_quadratic.png", dpi=150)


if __name__ == "__main__":
    main()
