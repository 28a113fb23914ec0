"""Pour: gradients added to a vector layer by layer, so that all of them never exist together.

Each parameter's gradient is added when the backward pass has made it, and dropped at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._blocks import Stretch, fill
from torch_gfshadow._direct import Direct
from torch_gfshadow._kinks import Glance
from torch_gfshadow._sandbox import Sandbox, averaging
from torch_gfshadow._tree import dense

_Chunks = Iterable[tuple[Any, float]]


def add_gradient(
    sandbox: Sandbox,
    theta: Tensor | None,
    chunks: _Chunks,
    out: Tensor,
    weights: Sequence[tuple[int, float]],
) -> float:
    """Add the gradient at ``theta`` to ``out``, each piece of it times its weight.

    Args:
        sandbox: Evaluates the model.
        theta: Shape ``[d]``; ``None`` for where the model is.
        chunks: Batches, with their part of the whole.
        out: Shape ``[d]``.
        weights: Sizes of the pieces, each some parameters long, and the weights.

    Returns:
        The loss.
    """
    total, layout, parts = 0.0, sandbox.layout, _parts(sandbox, out, weights)
    with sandbox.guard():
        if theta is None:
            leaves = {
                name: param.detach().requires_grad_()
                for name, param in zip(layout.names, layout.params, strict=True)
            }
        else:
            leaves = sandbox.params_at(theta, requires_grad=True)
        for batch, share in chunks:
            total += share * _poured(sandbox, leaves, batch, parts, share)
    return total


def write_gradient(
    sandbox: Sandbox, stretch: Stretch, chunks: _Chunks, out: Tensor, glance: Glance | None = None
) -> float:
    """Set ``out`` to the gradient in the middle of ``stretch``; return the weighted loss.

    Slopes of activations with kinks are averaged over the stretch, ``glance`` looking on. A model
    of which that cannot be done is evaluated plainly, from then on.
    """
    if sandbox.averages:
        try:
            return _written(sandbox, stretch, chunks, out, glance)
        except RuntimeError:
            # a checkpoint, a gradient penalty, a forward pass that changes its course: if the
            # error is another, the plain evaluation below raises it again
            sandbox.averages = False
    return _written(sandbox, stretch, chunks, out, None)


def _written(
    sandbox: Sandbox, stretch: Stretch, chunks: _Chunks, out: Tensor, glance: Glance | None
) -> float:
    total, parts = 0.0, _parts(sandbox, out.zero_(), [(out.numel(), 1.0)])
    point = torch.empty_like(out)
    with sandbox.guard():
        for batch, share in chunks:
            noted: list[Tensor] = []
            if sandbox.averages:
                noted = sandbox.noted(sandbox.params_at(fill(point, stretch.entered)), batch)
                sandbox.averages = bool(noted)
            leaves = sandbox.params_at(fill(point, stretch.middle), requires_grad=True)
            total += share * _poured(sandbox, leaves, batch, parts, share, noted, glance)
    return total


def _parts(
    sandbox: Sandbox, out: Tensor, weights: Sequence[tuple[int, float]]
) -> list[tuple[Tensor, float]]:
    """Return the piece of ``out`` and the weight that belong to each parameter."""
    layout, ends = sandbox.layout, list(accumulate(size for size, _ in weights))
    starts = accumulate(layout.sizes[:-1], initial=0)
    each = [weights[bisect_right(ends, start)][1] for start in starts]
    split = torch.split(out, list(layout.sizes))
    views = [part.view(shape) for part, shape in zip(split, layout.shapes, strict=True)]
    return list(zip(views, each, strict=True))


def _poured(
    sandbox: Sandbox,
    leaves: Mapping[str, Tensor],
    batch: Any,
    parts: Sequence[tuple[Tensor, float]],
    share: float,
    noted: Sequence[Tensor] = (),
    glance: Glance | None = None,
) -> float:
    if sandbox.by_backward:  # its gradients come in several pieces, and by other ways
        loss, grads = sandbox.grads(leaves, batch, noted=noted or None, glance=glance)
        for (part, weight), grad in zip(parts, grads, strict=True):
            if grad is not None:
                part.add_(grad.to(part.device), alpha=weight * share)
        return loss.item()

    def pour(leaf: Tensor, part: Tensor, weight: float) -> None:
        if leaf.grad is None:  # added already, see ``_direct``
            return
        part.add_(dense(leaf.grad).to(part.device), alpha=weight * share)
        leaf.grad = None

    hooks = [
        leaf.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            partial(pour, part=part, weight=weight)
        )
        for leaf, (part, weight) in zip(leaves.values(), parts, strict=True)
    ]
    large = [
        (leaf, part, weight * share)
        for leaf, (part, weight) in zip(leaves.values(), parts, strict=True)
        if sandbox.direct
    ]
    try:
        with averaging(noted, glance) if noted else nullcontext():
            return _differentiated(sandbox, leaves, batch, Direct(large), retries=not noted)
    finally:
        for hook in hooks:
            hook.remove()


def _differentiated(
    sandbox: Sandbox, leaves: Mapping[str, Tensor], batch: Any, direct: Direct, *, retries: bool
) -> float:
    with sandbox.swapped(leaves):
        try:
            with direct.watching():
                loss = sandbox.forward(batch)
        except RuntimeError:  # a checkpoint; if it is something else, it comes again
            if not (direct.used and retries):
                raise
            sandbox.direct = False
            loss = None
        if loss is not None:
            return _backward(loss, leaves, direct)
    with sandbox.swapped(leaves):
        return _backward(sandbox.forward(batch), leaves, direct)


def _backward(loss: Tensor, leaves: Mapping[str, Tensor], direct: Direct) -> float:
    if loss.requires_grad:
        direct.open = True
        torch.autograd.backward(loss, inputs=list(leaves.values()))
    return loss.item()
