"""Measure: what is evaluated at the iterate. Probes when they are due, bounds on every record."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from torch_gfshadow._plain import load_state, state_of
from torch_gfshadow._recycled import Recycled
from torch_gfshadow.bounds import Bound, BoundValue, View
from torch_gfshadow.bounds.base import DISCREPANCY
from torch_gfshadow.clock import FlowClock, SparseSchedule, every
from torch_gfshadow.eigen import Spectrum
from torch_gfshadow.network import Recogniser
from torch_gfshadow.parts import Parts
from torch_gfshadow.probes import Point, Probe
from torch_gfshadow.record import FIELDS, Record

_log = logging.getLogger(__name__)


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
        self._ended: list[Any] = []
        self._owed: list[int] = []
        self._probed_at: tuple[int, Tensor] | None = None
        self.look_anew()
        self._as_given = [state_of(member) for member in self._members]
        self._over = self._unproved = ""

    @property
    def _members(self) -> list[Any]:
        return [*self._parts.probes, *self._parts.bounds]

    def begin_anew(self, step: int, why: str) -> None:
        """Forget what was measured before ``step``: other parameters are trained from there on.

        Probes are due at the next record. A limit of λ_min is about one point and goes on; one of
        the discrepancy is about the way there, and ends.

        Args:
            step: The next one.
            why: What happened, as a sentence without its full stop.
        """
        self.lambda_max = self._spectrum = self._probed_at = None
        self.look_anew()
        self._due.next = step
        self.end_limits(why)
        for member, state in zip(self._members, self._as_given, strict=True):
            if state is not None:
                load_state(member, state)

    def look_anew(self) -> None:
        """Forget what kind of network the model was found to be."""
        objective = self._parts.objective
        self._recogniser = None if objective is None else Recogniser(objective)

    def end_limits(self, why: str, *, certified: bool = False) -> None:
        """Give no limits of the discrepancy any more: they are about a flow that is left.

        Args:
            why: As in :meth:`begin_anew`.
            certified: End only those that claim to be certain. Where the shadow starts anew at an
                iterate, an estimate of how far flow and iterate part still serves.
        """
        if certified:
            self._unproved = self._unproved or why
        else:
            self._over = self._over or why

    def _limit(self, value: BoundValue) -> BoundValue:
        """Return ``value``, or why it is none any more."""
        over = self._over or (self._unproved if value.certified else "")
        if not over or value.of != DISCREPANCY:
            return value
        return BoundValue(math.inf, (), f"No bound: {over}.")

    def probe(
        self,
        here: Callable[[], Tensor],
        step_size: float,
        row: dict[str, Any],
        extras: dict[str, Any],
    ) -> float | None:
        """Measure the probes that are due; return the loss if one of them came by it.

        Args:
            here: Returns the iterate, shape ``[d]``, in the parameters' dtype.
            step_size: η of the last step.
            row: Gets the fields of the record that were measured.
            extras: Gets what is no field of the record, by probe.
        """
        parts, step = self._parts, self._clock.step
        period = parts.settings.probe_every
        due = self._due.due(step) if period is None else every(step, period)
        wanted = [i for i, p in enumerate(parts.probes) if due and _is_due(p, step)]
        wanted = sorted({*wanted, *self._owed})
        if parts.curvature is None or parts.objective is None:
            # no batch to measure on, between windows: at the next record that has one
            self._owed = wanted if step > 0 else []
            return None
        self._owed = []
        probes = [p for i, p in enumerate(parts.probes) if i in wanted and p not in self._ended]
        if not probes:
            return None
        point = Point(
            step=step,
            time=self._clock.time,
            step_size=step_size,
            theta=here(),
            objective=parts.objective,
            curvature=parts.curvature,
            previous=self._spectrum,
            seed=parts.settings.seed,
        )
        self._probed_at = step, point.theta
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
        """Return ``record``; where probes were due, with the value of every bound."""
        cells = {}
        view = self._view(record)
        for bound in (b for b in self._parts.bounds if b not in self._ended):
            arguments = (record, view) if _takes_view(bound) else (record,)
            value = self._parts.isolated(bound.update, *arguments, who=f"bound {bound.name}")
            if value is not None and (view is not None or record.step == 0):
                cells[bound.name] = self._limit(value).to_cell(record)
        return dataclasses.replace(record, bounds=cells) if cells else record

    def _view(self, record: Record) -> View | None:
        """Return what bounds may look at, where probes were due."""
        probed, self._probed_at = self._probed_at, None
        recogniser = self._recogniser
        if recogniser is None or probed is None or probed[0] != record.step:
            return None
        groups = self._parts.watched.groups
        plain = record.flow == "gradient_flow" and not any(
            g.get("weight_decay") or g.get("maximize") or g["lr"] != groups[0]["lr"] for g in groups
        )
        return View(record, lambda: recogniser.at(probed[1]), plain=plain)

    def state_dict(self) -> dict[str, Any]:
        """Return eigenvectors, schedule, and the state of every probe and bound."""
        spectrum = self._spectrum
        return {
            "lambda_max": self.lambda_max,
            "spectrum": None if spectrum is None else _fields(spectrum),
            "due": self._due.next,
            "owed": list(self._owed),
            "over": [self._over, self._unproved],
            "probes": [state_of(p) for p in self._parts.probes],
            "bounds": [state_of(b) for b in self._parts.bounds],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state; a bound whose state cannot be saved is left out from here."""
        self.lambda_max, self._due.next = saved["lambda_max"], saved["due"]
        self._owed = list(saved["owed"])
        self._over, self._unproved = saved.get("over", ("", ""))
        self._spectrum = None
        if saved["spectrum"] is not None:
            fields = dict(saved["spectrum"])
            recycled = fields.pop("recycled")
            self._spectrum = Spectrum(
                **fields, recycled=None if recycled is None else Recycled(**recycled)
            )
        self._ended = _resume("probe", self._parts.probes, saved["probes"])
        self._ended += _resume("bound", self._parts.bounds, saved["bounds"])


def _fields(spectrum: Spectrum) -> dict[str, Any]:
    out = {f.name: getattr(spectrum, f.name) for f in dataclasses.fields(spectrum)}
    if spectrum.recycled is not None:
        known = spectrum.recycled
        out["recycled"] = {f.name: getattr(known, f.name) for f in dataclasses.fields(known)}
    return out


def _resume(kind: str, members: Iterable[Any], states: Iterable[Any]) -> list[Any]:
    """Load the states; return the members that have none to go on from."""
    ended = []
    for member, state in zip(members, states, strict=True):
        if state is None:
            _log.warning(
                "%s %s has a state that cannot be saved, so it ends with the resumption. "
                "Give it state_dict() and load_state_dict().",
                kind,
                member.name,
            )
            ended.append(member)
        else:
            load_state(member, state)
    return ended


def _takes_view(bound: Bound) -> bool:
    return "view" in inspect.signature(bound.update).parameters


def _is_due(probe: Probe, step: int) -> bool:
    period = getattr(probe, "every", None)
    return period is None or step % period == 0
