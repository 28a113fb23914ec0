"""Minibatch training, watched: discretisation told apart from sampling noise.

The shadow in mode "batch" follows, during each step, the flow of the very batch the step was taken
on. What is left between it and SGD is what the finite step size does; the noise of sampling is in
both. A shadow on the full data measures both effects together, and is far further away.

    python examples/05_minibatch_monitoring.py
"""

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torch_gfshadow as gfs

ETA, EPOCHS = 0.1, 8


def objective(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean loss of a batch."""
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


def train(reference: bool) -> gfs.Shadow:
    """Train on minibatches of 32; the run is the same whatever the shadow follows."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 4, generator=generator)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
    dataset = TensorDataset(inputs, targets)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
    data = DataLoader(dataset, batch_size=256) if reference else None
    with gfs.attach(optimizer, model, objective, data=data, probes=(), every=4) as shadow:
        for _ in range(EPOCHS):
            for batch in loader if reference else shadow.watch(loader):
                optimizer.zero_grad()
                objective(model, batch).backward()
                optimizer.step()
    return shadow


def main() -> None:
    """Train twice, print both discrepancies side by side, draw them."""
    batch, full = train(reference=False), train(reference=True)
    print("  step   same-batch flow    full-data flow    audits")
    for ours, other in list(zip(batch.records, full.records, strict=True))[::4]:
        left = f"{ours.discrepancy:.1e} ± {ours.solver_error:.0e}"
        right = f"{other.discrepancy:.1e} ± {other.solver_error:.0e}"
        print(f"{ours.step:6d}   {left}   {right}   {ours.audit} | {other.audit}")
    steps = batch.summary()["grad_evals_per_step"]
    print(f"cost: {steps:.1f} gradients of a batch per step")

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for shadow, label, colour in (
        (full, "from the full-data flow: noise and step size", "#0072B2"),
        (batch, "from the same-batch flow: step size alone", "#D55E00"),
    ):
        rows = [r for r in shadow.records if r.discrepancy]
        axes.semilogy(
            [r.step for r in rows], [r.discrepancy for r in rows], color=colour, label=label
        )
    axes.set(xlabel="step k", ylabel="discrepancy (units of θ)")
    axes.legend(frameon=False)
    figure.savefig("05_minibatch_monitoring.png", dpi=150)


if __name__ == "__main__":
    main()
