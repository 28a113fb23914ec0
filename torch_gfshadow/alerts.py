"""Alerts: when a run leaves its flow, with the likely cause, to loggers and to a callback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from torch_gfshadow.errors import must
from torch_gfshadow.record import Record

_log = logging.getLogger(__name__)

_SENTENCES = {
    "tracking": "the errors of single steps add up; a smaller step size shrinks them in proportion",
    "sharpening": "η·λ_max is above 2, where gradient descent oscillates and the flow does not",
    "expansion": "−λ_min times the shadow's age is above 1: the flow itself drives errors apart",
    "solver error": "the error bar is more than half of it; ask for a smaller resolution=",
    "objective": "the steps use another gradient than the objective's; see the audit",
}


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert.

    Attributes:
        kind: ``"edge"``, ``"discrepancy"`` or ``"mismatch"``.
        step: Step of the record.
        value: What was measured; for a mismatch nothing.
        limit: What it exceeds.
        cause: ``"tracking"``, ``"sharpening"``, ``"expansion"``, ``"solver error"``, or
            ``"objective"`` for a mismatch.
        sentence: The cause in words.
    """

    kind: str
    step: int
    value: float | None
    limit: float | None
    cause: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Alerts:
    """What to alert on, for ``attach(alerts=...)``.

    Every record beyond a limit carries its alerts in ``extras["alerts"]``, which every logger
    writes. The callback and a warning of Python's logging come when a limit is first passed, and
    again after the run was back inside it.

    Args:
        edge: Limit of η·λ_max; ``None`` for none.
        discrepancy: Limit ε of the discrepancy, in the units of θ; ``None`` for none.
        mismatch: Whether a gradient audit that fails alerts.
        callback: Called with each :class:`Alert`; what it raises is logged and stops nothing.

    Raises:
        ValueError: If a limit is not positive.
        TypeError: If ``callback`` cannot be called.
    """

    edge: float | None = 2.0
    discrepancy: float | None = None
    mismatch: bool = True
    callback: Callable[[Alert], object] | None = None

    def __post_init__(self) -> None:
        for name in ("edge", "discrepancy"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and value > 0.0
            if value is not None and not number:
                fix = "Leave it out for no such alert."
                raise ValueError(must(name, "a positive limit", repr(value), fix))
        if self.callback is not None and not callable(self.callback):
            got = f"a {type(self.callback).__name__}"
            raise TypeError(must("callback", "a function of one alert", got, "Pass print, say."))


class Watch:
    """Compares records with the limits, and remembers what the last eigenvalues were."""

    def __init__(self, alerts: Alerts) -> None:
        self._alerts = alerts
        self._raised: set[str] = set()
        self._lambda_max: float | None = None
        self._lambda_min: float | None = None

    def look(self, record: Record, age: float) -> tuple[Record, list[Alert]]:
        """Return the record with its alerts, and those that are new.

        Args:
            record: The record just made.
            age: Flow time since the shadow last started.
        """
        if record.lambda_max is not None:
            self._lambda_max = record.lambda_max
        if record.lambda_min is not None:
            self._lambda_min = record.lambda_min
        found = self._found(record, age)
        new = [alert for alert in found if alert.kind not in self._raised]
        # what was not measured is not back inside its limit
        unseen = {k for k in ("edge", "discrepancy") if getattr(record, k) is None}
        self._raised = {alert.kind for alert in found} | (self._raised & unseen)
        for alert in new:
            what = "" if alert.value is None else f" {alert.value:.4g} is above {alert.limit:.4g}"
            _log.warning(
                "step %d: %s%s (%s): %s", alert.step, alert.kind, what, alert.cause, alert.sentence
            )
        if found:
            extras = {**record.extras, "alerts": [asdict(alert) for alert in found]}
            record = replace(record, extras=extras)
        return record, new

    def _found(self, record: Record, age: float) -> list[Alert]:
        limits, found = self._alerts, []
        if limits.edge is not None and record.edge is not None and record.edge > limits.edge:
            found.append(self._alert("edge", record, record.edge, limits.edge, "sharpening"))
        epsilon, gap = limits.discrepancy, record.discrepancy
        if epsilon is not None and gap is not None and gap > epsilon:
            cause = self._cause(record, gap, age)
            found.append(self._alert("discrepancy", record, gap, epsilon, cause))
        if limits.mismatch and record.audit == "mismatch":
            found.append(self._alert("mismatch", record, None, None, "objective"))
        return found

    def _alert(
        self, kind: str, record: Record, value: float | None, limit: float | None, cause: str
    ) -> Alert:
        sentence = _SENTENCES[cause]
        if kind == "edge" and value is not None and value <= 2.0:
            sentence = "η·λ_max nears 2, beyond which gradient descent oscillates"
        return Alert(
            kind=kind, step=record.step, value=value, limit=limit, cause=cause, sentence=sentence
        )

    def _cause(self, record: Record, gap: float, age: float) -> str:
        if (record.solver_error or 0.0) > 0.5 * gap:
            return "solver error"
        if (record.step_size or 0.0) * (self._lambda_max or 0.0) > 2.0:
            return "sharpening"
        if -(self._lambda_min or 0.0) * age > 1.0:
            return "expansion"
        return "tracking"

    def state_dict(self) -> dict[str, object]:
        """Return what is raised, and the last eigenvalues."""
        return {
            "raised": sorted(self._raised),
            "lambda_max": self._lambda_max,
            "lambda_min": self._lambda_min,
        }

    def load_state_dict(self, saved: dict[str, object]) -> None:
        """Go on from a saved state."""
        self._raised = set(saved["raised"])  # type: ignore[call-overload]
        self._lambda_max = saved["lambda_max"]  # type: ignore[assignment]
        self._lambda_min = saved["lambda_min"]  # type: ignore[assignment]
