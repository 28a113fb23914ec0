"""Every hook a plugin can implement, on one page.

Registry hooks return a list of specs. Notification hooks return nothing, may not touch
parameters, gradients or random state, and are isolated: one that raises is muted. A plugin may
take fewer arguments than a hook offers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from torch_gfshadow.specs import BoundSpec, FlowSpec, InitSpec, LoggerSpec, ProbeSpec, SolverSpec

if TYPE_CHECKING:
    from torch_gfshadow.record import Record

PROJECT = "torch_gfshadow"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def gfshadow_bounds() -> Sequence[BoundSpec]:  # type: ignore[empty-body]
    """Register bounds on the discrepancy."""


@hookspec
def gfshadow_inits() -> Sequence[InitSpec]:  # type: ignore[empty-body]
    """Register initialisers."""


@hookspec
def gfshadow_loggers() -> Sequence[LoggerSpec]:  # type: ignore[empty-body]
    """Register sinks for records."""


@hookspec
def gfshadow_probes() -> Sequence[ProbeSpec]:  # type: ignore[empty-body]
    """Register measurements at the iterate."""


@hookspec
def gfshadow_flows() -> Sequence[FlowSpec]:  # type: ignore[empty-body]
    """Register continuous limits."""


@hookspec
def gfshadow_solvers() -> Sequence[SolverSpec]:  # type: ignore[empty-body]
    """Register ODE steppers."""


@hookspec(firstresult=True)
def gfshadow_flow_for(optimizer: Any, config: Mapping[str, Any]) -> str | None:
    """Name the flow that is this optimizer's continuous limit; ``None`` passes the question on."""


@hookspec(firstresult=True)
def gfshadow_objective_for(optimizer: Any, model: Any, config: Mapping[str, Any]) -> Any:
    """Return ``objective(model, batch) -> scalar`` for a model that knows its own loss."""


@hookspec
def gfshadow_attach(session: Any) -> None:
    """Hear that a shadow was attached; open resources here."""


@hookspec
def gfshadow_step(record: Record, session: Any) -> None:
    """Hear of every record, after the loggers have it."""


@hookspec
def gfshadow_bound_exceeded(record: Record, bound: str, session: Any) -> None:
    """Hear that a measurement contradicts a bound by more than its own error bar."""


@hookspec
def gfshadow_error(exc: BaseException, session: Any) -> None:
    """Hear of an exception that was caught so that training could go on."""


@hookspec
def gfshadow_detach(session: Any) -> None:
    """Hear that the shadow was detached; close resources here."""
