"""The three doors to torch.optim: attach, wrap, shadowed; and get. One mechanism: step hooks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torch_gfshadow.curvature import Curvature
from torch_gfshadow.errors import must
from torch_gfshadow.flows import Flow
from torch_gfshadow.handle import Shadow
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.loggers import make_header
from torch_gfshadow.objective import Objective
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.session import Session, Settings
from torch_gfshadow.solvers import SolverConfig
from torch_gfshadow.tracker import Parts, Tracker
from torch_gfshadow.watched import Watched, layout_of

ObjectiveFunction = Callable[[nn.Module, Any], Tensor]
_Opt = TypeVar("_Opt", bound=torch.optim.Optimizer)

_SHADOWS: weakref.WeakKeyDictionary[torch.optim.Optimizer, Shadow] = weakref.WeakKeyDictionary()
_WRAPPED = ("optimizer", "optim", "_optimizer")
# A closure-driven line search calls the objective many times per step: there is no step size.
_NO_FLOAT64 = ("mps",)
_NO_STEP_SIZE = (torch.optim.LBFGS,)


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module | None = None,
    objective: ObjectiveFunction | None = None,
    *,
    data: Any = None,
    mode: str = "auto",
    every: int = 1,
    probe_every: int | None = None,
    resync_every: int | None = None,
    resolution: float | None = None,
    flow: str | Flow = "auto",
    solver: str | SolverConfig = "auto",
    hvp: str = "auto",
    probes: Sequence[object] = ("lambda_min", "lambda_max"),
    bounds: Sequence[object] = ("default",),
    loggers: Sequence[object] = (),
    plugins: Sequence[object] = (),
    disable_plugins: Sequence[str] = (),
    audit: bool = True,
    seed: int = 0,
    on_error: str = "disable",
) -> Shadow:
    """Put a gradient-flow shadow beside ``optimizer``; the optimizer itself is not changed.

    A record is made now and after every ``every``-th step; training is bit-identical with and
    without it. With ``model``, ``objective`` and ``data`` the shadow follows the flow of the full
    objective (mode ``"reference"``); with only the optimizer it is passive and reads the run's
    own gradients.

    Args:
        optimizer: Any ``torch.optim.Optimizer``. Wrappers are looked through.
        model: The module whose parameters it steps.
        objective: ``objective(model, batch)`` → scalar mean loss.
        data: What the flow's objective is evaluated on: a batch, Dataset, DataLoader, or a
            callable that returns one of these.
        mode: ``"auto"``, ``"reference"`` or ``"passive"``.
        every: Steps between records.
        probe_every: Steps between probes; by default at steps 0, 1, 2, 4, 8, …
        resync_every: Steps after which the shadow is set to the iterate again.
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
        audit: Compare the objective's gradient with the one the steps use.
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
        resync_every=resync_every,
        resolution=resolution,
        audit=audit,
        seed=seed,
        on_error=on_error,
    )
    inner = _innermost(optimizer)
    _check_kinds(model, probes=probes, bounds=bounds, loggers=loggers)
    registry = Plugins(plugins, disable_plugins, on_error=on_error)
    config = dict(
        mode=mode,
        every=every,
        probe_every=probe_every,
        resync_every=resync_every,
        resolution=resolution,
        flow=_named(flow),
        solver=_named(solver),
        hvp=hvp,
        probes=[_named(p) for p in probes],
        bounds=[_named(b) for b in bounds],
        loggers=[_named(item) for item in loggers],
        audit=audit,
        seed=seed,
        on_error=on_error,
        optimizer=type(inner).__name__,
    )
    if objective is None and model is not None and data is not None:
        objective = registry.first(
            "gfshadow_objective_for", optimizer=inner, model=model, config=config
        )
    _check_mode(mode, model, objective, data)
    solver_config = registry.build("solvers", solver)
    if not isinstance(solver_config, SolverConfig):
        fix = f"Registered: {', '.join(registry.names('solvers'))}."
        raise TypeError(must("solver", "a name or a solver configuration", repr(solver), fix))
    ledger = Ledger()
    layout = layout_of(inner, model)
    if layout.device.type in _NO_FLOAT64 and solver_config.dtype == torch.float64:
        solver_config = replace(solver_config, dtype=torch.float32)
    follows = mode != "passive" and objective is not None
    chosen, why = _flow(registry, inner, flow, config) if follows else (None, "")
    watched = Watched(inner, layout)
    if chosen is not None:
        chosen.configure(inner.param_groups, layout)
        _check_clock(chosen, inner)
    target = None
    if follows and model is not None and objective is not None:
        with torch.inference_mode(False), torch.no_grad(), ledger.timing():
            target = Objective(model, objective, data, layout, ledger)
    parts = Parts(
        watched=watched,
        settings=settings,
        session=Session(config=config, ledger=ledger),
        plugins=registry,
        objective=target,
        curvature=Curvature(target, hvp) if target is not None else None,
        flow=chosen,
        solver=solver_config,
        probes=[registry.build("probes", p) for p in probes] if target is not None else [],
        bounds=[registry.build("bounds", b) for b in _expanded(bounds, settings)],
        loggers=[registry.build("loggers", item) for item in loggers],
        why_passive=why,
    )
    previous = _SHADOWS.get(inner)
    shadow = Shadow(Tracker(parts))
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
    shadow = _SHADOWS.get(_innermost(optimizer))
    if shadow is None:
        raise KeyError(
            "optimizer must be one a shadow was attached to, got one without. Call "
            "attach() or wrap() first; copies and unpickled optimizers start plain."
        )
    return shadow


def shadowed(cls: type[_Opt]) -> type[_Opt]:
    """Return a subclass of a concrete optimizer class that attaches to itself.

    For configurations that name a class: ``shadowed(SGD)(params, lr=…, shadow=dict(model=…,
    objective=…, data=…))``. Without ``shadow`` it is a plain optimizer. Copies and pickles are
    plain ``cls`` objects.

    Args:
        cls: A subclass of ``torch.optim.Optimizer``.

    Raises:
        TypeError: If ``cls`` is no optimizer class.
    """
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        fix = "Use shadowed(torch.optim.SGD)."
        raise TypeError(must("cls", "an optimizer class", repr(cls), fix))

    def __init__(  # noqa: N807
        self: Any, *args: Any, shadow: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        cls.__init__(self, *args, **kwargs)
        if shadow is not None:
            attach(self, **shadow)

    def __reduce__(self: Any) -> Any:  # noqa: N807
        return _plain_copy, (cls, self.__getstate__())

    namespace = {"__init__": __init__, "__reduce__": __reduce__, "__doc__": cls.__doc__}
    made: Any = type(f"Shadowed{cls.__name__}", (cls,), namespace)
    made.__module__ = cls.__module__
    return made  # type: ignore[no-any-return]


def _plain_copy(cls: type[torch.optim.Optimizer], state: dict[str, Any]) -> Any:
    optimizer = cls.__new__(cls)
    optimizer.__setstate__(state)
    return optimizer


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    """Look through wrappers that are not really optimizers (Accelerate, PostLocalSGD)."""
    current = optimizer
    for _ in range(8):
        if isinstance(current, torch.optim.Optimizer) and hasattr(
            current, "_optimizer_step_pre_hooks"
        ):
            if isinstance(current, _NO_STEP_SIZE):
                break
            return current
        inner = next((getattr(current, n) for n in _WRAPPED if hasattr(current, n)), None)
        if inner is None or inner is current:
            break
        current = inner
    name = f"{type(current).__module__}.{type(current).__name__}"
    if isinstance(current, _NO_STEP_SIZE):
        fix = "Its line search has no step size, so no flow time. Use a first-order optimizer."
        raise TypeError(must("optimizer", "one that takes steps of a known size", name, fix))
    raise TypeError(
        must(
            "optimizer",
            "a torch.optim.Optimizer with step hooks",
            f"a {name}",
            "Attach to the torch optimizer inside it.",
        )
    )


def _check_kinds(model: Any, **lists: Any) -> None:
    if model is not None and not isinstance(model, nn.Module):
        got = f"a {type(model).__name__}"
        raise TypeError(must("model", "a torch.nn.Module", got, "Pass the model trained."))
    for name, value in lists.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError(must(name, "a list", repr(value), f"Write {name}=[...]."))


def _check_mode(mode: str, model: Any, objective: Any, data: Any) -> None:
    given = {"model": model, "objective": objective, "data": data}
    missing = [name for name, value in given.items() if value is None]
    if mode == "reference" and missing:
        fix = "Pass attach(optimizer, model, objective, data=(X, y))."
        raise ValueError(must(missing[0], "given in mode 'reference'", "None", fix))
    if mode == "auto" and objective is not None and missing:
        fix = (
            "The flow needs a model and data to evaluate the objective on: "
            "attach(optimizer, model, objective, data=(X, y))."
        )
        raise ValueError(must(missing[0], "given together with objective", "None", fix))
    if mode == "auto" and data is not None and objective is None:
        fix = "Write objective(model, batch) so that it returns the mean loss of the batch."
        raise ValueError(must("objective", "given together with data", "None", fix))


def _flow(
    registry: Plugins, optimizer: Any, flow: Any, config: Mapping[str, Any]
) -> tuple[Flow | None, str]:
    """Return the flow to follow, or ``None`` and the reason."""
    if not isinstance(flow, str):
        chosen = registry.build("flows", flow)
        if not isinstance(chosen, Flow):
            fix = f"Registered: {', '.join(registry.names('flows'))}."
            raise TypeError(must("flow", "a name or a Flow", repr(flow), fix))
        return chosen, ""
    if flow == "auto":
        name = registry.first("gfshadow_flow_for", optimizer=optimizer, config=config)
        if name is None:
            kind = type(optimizer).__name__
            if any(g.get("momentum") for g in optimizer.param_groups):
                kind += " with momentum"
            return None, f"No continuous limit is registered for {kind}"
        flow = name
    return registry.build("flows", flow), ""


def _check_clock(flow: Flow, optimizer: torch.optim.Optimizer) -> None:
    try:
        flow.step_size(optimizer.param_groups)
    except Exception as error:
        raise ValueError(str(error)) from error


def _expanded(bounds: Sequence[object], settings: Settings) -> list[object]:
    """Replace ``"default"`` by the bounds whose ingredients every record of the run will have."""
    dense = settings.every == 1 and settings.probe_every == 1
    default: list[object] = ["theorem2"] if dense else []
    return [b for item in bounds for b in (default if item == "default" else [item])]


def _named(item: Any) -> str:
    return item if isinstance(item, str) else repr(item)
