"""Flows: the continuous limits of optimizers, and which optimizer has which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from torch_gfshadow.flows.base import Flow
from torch_gfshadow.flows.gradient_flow import GradientFlow
from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.specs import FlowSpec

__all__ = ["Flow", "GradientFlow", "gfshadow_flow_for", "gfshadow_flows"]


@hookimpl
def gfshadow_flows() -> list[FlowSpec]:
    """Register the built-in flows."""
    return [
        FlowSpec(
            name="gradient_flow",
            factory=GradientFlow,
            summary="θ' = −∇f(θ) − wd·θ, the limit of plain SGD",
            source="Elkabetz & Cohen 2021, eq. 2",
        )
    ]


@hookimpl(trylast=True)
def gfshadow_flow_for(optimizer: Any, config: Mapping[str, Any]) -> str | None:
    """Name gradient flow for SGD without momentum; every other optimizer is passed on."""
    if not isinstance(optimizer, torch.optim.SGD):
        return None
    if any(group.get("momentum", 0.0) for group in optimizer.param_groups):
        return None
    return "gradient_flow"
