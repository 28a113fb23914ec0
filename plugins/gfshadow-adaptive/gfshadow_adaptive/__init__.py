"""The flow of Adam, AdamW and RMSprop as their step size goes to 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_gfshadow import hookimpl
from torch_gfshadow.specs import FlowSpec

__version__ = "0.1.0"

_METHODS = ("Adam", "AdamW", "RMSprop")


def _flow() -> Any:
    # Imported on use: every run that has this package installed loads this module.
    from gfshadow_adaptive.flow import AdaptiveFlow

    return AdaptiveFlow()


@hookimpl
def gfshadow_flows() -> list[FlowSpec]:
    """Register the flow."""
    return [
        FlowSpec(
            name="adaptive",
            factory=_flow,
            summary="θ' = −g/(|g| + ε), the limit of Adam, AdamW and RMSprop",
            source="Ma, Wu & E 2022",
        )
    ]


@hookimpl
def gfshadow_flow_for(optimizer: Any, config: Mapping[str, Any]) -> str | None:
    """Name the flow for torch's Adam, AdamW and RMSprop; pass every other optimizer on."""
    names = {cls.__name__ for cls in type(optimizer).__mro__ if cls.__module__.startswith("torch.")}
    if not names.intersection(_METHODS):
        return None
    unlike = ("amsgrad", "centered", "momentum")  # these have another limit
    if any(group.get(name) for group in optimizer.param_groups for name in unlike):
        return None
    return "adaptive"
