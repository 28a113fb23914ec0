"""Pools between layers, as the (piecewise) linear maps they are."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)

from torch_gfshadow.network.calls import Call, per_dimension
from torch_gfshadow.network.norms import SAFETY
from torch_gfshadow.network.values import Map


def linear_pool(call: Call) -> Map | str:
    """A pool with weights ≥ 0: ‖A‖² ≤ largest row sum × largest column sum (Schur)."""
    if call.after.shape[:1] != call.before.shape[:1]:
        return f"{call.name} averages over the samples"
    ones = torch.ones_like(call.before[:1], requires_grad=True)
    rows = call.function(ones, *call.args[1:], **call.kwargs)
    (columns,) = torch.autograd.grad(rows.sum(), ones)
    norm = math.sqrt(float(rows.detach().max()) * float(columns.max())) * SAFETY
    return Map(norm=norm, elementwise=False, name="average pool")


def max_pool(call: Call) -> Map | str:
    """A selection; an input in several windows counts as often as they overlap.

    Equal largest inputs count as a kink, even where they are copies (by an overlapping pool
    before) of one unit and move together: that is on the safe side.
    """
    size = call.get(1, "kernel_size")
    n_dims = int(next(d for d in "123" if f"pool{d}d" in call.name))
    kernel = per_dimension(size, n_dims)
    stride = per_dimension(call.get(2, "stride") or size, n_dims)
    padding = per_dimension(call.get(3, "padding", 0), n_dims)
    dilation = per_dimension(call.get(4, "dilation", 1), n_dims)
    overlap = [
        math.ceil(k / s) if d == 1 else k for k, s, d in zip(kernel, stride, dilation, strict=True)
    ]
    z = call.before.detach()
    if z.dim() != n_dims + 2:
        return f"{call.name} needs samples and channels"
    flat = [
        edge for p, k in reversed(list(zip(padding, kernel, strict=True))) for edge in (p, p + k)
    ]
    windows = F.pad(z, flat, value=-math.inf)
    for axis in range(n_dims):
        n_out, s, d, k = call.after.shape[2 + axis], stride[axis], dilation[axis], kernel[axis]
        starts = torch.arange(n_out, device=z.device)[:, None] * s
        taps = (starts + torch.arange(k, device=z.device) * d).flatten()
        windows = windows.index_select(2 + axis, taps.clamp(max=windows.shape[2 + axis] - 1))
    shape = [x for n, k in zip(call.after.shape[2:], kernel, strict=True) for x in (n, k)]
    windows = windows.reshape(*z.shape[:2], *shape)
    for axis in range(n_dims):
        windows = windows.movedim(3 + axis, -1)
    windows = windows.flatten(-n_dims)
    top = windows.max(-1)
    ties = (windows == top.values[..., None]).sum(-1) > 1
    return Map(
        norm=math.sqrt(math.prod(overlap)),
        linear=False,
        elementwise=False,
        # windows of zeros tie, too: behind a ReLU they are dead and stay zero
        kinks=ties & (top.values != 0),
        pattern=torch.where(ties, -1, top.indices).flatten(),
        name="max pool",
    )
