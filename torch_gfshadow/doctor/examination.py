"""Examination: every check on a user's model, in the order a doctor would ask.

Read next: ``derivatives`` (against the referee), ``runs`` (bit for bit), ``costs``.
"""

from __future__ import annotations

from typing import Any

from torch_gfshadow._streams import Streams, python_streams, torch_streams
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.doctor.costs import estimate
from torch_gfshadow.doctor.derivatives import check_derivatives
from torch_gfshadow.doctor.findings import Diagnosis, Finding
from torch_gfshadow.doctor.remarks import remarks
from torch_gfshadow.doctor.runs import differing, step_of, trained
from torch_gfshadow.doctor.setup import Factory, Setup, made
from torch_gfshadow.errors import GFShadowError, NotAGradientError, must
from torch_gfshadow.handle import Shadow
from torch_gfshadow.layouts import layout_of
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective
from torch_gfshadow.request import innermost
from torch_gfshadow.status import Status

_SHOWN = 3
_OWN_LOOP = "Make train_step run by itself first; nothing of ours was attached yet."


def diagnose(factory: Factory, *, steps: int = 20, seed: int = 0) -> Diagnosis:
    """Check that a shadow beside this model would be right, and say what it would cost.

    The factory is called several times and the models it returns are changed; no random stream
    of the caller is moved.

    Args:
        factory: Returns ``(model, objective, data)``, ``(optimizer, model, objective, data)`` or
            a mapping with these keys, in which ``train_step`` may be one step of the user's own
            loop as a function without arguments. The same at every call from the same seeds.
        steps: Optimizer steps of the runs that are compared, bare and shadowed.
        seed: Of every random stream before the factory is called.

    Returns:
        The findings and the cost.

    Raises:
        TypeError: If ``factory`` is not callable or returns something else.
        ValueError: If ``steps`` is not a positive whole number.

    Example:
        >>> import torch
        >>> def make():
        ...     model = torch.nn.Linear(2, 1).double()
        ...     x = torch.randn(8, 2, dtype=torch.float64)
        ...     return model, lambda model, x: model(x).square().mean(), x
        >>> diagnosis = diagnose(make)
        >>> diagnosis.healthy, diagnosis["training untouched"].level
        (True, 'ok')
    """
    if not callable(factory):
        fix = "Pass the function itself, without calling it."
        raise TypeError(must("factory", "a function without arguments", repr(factory), fix))
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        fix = "A few dozen show what a long run would."
        raise ValueError(must("steps", "a positive whole number", repr(steps), fix))
    with Streams([*torch_streams(()), *python_streams()]).kept():
        return _examined(factory, steps, seed)


def _examined(factory: Factory, steps: int, seed: int) -> Diagnosis:
    setup = made(factory, seed)
    try:
        innermost(setup.optimizer)
    except TypeError as error:
        return Diagnosis([Finding("optimizer", "wrong", str(error))])
    try:
        layout = layout_of(setup.optimizer, setup.model)
        objective = Objective(setup.model, setup.objective, setup.data, layout, Ledger())
    except (TypeError, ValueError, GFShadowError) as error:
        return Diagnosis([Finding("objective", "wrong", str(error))])
    curvature = Curvature(objective)
    findings = [_objective(objective)]
    findings += check_derivatives(objective, curvature, lambda: made(factory, seed).model, seed)
    findings += remarks(setup.model, objective.n_chunks)
    if not Diagnosis(findings).healthy:
        return Diagnosis(findings)
    try:
        trained(factory, seed, 1)
    except Exception as error:
        found = f"A step without a shadow raises {type(error).__name__}: {error}"
        return Diagnosis([*findings, Finding("training loop", "wrong", found, _OWN_LOOP)])
    try:
        untouched, shadow = _untouched(factory, seed, steps)
    except (TypeError, ValueError, GFShadowError) as error:
        return Diagnosis([*findings, Finding("attach", "wrong", str(error))])
    findings += [untouched, _followed(shadow), _audited(shadow, setup)]
    cost: dict[str, Any] = {}
    if not _failures(shadow):
        cost = estimate(objective, curvature, shadow, step_of(made(factory, seed)))
    return Diagnosis(findings, cost)


def _objective(objective: Objective) -> Finding:
    loss, grad = objective.initial
    passes = objective.n_chunks
    found = (
        f"f = {loss:.6g} and ‖∇f‖ = {float(grad.norm()):.6g} over {objective.layout.dim:,} "
        f"parameters, in {passes} forward pass{'es' if passes > 1 else ''}; the same twice."
    )
    return Finding("objective", "ok", found)


def _untouched(factory: Factory, seed: int, steps: int) -> tuple[Finding, Shadow]:
    bare, _ = trained(factory, seed, steps)
    again, _ = trained(factory, seed, steps)
    shadowed, shadow = trained(factory, seed, steps, {"probe_every": max(1, steps // 2)})
    assert shadow is not None
    check = "training untouched"
    own = differing(bare, again)
    if own:
        return Finding(
            check,
            "unknown",
            f"Two bare runs of {steps} steps from the same seeds differ in {_few(own)}, so a "
            "shadow's effect could not be told from the loop's own.",
            "Let the factory draw all its random numbers from the global generators.",
        ), shadow
    ours = differing(bare, shadowed)
    if ours:
        return Finding(
            check,
            "wrong",
            f"{steps} steps with the shadow differ from {steps} bare ones in {_few(ours)}.",
            "Please report this with your factory: it must never happen.",
        ), shadow
    found = f"{steps} steps with and without the shadow agree bit for bit in all {len(bare)} "
    return Finding(check, "ok", found + "things compared (parameters, buffers, …)."), shadow


def _followed(shadow: Shadow) -> Finding:
    last = shadow.records[-1]
    for error in _failures(shadow):
        return Finding("flow", "wrong", f"{type(error).__name__}: {error}")
    if last.mode == "passive":
        fix = "Only the run's own gradients are read. " + (
            "Name one with flow=, or train with an optimizer that has one."
        )
        return Finding("flow", "note", last.status_detail or Status.PASSIVE.sentence, fix)
    if last.discrepancy is None:
        return Finding("flow", "wrong", last.status_detail, last.status.sentence)
    found = (
        f"{last.flow} by {last.solver}: discrepancy {last.discrepancy:.3g} ± "
        f"{last.solver_error or 0.0:.1g} after {last.step} steps."
    )
    unresolved = last.status in (Status.UNRESOLVED, Status.TRUNCATED, Status.STIFF)
    return Finding(
        "flow", "note" if unresolved else "ok", found, last.status.sentence if unresolved else ""
    )


def _failures(shadow: Shadow) -> list[BaseException]:
    """Return what went wrong; that a gradient has no Hessian is found before."""
    return [error for error in shadow.errors if not isinstance(error, NotAGradientError)]


def _audited(shadow: Shadow, setup: Setup) -> Finding:
    audits = [r.audit for r in shadow.records if r.audit not in ("pending", "none")]
    check = "gradient audit"
    if not audits:
        return Finding(check, "unknown", "No step was compared with the objective.")
    loop = "your train_step" if setup.train_step else "plain full-batch steps"
    found = f"With {loop}: {audits[-1]}."
    if audits[-1] == "match":
        return Finding(check, "ok", found)
    status = Status.SCALED if audits[-1].startswith("scaled") else Status.MISMATCH
    return Finding(check, "note", found, status.sentence)


def _few(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
