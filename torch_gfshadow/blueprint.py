"""Blueprint: how the parts that depend on which parameters are trained are made, at any time.

At attach, and anew whenever layers are frozen or unfrozen, heads added, the model cast or moved.
Read next: ``tracker``, which notices that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from torch_gfshadow._plain import load_state, state_of
from torch_gfshadow._purity import unwrap
from torch_gfshadow._tree import Layout
from torch_gfshadow.clock import FlowClock
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.flows import Flow
from torch_gfshadow.follow import Follower
from torch_gfshadow.layouts import layout_of
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.minibatch import Minibatch
from torch_gfshadow.objective import Objective
from torch_gfshadow.observed import Observed
from torch_gfshadow.parts import Parts
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.ranks import Ranks, spoken_for
from torch_gfshadow.request import check_clock, choose_flow, host_of, source_of
from torch_gfshadow.session import Settings
from torch_gfshadow.solvers import SolverConfig

ObjectiveFunction = Callable[[nn.Module, Any], Tensor]
_NO_FLOAT64 = ("mps",)


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What ``attach`` was asked for, as far as it is put together anew for other parameters."""

    model: nn.Module | None
    function: ObjectiveFunction | None
    probe_model: nn.Module | None
    flow: str | Flow
    hvp: str
    solver: SolverConfig
    settings: Settings
    config: Mapping[str, Any]
    plugins: Plugins
    ledger: Ledger
    _as_given: Mapping[str, Any] | None = field(init=False)

    def __post_init__(self) -> None:
        # of a flow that was given as an object: once it has read an optimizer it remembers it
        given = None if isinstance(self.flow, str) else state_of(self.flow)
        object.__setattr__(self, "_as_given", given)

    @property
    def follows(self) -> bool:
        """Whether an objective is or will be there to be followed."""
        mode = self.settings.mode
        return mode != "passive" and (self.function is not None or mode != "reference")

    def layout(self, optimizer: torch.optim.Optimizer) -> Layout:
        """Return what the optimizer steps now.

        Raises:
            ValueError: As :func:`~torch_gfshadow.layouts.layout_of`.
        """
        return layout_of(optimizer, self.model, real=self.follows)

    def flow_for(self, optimizer: torch.optim.Optimizer, layout: Layout) -> tuple[Flow | None, str]:
        """Return the flow to follow, new to this layout, or ``None`` and the reason.

        Raises:
            TypeError: If what was asked for is none.
            ValueError: If it has no clock for the optimizer's groups.
        """
        if not self.follows:
            return None, ""
        flow = self.flow
        if isinstance(flow, Flow) and self._as_given is not None:
            flow = copy.copy(flow)
            load_state(flow, self._as_given)
        chosen, why = choose_flow(self.plugins, optimizer, flow, self.config)
        if chosen is not None:
            check_clock(chosen, optimizer, layout)
        return chosen, why

    def solver_for(self, layout: Layout) -> SolverConfig:
        """Return the solver in a dtype that the device has."""
        narrow = layout.device.type in _NO_FLOAT64 and self.solver.dtype == torch.float64
        return replace(self.solver, dtype=torch.float32) if narrow else self.solver

    def objective(self, layout: Layout, data: Any, ranks: Ranks | None) -> Objective | None:
        """Check and return the objective on ``data``; ``None`` where there is none yet.

        Raises:
            TypeError: If a part of it is of the wrong kind.
            ValueError: If the data are empty, or the model cannot be evaluated here.
            ObjectiveError: If the objective cannot be followed.
        """
        if self.model is None or not self.follows:
            return None
        host, own = host_of(self.model, self.probe_model, layout)
        if host is None or self.function is None or data is None:
            return None
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            self.ledger.timing(),
            spoken_for(ranks),
        ):
            return Objective(host, self.function, data, own, self.ledger, ranks=ranks)

    def source(
        self, parts: Parts, function: ObjectiveFunction | None
    ) -> Callable[[Any], Objective] | None:
        """Return what makes the objective of a first batch, for the parameters of that moment."""
        if self.model is None or function is None or not self.follows:
            return None

        def own() -> Layout:
            return host_of(self.model, self.probe_model, parts.watched.layout)[1]

        host = self.model if self.probe_model is None else self.probe_model
        return source_of(host, function, own, self.ledger, parts.ranks)

    def follower(self, parts: Parts, clock: FlowClock) -> Follower:
        """Return the flow side of a tracker, by mode."""
        batches = self.settings.mode in ("batch", "local")
        if not batches or self.model is None or parts.flow is None:
            return Follower(parts, clock)
        devices = {p.device for p in self.model.parameters()}
        read = unwrap(self.model) if self.probe_model is None else None
        return Minibatch(parts, clock, Observed(parts.watched, devices, read))

    def relaid(self, parts: Parts, clock: FlowClock, before: Follower) -> Follower:
        """Put ``parts`` on the parameters the optimizer steps now; return the flow side for them.

        Nothing is evaluated, so several ranks need not meet here. Where there is no flow of these
        parameters, what goes on is passive and says why.
        """
        optimizer = parts.watched.optimizer
        assert optimizer is not None
        own: Layout | None = None
        try:
            layout = self.layout(optimizer)
            own = host_of(self.model, self.probe_model, layout)[1] if self.follows else None
            parts.flow, parts.why_passive = self.flow_for(optimizer, layout)
        except (TypeError, ValueError) as error:
            parts.flow, parts.why_passive = None, str(error).rstrip(".")
            if own is None:
                layout = layout_of(optimizer, None, real=False)
        parts.watched.adopt(layout)
        parts.solver = self.solver_for(layout)
        known, parts.curvature = before.given, None
        parts.objective = known.relaid(own) if known is not None and own is not None else None
        if parts.objective is not None:
            parts.curvature = Curvature(parts.objective, self.hvp)
        after = self.follower(parts, clock)
        after.succeed(before)
        return after
