"""What attach() was asked for: every argument checked, names turned into what they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torch_gfshadow._linearise import BACKENDS
from torch_gfshadow._purity import unwrap
from torch_gfshadow._tree import Layout, is_sharded
from torch_gfshadow.alerts import Alerts
from torch_gfshadow.bounds import Convolution, Lemma2, Nonlinear
from torch_gfshadow.errors import must, unknown_name
from torch_gfshadow.flows import Flow
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.ranks import Ranks

_WRAPPED = ("optimizer", "optim", "_optimizer")
# A closure-driven line search calls the objective many times per step: there is no step size.
_NO_STEP_SIZE = (torch.optim.LBFGS,)


def innermost(optimizer: Any) -> torch.optim.Optimizer:
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


def check_kinds(model: Any, hvp: str, **lists: Any) -> None:
    """Refuse a model that is no module, an unknown backend, a name where a list belongs."""
    if hvp not in ("auto", *BACKENDS):
        raise ValueError(unknown_name("hvp", hvp, ("auto", *BACKENDS)))
    if model is not None and not isinstance(model, nn.Module):
        got = f"a {type(model).__name__}"
        raise TypeError(must("model", "a torch.nn.Module", got, "Pass the model trained."))
    for name, value in lists.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError(must(name, "a list", repr(value), f"Write {name}=[...]."))


def check_options(alerts: Any, distributed: Any) -> None:
    """Refuse alerts that are none, and an answer to "together?" that is neither yes nor no."""
    if alerts is not None and not isinstance(alerts, Alerts):
        fix = "Pass gfs.Alerts(discrepancy=0.1)."
        raise TypeError(must("alerts", "an Alerts object", repr(alerts), fix))
    if distributed is not None and not isinstance(distributed, bool):
        fix = "Leave it out: ranks measure together where a process group is initialised."
        raise TypeError(must("distributed", "True, False or None", repr(distributed), fix))


def resolved_mode(mode: str, model: Any, objective: Any, data: Any) -> str:
    """Return the mode that ``"auto"`` stands for; refuse one that lacks one of its parts."""
    check_mode(mode, model, objective, data)
    if mode != "auto":
        return mode
    if objective is None:
        return "passive"
    return "batch" if data is None else "reference"


def check_mode(mode: str, model: Any, objective: Any, data: Any) -> None:
    """Refuse a mode that lacks one of its parts."""
    if mode in ("batch", "local") and model is None:
        fix = "Pass attach(optimizer, model, objective), and observe each batch."
        raise ValueError(must("model", f"given in mode {mode!r}", "None", fix))
    given = {"model": model, "objective": objective, "data": data}
    missing = [name for name, value in given.items() if value is None]
    if mode == "reference" and missing:
        fix = "Pass attach(optimizer, model, objective, data=(X, y))."
        raise ValueError(must(missing[0], "given in mode 'reference'", "None", fix))
    if mode == "auto" and objective is not None and model is None:
        fix = "The flow needs the model to evaluate it: attach(optimizer, model, objective)."
        raise ValueError(must(missing[0], "given together with objective", "None", fix))
    if mode == "auto" and data is not None and objective is None:
        fix = "Write objective(model, batch) so that it returns the mean loss of the batch."
        raise ValueError(must("objective", "given together with data", "None", fix))


def choose_flow(
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
            options = ("momentum", "centered", "amsgrad", "maximize")
            on = [o for o in options if any(g.get(o) for g in optimizer.param_groups)]
            kind += f" with {' and '.join(on)}" if on else ""
            fix = "Name one with flow=, or register one through the hook gfshadow_flow_for"
            return None, f"No continuous limit is registered for {kind}. {fix}"
        flow = name
    return registry.build("flows", flow), ""


def check_clock(flow: Flow, optimizer: torch.optim.Optimizer, layout: Layout) -> None:
    """Refuse groups without a common clock, as a bad argument."""
    try:
        flow.configure(optimizer.param_groups, layout)
        step_size = flow.step_size(optimizer.param_groups)
    except KeyError as error:
        got = f"{flow.name!r} for a {type(optimizer).__name__}, whose groups have no {error}"
        fix = "Leave flow= out, or name a flow of this optimizer."
        raise ValueError(must("flow", "one that the optimizer can have", got, fix)) from error
    except Exception as error:
        raise ValueError(str(error)) from error
    if not 0.0 <= step_size < math.inf:
        fix = "Give the optimizer a positive learning rate."
        raise ValueError(must("lr", "finite and not negative", step_size, fix))


def expanded(bounds: Sequence[object], *, follows: bool) -> list[object]:
    """Replace ``"default"``: Theorem 2, and the limit of λ_min for the kind of network there is.

    Nothing where no objective is followed.
    """
    default: list[object] = [
        "theorem2",
        Lemma2(quiet=True),
        Nonlinear(quiet=True),
        Convolution(quiet=True),
    ]
    default = default if follows else []
    return [b for item in bounds for b in (default if item == "default" else [item])]


def source_of(
    model: nn.Module,
    function: Any,
    layout: Callable[[], Layout],
    ledger: Ledger,
    ranks: Ranks | None,
) -> Callable[[Any], Objective]:
    """Return what makes the objective of a first batch, counted and timed as setup."""

    def made(batch: Any) -> Objective:
        # as a callable: a list of tensors would itself be taken for a batch
        return Objective(model, function, lambda: iter([batch]), layout(), ledger, ranks=ranks)

    return made


def named(item: Any) -> str:
    """Return what stands for ``item`` in the configuration of a record file."""
    return item if isinstance(item, str) else repr(item)


def host_of(
    model: nn.Module | None, probe_model: nn.Module | None, layout: Layout
) -> tuple[nn.Module | None, Layout]:
    """Return the module to evaluate the objective with, and the layout of its parameters.

    Raises:
        TypeError: If ``probe_model`` is no module.
        ValueError: If its parameters differ from the model's in name or shape, or it is needed.
    """
    if probe_model is None:
        sharded = next(
            (n for n, p in zip(layout.names, layout.params, strict=True) if is_sharded(p)), ""
        )
        if sharded:
            fix = "Pass probe_model=, an unsharded module made like it."
            raise ValueError(must("model", "whole on each rank", f"{sharded!r} sharded", fix))
        return model, layout
    if not isinstance(probe_model, nn.Module):
        got = f"a {type(probe_model).__name__}"
        raise TypeError(must("probe_model", "a torch.nn.Module", got, "Build it like model."))
    named = dict(unwrap(probe_model).named_parameters())
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in named or named[name].shape != shape:
            found = f"shape {list(named[name].shape)}" if name in named else "none"
            condition = f"like model, with {name!r} of shape {list(shape)}"
            raise ValueError(must("probe_model", condition, found, "Build it the same way."))
    return probe_model, Layout(layout.names, [named[name] for name in layout.names])
