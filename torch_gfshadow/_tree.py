"""The one door between the model's parameters and a flat vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from torch_gfshadow._blocks import Terms, blocks, combined


def dense(tensor: Tensor) -> Tensor:
    """Return ``tensor``, with its zeros if it is sparse (the gradient of an embedding)."""
    return tensor.to_dense() if tensor.layout is not torch.strided else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether ``tensor`` is spread over ranks (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return ``tensor``, gathered from all ranks if it is sharded over them (then collective)."""
    gather = getattr(tensor, "full_tensor", None)
    if gather is None:
        return tensor
    gathered: Tensor = gather()
    return gathered


def local(tensor: Tensor) -> Tensor:
    """Return ``tensor``, or this rank's shard of it."""
    shard = getattr(tensor, "to_local", None)
    if shard is None:
        return tensor
    mine: Tensor = shard()
    return mine


def real_view(tensor: Tensor) -> Tensor:
    """Return ``tensor``; of a complex one, real and imaginary part of each entry in a row.

    That is how torch.optim steps complex parameters, and it keeps norms: ‖z‖² = Σ Re² + Im².
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


class Layout:
    """Order, shapes, dtypes and devices of the parameters that make up θ ∈ R^d.

    A complex parameter counts as twice as many real ones.

    Args:
        names: One name per parameter, as ``model.named_parameters()`` spells it.
        params: The parameters, each once; order defines the flat vector.
    """

    def __init__(self, names: Sequence[str], params: Sequence[nn.Parameter]) -> None:
        self.names = tuple(names)
        self.params = tuple(params)
        self.shapes = tuple(p.shape for p in params)
        self.sizes = tuple(p.numel() * (1 + p.is_complex()) for p in params)
        self.dim = sum(self.sizes)
        self.ids = frozenset(map(id, params))
        self.homes = self._present()

    @property
    def device(self) -> torch.device:
        """Device of the flat vector: the first parameter's."""
        return self.params[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Widest floating dtype among the parameters; a complex one counts as its parts'."""
        dtype = self.params[0].dtype
        for param in self.params[1:]:
            dtype = torch.promote_types(dtype, param.dtype)
        return dtype.to_real()

    def moved(self) -> bool:
        """Say whether a parameter has another dtype, device or shape than when this was made."""
        return self._present() != self.homes

    def _present(self) -> list[tuple[torch.dtype, torch.device, torch.Size]]:
        return [(p.dtype, p.device, p.shape) for p in self.params]

    def flatten(self, tensors: Iterable[Tensor | None], dtype: torch.dtype | None = None) -> Tensor:
        """Copy ``tensors`` (``None`` counts as zeros) into one new vector of shape ``[d]``."""
        tensors = [real_view(whole(t.detach())) if t is not None else None for t in tensors]
        dtype = dtype or self.dtype
        if all(t is not None and t.dtype == dtype and t.device == self.device for t in tensors):
            return torch.cat([t.detach().reshape(-1) for t in tensors if t is not None])
        flat = torch.empty(self.dim, dtype=dtype, device=self.device)
        start = 0
        for tensor, size in zip(tensors, self.sizes, strict=True):
            part = flat[start : start + size]
            if tensor is None:
                part.zero_()
            else:
                part.copy_(tensor.detach().reshape(-1))
            start += size
        return flat

    def current(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the parameters as they are now, as one new vector of shape ``[d]``."""
        return self.flatten(self.params, dtype)

    def distance(self, terms: Terms) -> float:
        """Return ‖θ + Σ w_i·v_i‖₂, in float64, for the parameters as they are.

        A block at a time: no vector of the size of θ is made.
        """
        total, start = 0.0, 0
        for param, size in zip(self.params, self.sizes, strict=True):
            flat = real_view(whole(param.detach())).reshape(-1).to(self.device)
            for at in blocks(size):
                here = slice(start + at.start, start + at.stop)
                block = combined([(flat[at], 1.0), *((v[here], w) for v, w in terms)])
                total += float(torch.dot(block, block))
            start += size
        return math.sqrt(total) if total >= 0.0 else math.nan

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Return name → tensor in each parameter's own shape, dtype and device.

        Views of ``flat`` where dtype and device already agree.
        """
        parts = torch.split(flat, list(self.sizes))
        return {
            name: part.view(shape).to(dtype=param.dtype, device=param.device)
            for name, part, shape, param in zip(
                self.names, parts, self.shapes, self.params, strict=True
            )
        }
