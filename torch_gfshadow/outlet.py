"""Outlet: where records go. The session keeps them, loggers write them, plugins hear of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_gfshadow.parts import Parts
from torch_gfshadow.record import Record, exceeded
from torch_gfshadow.sinks import Sinks
from torch_gfshadow.status import Status

KEEP = 10_000
"""Records kept in memory; loggers write all of them."""


class Outlet:
    """Hands each record on.

    The first one is held until the run takes a step: a run that is resumed loads its state right
    after attaching, and then its files must not begin anew.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._sinks = Sinks(parts)
        self._held: Record | None = None

    def start(self, header: Mapping[str, Any]) -> None:
        """Open the loggers; see :meth:`Sinks.start`."""
        self._sinks.start(header)

    def hold(self, record: Record) -> None:
        """Keep ``record``, and hand it on before the next one."""
        self._keep(record)
        self._held = record

    def write(self, record: Record) -> None:
        """Hand on what is held, then ``record``."""
        self.release()
        self._keep(record)
        self._send(record)

    def _keep(self, record: Record) -> None:
        """Keep the record; of more than ``KEEP``, thin the older half: memory stays flat."""
        records = self._parts.session.records
        records.append(record)
        if len(records) > KEEP:
            largest = max(records, key=lambda r: r.discrepancy or 0.0)
            old, new = records[: KEEP // 2], records[KEEP // 2 :]
            kept = [r for i, r in enumerate(old) if i % 2 == 0 or r is largest]
            records[:] = kept + new

    def release(self) -> None:
        """Hand on what is held."""
        if self._held is not None:
            held, self._held = self._held, None
            self._send(held)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the loggers with the summary; tell the plugins."""
        self.release()
        self._sinks.finish(summary)
        self._parts.plugins.notify("gfshadow_detach", session=self._parts.session)

    def abandon(self) -> None:
        """Hand on nothing any more, and close nothing: it is all another process's."""
        self._held = None
        self._sinks = Sinks(self._parts)

    def state_dict(self) -> dict[str, Any]:
        """Return the records, and whether the last one is still held."""
        records = [record.state_dict() for record in self._parts.session.records]
        return {"records": records, "held": self._held is not None}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on after the saved records; what was held of this session is forgotten."""
        records = [Record(**row | {"status": Status(row["status"])}) for row in saved["records"]]
        self._parts.session.records[:] = records
        self._held = records[-1] if saved["held"] else None

    def _send(self, record: Record) -> None:
        parts, session = self._parts, self._parts.session
        self._sinks.write(record)
        parts.plugins.notify("gfshadow_step", record=record, session=session)
        for name, cell in record.bounds.items():
            if exceeded(record, cell):
                parts.plugins.notify(
                    "gfshadow_bound_exceeded", record=record, bound=name, session=session
                )
