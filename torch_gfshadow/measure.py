"""Measure: what is evaluated at the iterate. Probes when they are due, bounds on every record."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from torch_gfshadow.clock import FlowClock, SparseSchedule, every
from torch_gfshadow.eigen import Spectrum
from torch_gfshadow.parts import Parts
from torch_gfshadow.probes import Point, Probe
from torch_gfshadow.record import FIELDS, Record


class Measures:
    """Probes and bounds of one run, with what one point hands on to the next.

    Attributes:
        lambda_max: The largest eigenvalue last seen; the solver's longest stable step needs it.
    """

    def __init__(self, parts: Parts, clock: FlowClock) -> None:
        self.lambda_max: float | None = None
        self._parts, self._clock = parts, clock
        self._spectrum: Spectrum | None = None
        self._due = SparseSchedule(dense=0, ratio=2.0)

    def probe(
        self, theta: Tensor, step_size: float, row: dict[str, Any], extras: dict[str, Any]
    ) -> float | None:
        """Measure the probes that are due; return the loss if one of them came by it.

        Args:
            theta: The iterate, shape ``[d]``.
            step_size: η of the last step.
            row: Gets the fields of the record that were measured.
            extras: Gets what is no field of the record, by probe.
        """
        parts, step = self._parts, self._clock.step
        period = parts.settings.probe_every
        due = self._due.due(step) if period is None else every(step, period)
        probes = [p for p in parts.probes if due and _is_due(p, step)]
        if not probes or parts.curvature is None or parts.objective is None:
            return None
        point = Point(
            step=step,
            time=self._clock.time,
            step_size=step_size,
            theta=theta.to(parts.watched.layout.dtype),
            objective=parts.objective,
            curvature=parts.curvature,
            previous=self._spectrum,
            seed=parts.settings.seed,
        )
        for probe in probes:
            measured = parts.isolated(probe.measure, point, who=f"probe {probe.name}")
            for key, value in (measured or {}).items():
                if key in FIELDS:
                    row[key] = value
                else:
                    extras.setdefault(probe.name, {})[key] = value
        if point.spectrum_known:
            self._spectrum = point.spectrum()
            self.lambda_max = row.get("lambda_max", self.lambda_max)
        return point.loss if point.linearised else None

    def with_bounds(self, record: Record) -> Record:
        """Return ``record`` with the value of every bound."""
        cells = {}
        for bound in self._parts.bounds:
            value = self._parts.isolated(bound.update, record, who=f"bound {bound.name}")
            if value is not None:
                cells[bound.name] = value.to_cell()
        return dataclasses.replace(record, bounds=cells) if cells else record


def _is_due(probe: Probe, step: int) -> bool:
    period = getattr(probe, "every", None)
    return period is None or step % period == 0
