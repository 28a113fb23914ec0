"""Every hook a plugin can implement, on one page.

Registry hooks return a list of specs. Notification hooks return nothing, may not touch
parameters, gradients or random state, and are isolated: one that raises is muted. A plugin may
take fewer arguments than a hook offers, so hooks can gain arguments in a minor version; a hook
is removed only after one minor version in which it is deprecated.
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
    """Register bounds on the discrepancy.

    Called once when a session's plugins are collected, and by ``gfshadow bound list``. A factory
    returns an object with ``name``, ``requires`` and ``update(record)`` that gives a
    ``BoundValue``; it reads records and never touches the model. Hold it to
    ``testing.assert_bound_sound``.
    """


@hookspec
def gfshadow_inits() -> Sequence[InitSpec]:  # type: ignore[empty-body]
    """Register initialisers.

    A factory returns a function that changes the parameters of a module in place and returns the
    module, drawing from torch's random numbers only. Hold it to ``testing.assert_init_contract``.
    """


@hookspec
def gfshadow_loggers() -> Sequence[LoggerSpec]:  # type: ignore[empty-body]
    """Register sinks for records.

    ``loggers=["name:target"]`` calls ``factory("target")``, which returns an object with
    ``start(header)``, ``write(record)`` and ``finish(summary)``. It is called on rank 0 only. One
    that raises three times in a row, or is too slow, is muted; the others keep the records. Hold
    it to ``testing.assert_logger_contract``.
    """


@hookspec
def gfshadow_probes() -> Sequence[ProbeSpec]:  # type: ignore[empty-body]
    """Register measurements at the iterate.

    A factory returns an object with ``name``, ``every`` and ``measure(point)``; what that returns
    goes into the record, under ``extras[name]`` where it is no field of its own. Called on every
    rank. Hold it to ``testing.assert_probe_contract``.
    """


@hookspec
def gfshadow_flows() -> Sequence[FlowSpec]:  # type: ignore[empty-body]
    """Register continuous limits.

    A factory returns an object with ``name``, ``configure``, ``field`` and ``step_size``: the
    differential equation an optimizer discretises. ``gfshadow_flow_for`` says which optimizer.
    Hold it to ``testing.assert_flow_is_limit``.
    """


@hookspec
def gfshadow_solvers() -> Sequence[SolverSpec]:  # type: ignore[empty-body]
    """Register ODE steppers.

    A factory returns a ``SolverConfig`` whose ``start`` gives a live ``Stepper``: one step at a
    time, with dense output and an estimate of what each step got wrong. Hold it to
    ``testing.assert_solver_contract``.
    """


@hookspec(firstresult=True)
def gfshadow_flow_for(optimizer: Any, config: Mapping[str, Any]) -> str | None:
    """Name the flow that is this optimizer's continuous limit; ``None`` passes the question on.

    Asked with ``flow="auto"`` when a session begins, and when it goes on with other parameters. The
    newest plugin is asked first, the built-in answer last; without any the shadow is passive. One
    that raises is muted and the next is asked.

    Args:
        optimizer: The torch optimizer itself, unwrapped.
        config: The arguments of ``attach``, JSON-ready.
    """


@hookspec(firstresult=True)
def gfshadow_objective_for(optimizer: Any, model: Any, config: Mapping[str, Any]) -> Any:
    """Return ``objective(model, batch) -> scalar`` for a model that knows its own loss.

    Asked once per session when ``attach`` got a model and data and no objective; ``None`` passes
    the question on. The answer is audited against the gradients of the run like any objective.

    Args:
        optimizer: The torch optimizer itself, unwrapped.
        model: The model as it was given.
        config: The arguments of ``attach``, JSON-ready.
    """


@hookspec
def gfshadow_attach(session: Any) -> None:
    """Hear that a shadow was attached; open resources here.

    Args:
        session: Configuration, ledger, records, errors and rank; read only.
    """


@hookspec
def gfshadow_step(record: Record, session: Any) -> None:
    """Hear of every record, after the loggers have it.

    The first call may import and connect; after it, a plugin that takes more than a second in
    all, a quarter of the run's time and 20 ms per call is muted as too slow.

    Args:
        record: The row, frozen.
        session: Configuration, ledger, records, errors and rank; read only.
    """


@hookspec
def gfshadow_bound_exceeded(record: Record, bound: str, session: Any) -> None:
    """Hear that a measurement contradicts a bound by more than its own error bar.

    Args:
        record: The row that holds the measurement.
        bound: Name of the bound.
        session: Configuration, ledger, records, errors and rank; read only.
    """


@hookspec
def gfshadow_error(exc: BaseException, session: Any) -> None:
    """Hear of an exception that was caught so that training could go on.

    Args:
        exc: Of a logger, probe or bound, of another plugin, or of the shadow itself.
        session: Configuration, ledger, records, errors and rank; read only.
    """


@hookspec
def gfshadow_detach(session: Any) -> None:
    """Hear that the shadow was detached; close resources here.

    Args:
        session: Configuration, ledger, records, errors and rank; read only.
    """
