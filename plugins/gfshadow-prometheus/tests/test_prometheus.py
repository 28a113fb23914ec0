"""The exporter, scraped over loopback and read by Prometheus' own parser; the dashboard."""

import json
import re
import socket
import urllib.error
import urllib.request
from importlib.resources import files

import gfshadow_prometheus
import pytest
from gfshadow_prometheus.exporter import PrometheusLogger
from gfshadow_prometheus.totals import TOTALS
from prometheus_client.parser import text_string_to_metric_families

from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.loggers import read_records
from torch_gfshadow.status import Status
from torch_gfshadow.testing import (
    assert_hooks_valid,
    assert_inert,
    assert_logger_contract,
    hostile_records,
    make_record,
    toy_run,
)


def scrape(port):
    """(name, labels without run) → value, as Prometheus would see it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    seen = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert (sample.name, labels) not in seen
            seen[sample.name, labels] = sample.value
    return seen


@pytest.fixture
def logger():
    logger = PrometheusLogger("0/a")
    logger.start({})
    yield logger
    logger.finish({})


A = (("run", "a"),)


def test_it_keeps_the_contract_of_loggers(tmp_path):
    assert_logger_contract(lambda path: PrometheusLogger(0), tmp_path, writes_files=False)


def test_its_hooks_are_valid_and_training_is_bit_identical_beside_it():
    assert_hooks_valid(gfshadow_prometheus)
    assert_inert(gfshadow_prometheus, loggers=["prometheus:0"])


def test_every_number_of_the_newest_record_is_scraped(logger):
    logger.write(make_record(1))
    record = make_record(2, bounds={"theorem2": {"value": 0.3}}, extras={"slq": {"trace": 3}})
    logger.write(record)
    seen = scrape(logger.port)
    for field in ("step", "discrepancy", "solver_error", "lambda_min", "edge", "n_hvps"):
        assert seen[f"gfshadow_{field}", A] == getattr(record, field), field
    assert seen["gfshadow_bound", (("bound", "theorem2"), *A)] == 0.3
    assert seen["gfshadow_extra", (("name", "slq/trace"), *A)] == 3.0


def test_the_current_status_is_one_and_the_others_zero(logger):
    logger.write(make_record(1, status=Status.STIFF))
    values = {
        dict(labels)["status"]: value
        for (name, labels), value in scrape(logger.port).items()
        if name == "gfshadow_status"
    }
    assert values == {str(status): float(status is Status.STIFF) for status in Status}


def test_hostile_records_are_served(logger):
    for record in hostile_records():
        logger.write(record)
        assert scrape(logger.port)["gfshadow_step", A] == record.step


def test_what_is_not_measured_is_absent_and_not_zero(logger):
    logger.write(make_record(1, loss=None))
    assert ("gfshadow_loss", A) not in scrape(logger.port)


def test_metrics_say_what_they_are_and_in_which_unit(logger):
    logger.write(make_record(1))
    with urllib.request.urlopen(f"http://127.0.0.1:{logger.port}/metrics") as answer:
        text = answer.read().decode()
    assert "# HELP gfshadow_discrepancy ‖θ_k − θ̃(t_k)‖₂ [θ]" in text
    assert "# TYPE gfshadow_discrepancy gauge" in text


def test_runs_on_one_port_share_a_server_and_leave_it_one_by_one():
    first = PrometheusLogger("0/a")
    first.start({})
    second = PrometheusLogger(f"{first.port}/b")
    second.start({})
    first.write(make_record(1))
    second.write(make_record(2))
    seen = scrape(first.port)
    assert seen["gfshadow_step", A] == 1
    assert seen["gfshadow_step", (("run", "b"),)] == 2
    first.finish({})
    assert ("gfshadow_step", A) not in scrape(second.port)
    second.finish({})
    with pytest.raises(urllib.error.URLError):
        scrape(second.port)


class Fails:
    """A plugin that raises, so that there is an error to count."""

    @hookimpl
    def gfshadow_step(self, record):
        raise ZeroDivisionError


class Low:
    """A bound that does not hold."""

    name, requires = "low", frozenset()

    def update(self, record):
        from torch_gfshadow.bounds import BoundValue

        return BoundValue(-100.0)


class Scrapes:
    """Scrapes at each step, from inside the run."""

    def __init__(self, logger):
        self.logger, self.seen = logger, []

    def start(self, header): ...

    def write(self, record):
        self.seen.append(scrape(self.logger.port))

    def finish(self, summary): ...


def test_a_run_is_scraped_while_it_goes_and_its_events_are_counted():
    logger = PrometheusLogger("0/a")
    scrapes = Scrapes(logger)
    began, errors = TOTALS.attached, TOTALS.errors["ZeroDivisionError"]
    exceeded = TOTALS.exceeded["low"]
    shadow = toy_run(
        4,
        plugins=[gfshadow_prometheus, Fails()],
        loggers=[logger, scrapes],
        bounds=[Low()],
        on_error="disable",
    )
    for record, seen in zip(shadow.records, scrapes.seen, strict=True):
        assert seen["gfshadow_step", A] == record.step
        assert seen["gfshadow_discrepancy", A] == record.discrepancy
    last = scrapes.seen[-1]
    assert last["gfshadow_attached_total", ()] == began + 1
    assert last["gfshadow_errors_total", (("type", "ZeroDivisionError"),)] == errors + 1
    assert last["gfshadow_bound_exceeded_total", (("bound", "low"),)] >= exceeded + 2
    assert TOTALS.detached == TOTALS.attached


def test_a_port_that_is_taken_costs_the_exporter_and_not_the_run(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        shadow = toy_run(
            3,
            plugins=[gfshadow_prometheus],
            loggers=[f"prometheus:{port}", f"jsonl:{tmp_path / 'run.jsonl'}"],
            on_error="disable",
        )
    assert "Address already in use" in str(shadow.errors[0])
    assert len(read_records(tmp_path / "run.jsonl").records) == 4


@pytest.mark.parametrize("address", ["", "port", "70000", "host:", "9464/a/b", "-1"])
def test_a_wrong_address_is_refused(address):
    with pytest.raises(ValueError, match=r"address must be \[host:\]port\[/run\], got "):
        PrometheusLogger(address)


def test_addresses_are_read():
    logger = PrometheusLogger("0.0.0.0:9/b")
    assert (logger.host, logger.port, logger.run) == ("0.0.0.0", 9, "b")
    assert (PrometheusLogger().host, PrometheusLogger().port) == ("127.0.0.1", 9464)


def test_the_dashboard_asks_only_for_metrics_that_are_served():
    text = files("gfshadow_prometheus").joinpath("dashboard.json").read_text(encoding="utf-8")
    dashboard = json.loads(text)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 8
    asked = set(re.findall(r"gfshadow_\w+", json.dumps([p["targets"] for p in panels])))
    TOTALS.exceeded["theorem2"] += 1
    TOTALS.errors["OSError"] += 1
    logger = PrometheusLogger("0/a")
    logger.start({})
    logger.write(make_record(1, shadow_loss=0.1, bounds={"theorem2": {"value": 0.3}}))
    served = {name for name, _ in scrape(logger.port)}
    logger.finish({})
    assert asked <= served
