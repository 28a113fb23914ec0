"""The logger against MLflow itself: what is written is what MLflow's client reads."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import gfshadow_mlflow
import pytest
from gfshadow_mlflow.logger import MlflowLogger
from mlflow import MlflowClient

from torch_gfshadow.errors import GFShadowError
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


@pytest.fixture(autouse=True)
def _file_store(monkeypatch):
    """The tests read the store themselves; that the logger needs no variable is a test below."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def write(directory, records, summary=None, **options):
    logger = MlflowLogger(directory, **options)
    logger.start({"seed": 7, "configuration": {"every": 1}, "versions": {"torch": "2"}})
    for record in records:
        logger.write(record)
    logger.finish(summary or {})
    return MlflowClient(tracking_uri=logger.uri), logger.run_id


def history(client, run_id, name):
    return [(m.step, m.value) for m in client.get_metric_history(run_id, name)]


def test_it_keeps_the_contract_of_loggers(tmp_path):
    assert_logger_contract(MlflowLogger, tmp_path)


def test_its_hooks_are_valid_and_training_is_bit_identical_beside_it(tmp_path):
    assert_hooks_valid(gfshadow_mlflow)
    assert_inert(gfshadow_mlflow, loggers=[f"mlflow:{tmp_path / 'runs'}"], steps=4)


def test_every_number_is_read_back_at_its_step(tmp_path):
    records = [make_record(k, discrepancy=1 / (k + 3)) for k in range(4)]
    client, run_id = write(tmp_path / "runs", records)
    for field in ("discrepancy", "lambda_min", "n_hvps", "time"):
        expected = [(record.step, getattr(record, field)) for record in records]
        assert history(client, run_id, f"gfshadow/{field}") == expected, field


def test_hostile_records_lose_only_what_is_no_number(tmp_path):
    client, run_id = write(tmp_path / "runs", hostile_records())
    assert history(client, run_id, "bounds/theorem2") == [(3, 0.1 + 0.2)]
    assert 2 not in dict(history(client, run_id, "gfshadow/loss"))


def test_a_name_that_mlflow_refuses_is_spelt_so_that_it_takes_it(tmp_path):
    record = make_record(1, extras={"mine": {"λ (max)": 2.0}})
    client, run_id = write(tmp_path / "runs", [record])
    assert history(client, run_id, "extras/mine/λ _max_") == [(1, 2.0)]


def test_configuration_status_and_summary_are_parameters_and_tags(tmp_path):
    records = [make_record(1), make_record(2, status=Status.STIFF)]
    client, run_id = write(tmp_path / "runs", records, {"steps": 2}, run_name="mine")
    run = client.get_run(run_id)
    assert run.data.params == {"configuration.every": "1", "versions.torch": "2", "seed": "7"}
    assert run.data.tags["gfshadow.status"] == "stiff"
    assert run.data.tags["summary.steps"] == "2"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")


def test_runs_of_one_experiment_lie_side_by_side(tmp_path):
    client, first = write(tmp_path / "runs", [make_record(1)])
    _, second = write(tmp_path / "runs", [make_record(1)])
    number = client.get_experiment_by_name("torch_gfshadow").experiment_id
    assert {run.info.run_id for run in client.search_runs([number])} == {first, second}


def test_a_directory_needs_no_permission_by_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    logger = MlflowLogger(tmp_path / "runs")
    logger.start({})
    logger.write(make_record(1))
    logger.finish({})
    assert logger.run_id is not None


def test_a_server_that_is_gone_costs_neither_the_run_nor_the_records(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))  # bound and not listening: refused
        port = gone.getsockname()[1]
        logger = MlflowLogger(f"http://127.0.0.1:{port}", patience=0.5)
        began = time.perf_counter()
        shadow = toy_run(
            30, loggers=[logger, f"jsonl:{tmp_path / 'run.jsonl'}"], on_error="disable"
        )
        assert time.perf_counter() - began < 30.0
    assert f"MLflow at http://127.0.0.1:{port}" in " ".join(map(str, shadow.errors))
    assert len(read_records(tmp_path / "run.jsonl").records) == 31


def test_a_server_that_never_answers_is_given_up_after_patience():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        logger = MlflowLogger(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.3)
        logger.start({})
        began = time.perf_counter()
        logger.write(make_record(1))
        assert time.perf_counter() - began < 1.0
        with pytest.raises(GFShadowError, match=r"does not answer: it was given 0.3 s"):
            logger.finish({})
        assert time.perf_counter() - began < 5.0


def test_a_run_that_is_killed_keeps_what_was_queued_and_is_marked(tmp_path):
    code = f"""
        import os, signal, time
        from gfshadow_mlflow.logger import MlflowLogger
        from torch_gfshadow.testing import make_record

        logger = MlflowLogger({str(tmp_path / "runs")!r})
        logger.start({{}})
        for step in range(5):
            logger.write(make_record(step))
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    client = MlflowClient(tracking_uri=(tmp_path / "runs").as_uri())
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        known = client.get_experiment_by_name("torch_gfshadow")
        runs = client.search_runs([known.experiment_id]) if known else []
        if runs and runs[0].info.status == "KILLED":
            break
        time.sleep(0.2)
    assert runs[0].info.status == "KILLED"
    assert [step for step, _ in history(client, runs[0].info.run_id, "gfshadow/loss")] == [
        *range(5)
    ]


def test_mlflow_is_not_imported_into_the_training_process():
    code = "import sys, gfshadow_mlflow.logger; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_wrong_arguments_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="directory must be a directory or new"):
        MlflowLogger(tmp_path / "file")
    with pytest.raises(ValueError, match="patience must be at least 0, got -1"):
        MlflowLogger(tmp_path, patience=-1)
