"""Flows: the continuous limits of optimizers, and which optimizer has which."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from torch_gfshadow.flows.adaptive import AdamFlow, RMSpropFlow
from torch_gfshadow.flows.base import Flow
from torch_gfshadow.flows.gradient_flow import GradientFlow
from torch_gfshadow.flows.momentum import HeavyBall, MomentumFlow
from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.specs import FlowSpec

__all__ = [
    "AdamFlow",
    "Flow",
    "GradientFlow",
    "HeavyBall",
    "MomentumFlow",
    "RMSpropFlow",
    "gfshadow_flow_for",
    "gfshadow_flows",
]


@hookimpl
def gfshadow_flows() -> list[FlowSpec]:
    """Register the built-in flows."""
    return [
        FlowSpec(
            name="gradient_flow",
            factory=GradientFlow,
            summary="θ' = −∇f(θ) − wd·θ, the limit of plain SGD",
            source="Elkabetz & Cohen 2021, eq. 2",
        ),
        FlowSpec(
            name="momentum_flow",
            factory=MomentumFlow,
            summary="gradient flow at η = lr/(1 − μ), the limit of momentum to first order",
            source="Kovachki & Stuart 2021, §2",
        ),
        FlowSpec(
            name="heavy_ball",
            factory=HeavyBall,
            summary="mθ'' + (1 − μ)θ' = −∇f, momentum as a second-order system",
            source="Kovachki & Stuart 2021, §3; Shi et al. 2022 for Nesterov",
        ),
        FlowSpec(
            name="rmsprop_flow",
            factory=RMSpropFlow,
            summary="θ' = −g/(√v + ε), v' = κ(g² − v), an approximation of RMSprop",
            source="da Silva & Gazeau 2020, §2.1",
        ),
        FlowSpec(
            name="adam_flow",
            factory=AdamFlow,
            summary="θ' = −m̂/(√v̂ + ε) with running means, an approximation of Adam and AdamW",
            source="da Silva & Gazeau 2020, §2.2; Barakat & Bianchi 2021, eq. 1.3",
        ),
    ]


@hookimpl(trylast=True)
def gfshadow_flow_for(optimizer: Any, config: Mapping[str, Any]) -> str | None:
    """Name the flow of SGD, RMSprop and Adam; every other optimizer is passed on."""
    groups = optimizer.param_groups
    if isinstance(optimizer, torch.optim.SGD):
        return "momentum_flow" if any(g.get("momentum") for g in groups) else "gradient_flow"
    if any(g.get("maximize") for g in groups):
        return None
    if _steps_as(optimizer, torch.optim.Adam) or _steps_as(optimizer, torch.optim.AdamW):
        return None if any(g.get("amsgrad") for g in groups) else "adam_flow"
    if _steps_as(optimizer, torch.optim.RMSprop):
        return (
            None
            if any(g.get("momentum") or g.get("centered") for g in groups)
            else ("rmsprop_flow")
        )
    return None


def _steps_as(optimizer: Any, cls: type[torch.optim.Optimizer]) -> bool:
    """Say whether the steps are those of ``cls``: shadowed classes change nothing about them.

    torch wraps ``step`` in the class of the first instance, hence the unwrapping.
    """
    step, theirs = inspect.unwrap(type(optimizer).step), inspect.unwrap(cls.step)
    return isinstance(optimizer, cls) and step is theirs
