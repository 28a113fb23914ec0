"""The figure of the concepts page on what becomes of a discrepancy: two curvatures, one bound."""

import torch
from matplotlib.figure import Figure
from torch import nn

import torch_gfshadow as gfs

ETA, STEPS = 0.05, 160
CASES = {1.0: "a bowl, λ_min = 1", -0.5: "a hilltop, λ_min = −0.5"}


class Line(nn.Module):
    """Holds θ, a number."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([start], dtype=torch.float64))


def f(model: nn.Module, curvature: torch.Tensor) -> torch.Tensor:
    """Return ½hθ²."""
    return 0.5 * curvature * model.theta.square().sum()


def main() -> None:
    """Run each case and draw its discrepancy with the bound of Theorem 2."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (value, title) in zip(panels, CASES.items(), strict=True):
        model = Line(1.0 if value > 0 else 0.02)
        curvature = torch.tensor(value, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
        with gfs.attach(
            optimizer, model, f, data=curvature, probe_every=1, bounds=["theorem2"], resolution=0.02
        ) as shadow:
            for _ in range(STEPS):
                optimizer.zero_grad()
                f(model, curvature).backward()
                optimizer.step()
        rows = shadow.records[2:]
        times = [r.time for r in rows]
        low = [max(r.discrepancy - r.solver_error, 1e-3 * r.discrepancy) for r in rows]
        high = [r.discrepancy + r.solver_error for r in rows]
        axes.fill_between(times, low, high, color="#D55E00", alpha=0.3, lw=0)
        axes.semilogy(times, [r.discrepancy for r in rows], color="#D55E00", label="discrepancy")
        limit = [r.bounds["theorem2"]["value"] for r in rows]
        axes.semilogy(times, limit, "--", color="#0072B2", label="Theorem 2 (estimate)")
        axes.set(xlabel="flow time t", title=title)
        axes.title.set_fontsize(10)
    panels[0].set(ylabel="units of θ", ylim=(1e-5, 0.2))
    panels[1].legend(frameon=False, fontsize=9)
    figure.savefig("concept_curvature.png", dpi=150)


if __name__ == "__main__":
    main()
