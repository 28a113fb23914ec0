"""Prometheus for torch_gfshadow: ``attach(..., loggers=["prometheus:9464"])``, then scrape.

The notification hooks count what happens in this process, whether or not an exporter runs.
"""

from __future__ import annotations

from typing import Any

from gfshadow_prometheus.totals import TOTALS
from torch_gfshadow import hookimpl
from torch_gfshadow.record import Record
from torch_gfshadow.specs import LoggerSpec

__version__ = "0.1.0"


def _logger(address: str = "9464") -> Any:
    # Imported on use: every run that has this package installed loads this module.
    from gfshadow_prometheus.exporter import PrometheusLogger

    return PrometheusLogger(address)


@hookimpl
def gfshadow_loggers() -> list[LoggerSpec]:
    """Register the logger ``prometheus:[host:]port[/run]``."""
    summary = "exporter to be scraped, at [host:]port[/run] (default 127.0.0.1:9464/run)"
    return [LoggerSpec(name="prometheus", factory=_logger, summary=summary)]


@hookimpl
def gfshadow_attach(session: Any) -> None:
    """Count a run that began."""
    TOTALS.attached += 1


@hookimpl
def gfshadow_detach(session: Any) -> None:
    """Count a run that ended."""
    TOTALS.detached += 1


@hookimpl
def gfshadow_step(record: Record, session: Any) -> None:
    """Count a record under its status."""
    TOTALS.records[str(record.status)] += 1


@hookimpl
def gfshadow_bound_exceeded(record: Record, bound: str, session: Any) -> None:
    """Count a discrepancy above a bound."""
    TOTALS.exceeded[bound] += 1


@hookimpl
def gfshadow_error(exc: BaseException, session: Any) -> None:
    """Count an exception that was caught."""
    TOTALS.errors[type(exc).__name__] += 1
