"""The exporter: the newest record of each run as gauges, the process's totals as counters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from threading import Lock
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gfshadow_prometheus.totals import TOTALS
from torch_gfshadow.errors import must
from torch_gfshadow.loggers import not_started, numbers
from torch_gfshadow.record import Record
from torch_gfshadow.status import Status

_ADDRESS = re.compile(r"(?:(?P<host>\[[^\]]+\]|[^:/]+):)?(?P<port>\d+)(?:/(?P<run>[^/]+))?")
_ABOUT = {item.name: item.metadata for item in fields(Record)}


class PrometheusLogger:
    """Serve the newest record at ``http://host:port/metrics`` while the run lasts.

    Every number of a record is a gauge ``gfshadow_<field>{run="…"}``; bounds and the measures of
    other plugins are ``gfshadow_bound{bound="…"}`` and ``gfshadow_extra{name="…"}``. Statuses are
    ``gfshadow_status{status="…"}``, 1 for the current one. Counters hold the whole process:
    ``gfshadow_records_total``, ``gfshadow_bound_exceeded_total``, ``gfshadow_errors_total``.

    A scrape reads and never blocks the run. Loggers on one port share a server.

    Args:
        address: ``"9464"``, ``"9464/run-a"``, ``"0.0.0.0:9464/run-a"``. Only this machine can
            connect unless a host says otherwise. Port 0 takes a free one; see ``port``.

    Raises:
        ValueError: If ``address`` is not of this form.
    """

    def __init__(self, address: str | int = 9464) -> None:
        found = _ADDRESS.fullmatch(str(address))
        if found is None or int(found["port"]) > 65535:
            fix = 'Write "9464", or "0.0.0.0:9464/my-run".'
            raise ValueError(must("address", "[host:]port[/run]", repr(address), fix))
        self.host = (found["host"] or "127.0.0.1").strip("[]")
        self.port = int(found["port"])
        self.run = found["run"] or "run"
        self._exporter: Exporter | None = None

    def start(self, header: Mapping[str, Any]) -> None:
        """Open the port, or join the server that has it.

        Raises:
            OSError: If the port is taken by someone else.
        """
        self.finish({})
        self._exporter = Exporter.at(self.host, self.port)
        self.port = self._exporter.port

    def write(self, record: Record) -> None:
        """Replace the record that is served.

        Raises:
            GFShadowError: If the logger is not started.
        """
        if self._exporter is None:
            raise not_started(self)
        values = dict(numbers(record))
        self._exporter.show(self, self.run, {"step": record.step, **values}, str(record.status))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Stop serving this run; the last one closes the port."""
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            exporter.leave(self)


class Exporter(Collector):
    """One server for all loggers on one address."""

    _open: ClassVar[dict[tuple[str, int], Exporter]] = {}
    _lock = Lock()

    @classmethod
    def at(cls, host: str, port: int) -> Exporter:
        """Return the exporter of this process at an address, begun if there is none."""
        with cls._lock:
            known = cls._open.get((host, port))
            if known is None:
                known = cls(host, port)
                cls._open[host, known.port] = known
            known.users += 1
            return known

    def __init__(self, host: str, port: int) -> None:
        registry = CollectorRegistry()
        self._rows: dict[int, tuple[str, dict[str, float], str]] = {}
        registry.register(self)
        self._server, self._thread = start_http_server(port, host, registry)
        self.host, self.port, self.users = host, int(self._server.server_port), 0

    def show(self, who: object, run: str, values: dict[str, float], status: str) -> None:
        """Serve ``values`` from now on; a scrape sees one record whole."""
        self._rows[id(who)] = run, values, status

    def leave(self, who: object) -> None:
        """Serve ``who`` no more."""
        self._rows.pop(id(who), None)
        with self._lock:
            self.users -= 1
            if self.users == 0:
                del self._open[self.host, self.port]
                self._server.shutdown()
                self._server.server_close()
                self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """Yield everything, as Prometheus asks for it."""
        yield from self._gauges()
        yield from _counters()

    def _gauges(self) -> Iterator[Metric]:
        gauges: dict[str, GaugeMetricFamily] = {}
        for run, values, status in list(self._rows.values()):
            for path, value in values.items():
                name, label, text = _named(path)
                if name not in gauges:
                    labels = ["run", label] if label else ["run"]
                    gauges[name] = GaugeMetricFamily(name, _help(path), labels=labels)
                gauges[name].add_metric([run, text] if label else [run], value)
            name = "gfshadow_status"
            gauges.setdefault(
                name, GaugeMetricFamily(name, "1 for the current status", labels=["run", "status"])
            )
            for each in Status:
                gauges[name].add_metric([run, str(each)], float(str(each) == status))
        yield from gauges.values()


def _named(path: str) -> tuple[str, str, str]:
    """Return name, label and its text of what ``numbers`` calls ``path``."""
    if path.startswith("bounds/"):
        return "gfshadow_bound", "bound", path.removeprefix("bounds/")
    if path.startswith("extras/"):
        return "gfshadow_extra", "name", path.removeprefix("extras/")
    return f"gfshadow_{path.removeprefix('gfshadow/')}", "", ""


def _help(path: str) -> str:
    about = _ABOUT.get(path.removeprefix("gfshadow/"))
    if about is None:
        return "value of a bound" if path.startswith("bounds/") else "measured by a plugin"
    return f"{about['meaning']} [{about['unit']}]"


def _counters() -> Iterator[Metric]:
    yield CounterMetricFamily("gfshadow_attached", "runs that began", value=TOTALS.attached)
    yield CounterMetricFamily("gfshadow_detached", "runs that ended", value=TOTALS.detached)
    for name, help_, label, counts in (
        ("gfshadow_records", "records written", "status", TOTALS.records),
        ("gfshadow_bound_exceeded", "discrepancies above a bound", "bound", TOTALS.exceeded),
        ("gfshadow_errors", "exceptions caught so that training goes on", "type", TOTALS.errors),
    ):
        family = CounterMetricFamily(name, help_, labels=[label])
        for text, count in list(counts.items()):
            family.add_metric([text], count)
        yield family
