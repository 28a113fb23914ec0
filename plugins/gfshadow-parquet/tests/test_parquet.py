"""The logger against pyarrow and pandas: what is written is what they read."""

import json
import math

import gfshadow_parquet
import pandas as pd
import pyarrow.parquet as pq
import pytest
from gfshadow_parquet.logger import SCHEMA, ParquetLogger

from torch_gfshadow.loggers import read_records
from torch_gfshadow.record import FIELDS
from torch_gfshadow.testing import (
    assert_hooks_valid,
    assert_inert,
    assert_logger_contract,
    hostile_records,
    make_record,
    toy_run,
)


def write(directory, records, **options):
    logger = ParquetLogger(directory, **options)
    logger.start({"seed": 7})
    for record in records:
        logger.write(record)
    logger.finish({"n_records": len(records)})


def test_it_keeps_the_contract_of_loggers(tmp_path):
    assert_logger_contract(ParquetLogger, tmp_path)


def test_its_hooks_are_valid_and_training_is_bit_identical_beside_it(tmp_path):
    assert_hooks_valid(gfshadow_parquet)
    assert_inert(gfshadow_parquet, loggers=[f"parquet:{tmp_path / 'run'}"])


def test_every_field_is_a_typed_column_with_its_unit():
    assert tuple(SCHEMA.names) == FIELDS
    types = {field.name: str(field.type) for field in SCHEMA}
    assert types["step"] == types["n_hvps"] == "int64"
    assert types["discrepancy"] == types["time"] == "double"
    assert types["status"] == types["bounds"] == "string"
    assert SCHEMA.field("discrepancy").metadata[b"unit"] == "θ".encode()


def test_what_is_written_is_read_back_to_the_last_digit(tmp_path):
    records = [make_record(k, discrepancy=1 / (k + 3)) for k in range(10)]
    write(tmp_path, records, rows=4)
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == [
        f"part-0000{i}.parquet" for i in range(3)
    ]
    table = pd.read_parquet(tmp_path)
    assert table["step"].tolist() == list(range(10))
    assert table["discrepancy"].tolist() == [record.discrepancy for record in records]


def test_gaps_nesting_and_text_survive(tmp_path):
    write(tmp_path, hostile_records())
    rows = pq.read_table(tmp_path).to_pylist()
    assert rows[0]["loss"] is None
    assert rows[2]["loss"] is None  # NaN is a gap in every file
    assert rows[2]["discrepancy"] == 5e-324
    assert json.loads(rows[3]["bounds"])["theorem2"]["value"] == 0.1 + 0.2
    assert json.loads(rows[3]["extras"])["plugin"]["text"] == 'a "quoted", cell\nλ → ∞'
    assert rows[3]["status_detail"] == 'two\nlines, "quoted", λ'


def test_header_and_summary_stand_beside_the_parts(tmp_path):
    write(tmp_path, [make_record(1)])
    assert json.loads((tmp_path / "_header.json").read_text()) == {"seed": 7}
    assert json.loads((tmp_path / "_summary.json").read_text()) == {"n_records": 1}


def test_a_resumed_run_adds_parts(tmp_path):
    for step in (1, 2):
        write(tmp_path, [make_record(step)])
    assert pd.read_parquet(tmp_path)["step"].tolist() == [1, 2]


def test_it_agrees_with_jsonl_on_a_run(tmp_path):
    targets = [f"parquet:{tmp_path / 'run'}", f"jsonl:{tmp_path / 'run.jsonl'}"]
    toy_run(6, plugins=[gfshadow_parquet], loggers=targets)
    table = pd.read_parquet(tmp_path / "run")
    records = read_records(tmp_path / "run.jsonl").records
    assert len(table) == len(records) == 7
    for name in ("discrepancy", "solver_error", "lambda_max", "loss"):
        for got, record in zip(table[name], records, strict=True):
            expected = getattr(record, name)
            assert got == expected or (expected is None and math.isnan(got))


def test_a_part_that_cannot_be_written_waits_and_leaves_no_torn_file(tmp_path, monkeypatch):
    logger = ParquetLogger(tmp_path, rows=2)
    logger.start({})
    logger.write(make_record(0))
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", lambda table, where: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space left"):
            logger.write(make_record(1))
    assert not list(tmp_path.glob("part-*"))
    logger.write(make_record(2))
    logger.finish({})
    assert pd.read_parquet(tmp_path)["step"].tolist() == [0, 1, 2]


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        ParquetLogger(tmp_path, rows=0)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="directory must be a directory or new"):
        ParquetLogger(tmp_path / "file")
