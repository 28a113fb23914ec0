"""The only caller of MLflow: a process of its own, fed with JSON lines.

MLflow draws from Python's global random numbers (names of runs, jitter of retries). In the
training process, in whatever thread, that would change the run. Run as a script, so that neither
torch nor torch_gfshadow is imported.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from typing import Any

_REFUSED = re.compile(r"[^\w\-. /]")  # what MLflow does not take in the name of a metric
_LONGEST = 500


class Worker:
    """Carries out one line after the other.

    Args:
        uri: Where MLflow's store is.
        experiment: Name of the experiment.
        run_name: Name of the run, or ``None``.
        params: Parameters of the run.
    """

    def __init__(self, uri: str, experiment: str, run_name: str | None, params: Any) -> None:
        self._uri, self._experiment, self._run_name = uri, experiment, run_name
        self._params = params
        self._client: Any = None
        self._run_id = self._status = ""

    def begin(self) -> None:
        """Create the run, unless an earlier attempt has."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        if self._run_id:
            return
        self._client = MlflowClient(tracking_uri=self._uri)
        known = self._client.get_experiment_by_name(self._experiment)
        number = known.experiment_id if known else self._client.create_experiment(self._experiment)
        run_id = self._client.create_run(number, run_name=self._run_name).info.run_id
        params = [Param(key, str(value)[:_LONGEST]) for key, value in self._params.items()]
        self._client.log_batch(run_id, params=params)
        self._run_id = run_id
        say(run_id=run_id)

    def record(self, step: int, seconds: float, values: Any, status: str) -> None:
        """Write one record as metrics, and its status as a tag where it changes."""
        from mlflow.entities import Metric

        self.begin()
        stamp = int(1000 * seconds)
        metrics = [Metric(_REFUSED.sub("_", name), value, stamp, step) for name, value in values]
        self._client.log_batch(self._run_id, metrics=metrics)
        if status != self._status:
            self._client.set_tag(self._run_id, "gfshadow.status", status)
            self._status = status

    def end(self, tags: Any, status: str = "FINISHED") -> None:
        """Write the summary as tags, and end the run."""
        self.begin()
        for key, value in tags.items():
            self._client.set_tag(self._run_id, key, str(value)[:_LONGEST])
        self._client.set_terminated(self._run_id, status=status)


def say(**values: str) -> None:
    """Tell the training process, if it is still there."""
    with suppress(OSError):
        print(json.dumps(values), file=sys.__stdout__, flush=True)


def main() -> None:
    """Work until the end, or until the training process is gone."""
    sys.stdout = sys.stderr  # whatever libraries print is no message of ours
    worker = Worker(**json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        message = json.loads(line)
        try:
            getattr(worker, message.pop("do"))(**message)
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")
        else:
            if "tags" in message:
                return
    worker.end({}, "KILLED")


if __name__ == "__main__":
    main()
