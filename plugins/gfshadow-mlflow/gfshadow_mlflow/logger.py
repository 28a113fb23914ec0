"""The logger: hands records to a process of its own, which talks to MLflow (see worker.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any

from torch_gfshadow.errors import GFShadowError, must
from torch_gfshadow.loggers import checked_directory, not_started, numbers, to_json_ready
from torch_gfshadow.record import Record

_WAITING = 2000


class MlflowLogger:
    """Write every finite number of a record as an MLflow metric at the record's step.

    Metrics are ``gfshadow/<field>``, ``bounds/<name>``, ``extras/<plugin>/<key>``. Configuration
    and versions are parameters; status and the summary's totals are tags. A run of its own is
    created, so that a run of yours is not touched.

    MLflow tries an unreachable server again and again, for minutes, and draws random numbers.
    So another process talks to it: ``write`` only queues, and raises what went wrong since the
    last one. If training is killed, that process writes what it has and ends the run as KILLED.

    Args:
        target: A directory for MLflow's file store, or a tracking URI (``http://…``,
            ``sqlite:///…``).
        experiment: Name of the experiment; created if there is none.
        run_name: Name of the run; MLflow's own choice if not given.
        patience: Seconds that ``finish`` waits for what is queued.

    Raises:
        ValueError: If ``target`` is a file or lies under one, or ``patience`` is negative.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] = "mlruns",
        experiment: str = "torch_gfshadow",
        run_name: str | None = None,
        patience: float = 30.0,
    ) -> None:
        text = os.fspath(target)
        self.directory: Path | None = None if "://" in text else checked_directory(text)
        self.uri = text if self.directory is None else self.directory.absolute().as_uri()
        if not patience >= 0.0:
            raise ValueError(must("patience", "at least 0", patience, "It is in seconds."))
        self.experiment, self.run_name, self.patience = experiment, run_name, patience
        self.run_id: str | None = None
        self._link: _Link | None = None

    def start(self, header: Mapping[str, Any]) -> None:
        """Begin a run; MLflow is asked in the background."""
        self.finish({})
        self.run_id = None
        about = {
            "uri": self.uri,
            "experiment": self.experiment,
            "run_name": self.run_name,
            "params": dict(_params(to_json_ready(header))),
        }
        self._link = _Link(about, self.uri, file_store=self.directory is not None)
        self._link.send({"do": "begin"})

    def write(self, record: Record) -> None:
        """Queue one record.

        Raises:
            GFShadowError: If the logger is not started, MLflow is far behind, or an earlier
                record could not be written.
        """
        if self._link is None:
            raise not_started(self)
        self._link.raise_errors()
        values = list(numbers(record))
        row = {"step": record.step, "seconds": time.time(), "values": values}
        self._link.send({"do": "record", **row, "status": str(record.status)})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Wait for what is queued, add the summary, end the run.

        Raises:
            GFShadowError: If not everything could be written in time.
        """
        link, self._link = self._link, None
        if link is None:
            return
        tags = {f"summary.{key}": value for key, value in to_json_ready(summary).items()}
        link.send({"do": "end", "tags": tags})
        try:
            link.close(self.patience)
        finally:
            self.run_id = link.run_id


class _Link:
    """A queue to the other process, and what comes back from it."""

    def __init__(self, about: Mapping[str, Any], uri: str, *, file_store: bool) -> None:
        self.run_id: str | None = None
        self._uri = uri
        self._errors: list[str] = []
        environment = dict(os.environ)
        if file_store:  # MLflow 3.7 and later ask to be told that a directory is meant
            environment.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is the training's; this process ends after it
        )
        self._queue: Queue[str | None] = Queue(_WAITING)
        self._threads = [Thread(target=run, daemon=True) for run in (self._feed, self._listen)]
        for thread in self._threads:
            thread.start()
        self.send(about)

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue one line."""
        try:
            self._queue.put_nowait(json.dumps(message, allow_nan=False))
        except Full as full:
            raise GFShadowError(f"MLflow at {self._uri} is {_WAITING} records behind.") from full

    def close(self, patience: float) -> None:
        """Wait for the other process to end, or end it."""
        self._queue.put(None)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            got = f"it was given {patience:g} s"
            raise GFShadowError(f"MLflow at {self._uri} does not answer: {got}.") from None
        finally:
            for thread in self._threads:
                thread.join()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None and not pipe.closed:
                    pipe.close()
        self.raise_errors()
        if self._process.returncode:
            raise GFShadowError(f"MLflow's process ended with code {self._process.returncode}.")

    def raise_errors(self) -> None:
        """Raise the first error since the last call.

        Raises:
            GFShadowError: If there is one.
        """
        if self._errors:
            first = self._errors[0]
            self._errors.clear()
            raise GFShadowError(f"MLflow at {self._uri}: {first}")

    def _feed(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            while (line := self._queue.get()) is not None:
                stdin.write(line + "\n")
                stdin.flush()
            stdin.close()
        except OSError as error:  # the other process is gone
            self._errors.append(f"{type(error).__name__}: {error}")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            self.run_id = message.get("run_id", self.run_id)
            if "error" in message:
                self._errors.append(message["error"])


def _params(header: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for group in ("configuration", "versions"):
        for key, value in (header.get(group) or {}).items():
            yield f"{group}.{key}", str(value)
    if header.get("seed") is not None:
        yield "seed", str(header["seed"])
