"""A logger or plugin that is slow, broken or gone costs a warning, and not a step or a record."""

import time

import pytest

from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.loggers import JsonlLogger, MemoryLogger, read_records
from torch_gfshadow.patience import PATIENCE, Patience
from torch_gfshadow.specs import LoggerSpec
from torch_gfshadow.testing import toy_run

STEPS = 8


class Fails(MemoryLogger):
    """Raises at the writes whose numbers are in ``when``, and counts attempts."""

    def __init__(self, when=range(99), at_start=None):
        super().__init__()
        self.when, self.at_start, self.attempts, self.finished = when, at_start, 0, 0

    def start(self, header):
        if self.at_start is not None:
            raise self.at_start
        super().start(header)

    def write(self, record):
        self.attempts += 1
        if self.attempts - 1 in self.when:
            raise OSError("No space left on device")
        super().write(record)

    def finish(self, summary):
        self.finished += 1
        super().finish(summary)


class Brings:
    """A plugin with a logger ``mine``."""

    __version__ = "3.1"

    def __init__(self, logger):
        self.logger = logger

    @hookimpl
    def gfshadow_loggers(self):
        return [LoggerSpec(name="mine", factory=lambda: self.logger, summary="test")]


class Slow(MemoryLogger):
    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.attempts = seconds, 0

    def write(self, record):
        self.attempts += 1
        time.sleep(self.seconds)
        super().write(record)


class SlowListener:
    __version__ = "0.4"

    def __init__(self, seconds):
        self.seconds, self.steps = seconds, []

    @hookimpl
    def gfshadow_step(self, record):
        self.steps.append(record.step)
        time.sleep(self.seconds)


class Hears:
    def __init__(self):
        self.steps, self.errors = [], []

    @hookimpl
    def gfshadow_step(self, record):
        self.steps.append(record.step)

    @hookimpl
    def gfshadow_error(self, exc):
        self.errors.append(str(exc))


def run(tmp_path, loggers, **options):
    """A toy run with a JSONL file; what it holds, and the shadow."""
    path = tmp_path / "run.jsonl"
    shadow = toy_run(
        STEPS, loggers=[*loggers, f"jsonl:{path}"], on_error="disable", probes=(), **options
    )
    file = read_records(path)
    assert [record.step for record in file.records] == list(range(STEPS + 1))
    assert file.complete
    return shadow


def test_a_logger_that_fails_once_is_named_and_goes_on(tmp_path, caplog):
    logger, hears = Fails(when=[3]), Hears()
    shadow = run(tmp_path, ["mine"], plugins=[Brings(logger), hears])
    assert [record.step for record in logger.records] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert [str(error) for error in shadow.errors] == ["No space left on device"]
    assert hears.errors == ["No space left on device"]
    message = (
        "logger Fails (Brings 3.1) failed, the record is kept by the others: OSError: No space"
    )
    assert message in caplog.text


def test_a_logger_that_keeps_failing_is_muted_after_three_attempts(tmp_path, caplog):
    logger = Fails()
    shadow = run(tmp_path, ["mine"], plugins=[Brings(logger)])
    assert logger.attempts == 3
    assert logger.finished == 1
    assert "logger Fails (Brings 3.1) failed 3 times in a row. It is muted" in caplog.text
    assert len(shadow.errors) == 2
    assert len([entry for entry in caplog.records if "failed" in entry.getMessage()]) == 2


def test_failures_that_are_not_in_a_row_mute_nothing(tmp_path):
    logger = Fails(when=[1, 2, 4, 5, 7])
    run(tmp_path, [logger])
    assert logger.attempts == STEPS + 1


@pytest.mark.parametrize("target", ["jsonl:/dev/full", "csv:/dev/full"])
def test_a_full_disk_stops_neither_the_run_nor_the_other_file(tmp_path, target):
    shadow = run(tmp_path, [target])
    assert "No space left on device" in str(shadow.errors[0])


def test_a_server_that_is_gone_at_the_start_is_left_out(tmp_path, caplog):
    logger = Fails(at_start=ConnectionRefusedError("nobody listens"))
    run(tmp_path, [logger])
    assert logger.attempts == logger.finished == 0
    assert "logger Fails failed, it is left out of this run: ConnectionRefusedError" in caplog.text


def test_a_wrong_argument_found_at_the_start_is_the_users_to_see(tmp_path):
    first = MemoryLogger()
    with pytest.raises(ValueError, match="another run's file"):
        toy_run(1, loggers=[first, Fails(at_start=ValueError("another run's file"))],
                on_error="disable")  # fmt: skip
    assert first.summary == {}


def test_errors_of_loggers_are_raised_where_tests_ask_for_it():
    with pytest.raises(OSError, match="No space"):
        toy_run(2, loggers=[Fails()], on_error="raise")
    with pytest.raises(ConnectionError):
        toy_run(2, loggers=[Fails(at_start=ConnectionError())], on_error="raise")


def test_a_slow_plugin_is_named_with_its_version_and_muted_and_the_others_go_on(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv(PATIENCE, "0.1")
    slow, hears = SlowListener(0.06), Hears()
    shadow = run(tmp_path, [], plugins=[hears, slow])
    assert slow.steps == [0, 1, 2]  # the first call is free
    assert hears.steps == list(range(STEPS + 1))
    assert "Plugin SlowListener (0.4) is too slow in gfshadow_step: it took 0.1" in caplog.text
    assert "set TORCH_GFSHADOW_PLUGIN_PATIENCE=inf. It is muted for this run." in caplog.text
    assert "too slow" in str(shadow.errors[0])
    assert len(hears.errors) == 1


@pytest.mark.parametrize("patience", ["inf", "30"])
def test_patience_can_be_had(tmp_path, monkeypatch, patience):
    monkeypatch.setenv(PATIENCE, patience)
    slow = SlowListener(0.03)
    run(tmp_path, [], plugins=[slow])
    assert len(slow.steps) == STEPS + 1


def test_a_slow_logger_of_a_plugin_is_muted_and_one_given_in_person_is_not(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv(PATIENCE, "0.1")
    theirs, mine = Slow(0.06), Slow(0.06)
    run(tmp_path, ["mine", mine], plugins=[Brings(theirs)])
    assert theirs.attempts < mine.attempts == STEPS + 1
    assert "logger Slow (Brings 3.1) took 0." in caplog.text


def test_many_fast_calls_are_not_slow_however_fast_the_steps(monkeypatch):
    monkeypatch.setenv(PATIENCE, "0.01")
    patience = Patience()
    for _ in range(20):
        with patience.timing("fast"):
            time.sleep(0.002)
    assert patience.verdict("fast") == ""


def test_a_slow_call_among_long_steps_is_not_slow(monkeypatch):
    monkeypatch.setenv(PATIENCE, "0.01")
    patience = Patience()
    with patience.timing("rare"):
        pass
    time.sleep(0.2)
    with patience.timing("rare"):
        time.sleep(0.03)
    assert patience.verdict("rare") == ""


@pytest.mark.parametrize("wrong", ["soon", "-1", "nan"])
def test_a_wrong_patience_is_refused(monkeypatch, wrong):
    monkeypatch.setenv(PATIENCE, wrong)
    with pytest.raises(ValueError, match=f"{PATIENCE} must be a number of seconds, got '{wrong}'"):
        Patience()


def test_a_run_with_broken_parts_is_the_run_without_them(tmp_path, monkeypatch):
    monkeypatch.setenv(PATIENCE, "0.05")
    plain = toy_run(STEPS, probes=())
    broken = run(tmp_path, [Fails(), JsonlLogger("/dev/full")], plugins=[SlowListener(0.03)])
    for a, b in zip(plain.records, broken.records, strict=True):
        assert (a.loss, a.discrepancy) == (b.loss, b.discrepancy)
