"""The doors to torch.optim: attach and wrap; and get. One mechanism: step hooks. Next: tracker."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch
from torch import nn

from torch_gfshadow.alerts import Alerts
from torch_gfshadow.blueprint import Blueprint, ObjectiveFunction
from torch_gfshadow.clock import FlowClock
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.errors import must
from torch_gfshadow.flows import Flow
from torch_gfshadow.handle import Shadow
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.loggers import make_header
from torch_gfshadow.parts import Parts
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.ranks import Ranks, is_distributed, rank_here, spoken_for
from torch_gfshadow.request import (
    check_kinds,
    check_options,
    expanded,
    innermost,
    named,
    resolved_mode,
)
from torch_gfshadow.session import Session, Settings
from torch_gfshadow.solvers import SolverConfig
from torch_gfshadow.tracker import Tracker
from torch_gfshadow.watched import Watched

_Opt = TypeVar("_Opt", bound=torch.optim.Optimizer)

_SHADOWS: weakref.WeakKeyDictionary[torch.optim.Optimizer, Shadow] = weakref.WeakKeyDictionary()


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module | None = None,
    objective: ObjectiveFunction | None = None,
    *,
    data: Any = None,
    mode: str = "auto",
    every: int = 1,
    probe_every: int | None = None,
    window: int | None = None,
    resync_every: int | None = None,
    budget: float | None = None,
    resolution: float | None = None,
    flow: str | Flow = "auto",
    solver: str | SolverConfig = "auto",
    hvp: str = "auto",
    probes: Sequence[object] = ("lambda_min", "lambda_max"),
    bounds: Sequence[object] = ("default",),
    loggers: Sequence[object] = (),
    plugins: Sequence[object] = (),
    disable_plugins: Sequence[str] = (),
    alerts: Alerts | None = None,
    audit: bool = True,
    distributed: bool | None = None,
    probe_model: nn.Module | None = None,
    seed: int = 0,
    on_error: str = "disable",
) -> Shadow:
    """Put a gradient-flow shadow beside ``optimizer``; the optimizer itself is not changed.

    A record is made now and after every ``every``-th step; training is bit-identical with and
    without it. With ``model``, ``objective`` and ``data`` the shadow follows the flow of the full
    objective (mode ``"reference"``); without ``data`` it follows each step's own batches (mode
    ``"batch"``; hand them over with ``shadow.observe`` or ``shadow.watch``); with only the
    optimizer it is passive and reads the run's own gradients.

    Args:
        optimizer: Any ``torch.optim.Optimizer``. Wrappers are looked through.
        model: The module whose parameters it steps.
        objective: ``objective(model, batch)`` → scalar mean loss.
        data: What the flow's objective is evaluated on: a batch, Dataset, DataLoader, or a
            callable that returns one of these.
        mode: ``"auto"``, ``"reference"``, ``"batch"``, ``"local"`` (as ``"batch"``, or with
            ``data`` as ``"reference"``, but started at the iterate anew before every record's
            step) or ``"passive"``.
        every: Steps between records.
        probe_every: Steps between probes; by default at steps 0, 1, 2, 4, 8, …
        window: Steps a shadow lives; a fresh one starts at every ``every``-th step. Records are
            made where one starts and ends. By default one shadow lives as long as the run.
        resync_every: Steps after which the shadow is set to the iterate again.
        budget: Largest share of the loop's own time that shadows and probes may take, 0.05 for
            5 %: fresh shadows then start when they can be paid for.
        resolution: Asked solver error, as a share of the discrepancy. The default asks for 0.1,
            and across kinks (ReLU, max-pool) for what half a gradient per step buys.
        flow: Continuous limit to follow; ``"auto"`` asks which one the optimizer has.
        solver: Name or configured solver, as in ``gfs.solvers.Dopri5(rtol=1e-6)``.
        hvp: Hessian-product backend: ``"auto"``, ``"func"``, ``"double_backward"``,
            ``"difference"``.
        probes: Names or instances of what is measured at the iterate.
        bounds: Names or instances of bounds evaluated beside the run. ``"default"`` stands for
            those that can be evaluated with this ``every`` and ``probe_every``.
        loggers: Names, ``"name:target"`` such as ``"jsonl:run.jsonl"``, or instances.
        plugins: Plugin objects for this run, besides the installed ones.
        disable_plugins: Installed plugins to leave out.
        alerts: When to alert, as in ``gfs.Alerts(edge=2.0, discrepancy=0.1, callback=print)``.
        audit: Compare the objective's gradient with the one the steps use.
        distributed: Whether the ranks of a distributed run measure together: the objective is
            then the mean over all samples of all ranks, and rank 0 writes. By default they do
            where a process group of several is initialised; attach on every rank.
        probe_model: A module like ``model``, whole on this rank, to evaluate the objective with
            where ``model`` is sharded (FSDP2): only its parameters' shapes count.
        seed: Seed of our own random numbers; the run's are never drawn from.
        on_error: ``"disable"`` fails open with one warning, ``"raise"`` is for tests.

    Returns:
        The shadow; also a context manager that detaches on leaving.

    Raises:
        TypeError: If ``optimizer`` is no optimizer, or another argument is of the wrong kind.
        ValueError: If an argument is out of range, or the model is not the optimizer's.
        ObjectiveError: If the objective cannot be evaluated, is not scalar, finite,
            deterministic and differentiable.
    """
    settings = Settings(
        mode=mode,
        every=every,
        probe_every=probe_every,
        window=window,
        resync_every=resync_every,
        budget=budget,
        resolution=resolution,
        audit=audit,
        seed=seed,
        on_error=on_error,
    )
    inner = innermost(optimizer)
    check_kinds(model, hvp, probes=probes, bounds=bounds, loggers=loggers)
    check_options(alerts, distributed)
    registry = Plugins(plugins, disable_plugins, on_error=on_error)
    config = dict(
        **asdict(settings),
        flow=named(flow),
        solver=named(solver),
        hvp=hvp,
        probes=[named(p) for p in probes],
        bounds=[named(b) for b in bounds],
        loggers=[named(item) for item in loggers],
        optimizer=type(inner).__name__,
    )
    if objective is None and model is not None and data is not None:
        objective = registry.first(
            "gfshadow_objective_for", optimizer=inner, model=model, config=config
        )
    settings = replace(settings, mode=resolved_mode(mode, model, objective, data))
    solver_config = registry.build("solvers", solver)
    if not isinstance(solver_config, SolverConfig):
        fix = f"Registered: {', '.join(registry.names('solvers'))}."
        raise TypeError(must("solver", "a name or a solver configuration", repr(solver), fix))
    ledger = Ledger()
    blueprint = Blueprint(
        model=model,
        function=objective,
        probe_model=probe_model,
        flow=flow,
        hvp=hvp,
        solver=solver_config,
        settings=settings,
        config=config,
        plugins=registry,
        ledger=ledger,
    )
    follows, layout = blueprint.follows, blueprint.layout(inner)
    chosen, why = blueprint.flow_for(inner, layout)
    several = is_distributed() if distributed is None else distributed
    ranks = Ranks() if several and follows else None
    target = blueprint.objective(layout, data, ranks)
    written = loggers if not several or rank_here() == 0 else ()
    parts = Parts(
        watched=Watched(inner, layout),
        settings=settings,
        session=Session(config=config, ledger=ledger, rank=rank_here() if several else 0),
        plugins=registry,
        objective=target,
        curvature=Curvature(target, hvp) if target is not None else None,
        flow=chosen,
        solver=blueprint.solver_for(layout),
        probes=[registry.build("probes", p) for p in probes] if follows else [],
        bounds=[registry.build("bounds", b) for b in expanded(bounds, follows=target is not None)],
        loggers=[registry.build("loggers", item) for item in written],
        why_passive=why,
        ranks=ranks,
        alerts=alerts,
    )
    parts.source = blueprint.source(parts, objective)
    tracker = Tracker(parts, FlowClock(), blueprint)
    previous = _SHADOWS.get(inner)
    shadow = Shadow(tracker, model)
    with spoken_for(ranks):
        shadow._start(make_header(config, seed))
    if previous is None or not previous._attached:
        _SHADOWS[inner] = shadow
    return shadow


def wrap(
    optimizer: _Opt,
    model: nn.Module | None = None,
    objective: ObjectiveFunction | None = None,
    **options: Any,
) -> _Opt:
    """Attach a shadow and return the same optimizer; :func:`get` has the shadow.

    Arguments and errors are those of :func:`attach`.
    """
    attach(optimizer, model, objective, **options)
    return optimizer


def get(optimizer: torch.optim.Optimizer) -> Shadow:
    """Return the shadow of ``optimizer``: of several, the first still attached.

    Raises:
        KeyError: If it has none; copies and unpickled optimizers are plain.
    """
    shadow = _SHADOWS.get(innermost(optimizer))
    if shadow is None:
        raise KeyError(
            "optimizer must be one a shadow was attached to, got one without. Call "
            "attach() or wrap() first; copies and unpickled optimizers start plain."
        )
    return shadow
