"""The numbers that scalar results take, each refused by name, and how a hypothesis was checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch_gfshadow.bounds.base import Assumption
from torch_gfshadow.errors import AssumptionError, must

_DEEPEST = 10**9  # beyond, the formulas' own powers of n leave the range of a float
GIVEN, SAMPLED = "given", "sampled"
ROUNDING = 1e-12
"""Relative excess over a limit that counts as rounding of the limit itself."""


def number(
    name: str, value: Any, condition: str, holds: Callable[[float], bool], fix: str
) -> float:
    """Return ``value`` as a finite float for which ``holds`` is true.

    Raises:
        AssumptionError: Otherwise; the message is ``<name> must be <condition>, got <value>. …``.
    """
    try:
        if isinstance(value, (bool, str, bytes)):  # float() would take them
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise AssumptionError(must(name, condition, repr(value)[:60], fix)) from error
    if not (math.isfinite(found) and holds(found)):
        raise AssumptionError(must(name, condition, repr(found), fix))
    return found


def finite(name: str, value: Any, fix: str = "Check where it was computed.") -> float:
    """Return any finite number."""
    return number(name, value, "finite", lambda _: True, fix)


def positive(name: str, value: Any, fix: str) -> float:
    """Return a number above 0."""
    return number(name, value, "positive and finite", lambda x: x > 0.0, fix)


def not_negative(name: str, value: Any, fix: str) -> float:
    """Return a number of at least 0."""
    return number(name, value, "not negative and finite", lambda x: x >= 0.0, fix)


def depth(value: Any, at_least: int = 2) -> int:
    """Return the number n of weight matrices."""
    fix = "n counts weight matrices; below two layers the Hessian is that of the loss alone."
    condition = f"an integer of at least {at_least}"
    found = number("depth n", value, condition, lambda x: at_least <= x <= _DEEPEST, fix)
    return int(number("depth n", found, condition, lambda x: x == int(x), fix))


def size(name: str, value: Any) -> int:
    """Return a width, an integer of at least 1."""
    fix = "It is the number of rows or columns of a weight matrix."
    whole = "an integer of at least 1"
    return int(number(name, value, whole, lambda x: x >= 1 and x == int(x), fix))


def choice(name: str, value: Any, known: Sequence[str]) -> str:
    """Return one of a few words."""
    if value not in known:
        raise AssumptionError(must(name, " or ".join(map(repr, known)), repr(value), "Pick one."))
    return str(value)


def distance(name: str, value: Any) -> float:
    """Return a norm."""
    return not_negative(name, value, "It is the norm of a vector.")


def tolerance(name: str, value: Any) -> float:
    """Return a distance that is asked for."""
    return positive(name, value, "It is the distance from the flow, or the loss, to be reached.")


def pieces(breaks: Any, *curves: tuple[str, Any]) -> tuple[list[float], list[list[float]]]:
    """Return times 0 ≤ t_0 ≤ … ≤ t_K with t_0 < t_K, and one value per piece for every curve.

    Pieces of length zero are dropped. A single number stands for a constant curve.

    Raises:
        AssumptionError: If times decrease or are negative, or a length disagrees.
    """
    times = [_time(f"breaks[{i}]", t) for i, t in enumerate(listed("breaks", breaks))]
    for index, (begin, end) in enumerate(pairwise(times)):
        if end < begin:
            got = f"{begin} followed by {end} at index {index}"
            raise AssumptionError(must("breaks", "increasing", got, "Sort them."))
    if len(times) < 2 or times[0] == times[-1]:
        got = f"{len(times)} times" if len(times) < 2 else f"{times[0]} to {times[-1]}"
        fix = "Begin with t_0 and end with the horizon."
        raise AssumptionError(must("breaks", "an interval of positive length", got, fix))
    n_pieces = len(times) - 1
    kept = [i for i in range(n_pieces) if times[i + 1] > times[i]]
    values = []
    for name, curve in curves:
        items = [curve] * n_pieces if _is_number(curve) else listed(name, curve)
        if len(items) != n_pieces:
            condition = f"one value per piece ({n_pieces} for {len(times)} breaks)"
            fix = "A piece lies between two neighbouring breaks."
            raise AssumptionError(must(name, condition, f"{len(items)} values", fix))
        checked = [finite(f"{name}[{i}]", value) for i, value in enumerate(items)]
        values.append([checked[i] for i in kept])
    return [times[kept[0]], *(times[i + 1] for i in kept)], values


def held(statement: str, number: str) -> Assumption:
    """Return a hypothesis that the given numbers satisfy."""
    return Assumption(statement, f"held: {number}", certain=True)


def vouched(statement: str) -> Assumption:
    """Return a hypothesis about what the numbers stand for: the caller's word."""
    return Assumption(statement, "not checkable from these numbers: given by the caller", True)


def constants(statement: str, source: Any) -> Assumption:
    """Return the hypothesis that given constants are true limits: vouched for, or only sampled."""
    if choice("constants_are", source, (GIVEN, SAMPLED)) == GIVEN:
        return vouched(statement)
    return Assumption(statement, "sampled: the supremum may be larger", certain=False)


def _time(name: str, value: Any) -> float:
    return not_negative(name, value, "Time starts at 0, where the two curves begin.")


def listed(name: str, value: Any, what: str = "numbers") -> list[Any]:
    """Return a list of what should be numbers, or something else.

    Raises:
        AssumptionError: If it is no list.
    """
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__len__"):
        fix = f"Write {name}=[...]."
        raise AssumptionError(must(name, f"a list of {what}", repr(value)[:60], fix))
    return list(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
