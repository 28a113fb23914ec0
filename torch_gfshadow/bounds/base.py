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
        failed: Whether the check refutes it.
    """

    statement: str
    checked: str
    certain: bool
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.statement}: {self.checked}"


DISCREPANCY, LAMBDA_MIN = "discrepancy", "lambda_min"
"""What a bound limits: ‖θ_k − θ(t_k)‖ from above, or λ_min(∇²f(θ_k)) from below."""


@dataclass(frozen=True, slots=True)
class BoundValue:
    """A limit along a run, held by its logarithm.

    Attributes:
        log_value: Natural logarithm of the limit on the discrepancy (in θ), or of that on
            −λ_min (in f/θ²); −∞ for 0. Never overflows.
        assumptions: Everything the limit rests on.
        status: ``"ok"``, or a sentence saying why there is no limit.
        of: What is limited: ``"discrepancy"`` or ``"lambda_min"``.
    """

    log_value: float
    assumptions: tuple[Assumption, ...] = ()
    status: str = "ok"
    of: str = DISCREPANCY

    @property
    def value(self) -> float:
        """The limit itself; ``inf`` (``-inf`` for λ_min) beyond the range of a float."""
        size = exp(self.log_value)
        return -size if self.of == LAMBDA_MIN else size

    @property
    def kind(self) -> str:
        """``"certified"``, ``"estimated"``, or ``"failed"``: no limit, or a hypothesis is false."""
        if self.log_value == math.inf or any(item.failed for item in self.assumptions):
            return "failed"
        return "certified" if self.certified else "estimated"

    @property
    def why(self) -> str:
        """What stands between the value and a certificate; empty if it is one."""
        if self.status != "ok":
            return self.status
        failed = [str(item) for item in self.assumptions if item.failed]
        uncertain = [str(item) for item in self.assumptions if not item.certain]
        return "; ".join(failed or uncertain)

    @property
    def certified(self) -> bool:
        """Whether every ingredient is certain. A bound that rests on nothing is not certified."""
        return bool(self.assumptions) and all(item.certain for item in self.assumptions)

    def to_cell(self, record: Record | None = None) -> dict[str, Any]:
        """Return the cell of ``Record.bounds``, compared with what ``record`` measured.

        Returns:
            ``of``, ``value``, ``log_value``, ``certified``, ``kind``, ``why`` and ``status``; and
            with a record ``slack`` ≥ 0 where the limit holds (discrepancy: value − measured;
            λ_min: measured − value) and ``tightness`` = value / measured, 1 where it is exact.
        """
        cell = {
            "of": self.of,
            "value": self.value,
            "log_value": self.log_value,
            "certified": self.kind == "certified",
            "kind": self.kind,
            "why": self.why,
            "status": self.status,
        }
        if record is not None:
            measured = getattr(record, self.of)
            known = measured is not None and math.isfinite(self.value)
            sign = -1.0 if self.of == LAMBDA_MIN else 1.0
            cell["slack"] = sign * (self.value - measured) if known else None
            cell["tightness"] = self.value / measured if known and sign * measured > 0 else None
        return cell


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
    its own state. At records with probes its value becomes a cell of the record. One whose
    ``update`` takes a second argument ``view`` gets a :class:`~torch_gfshadow.bounds.view.View`
    there, and ``None`` elsewhere. ``requires`` names the record fields it cannot do without, so
    that nothing is measured in vain.
    """

    name: str
    requires: frozenset[str]

    def update(self, record: Record) -> BoundValue | None:
        """Return the limit at ``record.time``; ``None`` if this is none of its business."""


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
