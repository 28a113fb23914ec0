"""Proof instead of error bars: deep linear regression on the wine data, with certificates.

For deep linear networks the discrepancy from gradient flow can be certified, rounding included. The
tube needs the iterates alone: a radius that provably contains the flow. The reference tube needs
the shadow, too, and certifies the discrepancy on both sides.

    python examples/06_deep_linear_certificates.py
"""

from itertools import pairwise

import torch
from matplotlib.figure import Figure
from mlxtend.data import wine_data
from torch import nn

import torch_gfshadow as gfs
from torch_gfshadow.bounds import ReferenceTube, Square, Tube
from torch_gfshadow.inits import balanced_
from torch_gfshadow.whitening import whiten

ETA, STEPS = 0.01, 700


def main() -> None:
    """Train with the shadow and both tubes beside it; print and draw what each of them says."""
    inputs, cultivar = wine_data()  # 178 wines, 13 measurements, 3 cultivars
    data = whiten(torch.from_numpy(inputs), torch.from_numpy(cultivar).double() - 1)
    widths = (data.rank, 4, 4, 1)
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))).double()
    layers = list(model.parameters())
    start = 0.2 * torch.eye(data.rank, dtype=torch.float64)[:1]
    balanced_(layers, start, generator=torch.Generator().manual_seed(0))

    def objective(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return 0.5 * nn.functional.mse_loss(model(batch[0]), batch[1])

    batch = [data.inputs, data.targets]
    loss = Square.of(*batch)
    tube, certified = Tube(layers, loss), ReferenceTube(layers, loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
    rows = []
    with gfs.attach(optimizer, model, objective, data=batch, probes=()) as shadow:
        for _ in range(STEPS):
            optimizer.zero_grad()
            objective(model, batch).backward()
            optimizer.step()
            radius = tube.step(layers, ETA)
            certified.step(list(shadow.theta().values()), ETA)
            rows.append((shadow.records[-1], *certified.discrepancy(layers), radius))

    print(f"tube: {tube.status}; reference tube: {certified.status}")
    print("  step      shadow's estimate           certified interval    holds    radius of tube")
    for record, low, high, radius in rows[STEPS // 10 - 1 :: STEPS // 10]:
        bar = f"{record.discrepancy:.5e} ± {record.solver_error:.0e}"
        overlap = record.discrepancy - record.solver_error <= high
        holds = overlap and low <= record.discrepancy + record.solver_error <= radius
        interval = f"[{low:.5e}, {high:.5e}]"
        print(f"{record.step:6d}  {bar}  {interval}  {'yes' if holds else 'NO':>5}  {radius:16.3e}")

    times = [record.time for record, *_ in rows]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    sizes, accuracy = figure.subplots(1, 2)
    sizes.semilogy(times, [row[3] for row in rows], label="tube: certified without the flow")
    sizes.fill_between(times, [r[1] for r in rows], [r[2] for r in rows], color="C3", lw=2)
    sizes.semilogy(times, [r[2] for r in rows], color="C3", label="certified interval")
    sizes.set(xlabel="flow time t", ylabel="discrepancy (units of θ)")
    sizes.legend(frameon=False, fontsize=8)
    accuracy.semilogy(times, [(r[2] - r[1]) / 2 for r in rows], color="C3", label="certified: ± ρ")
    bars = [record.solver_error for record, *_ in rows]
    accuracy.semilogy(times, bars, "--", label="shadow's error bar (an estimate)")
    accuracy.set(xlabel="flow time t", ylabel="how well it is known (units of θ)")
    accuracy.legend(frameon=False, fontsize=8)
    figure.savefig("06_deep_linear_certificates.png", dpi=150)


if __name__ == "__main__":
    main()
