"""Gradient flow with weight decay: the continuous limit of plain SGD."""

from __future__ import annotations

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
        self._decay: Tensor | float = 0.0
        self._sign: Tensor | float = -1.0
        self._ratio: Tensor | float = 1.0

    def configure(self, groups: ParamGroups, layout: Layout) -> bool:
        """Read decay, ``maximize`` and relative rate of every group; say whether they changed."""
        decays = tuple(float(g.get("weight_decay", 0.0)) for g in groups)
        signs = tuple(1.0 if g.get("maximize", False) else -1.0 for g in groups)
        ratios = ratios_of(self.rates(groups))
        if (decays, signs, ratios) == (self._decays, self._signs, self._ratios):
            return False
        self._decays, self._signs, self._ratios = decays, signs, ratios
        self._decay = per_parameter(decays, groups, layout)
        self._sign = per_parameter(signs, groups, layout)
        self._ratio = per_parameter(ratios, groups, layout)
        return True

    @property
    def paced_by_gradient(self) -> bool:
        """Whether a factor of the gradient changes the pace and nothing else: without decay."""
        return not any(self._decays)

    def field(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return ±∇f(θ) − wd·θ."""
        out = grad.to(theta.dtype) * self._sign
        if isinstance(self._decay, Tensor) or self._decay != 0.0:
            out -= self._decay * theta
        if isinstance(self._ratio, Tensor):
            out *= self._ratio
        return out

    @property
    def coefficients(self) -> tuple[float, float] | None:
        """(a, b) of F(θ) = a·∇f(θ) + b·θ; ``None`` if they differ between groups."""
        if type(self) is not GradientFlow:
            return None
        if any(isinstance(c, Tensor) for c in (self._decay, self._sign, self._ratio)):
            return None
        return float(self._sign), -float(self._decay)

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


def per_parameter(values: tuple[float, ...], groups: ParamGroups, layout: Layout) -> Tensor | float:
    """Return one number if all groups agree, else a vector of shape ``[d]``."""
    if len(set(values)) == 1:
        return values[0]
    by_id = {id(p): v for v, g in zip(values, groups, strict=True) for p in g["params"]}
    sizes = torch.tensor(layout.sizes, device="cpu")
    each = torch.tensor([by_id[id(p)] for p in layout.params], dtype=torch.float64, device="cpu")
    return each.repeat_interleave(sizes).to(layout.device)
