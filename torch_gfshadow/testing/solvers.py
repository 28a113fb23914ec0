"""The contract of solvers: steps, dense output, error estimates, and going on after a stop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torch_gfshadow.solvers import Dopri8, Node, SolverConfig, Stepper
from torch_gfshadow.testing.closed_form import _norm
from torch_gfshadow.testing.runs import toy_run

_RATES = torch.tensor([0.2, 0.7, 1.5, 3.0], dtype=torch.float64)
_START = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)
_END = 3.0


def assert_solver_contract(make: Callable[[], SolverConfig]) -> None:
    """Assert what the shadow relies on in a solver for smooth fields.

    On θ' = −diag(h)θ, whose solution is known: steps end where they say and no later than asked,
    nodes hold the field and are never written to again, the error shrinks with the tolerance and
    lies under what the steps report, dense output joins the nodes, a trial step into NaN is
    rejected without harm, and a saved stepper goes on bit for bit. Beside a training run its
    error bars hold against a tight reference in at least 95 % of the records.

    Args:
        make: Builds the solver's configuration.
    """
    if not isinstance(make(), SolverConfig):
        raise AssertionError(f"{make()!r} must be a SolverConfig")
    errors = [_assert_integrates(make(), tolerance) for tolerance in (1e-4, 1e-7)]
    if not errors[1] <= max(0.1 * errors[0], 1e-6):
        shown = f"{errors[0]:.1e} and {errors[1]:.1e}"
        raise AssertionError(f"the error must follow the tolerance, got {shown} for 1e-4 and 1e-7")
    _assert_rejects_nan(make())
    _assert_resumes(make())
    _assert_bars_hold(make)


def _field(theta: Tensor) -> Tensor:
    return -_RATES * theta


def _started(config: SolverConfig) -> Stepper:
    stepper = config.start(_field, Node(0.0, _START, _field(_START)), 0.01)
    if not isinstance(stepper, Stepper):
        raise AssertionError(f"start() must return a Stepper, got {stepper!r}")
    return stepper


def _exact(time: float) -> Tensor:
    return _START * torch.exp(-_RATES * time)


def _assert_integrates(config: SolverConfig, tolerance: float) -> float:
    """Return the error at the end."""
    stepper, longest, reported, between = _started(config), 0.25, 0.0, 0.0
    kept: list[tuple[Tensor, Tensor]] = []
    for _ in range(100_000):
        if stepper.right.time >= _END:
            break
        before = stepper.right
        if not stepper.step(tolerance, 0.0, longest, None):
            if stepper.right is not before:
                raise AssertionError("a rejected step must leave the solution where it was")
            continue
        left, right = stepper.left, stepper.right
        if left.time != before.time or not 0.0 < right.time - left.time <= longest * (1 + 1e-9):
            got = f"[{left.time}, {right.time}] after {before.time}"
            raise AssertionError(f"a step must go on from the last and be no longer, got {got}")
        if not torch.allclose(right.field, _field(right.state), rtol=1e-9, atol=1e-12):
            raise AssertionError("a node must hold the field at its state")
        reported += _norm(stepper.local_error) if stepper.local_error is not None else 0.0
        middle = 0.5 * (left.time + right.time)
        between = max(between, _norm(stepper.interpolate(middle) - _exact(middle)))
        kept.append((right.state, right.state.clone()))
    else:
        raise AssertionError(f"the solver must reach t = {_END} within 100,000 attempts")
    if not all(torch.equal(state, copy) for state, copy in kept):
        raise AssertionError("the state of a node must not be written to again")
    error = _norm(stepper.right.state - _exact(stepper.right.time))
    allowed = 2.0 * (reported + stepper.ungraded) + 1e-12
    if error > allowed:
        raise AssertionError(
            f"local errors must add up to the error {error:.2e}, got {allowed:.2e}"
        )
    if between > 20.0 * allowed:
        raise AssertionError(f"dense output must be as good as the nodes, got {between:.2e} off")
    return error


def _assert_rejects_nan(config: SolverConfig) -> None:
    def field(theta: Tensor) -> Tensor:
        return torch.where(theta < 0.5, torch.full_like(theta, torch.nan), -torch.ones_like(theta))

    start = torch.ones(2, dtype=torch.float64)
    stepper = config.start(field, Node(0.0, start, field(start)), 0.3)
    for _ in range(200):
        if stepper.next_step < 1e-9:  # the shadow gives up before this
            break
        stepper.step(1e-3)
        if not bool(torch.isfinite(stepper.right.state).all()):
            raise AssertionError("a step into NaN must be rejected")
    if not stepper.next_step < 1e-3:
        raise AssertionError(f"steps must shrink before NaN, got {stepper.next_step:.2e}")


def _assert_resumes(config: SolverConfig) -> None:
    stepper = _started(config)
    for _ in range(5):
        stepper.step(1e-5)
    again = config.resume(_field, stepper.state_dict())
    for _ in range(5):
        if stepper.step(1e-5) != again.step(1e-5):
            raise AssertionError("a resumed stepper must take the same decisions")
        if not torch.equal(stepper.right.state, again.right.state):
            raise AssertionError("a resumed stepper must go on bit for bit")


def _assert_bars_hold(make: Callable[[], SolverConfig]) -> None:
    reference = toy_run(30, probes=(), solver=Dopri8(rtol=1e-11, atol=1e-13, max_evals=None))
    records = toy_run(30, probes=(), solver=make()).records
    held = []
    for got, exact in zip(records, reference.records, strict=True):
        if got.discrepancy is None or got.solver_error is None or exact.discrepancy is None:
            raise AssertionError(f"the shadow must be followed to the end, got {got.status_detail}")
        held.append(abs(got.discrepancy - exact.discrepancy) <= got.solver_error + 1e-12)
    if sum(held) < 0.95 * len(held):
        raise AssertionError(f"error bars must hold in 95 %, got {sum(held)} of {len(held)}")
