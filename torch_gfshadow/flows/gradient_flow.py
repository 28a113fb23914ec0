"""Gradient flow with weight decay: the continuous limit of plain SGD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from torch_gfshadow._tree import Layout
from torch_gfshadow.flows.base import ParamGroups


class GradientFlow:
    """θ' = −∇f(θ) − wd·θ, the flow of f + ½·wd·‖θ‖² (``maximize`` turns the first sign).

    torch's SGD with ``weight_decay=wd`` is Euler's method for it with step η = lr. Where groups
    have several rates, η is the largest of them and the field of group g is multiplied by
    lr_g / η: their ratios belong to the flow, the clock to all.

    Source: Elkabetz & Cohen 2021, eq. 2; weight decay as in maths of torch.optim.SGD.
    """

    name = "gradient_flow"

    def __init__(self) -> None:
        self._decays: tuple[float, ...] = ()
        self._signs: tuple[float, ...] = ()
        self._ratios: tuple[float, ...] = ()
        # of every parameter: its size, and a and b in F = a·∇f + b·θ
        self._pieces: tuple[tuple[int, float, float], ...] = ()

    def configure(self, groups: ParamGroups, layout: Layout) -> bool:
        """Read decay, ``maximize`` and relative rate of every group; say whether they changed."""
        decays = tuple(float(g.get("weight_decay", 0.0)) for g in groups)
        signs = tuple(1.0 if g.get("maximize", False) else -1.0 for g in groups)
        ratios = ratios_of(self.rates(groups))
        if (decays, signs, ratios) == self.fixed:
            return False
        self._decays, self._signs, self._ratios = decays, signs, ratios
        by_id = {
            id(p): (sign * ratio, -decay * ratio)
            for decay, sign, ratio, group in zip(decays, signs, ratios, groups, strict=True)
            for p in group["params"]
        }
        pairs = zip(layout.params, layout.sizes, strict=True)
        self._pieces = tuple((size, *by_id[id(p)]) for p, size in pairs)
        return True

    @property
    def fixed(self) -> tuple[tuple[float, ...], ...]:
        """All that the field depends on: decays, signs and relative rates, by group."""
        return self._decays, self._signs, self._ratios

    @property
    def paced_by_gradient(self) -> bool:
        """Whether a factor of the gradient changes the pace and nothing else: without decay."""
        return not any(self._decays)

    def field(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return ±∇f(θ) − wd·θ."""
        pairs = self._pairs
        if len(pairs) <= 1:
            pieces = [(slice(None), *next(iter(pairs), (-1.0, 0.0)))]
        else:
            pieces = list(sliced(self._pieces))
        out = grad.to(theta.dtype, copy=True)
        for at, a, b in pieces:
            out[at] *= a
            if b != 0.0:
                out[at].add_(theta[at], alpha=b)
        return out

    @property
    def coefficients(self) -> tuple[tuple[int, float, float], ...] | None:
        """Size, a and b of every parameter in F(θ) = a·∇f(θ) + b·θ; one where all agree.

        ``None`` for a field that is not this one.
        """
        if type(self).field is not GradientFlow.field or not self._pieces:
            return None
        if len(self._pairs) > 1:
            return self._pieces
        ((a, b),) = self._pairs
        return ((sum(size for size, _, _ in self._pieces), a, b),)

    @property
    def _pairs(self) -> set[tuple[float, float]]:
        return {(a, b) for _, a, b in self._pieces}

    def step_size(self, groups: ParamGroups) -> float:
        """Return the largest rate."""
        return max(self.rates(groups), default=0.0)

    def rates(self, groups: ParamGroups) -> tuple[float, ...]:
        """Return the flow time that one step takes in every group."""
        return tuple(float(g.get("lr", 0.0)) if g["params"] else 0.0 for g in groups)


def ratios_of(rates: tuple[float, ...]) -> tuple[float, ...]:
    """Return every rate over the largest one; 1 where all of them are 0."""
    top = max(rates, default=0.0)
    return tuple(rate / top if top > 0.0 else 1.0 for rate in rates)


def sliced(
    pieces: Iterable[tuple[int, float, float]],
) -> Iterator[tuple[slice, float, float]]:
    """Yield where in the flat vector each of ``pieces`` is, and its two numbers."""
    start = 0
    for size, a, b in pieces:
        yield slice(start, start + size), a, b
        start += size


def per_parameter(values: tuple[float, ...], groups: ParamGroups, layout: Layout) -> Tensor | float:
    """Return one number if all groups agree, else a vector of shape ``[d]``."""
    if len(set(values)) == 1:
        return values[0]
    by_id = {id(p): v for v, g in zip(values, groups, strict=True) for p in g["params"]}
    sizes = torch.tensor(layout.sizes, device="cpu")
    each = torch.tensor([by_id[id(p)] for p in layout.params], dtype=torch.float64, device="cpu")
    return each.repeat_interleave(sizes).to(layout.device)
