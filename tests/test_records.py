"""Record, and reading records back from a file, whole or torn."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from torch_gfshadow.loggers import JsonlLogger, make_header, read_records
from torch_gfshadow.record import FIELDS, SCHEMA_VERSION, Record
from torch_gfshadow.status import Status
from torch_gfshadow.testing import hostile_records, make_record


@pytest.fixture
def run(tmp_path):
    """A finished run of three records, as bytes, and where to put it."""
    path = tmp_path / "run.jsonl"
    write(path, [make_record(k) for k in range(3)], {"n_records": 3})
    return path


def write(path, records, summary=None):
    logger = JsonlLogger(path)
    logger.start(make_header({"every": 1}, seed=7))
    for record in records:
        logger.write(record)
    if summary is not None:
        logger.finish(summary)
    return logger


# --- the row


def test_a_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_record().loss = 0.0


def test_every_field_has_a_unit_and_a_meaning():
    for field in dataclasses.fields(Record):
        assert isinstance(field.metadata["unit"], str), field.name
        assert field.metadata["meaning"], field.name


def test_the_fields_begin_with_where_and_when():
    assert FIELDS[:2] == ("step", "time")
    assert len(set(FIELDS)) == len(FIELDS)


@pytest.mark.parametrize("record", [Record(step=0, time=0.0), make_record(5)])
def test_a_record_survives_the_round_trip_through_a_dictionary(record):
    assert Record.from_dict(record.to_dict()) == record


def test_the_dictionary_is_strict_json_whatever_the_record_holds():
    for record in hostile_records():
        json.dumps(record.to_dict(), allow_nan=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_becomes_none(value):
    assert make_record(loss=value).to_dict()["loss"] is None


def test_scalars_of_numpy_and_torch_become_plain_numbers():
    extras = {"p": {"numpy": np.float64(0.1), "count": np.int64(3), "torch": torch.tensor(0.5)}}
    plain = make_record(extras=extras).to_dict()["extras"]["p"]
    assert plain == {"numpy": 0.1, "count": 3, "torch": 0.5}
    assert type(plain["count"]) is int


def test_unknown_keys_of_a_row_are_ignored_so_that_newer_files_can_be_read():
    assert Record.from_dict({"step": 1, "time": 0.1, "colour": "red"}) == Record(step=1, time=0.1)


def test_a_row_without_step_or_time_is_refused():
    with pytest.raises(ValueError, match="row must be a record with step and time, got keys"):
        Record.from_dict({"step": 1})


def test_a_row_with_an_unknown_status_is_refused():
    with pytest.raises(ValueError, match="'happy' is not a valid Status"):
        Record.from_dict({"step": 1, "time": 0.1, "status": "happy"})


# --- the file


def test_what_was_written_is_read_back(run):
    file = read_records(run)
    assert file.records == tuple(make_record(k) for k in range(3))
    assert file.header["configuration"] == {"every": 1}
    assert file.header["seed"] == 7
    assert file.header["schema"] == SCHEMA_VERSION
    assert file.header["fields"] == {f.name: f.metadata["unit"] for f in dataclasses.fields(Record)}
    assert set(file.header["versions"]) == {"torch-gfshadow", "torch", "torchdiffeq", "pluggy"}
    assert file.summary == {"n_records": 3}
    assert file.complete


def test_floats_are_read_back_bit_by_bit(tmp_path):
    values = [0.1 + 0.2, 1 / 3, math.pi * 1e300, 5e-324, -0.0, float(np.nextafter(1.0, 2.0))]
    write(tmp_path / "f", [make_record(loss=value) for value in values])
    read = [record.loss for record in read_records(tmp_path / "f").records]
    assert [value.hex() for value in read] == [value.hex() for value in values]


def test_hostile_records_are_read_back_with_none_for_what_json_cannot_hold(tmp_path):
    write(tmp_path / "f", hostile_records())
    expected = tuple(Record.from_dict(record.to_dict()) for record in hostile_records())
    assert read_records(tmp_path / "f").records == expected
    assert expected[2].loss is None
    assert expected[3].status is Status.UNRESOLVED
    assert expected[3].status_detail == 'two\nlines, "quoted", λ'


def test_a_file_cut_at_any_byte_loses_the_cut_line_and_no_other(run):
    whole = run.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    around = {end + offset for end in ends for offset in (-1, 0, 1)}
    for cut in sorted(around.union(range(0, len(whole), 17)) - {len(whole)}):
        run.write_bytes(whole[:cut])
        file = read_records(run)
        # A line counts from its last byte on; only its newline may be missing.
        n_lines = sum(end <= cut for end in ends)
        assert len(file.records) == min(max(n_lines - 1, 0), 3), cut
        assert file.complete == (n_lines == 5), cut


def test_an_empty_file_has_no_records_and_is_not_complete(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.touch()
    file = read_records(path)
    assert (file.header, file.records, file.summary, file.complete) == ({}, (), None, False)
    assert file.sessions == ()


def test_a_run_that_is_still_going_is_not_complete(tmp_path):
    write(tmp_path / "f", [make_record(0)])
    assert not read_records(tmp_path / "f").complete


def test_a_resumed_run_has_several_headers_and_one_summary(run):
    write(run, [make_record(k) for k in (2, 3)], {"n_records": 2})
    file = read_records(run)
    assert [record.step for record in file.records] == [0, 1, 2, 2, 3]
    assert [[r.step for r in session] for session in file.sessions] == [[0, 1, 2], [2, 3]]
    assert len(file.headers) == 2
    assert file.header is file.headers[0]
    assert file.summary == {"n_records": 2}
    assert file.complete


def test_a_resumed_run_that_was_killed_has_no_summary(run):
    write(run, [make_record(3)])
    file = read_records(run)
    assert file.summary is None
    assert not file.complete


def test_zeros_that_a_power_failure_left_at_the_end_count_as_a_torn_line(run):
    with run.open("ab") as file:
        file.write(b"\0" * 512)
    assert len(read_records(run).records) == 3
    assert not read_records(run).complete


@pytest.mark.parametrize(
    ("line", "got"),
    [
        (b"{not json}", "'{not json}"),
        (b"\xff\xfe\x00", "got '"),
        (b"[1, 2]", "got list"),
        (b'{"type": "colour"}', "type 'colour'"),
        (b'{"step": 1, "time": 0.1}', "type None"),
        (b'{"type": "record", "step": 1}', "row must be a record with step and time"),
    ],
)
def test_a_bad_line_in_the_middle_is_an_error_that_names_the_line(run, line, got):
    lines = run.read_bytes().splitlines(keepends=True)
    run.write_bytes(b"".join([*lines[:2], line + b"\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"run\.jsonl, line 3") as error:
        read_records(run)
    assert got in str(error.value)


def test_blank_lines_are_skipped(run):
    run.write_bytes(run.read_bytes().replace(b"\n", b"\n\n"))
    assert len(read_records(run).records) == 3


def test_a_file_of_a_newer_schema_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "f"
    path.write_text(json.dumps({"type": "header", "schema": SCHEMA_VERSION + 1}) + "\n")
    with pytest.raises(ValueError, match=r"line 1: schema must be at most 1, got 2\. .* upgrade"):
        read_records(path)


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "none.jsonl")
