"""The edge of stability: where gradient descent leaves the flow.

The loss gets sharper while a network learns. Beyond η·λ_max = 2 each step multiplies what is left
along the sharpest direction by more than one. For a while that is too little to be seen; then
gradient descent is thrown into a flatter place, and the flow goes on where it was. The same start
is trained with a step size that stays below the edge and with one that crosses it.

    python examples/04_edge_of_stability.py
"""

import torch
from matplotlib.figure import Figure
from torch import nn

import torch_gfshadow as gfs

TIME = 20.0


def train(eta: float) -> gfs.Shadow:
    """Train to flow time TIME with step size eta; probe the Hessian every half unit or so."""
    torch.manual_seed(0)
    inputs = torch.randn(64, 8, dtype=torch.float64)
    targets = inputs[:, :1] ** 2 - inputs[:, 1:2]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)

    def objective(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    batch, period = [inputs, targets], max(1, round(0.5 / eta))
    with gfs.attach(
        optimizer, model, objective, data=batch, every=period, probe_every=period,
        probes=["lambda_max"],
    ) as shadow:  # fmt: skip
        for _ in range(round(TIME / eta)):
            optimizer.zero_grad()
            objective(model, batch).backward()
            optimizer.step()
    return shadow


def main() -> None:
    """Train twice, print where each run is, draw sharpness and discrepancy."""
    runs = {eta: train(eta) for eta in (0.05, 0.2)}
    for eta, shadow in runs.items():
        print(f"\nη = {eta:g}, edge of stability at λ_max = {2 / eta:g}")
        print("     t     loss   loss of the flow    λ_max   η·λ_max   discrepancy")
        for record in shadow.records[:: max(1, len(shadow.records) // 8)]:
            bar = f"{record.discrepancy:.2e} ± {record.solver_error:.0e}"
            losses = f"{record.loss:8.4f}   {record.shadow_loss:16.4f}"
            print(
                f"{record.time:6.1f} {losses} {record.lambda_max:8.2f}  {record.edge:8.2f}   {bar}"
            )

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    sharpness, distance = figure.subplots(1, 2)
    for (eta, shadow), colour in zip(runs.items(), ("#0072B2", "#D55E00"), strict=True):
        rows = shadow.records
        times = [r.time for r in rows]
        sharpness.plot(times, [r.edge for r in rows], color=colour, label=f"η = {eta:g}")
        found = [r.discrepancy or float("nan") for r in rows]
        bars = [r.solver_error for r in rows]
        distance.semilogy(times, found, color=colour, label=f"η = {eta:g}")
        low = [max(v - e, 1e-3 * v) for v, e in zip(found, bars, strict=True)]
        high = [v + e for v, e in zip(found, bars, strict=True)]
        distance.fill_between(times, low, high, color=colour, alpha=0.25, lw=0)
    sharpness.axhline(2, color="gray", ls="--")
    sharpness.text(9, 1.95, "edge of stability", color="gray", ha="center", va="top")
    sharpness.set(xlabel="flow time t", ylabel="η·λ_max at the iterate", ylim=(0, None))
    distance.set(xlabel="flow time t", ylabel="discrepancy (units of θ)")
    distance.legend(frameon=False)
    figure.savefig("04_edge_of_stability.png", dpi=150)


if __name__ == "__main__":
    main()
