"""The figure of the concepts page that shows what a discrepancy is: a polygon beside a curve."""

import torch
from matplotlib.figure import Figure
from torch import nn

import torch_gfshadow as gfs

ETA, STEPS = 0.55, 7
CURVATURES = torch.tensor([0.4, 3.0], dtype=torch.float64)
START = torch.tensor([2.0, 1.0], dtype=torch.float64)


class Point(nn.Module):
    """Holds θ, a point of the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(START.clone())


def f(model: nn.Module, curvatures: torch.Tensor) -> torch.Tensor:
    """Return ½ Σ hᵢθᵢ²."""
    return 0.5 * (curvatures * model.theta**2).sum()


def flow(time: float) -> torch.Tensor:
    """Return the flow, known exactly here."""
    return torch.exp(-CURVATURES * time) * START


def main() -> None:
    """Descend seven steps with the shadow beside, and draw both."""
    model = Point()
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
    polygon = [START]
    with gfs.attach(optimizer, model, f, data=CURVATURES) as shadow:
        for _ in range(STEPS):
            optimizer.zero_grad()
            f(model, CURVATURES).backward()
            optimizer.step()
            polygon.append(model.theta.detach().clone())

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    x, y = torch.meshgrid(
        torch.linspace(0, 2.2, 200), torch.linspace(-0.9, 1.2, 200), indexing="xy"
    )
    levels = [0.02, 0.08, 0.2, 0.4, 0.8, 1.4, 2.2]
    height = 0.5 * (CURVATURES[0] * x**2 + CURVATURES[1] * y**2)
    axes.contour(x, y, height, levels, colors="#cccccc", linewidths=0.8)
    curve = torch.stack([flow(t) for t in torch.linspace(0, STEPS * ETA, 300).tolist()])
    axes.plot(curve[:, 0], curve[:, 1], color="#D55E00", label="gradient flow θ(t)")
    steps = torch.stack(polygon)
    axes.plot(steps[:, 0], steps[:, 1], "o-", color="#0072B2", ms=4, label="gradient descent θ_k")
    for k, point in enumerate(polygon[1:], 1):
        there = flow(k * ETA)
        axes.plot([point[0], there[0]], [point[1], there[1]], ":", color="black", lw=1)
        axes.plot(*there, "o", color="#D55E00", ms=4)
        if k <= 3:
            shown = f"{shadow.records[k].discrepancy:.2f}"
            middle = (0.5 * (point + there)).tolist()
            axes.annotate(shown, middle, (5, -2), textcoords="offset points", fontsize=9)
    axes.plot([], [], ":", color="black", label="discrepancy ‖θ_k − θ(t_k)‖")
    axes.set(xlabel="θ₁", ylabel="θ₂")
    axes.legend(frameon=False, loc="upper left")
    figure.savefig("concept_polygon.png", dpi=150)


if __name__ == "__main__":
    main()
