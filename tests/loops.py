"""Training loops to run twice, with and without a shadow, and everything that can be compared."""

from __future__ import annotations

import inspect
import random
import warnings

import numpy as np
import torch
from torch import nn

import torch_gfshadow as gfs

N, IN, OUT = 24, 4, 2

OPTIMIZERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls)
    and issubclass(cls, torch.optim.Optimizer)
    and cls is not torch.optim.Optimizer
    and cls is not torch.optim.LBFGS  # refused, and tested apart
}


class Everything(nn.Module):
    """Batch norm, dropout, a tied and a frozen parameter, weight norm of both kinds."""

    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(IN, 6))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.second = nn.utils.weight_norm(nn.Linear(6, 6))
        self.norm = nn.BatchNorm1d(6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.second.weight_v
        self.drop = nn.Dropout(0.3)
        self.frozen = nn.Linear(6, 6)
        self.frozen.weight.requires_grad_(False)
        self.last = nn.Linear(6, OUT)

    def forward(self, x):
        h = self.drop(torch.tanh(self.norm(self.second(torch.tanh(self.first(x))))))
        return self.last(torch.tanh(self.frozen(torch.tanh(self.tied(h)))))


class Looked(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, OUT, sparse=True)

    def forward(self, x):
        return self.table((x[:, 0].abs() * 3).long().clamp(max=9))


def mlp(dtype=torch.float32):
    return nn.Sequential(nn.Linear(IN, 6), nn.Tanh(), nn.Linear(6, OUT)).to(dtype)


def batchnorm():
    return nn.Sequential(nn.Linear(IN, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, OUT))


def dropout():
    return nn.Sequential(nn.Linear(IN, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, OUT))


def tied():
    model = nn.Sequential(nn.Linear(IN, IN), nn.Tanh(), nn.Linear(IN, IN), nn.Linear(IN, OUT))
    model[2].weight = model[0].weight
    return model


def frozen():
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def weight_norm():
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


def weight_norm_legacy():
    model = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model[0])
    return model


MODELS = (mlp, batchnorm, dropout, tied, frozen, weight_norm, weight_norm_legacy, Everything)


def seed(value=0):
    torch.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002
    random.seed(value)


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(N, IN, generator=generator, dtype=torch.float64)
    y = torch.stack([torch.sin(x.sum(1)), x[:, 0] * x[:, 1]], 1)
    return x.to(dtype), y.to(dtype)


def loss_of(model, batch):
    x, y = batch
    return 0.5 * (model(x) - y).square().sum(1).mean()


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def shadow_of(optimizer, model, **options):
    """Attach in reference mode, raising, without probes unless they are asked for."""
    return gfs.attach(optimizer, model, loss_of, **(options_for(model) | options))


def options_for(model):
    dtype = next(model.parameters()).dtype
    return {"data": data(dtype), "probes": (), "on_error": "raise"}


def full_batch(optimizer, model, steps, between=lambda k: None):
    """Gradient descent on all data; ``between(k)`` is called before step k."""
    batch = data(next(model.parameters()).dtype)
    for k in range(1, steps + 1):
        between(k)
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def minibatches(optimizer, model, steps, after=lambda k: None):
    """A loop that draws from every random stream there is."""
    x, y = data(next(model.parameters()).dtype)
    for k in range(steps):
        rows = torch.randperm(N)[:12]
        noise = float(np.random.rand()) + random.random()  # noqa: NPY002
        optimizer.zero_grad()
        (loss_of(model, (x[rows], y[rows])) * (1 + 0.01 * noise)).backward()
        optimizer.step()
        after(k)


def fingerprint(model, *optimizers):
    """Everything a run leaves behind, by value."""
    out = {
        "torch's random state": torch.get_rng_state(),
        "numpy's random state": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python's random state": random.getstate(),
        "train flags": [m.training for m in model.modules()],
        "autocast": torch.is_autocast_enabled("cpu"),
        "grad mode": torch.is_grad_enabled(),
    }
    for name, p in model.named_parameters(remove_duplicate=False):
        out[f"parameter {name}"] = p.detach().clone()
        out[f"gradient {name}"] = None if p.grad is None else p.grad.to_dense().clone()
        out[f"class of {name}"] = type(p), p.requires_grad, p.is_leaf
    out |= {f"buffer {name}": b.clone() for name, b in model.named_buffers()}
    for i, optimizer in enumerate(optimizers):
        out |= {f"optimizer {i}{key}": v for key, v in flat(optimizer.state_dict())}
    return out


def flat(tree, path=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flat(value, f"{path}.{key}")
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from flat(value, f"{path}.{i}")
    else:
        yield path, tree.clone() if isinstance(tree, torch.Tensor) else tree


def same(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def assert_identical(plain, shadowed):
    assert plain.keys() == shadowed.keys()
    differ = [key for key, value in plain.items() if not same(value, shadowed[key])]
    assert not differ
