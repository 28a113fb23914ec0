"""An existing training loop, with a shadow: a schedule, weight decay, a DataLoader.

The only new lines are marked. Training is bit-identical without them.

    python examples/02_drop_in.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torch_gfshadow as gfs


def objective(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean loss of a batch."""
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


def main() -> None:
    """Train a small classifier on two moons, full batch, and say how far the flow is."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(256, generator=generator) * torch.pi
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    inputs = torch.cat([upper, lower]) + 0.1 * torch.randn(512, 2, generator=generator)
    targets = torch.arange(2).repeat_interleave(256)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=300)

    loader = DataLoader(TensorDataset(inputs, targets), batch_size=128)  # new: the flow's data
    shadow = gfs.attach(  # new
        optimizer, model, objective, data=loader, every=10, probe_every=50
    )
    for _ in range(300):
        optimizer.zero_grad()
        objective(model, [inputs, targets]).backward()
        optimizer.step()
        scheduler.step()
    shadow.detach()  # new

    print("  step     t    loss   discrepancy        λ_min    λ_max   η·λ_max  audit")
    for record in shadow.records:
        if record.lambda_max is not None:
            bar = f"{record.discrepancy:.1e} ± {record.solver_error:.0e}"
            ends = f"{record.lambda_min:9.3f} {record.lambda_max:8.2f}"
            edge = f"{record.edge:8.2f}" if record.edge is not None else " " * 8
            row = f"{record.step:6d} {record.time:6.1f} {record.loss:7.4f}  {bar} {ends}  {edge}"
            print(row, "", record.audit)
    shadow.plot("02_drop_in.png")
    cost = shadow.summary()
    print(f"cost: {cost['grad_evals_per_step_without_probes']:.2f} gradients per step of the run")


if __name__ == "__main__":
    main()
