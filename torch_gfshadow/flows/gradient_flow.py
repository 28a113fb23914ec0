"""Gradient flow with weight decay: the continuous limit of plain SGD."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import FlowError
from torch_gfshadow.flows.base import ParamGroups


class GradientFlow:
    """θ' = −∇f(θ) − wd·θ, the flow of f + ½·wd·‖θ‖² (``maximize`` turns the first sign).

    torch's SGD with ``weight_decay=wd`` is Euler's method for it with step η = lr. The decay may
    differ between parameter groups, the learning rate may not: a flow has one clock.

    Source: Elkabetz & Cohen 2021, eq. 2; weight decay as in maths of torch.optim.SGD.
    """

    name = "gradient_flow"

    def __init__(self) -> None:
        self._decays: tuple[float, ...] = ()
        self._signs: tuple[float, ...] = ()
        self._decay: Tensor | float = 0.0
        self._sign: Tensor | float = -1.0

    def configure(self, groups: ParamGroups, layout: Layout) -> bool:
        """Read weight decay and ``maximize`` of every group; say whether they changed."""
        decays = tuple(float(g.get("weight_decay", 0.0)) for g in groups)
        signs = tuple(1.0 if g.get("maximize", False) else -1.0 for g in groups)
        if (decays, signs) == (self._decays, self._signs):
            return False
        self._decays, self._signs = decays, signs
        self._decay = _per_parameter(decays, groups, layout)
        self._sign = _per_parameter(signs, groups, layout)
        return True

    def field(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return ±∇f(θ) − wd·θ."""
        out = grad.to(theta.dtype) * self._sign
        if isinstance(self._decay, Tensor) or self._decay != 0.0:
            out -= self._decay * theta
        return out

    def step_size(self, groups: ParamGroups) -> float:
        """Return the learning rate that all groups share."""
        rates = {float(g["lr"]) for g in groups if g["params"]}
        if len(rates) != 1:
            raise FlowError(
                f"param_groups must be of one learning rate, got lr = {sorted(rates)}. "
                "The flow has one clock: give every group the same lr."
            )
        return rates.pop()


def _per_parameter(
    values: tuple[float, ...], groups: ParamGroups, layout: Layout
) -> Tensor | float:
    """Return one number if all groups agree, else a vector of shape ``[d]``."""
    if len(set(values)) == 1:
        return values[0]
    by_id = {id(p): v for v, g in zip(values, groups, strict=True) for p in g["params"]}
    sizes = torch.tensor(layout.sizes, device="cpu")
    each = torch.tensor([by_id[id(p)] for p in layout.params], dtype=torch.float64, device="cpu")
    return each.repeat_interleave(sizes).to(layout.device)
