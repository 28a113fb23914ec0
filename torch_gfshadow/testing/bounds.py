"""The contract of bounds: above the discrepancy wherever the flow is known exactly."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch_gfshadow.bounds import Bound, BoundValue
from torch_gfshadow.errors import AssumptionError
from torch_gfshadow.record import FIELDS, Record
from torch_gfshadow.testing.closed_form import ClosedForm, closed_forms

_ROUNDING = 1e-12


def assert_bound_sound(
    make: Callable[[ClosedForm], Bound],
    cases: Sequence[ClosedForm] | None = None,
    *,
    estimate: bool = False,
) -> None:
    """Assert that a bound lies above the exact discrepancy, or says that it has none.

    Every case is gradient descent on an objective with a closed-form flow; the records a bound
    sees are exact. A field it ``requires`` may be missing from some step on: then it must say so
    and be infinite, or still be right. Two bounds of one factory must not share state.

    Args:
        make: Builds the bound for a case. A theorem that does not apply to one raises
            :class:`~torch_gfshadow.errors.AssumptionError` there; on some case it must apply.
        cases: What to try it on; :func:`closed_forms` if not given.
        estimate: Hold only certified values to it, of a bound that admits to be an estimate.
    """
    tried = 0
    for case in closed_forms() if cases is None else cases:
        try:
            bound, again = make(case), make(case)
        except AssumptionError:
            continue
        _assert_described(bound)
        records = list(case.records())
        values = [_update(bound, record) for record in records]
        tried += _assert_above(records, values, case, estimate)
        if [v.to_cell() for v in values] != [_update(again, r).to_cell() for r in records]:
            raise AssertionError(f"two bounds built alike must agree on {case.name!r}")
        for name in sorted(bound.requires - {"step", "time"}):
            gap: dict[str, Any] = {name: None}
            cut = [*records[:5], *(dataclasses.replace(r, **gap) for r in records[5:])]
            fresh = make(case)
            _assert_above(cut, [_update(fresh, r) for r in cut], case, estimate)
    if not tried:
        raise AssertionError("the bound must give a finite value on some case, got none")


def _update(bound: Bound, record: Record) -> BoundValue:
    value = bound.update(record)
    if not isinstance(value, BoundValue):
        where = f"at step {record.step}"
        raise AssertionError(f"update() must return a BoundValue, got {value!r} {where}")
    return value


def _assert_described(bound: Bound) -> None:
    if not isinstance(bound, Bound):
        raise AssertionError(f"{bound!r} has no name, requires and update")
    unknown = sorted(set(bound.requires) - set(FIELDS))
    if unknown:
        raise AssertionError(f"requires must name fields of Record, got {', '.join(unknown)}")


def _assert_above(
    records: Iterable[Record], values: Iterable[BoundValue], case: ClosedForm, estimate: bool
) -> int:
    """Return how many finite values there were after step 0."""
    finite = 0
    for record, value in zip(records, values, strict=True):
        where = f"at step {record.step} of {case.name!r}"
        if math.isnan(value.log_value):
            raise AssertionError(f"a bound must be a number or infinite, got NaN {where}")
        json.dumps(value.to_cell())
        if math.isinf(value.value):
            if value.status == "ok" and value.log_value == math.inf:
                raise AssertionError(f"status must say why there is no bound, got 'ok' {where}")
            continue
        finite += record.step > 0
        held = value.certified or not estimate
        discrepancy = record.discrepancy or 0.0
        if held and value.value < discrepancy * (1.0 - 1e-9) - _ROUNDING:
            kind = "certified" if value.certified else "estimated"
            got = f"{value.value:.6g} under the discrepancy {discrepancy:.6g}"
            raise AssertionError(f"a {kind} bound must hold, got {got} {where}")
    return finite
