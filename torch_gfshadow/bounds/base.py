"""What a bound is and what it returns. Next: theorem2.py, the first of the family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch_gfshadow.bounds._phi import exp
from torch_gfshadow.errors import must
from torch_gfshadow.record import Record


@dataclass(frozen=True, slots=True)
class Assumption:
    """One hypothesis of a theorem, and how it was checked.

    Attributes:
        statement: The hypothesis, for example ``"f ∈ C² between iterate and flow"``.
        checked: How: ``"given"``, ``"measured at the iterates"``, ``"not checked"`` …
        certain: Whether the check proves it. An estimate, however good, does not.
    """

    statement: str
    checked: str
    certain: bool


@dataclass(frozen=True, slots=True)
class BoundValue:
    """An upper limit on the discrepancy, in the units of θ, held by its logarithm.

    Attributes:
        log_value: Natural logarithm of the limit; −∞ for 0. Never overflows.
        assumptions: Everything the limit rests on.
        status: ``"ok"``, or a sentence saying why there is no limit.
    """

    log_value: float
    assumptions: tuple[Assumption, ...] = ()
    status: str = "ok"

    @property
    def value(self) -> float:
        """The limit itself; ``inf`` where it exceeds the range of a float."""
        return exp(self.log_value)

    @property
    def certified(self) -> bool:
        """Whether every ingredient is certain. A bound that rests on nothing is not certified."""
        return bool(self.assumptions) and all(item.certain for item in self.assumptions)

    def to_cell(self) -> dict[str, Any]:
        """Return ``{value, log_value, certified, status}``, the cell of ``Record.bounds``."""
        return {
            "value": self.value,
            "log_value": self.log_value,
            "certified": self.certified,
            "status": self.status,
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A result of the theory evaluated on given numbers, as ``gfshadow bound eval`` prints it.

    Attributes:
        value: Named values, JSON-ready; the keys are the result's own.
        assumptions: Everything they rest on.
        status: ``"ok"``, or a sentence (``"infeasible: …"``, ``"certified until t = …"``).
    """

    value: Mapping[str, Any]
    assumptions: tuple[Assumption, ...] = ()
    status: str = "ok"

    @property
    def certified(self) -> bool:
        """Whether every ingredient is certain. What rests on nothing is not certified."""
        return bool(self.assumptions) and all(item.certain for item in self.assumptions)


@runtime_checkable
class Bound(Protocol):
    """A theorem, evaluated along a run. It reads records and never touches the model.

    ``update`` is called once per record, in order, from the record at step 0 on; a bound carries
    its own state. ``requires`` names the record fields it cannot do without, so that nothing is
    measured in vain.
    """

    name: str
    requires: frozenset[str]

    def update(self, record: Record) -> BoundValue:
        """Return the limit on the discrepancy at ``record.time``."""


def finite(argument: str, values: Sequence[float]) -> tuple[float, ...]:
    """Return ``values`` as floats.

    Raises:
        ValueError: If one of them is NaN or infinite.
    """
    numbers = tuple(float(value) for value in values)
    for index, number in enumerate(numbers):
        if not math.isfinite(number):
            fix = "Cut the curve before the point where it stops being finite."
            raise ValueError(must(f"{argument}[{index}]", "finite", number, fix))
    return numbers
