"""The logger against wandb's own offline file: what is written is what a sync would send."""

import json
import struct
import time

import gfshadow_wandb
import pytest
import wandb
from gfshadow_wandb.logger import WandbLogger
from wandb.proto import wandb_internal_pb2

from torch_gfshadow.status import Status
from torch_gfshadow.testing import (
    assert_hooks_valid,
    assert_inert,
    assert_logger_contract,
    hostile_records,
    make_record,
    toy_run,
)

_BLOCK, _HEAD = 32768, 7


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)


def messages(file):
    """The records of wandb's log: LevelDB's format, whose payload is a protocol buffer."""
    data, at, part = file.read_bytes(), _HEAD, b""
    while at + _HEAD <= len(data):
        if _BLOCK - at % _BLOCK < _HEAD:
            at += _BLOCK - at % _BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + _HEAD])
        part += data[at + _HEAD : at + _HEAD + size]
        at += _HEAD + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record
            part = b""


def read(directory):
    """History rows, final summary and config, as a sync would send them."""
    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 20.0  # wandb's own process may still be writing
    while "exit" not in {m.WhichOneof("record_type") for m in messages(file)}:
        assert time.monotonic() < deadline, "the run has no end"
        time.sleep(0.05)
    rows, summary, config = [], {}, {}
    for message in messages(file):
        kind = message.WhichOneof("record_type")
        if kind == "history":
            rows.append(values(message.history.item))
        elif kind == "summary":
            summary |= values(message.summary.update)
        elif kind == "run":
            config |= values(message.run.config.update)
    return rows, summary, config


def values(items):
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def write(directory, records, summary=None):
    logger = WandbLogger("tests", directory)
    logger.start({"seed": 7})
    for record in records:
        logger.write(record)
    logger.finish(summary or {})
    return read(directory)


def test_it_keeps_the_contract_of_loggers(tmp_path):
    assert_logger_contract(lambda path: WandbLogger("tests", path), tmp_path)


def test_its_hooks_are_valid_and_training_is_bit_identical_beside_it():
    assert_hooks_valid(gfshadow_wandb)
    assert_inert(gfshadow_wandb, loggers=["wandb:tests"], steps=3)


def test_every_number_is_read_back_at_its_step(tmp_path):
    records = [make_record(k, discrepancy=1 / (k + 3)) for k in range(3)]
    rows, _, config = write(tmp_path, records)
    for record, row in zip(records, rows, strict=True):
        assert row["gfshadow/step"] == record.step
        for field in ("discrepancy", "lambda_min", "n_hvps", "time"):
            assert row[f"gfshadow/{field}"] == getattr(record, field), field
    assert config["seed"] == 7


def test_hostile_records_summary_and_status_arrive(tmp_path):
    records = [*hostile_records(), make_record(4, status=Status.STIFF, status_detail="too stiff")]
    rows, summary, _ = write(tmp_path, records, {"steps": 4})
    assert rows[3]["bounds/theorem2"] == 0.1 + 0.2
    assert "gfshadow/loss" not in rows[2]
    assert summary["gfshadow/steps"] == 4
    assert summary["status/4"] == "stiff: too stiff"


def test_a_run_of_yours_is_not_touched(tmp_path):
    mine = wandb.init(mode="disabled", project="mine")
    shadow = toy_run(2, plugins=[gfshadow_wandb], loggers=["wandb:tests"])
    assert wandb.run is mine
    mine.finish()
    rows, _, config = read(tmp_path)
    assert [row["gfshadow/step"] for row in rows] == [r.step for r in shadow.records] == [0, 1, 2]
    assert config["configuration"]["loggers"] == ["wandb:tests"]


def test_offline_is_the_default_and_the_environment_can_say_otherwise(monkeypatch):
    assert WandbLogger("tests").mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert WandbLogger("tests").mode == "disabled"
    assert WandbLogger("tests", mode="offline").mode == "offline"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"project": ""}, "project must be the name of a project"),
        ({"project": "a/b"}, "project must be the name of a project"),
        ({"mode": "cloud"}, "mode must be one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WandbLogger(**arguments)
