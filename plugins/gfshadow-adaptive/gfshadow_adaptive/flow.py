"""θ' = −g/(|g| + ε), componentwise: what Adam and RMSprop tend to as the step size goes to 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_gfshadow.errors import FlowError
from torch_gfshadow.flows.base import ParamGroups


class AdaptiveFlow:
    """The limit of Adam, AdamW and RMSprop for η → 0 with their β held fixed.

    The moving averages look back over 1/(1 − β) steps, which is a flow time of η/(1 − β) and goes
    to 0: both averages become the gradient of the moment. With g = ∇f(θ), or g + wd·θ where the
    decay is inside the gradient (Adam, RMSprop)::

        θ' = −g/(|g| + ε)              Adam, RMSprop
        θ' = −g/(|g| + ε) − wd·θ       AdamW, and Adam with ``decoupled_weight_decay``

    At the default ε = 1e-8 this is sign descent: the field jumps where a component of g changes
    sign, and the solver's error bar says what that costs. The larger η/(1 − β₂) is against the
    time in which the gradient changes, the further the optimizer is from this limit: that is
    what the discrepancy then measures.

    References:
        Ma, Wu & E, "A qualitative study of the dynamic behavior for adaptive gradient
        algorithms", MSML 2022, arXiv:2009.06125, section 3.
    """

    name = "adaptive"

    def __init__(self) -> None:
        self._settings = (0.0, 0.0, False, False)

    def configure(self, groups: ParamGroups, layout: Any) -> bool:
        """Read ε, weight decay and ``maximize``; say whether they changed.

        Raises:
            FlowError: If parameter groups differ in them.
        """
        decoupled = bool(_common(groups, "decoupled_weight_decay", False))
        before, self._settings = (
            self._settings,
            (
                float(_common(groups, "eps", 1e-8)),
                float(_common(groups, "weight_decay", 0.0)),
                decoupled,
                bool(_common(groups, "maximize", False)),
            ),
        )
        return self._settings != before

    def field(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return F(θ), given ∇f(θ)."""
        eps, decay, decoupled, maximize = self._settings
        g = grad.to(theta.dtype)
        if maximize:
            g = -g
        if decay and not decoupled:
            g = g + decay * theta
        out = -g / (g.abs() + eps)
        return out - decay * theta if decay and decoupled else out

    def step_size(self, groups: ParamGroups) -> float:
        """Return the learning rate that all groups share.

        Raises:
            FlowError: If they share none.
        """
        return float(_common(groups, "lr", 0.0))


def _common(groups: ParamGroups, name: str, default: float | bool) -> float | bool:
    values = {group.get(name, default) for group in groups if group["params"]}
    if len(values) != 1:
        shown = sorted(float(value) for value in values)
        raise FlowError(
            f"param_groups must be of one {name}, got {name} = {shown}. "
            f"Give every group the same {name}."
        )
    value: float | bool = values.pop()
    return value
