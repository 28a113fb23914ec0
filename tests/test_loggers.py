"""Loggers: the contract of each, the files they leave, and how they fail."""

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from torch_gfshadow.loggers import (
    ConsoleLogger,
    CsvLogger,
    JsonlLogger,
    Logger,
    MemoryLogger,
    make_header,
    read_records,
)
from torch_gfshadow.record import FIELDS, Record
from torch_gfshadow.status import Status
from torch_gfshadow.testing import assert_logger_contract, hostile_records, make_record

FILE_LOGGERS = [JsonlLogger, CsvLogger]


def run(logger, records, summary=None):
    logger.start({})
    for record in records:
        logger.write(record)
    if summary is not None:
        logger.finish(summary)
    return logger


# --- the contract


@pytest.mark.parametrize("make", FILE_LOGGERS)
def test_file_loggers_keep_the_contract(make, tmp_path):
    assert_logger_contract(make, tmp_path)


@pytest.mark.parametrize("make", [MemoryLogger, ConsoleLogger])
def test_other_loggers_keep_the_contract(make, tmp_path):
    assert_logger_contract(lambda path: make(), tmp_path, writes_files=False)


class Careless:
    """A logger without a fault; each subclass below has one."""

    def __init__(self, path):
        self.path, self.rows, self.open = path, [], False

    def start(self, header):
        self.open = True

    def write(self, record):
        if not self.open:
            raise RuntimeError("closed")
        self.rows.append(record.step)

    def finish(self, summary):
        self.open = False


class Incomplete:
    def start(self, header): ...


class OpensEarly(Careless):
    def __init__(self, path):
        super().__init__(path)
        path.parent.mkdir(parents=True)


class Forgetful(Careless):
    def write(self, record):
        pass


class Hoarder(Careless):
    def write(self, record):
        if not self.open:
            from torch_gfshadow.errors import GFShadowError

            raise GFShadowError("closed")
        self.rows.append(record)


class Gambler(Hoarder):
    def start(self, header):
        import random

        random.random()
        super().start(header)

    def write(self, record):
        super().write(record.step if self.open else None)


class Meddler(Gambler):
    def write(self, record):
        super().write(record)
        record.bounds["mine"] = 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: Incomplete(), "has no start, write and finish"),
        (OpensEarly, "constructing a logger must open nothing"),
        (Forgetful, r"write\(\) before start\(\) must raise"),
        (Hoarder, "must keep no tensor alive"),
        (Gambler, "must draw no random number"),
        (Meddler, r"write\(\) changed"),
    ],
)
def test_the_contract_catches(make, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        assert_logger_contract(make, tmp_path, writes_files=False)


def test_the_contract_catches_a_bad_target_that_is_accepted(tmp_path):
    with pytest.raises(AssertionError, match="must raise ValueError: its parent is a file"):
        assert_logger_contract(lambda path: MemoryLogger(), tmp_path)


def test_the_contract_lets_foreign_exceptions_through(tmp_path):
    with pytest.raises(RuntimeError, match="closed"):
        assert_logger_contract(Careless, tmp_path)


def test_every_built_in_is_a_logger(tmp_path):
    for logger in (JsonlLogger(tmp_path / "a"), MemoryLogger(), ConsoleLogger()):
        assert isinstance(logger, Logger)


# --- memory


def test_memory_keeps_every_record_header_and_summary():
    logger = MemoryLogger()
    logger.start({"seed": 1})
    for k in range(5):
        logger.write(make_record(k))
    logger.finish({"n": 5})
    assert logger.records == [make_record(k) for k in range(5)]
    assert (logger.header, logger.summary) == ({"seed": 1}, {"n": 5})


def test_memory_keeps_the_last_records_if_bounded():
    logger = run(MemoryLogger("2"), [make_record(k) for k in range(5)])
    assert [record.step for record in logger.records] == [3, 4]


@pytest.mark.parametrize("bad", [0, -3, "many", "1.5", 2.5, True, ""])
@pytest.mark.parametrize(
    ("make", "argument"), [(MemoryLogger, "max_records"), (ConsoleLogger, "every")]
)
def test_a_count_must_be_a_positive_integer(make, argument, bad):
    with pytest.raises(ValueError, match=f"{argument} must be a positive integer, got {bad!r}"):
        make(bad)


# --- files: where


@pytest.mark.parametrize("make", FILE_LOGGERS)
def test_missing_directories_are_created_on_start_not_before(make, tmp_path):
    logger = make(tmp_path / "a" / "b" / "run")
    assert not (tmp_path / "a").exists()
    run(logger, [make_record()], {})
    assert (tmp_path / "a" / "b" / "run").stat().st_size > 0


@pytest.mark.parametrize("make", FILE_LOGGERS)
def test_a_directory_as_path_is_refused_at_construction(make, tmp_path):
    with pytest.raises(ValueError, match=r"path must be a file, got the directory .* Name a file"):
        make(tmp_path)


@pytest.mark.parametrize("make", FILE_LOGGERS)
def test_a_file_as_directory_is_refused_at_construction(make, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"path must be inside a directory, got .* is a file"):
        make(tmp_path / "file" / "deep" / "run")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_refused_at_construction(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ValueError, match=r"path must be writable, got .* No permission"):
        JsonlLogger(tmp_path / "locked" / "run.jsonl")


def test_a_path_nobody_may_write_is_refused_at_construction(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"path must be writable, got .* No permission"):
        JsonlLogger(tmp_path / "run.jsonl")


def test_an_empty_path_and_no_path_are_refused():
    with pytest.raises(ValueError, match="path must be the name of a file, got ''"):
        JsonlLogger("")
    with pytest.raises(TypeError, match="path must be a string or a path, got None"):
        JsonlLogger(None)


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run(JsonlLogger("~/run.jsonl"), [], {})
    assert read_records(tmp_path / "run.jsonl").complete


# --- files: resuming


@pytest.mark.parametrize("cut", [1, 2, *range(0, 1400, 13)])
def test_resuming_after_any_cut_repairs_the_end_and_loses_no_whole_line(cut, tmp_path):
    path = tmp_path / "run.jsonl"
    run(JsonlLogger(path), [make_record(0)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    kept = len(read_records(path).records)
    run(JsonlLogger(path), [make_record(1)], {})
    file = read_records(path)
    assert [record.step for record in file.records] == [*range(kept), 1]
    assert file.complete
    assert path.read_bytes().count(b"\n") == len(file.headers) + kept + 2


def test_a_last_line_longer_than_any_block_is_cut_where_it_begins(tmp_path):
    path = tmp_path / "run.jsonl"
    run(JsonlLogger(path), [make_record(0)])
    good = path.read_bytes()
    path.write_bytes(good + b'{"type": "record", "status_detail": "' + b"x" * 300_000)
    logger = JsonlLogger(path)
    logger.start({})
    assert path.read_bytes().startswith(good + b'{"type": "header"')


@pytest.mark.parametrize("content", ["notes\n", "notes", '{"name": "data"}\n', "step,time\n0,0\n"])
@pytest.mark.parametrize("make", FILE_LOGGERS)
def test_a_file_of_something_else_is_refused_and_left_alone(make, content, tmp_path):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"path must be a new file or one a logger of this kind"):
        make(path).start({})
    assert path.read_text() == content


def test_csv_resumes_under_its_own_columns_and_drops_a_torn_row(tmp_path):
    path = tmp_path / "run.csv"
    run(CsvLogger(path), [make_record(0), make_record(1)], {})
    whole = path.read_text()
    for cut in (1, 7, 100):
        path.write_text(whole[:-cut])
        run(CsvLogger(path), [make_record(2)], {})
        assert [row["step"] for row in read_csv(path)] == ["0", "2"]


@pytest.mark.parametrize("length", [0, 4, 10_000])
def test_csv_writes_its_columns_again_if_they_were_torn(length, tmp_path):
    path = tmp_path / "run.csv"
    path.write_text(",".join(FIELDS)[:length])
    run(CsvLogger(path), [make_record(2)], {})
    assert [row["step"] for row in read_csv(path)] == ["2"]


def test_a_pipe_can_be_written_though_it_cannot_be_repaired():
    read_end, write_end = os.pipe()
    run(JsonlLogger(f"/dev/fd/{write_end}"), [make_record(0)], {})
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        assert [json.loads(line)["type"] for line in stream] == ["header", "record", "summary"]


# --- files: content


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_one_line_per_record_in_the_order_of_the_fields(tmp_path):
    path = tmp_path / "run.csv"
    run(CsvLogger(path), hostile_records(), {"ignored": 1})
    rows = read_csv(path)
    assert list(rows[0]) == list(FIELDS)
    assert len(path.read_text().splitlines()) == 1 + len(hostile_records())
    assert rows[0]["loss"] == ""
    assert float(rows[1]["discrepancy"]) == make_record().discrepancy
    assert rows[2]["loss"] == ""
    assert json.loads(rows[3]["bounds"])["theorem2"]["value"] == 0.1 + 0.2
    assert json.loads(rows[3]["extras"])["plugin"]["list"] == [1, 2.5, None]
    assert rows[3]["status"] == "unresolved"
    assert rows[3]["status_detail"] == 'two lines, "quoted", λ'


def test_every_line_of_jsonl_is_strict_json_with_a_type(tmp_path):
    path = tmp_path / "run.jsonl"
    run(JsonlLogger(path), hostile_records(), {"worst": float("inf")})

    def refuse(constant):
        raise AssertionError(constant)

    rows = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [row["type"] for row in rows] == ["header", *["record"] * 4, "summary"]


def test_the_header_is_completed_and_can_hold_any_configuration(tmp_path):
    path = tmp_path / "run.jsonl"
    logger = JsonlLogger(path)
    configuration = {"solver": object, "tol": float("nan"), "status": Status.OK, "set": {1}}
    logger.start({"configuration": configuration, "seed": 3})
    logger.finish({})
    header = read_records(path).header
    assert header["seed"] == 3
    assert header["configuration"] == {
        "solver": "<class 'object'>",
        "tol": None,
        "status": "ok",
        "set": [1],
    }
    assert header["versions"] == make_header()["versions"]


# --- files: failing


def test_a_full_disk_surfaces_from_write():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left"):
        JsonlLogger("/dev/full").start({})


LIMITED = """
    import resource, sys
    from torch_gfshadow.loggers import CsvLogger, JsonlLogger
    from torch_gfshadow.testing import make_record

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for make in (JsonlLogger, CsvLogger):
        path = sys.argv[1] + make.__name__
        logger = make(path)
        logger.start({})
        logger.write(make_record(0))
        before = open(path, "rb").read()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
        for _ in range(2):
            try:
                logger.write(make_record(1))
            except OSError as error:
                assert error.strerror == "File too large", error
            else:
                raise AssertionError("the write went through")
            assert open(path, "rb").read() == before, "a part of a line stayed"
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        logger.write(make_record(2))
        after = open(path, "rb").read()
        assert after.startswith(before) and after.endswith(b"\\n") and after != before
    print("survived")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_line_that_does_not_fit_is_taken_back_and_later_ones_are_written(tmp_path):
    done = python(LIMITED, tmp_path / "run")
    assert done.stdout == "survived\n", done.stderr


KILLED = """
    import sys
    from torch_gfshadow.loggers import CsvLogger, JsonlLogger
    from torch_gfshadow.testing import make_record

    loggers = [make(sys.argv[1] + make.__name__) for make in (JsonlLogger, CsvLogger)]
    for logger in loggers:
        logger.start({})
    for step in range(10**9):
        record = make_record(step, status_detail="x" * 5000)
        for logger in loggers:
            logger.write(record)
        print(step, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_kill_9_loses_at_most_the_line_being_written(tmp_path):
    jsonl, table = tmp_path / "run-JsonlLogger", tmp_path / "run-CsvLogger"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "run-")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        seen = [int(child.stdout.readline()) for _ in range(50)]
        child.send_signal(signal.SIGKILL)
        seen += [int(line) for line in child.stdout.read().split("\n")[:-1]]

    file = read_records(jsonl)
    assert not file.complete
    assert_loses_at_most_one(seen, [record.step for record in file.records])
    assert_loses_at_most_one(seen, [int(row["step"]) for row in read_csv(table)])

    run(JsonlLogger(jsonl), [make_record(-1)], {})
    run(CsvLogger(table), [make_record(-1)], {})
    assert read_records(jsonl).complete
    assert read_records(jsonl).records[-1].step == int(read_csv(table)[-1]["step"]) == -1


def assert_loses_at_most_one(seen, steps):
    """``seen`` were written for certain; the next line may or may not have made it."""
    assert steps in (seen, [*seen, seen[-1] + 1])


def python(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- console


@pytest.fixture
def screen():
    with open(os.devnull, "w") as sink:
        yield Console(file=sink, record=True, width=80)


def test_console_prints_each_nth_record_the_last_and_the_summary(screen):
    run(ConsoleLogger(3, screen), [make_record(k) for k in range(6)], {"n_records": 6})
    lines = screen.export_text().splitlines()
    assert lines[0].split() == [
        *("step", "time", "loss", "discrepancy", "solver_error"),
        *("lambda_min", "lambda_max", "edge", "status"),
    ]
    assert [line.split()[0] for line in lines[1:-1]] == ["0", "3", "5"]
    assert lines[-1] == "n_records: 6"


def test_console_does_not_print_the_last_record_twice(screen):
    run(ConsoleLogger(3, screen), [make_record(k) for k in range(4)], {})
    assert [line.split()[0] for line in screen.export_text().splitlines()] == ["step", "0", "3"]


def test_console_repeats_its_titles_and_names_what_is_missing_by_a_dash(screen):
    run(ConsoleLogger(1, screen), [Record(step=k, time=0.0) for k in range(26)])
    lines = [line.split() for line in screen.export_text().splitlines()]
    assert [i for i, line in enumerate(lines) if line[0] == "step"] == [0, 26]
    assert lines[1] == ["0", "0", *["-"] * 6, "ok"]


def test_console_aligns_its_columns_and_never_wraps(screen):
    run(ConsoleLogger(1, screen), hostile_records())
    lines = screen.export_text().splitlines()
    assert len(lines) == 1 + len(hostile_records())
    assert len({line.rindex("  ") for line in lines}) == 1


def test_console_writes_plain_ascii_to_standard_error_if_that_is_no_terminal(capfd):
    run(ConsoleLogger(), hostile_records(), {"λ": "[bold]∞[/bold]"})
    out, err = capfd.readouterr()
    assert out == ""
    assert err.isascii()
    assert "\x1b" not in err
    assert "[bold]\\u221e[/bold]" in err


CLOSED = """
    import os, sys
    from torch_gfshadow.loggers import ConsoleLogger
    from torch_gfshadow.testing import make_record

    read_end, write_end = os.pipe()
    os.close(read_end)
    sys.stderr = os.fdopen(write_end, "w")
    logger = ConsoleLogger()
    logger.start({})
    for step in range(3):
        logger.write(make_record(step))
    logger.finish({})
    print("trained on")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes that break")
def test_console_does_not_end_the_run_when_nobody_listens_any_more():
    assert python(CLOSED).stdout == "trained on\n"


def test_console_replaces_neither_standard_stream():
    before = sys.stdout, sys.stderr
    logger = run(ConsoleLogger(), [make_record()])
    assert (sys.stdout, sys.stderr) == before
    logger.finish({})
