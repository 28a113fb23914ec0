"""Worker of test_distributed: one rank of an FSDP2 run, its shadow evaluated on a whole twin."""

import sys

import torch
import torch.distributed as dist
from ddp import LR, STEPS, digits, main, network, objective, shard, told_by
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import torch_gfshadow as gfs


def run(out, case):
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    mine = shard(digits(120), rank, size)
    model = network()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    told = {}
    shadow = None
    if case == "refused":
        try:
            gfs.attach(optimizer, model, objective, data=mine)
        except ValueError as error:
            told["error"] = str(error)
    elif case == "shadow":
        shadow = gfs.attach(
            optimizer, model, objective, data=mine, probe_model=network(), probe_every=2,
            on_error="raise",
        )  # fmt: skip
    for _ in range(STEPS):
        optimizer.zero_grad()
        objective(model, mine).backward()
        optimizer.step()
    whole = [p.full_tensor().detach().reshape(-1) for p in model.parameters()]
    told["weights"] = torch.cat(whole).tolist()
    if shadow is not None:
        shadow.detach()
        told["records"] = [r.to_dict() for r in shadow.records]
    told_by(out, rank, told)


if __name__ == "__main__":
    main(run, sys.argv[1], sys.argv[2:])
