"""The logger against TensorBoard itself: what is written is what TensorBoard reads."""

import math

import gfshadow_tensorboard
import pytest
from gfshadow_tensorboard.logger import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from torch_gfshadow.plugins import Plugins
from torch_gfshadow.status import Status
from torch_gfshadow.testing import (
    assert_hooks_valid,
    assert_logger_contract,
    hostile_records,
    isolated_plugins,
    make_record,
)


def written(directory, records, summary=None):
    logger = TensorBoardLogger(directory)
    logger.start({"seed": 7})
    for record in records:
        logger.write(record)
    logger.finish(summary or {})
    return read(directory)


def read(directory):
    """tag → [(step, value)] as TensorBoard sees it."""
    events = EventAccumulator(str(directory))
    events.Reload()
    return {
        tag: [
            (event.step, make_ndarray(event.tensor_proto).item()) for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }


def test_it_keeps_the_contract_of_loggers(tmp_path):
    assert_logger_contract(TensorBoardLogger, tmp_path)


def test_its_hooks_are_valid():
    assert_hooks_valid(gfshadow_tensorboard)


def test_it_is_built_by_name(tmp_path):
    with isolated_plugins():
        logger = Plugins([gfshadow_tensorboard]).build("loggers", f"tensorboard:{tmp_path}/run")
    assert logger.directory == tmp_path / "run"


def test_every_number_is_read_back_at_its_step_without_rounding(tmp_path):
    records = [make_record(k, discrepancy=1e-3 / (k + 3)) for k in range(4)]
    scalars = written(tmp_path, records)
    for field in ("discrepancy", "solver_error", "lambda_min", "edge", "time", "n_hvps"):
        expected = [(record.step, getattr(record, field)) for record in records]
        assert scalars[f"gfshadow/{field}"] == expected, field


def test_what_was_not_measured_or_is_not_finite_has_no_point(tmp_path):
    records = [make_record(0, loss=None), make_record(1, loss=math.nan), make_record(2, loss=0.5)]
    assert written(tmp_path, records)["gfshadow/loss"] == [(2, 0.5)]


def test_bounds_and_extras_have_tags_of_their_own(tmp_path):
    scalars = written(tmp_path, hostile_records())
    assert scalars["bounds/theorem2"] == [(3, 0.1 + 0.2)]
    nested = make_record(1, extras={"slqs": {"trace": 3, "ok": True, "name": "x"}})
    scalars = written(tmp_path / "nested", [nested])
    assert scalars["extras/slqs/trace"] == [(1, 3.0)]
    assert not {"extras/slqs/ok", "extras/slqs/name"} & set(scalars)


def test_header_summary_and_changes_of_status_are_text(tmp_path):
    records = [
        make_record(1),
        make_record(2, status=Status.STIFF, status_detail="too stiff"),
        make_record(3, status=Status.STIFF),
        make_record(4),
    ]
    texts = written(tmp_path, records, {"n_records": 4})
    assert b'"seed": 7' in texts["header/text_summary"][0][1]
    assert b'"n_records": 4' in texts["summary/text_summary"][0][1]
    assert [step for step, _ in texts["status/text_summary"]] == [2, 4]
    assert texts["status/text_summary"][0][1] == b"**stiff** too stiff"


def test_a_record_is_on_the_disk_when_write_returns(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.start({})
    logger.write(make_record(1))
    assert read(tmp_path)["gfshadow/loss"] == [(1, 0.5)]
    logger.finish({})


def test_a_resumed_run_continues_in_the_same_directory(tmp_path):
    written(tmp_path, [make_record(1)])
    scalars = written(tmp_path, [make_record(2)])
    assert sorted(step for step, _ in scalars["gfshadow/time"]) == [1, 2]


def test_a_file_as_directory_is_refused_at_construction(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(
            ValueError, match=r"directory must be a directory or new, got .* is a file"
        ):
            TensorBoardLogger(path)
