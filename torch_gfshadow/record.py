"""Record: one frozen row of measurements, and the only list of field names and units.

Loggers write records, the report and the plots read them; nobody else names a column.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch_gfshadow.status import Status

SCHEMA_VERSION = 1


def _unit(unit: str, meaning: str, default: Any = None) -> Any:
    return field(default=default, metadata={"unit": unit, "meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What was measured after step ``step``. ``None`` means not measured; ``status`` says why.

    A number never travels alone: ``solver_error`` goes with ``discrepancy``, a residual with
    every eigenvalue, ``audit`` with everything that depends on the objective.
    """

    step: int = field(metadata={"unit": "1", "meaning": "steps the optimizer has taken, k"})
    time: float = field(metadata={"unit": "t", "meaning": "flow time t_k = Σ_{j<k} η_j"})
    step_size: float | None = _unit("t", "step size η of the step that led here")
    loss: float | None = _unit("f", "objective at the iterate, f(θ_k)")
    shadow_loss: float | None = _unit(
        "f", "objective at the shadow, f(θ̃(t_k)); a cubic in time between solver nodes"
    )
    grad_norm: float | None = _unit(
        "f/θ", "norm of the gradient the last step used; at step 0 of ∇f(θ_0)"
    )
    distance_from_init: float | None = _unit("θ", "‖θ_k − θ_0‖₂")
    discrepancy: float | None = _unit("θ", "‖θ_k − θ̃(t_k)‖₂")
    relative_discrepancy: float | None = _unit("1", "discrepancy / distance_from_init")
    solver_error: float | None = _unit(
        "θ", "error bar on the shadow: estimate of ‖θ̃(t_k) − θ(t_k)‖₂, meant as an upper limit"
    )
    local_defect: float | None = _unit(
        "f/θ", "δ = ‖g_k − g_{k−1}‖₂ of the last two used gradients: the defect of the polygon"
    )
    lambda_min: float | None = _unit("f/θ²", "smallest Hessian eigenvalue (Ritz value, from above)")
    lambda_min_residual: float | None = _unit("f/θ²", "‖Hv − λ_min v‖₂ for the unit Ritz vector")
    lambda_max: float | None = _unit("f/θ²", "largest Hessian eigenvalue (Ritz value, from below)")
    lambda_max_residual: float | None = _unit("f/θ²", "‖Hv − λ_max v‖₂ for the unit Ritz vector")
    edge: float | None = _unit("1", "η·λ_max; 2 is the edge of stability")
    bounds: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict,
        metadata={
            "unit": "θ, or f/θ² of λ_min",
            "meaning": "name → {of, value, log_value, certified, kind, why, status, slack, "
            "tightness} of every bound, at probes",
        },
    )
    audit: str = _unit("", "gradient audit: pending, match, scaled <c>, mismatch, or none", "none")
    flow: str = _unit("", "name of the continuous limit that is followed", "none")
    solver: str = _unit("", "name of the solver in use", "none")
    hvp: str = _unit("", "backend of the Hessian products", "none")
    mode: str = _unit("", "reference, batch, local or passive", "passive")
    n_grad_evals: int = _unit("1", "gradients we evaluated so far, all purposes", 0)
    n_loss_evals: int = _unit("1", "forward passes without gradient we evaluated so far", 0)
    n_hvps: int = _unit("1", "Hessian-vector products we evaluated so far", 0)
    seconds: float = _unit("s", "time spent inside torch_gfshadow so far", 0.0)
    status: Status = _unit("", "worst state of this row", Status.OK)
    status_detail: str = _unit("", "the sentence behind a status other than ok", "")
    extras: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"unit": "", "meaning": "plugin → what it measured"},
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON-ready values; a non-finite float becomes ``None``."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def state_dict(self) -> dict[str, Any]:
        """Return the row with every digit, also of ±∞ and NaN; what plugins added as in JSON."""
        row: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        row["bounds"] = {name: dict(cell) for name, cell in self.bounds.items()}
        return row | {"status": self.status.value, "extras": _plain(self.extras)}

    def to_flat(self) -> dict[str, Any]:
        """Return the row as scalars: ``bounds.theorem2.value``, ``extras.run.path_length``, ….

        A number that was not measured is NaN, so that a column of them stays numeric.
        """
        row = self.to_dict()
        nested = {name: row.pop(name) for name in ("bounds", "extras")}
        flat = {
            name: math.nan if value is None and _UNITS[name] else value
            for name, value in row.items()
        }
        return flat | _flatten(nested)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Record:
        """Build a record from :meth:`to_dict`'s output; unknown keys are ignored.

        Raises:
            ValueError: If ``row`` has no ``step`` or ``time``, or an unknown status.
        """
        missing = {"step", "time"} - set(row)
        if missing:
            raise ValueError(
                f"row must be a record with step and time, got keys {sorted(row)}. "
                "Read a file written by a torch_gfshadow logger."
            )
        known = {name: row[name] for name in FIELDS if name in row}
        if "status" in known:
            known["status"] = Status(known["status"])
        return cls(**known)


FIELDS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(Record))
"""Field names in the order in which every tabular sink writes them."""


def exceeded(record: Record, cell: Mapping[str, Any]) -> bool:
    """Return whether a measurement contradicts a bound by more than its own error bar.

    The number of a bound whose hypotheses failed contradicts nothing.
    """
    slack = cell.get("slack")
    if cell.get("kind") == "failed":
        return False
    if cell.get("of") == "lambda_min":
        # a Ritz value is off by its residual and by the rounding of the products
        error = (record.lambda_min_residual or 0.0) + 1e-5 * abs(record.lambda_max or 0.0)
        return slack is not None and slack < -error
    value, measured = cell.get("value"), record.discrepancy
    return (
        value is not None
        and measured is not None
        and measured - value > (record.solver_error or 0.0)
    )


_UNITS = {f.name: f.metadata["unit"] for f in dataclasses.fields(Record)}


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Status):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    if hasattr(value, "tolist"):  # arrays and tensors of any shape; a long one is no cell
        return _plain(value.tolist())
    return str(value)
