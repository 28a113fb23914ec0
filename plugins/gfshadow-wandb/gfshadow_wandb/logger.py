"""The logger: one Weights & Biases run of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import wandb

from torch_gfshadow.errors import must
from torch_gfshadow.loggers import checked_directory, not_started, numbers, to_json_ready
from torch_gfshadow.record import Record
from torch_gfshadow.status import Status

_MODES = ("offline", "online", "disabled")
_REFUSED = re.compile(r"[/\\#?%:]")


class WandbLogger:
    """Write every finite number of a record to a run of its own, beside any run of yours.

    Keys are ``gfshadow/<field>``, ``bounds/<name>``, ``extras/<plugin>/<key>``, drawn against
    ``gfshadow/step``. Header is the run's config; the summary and every change of status are in
    its summary. Nothing else is collected: no code, no console, no machine statistics.

    Nothing leaves this machine unless you say so: the mode is ``WANDB_MODE``, or ``"offline"``,
    and ``wandb sync`` sends an offline run later.

    Args:
        project: Name of the project.
        directory: Where the files go; wandb makes a directory ``wandb`` in it.
        mode: ``"offline"``, ``"online"`` or ``"disabled"``.
        name: Name of the run.

    Raises:
        ValueError: If an argument is not one of these, or ``directory`` is a file.
    """

    def __init__(
        self,
        project: str = "torch_gfshadow",
        directory: str | os.PathLike[str] = ".",
        mode: str | None = None,
        name: str | None = None,
    ) -> None:
        if not project or len(project) > 128 or _REFUSED.search(project):
            fix = 'Name it "my-project".'
            condition = "the name of a project, without / \\ # ? % :"
            raise ValueError(must("project", condition, repr(project), fix))
        self.mode = mode or os.environ.get("WANDB_MODE") or "offline"
        if self.mode not in _MODES:
            raise ValueError(must("mode", f"one of {_MODES}", repr(mode), "Leave it out."))
        self.project, self.name = project, name
        self.directory = checked_directory(directory)
        self._run: Any = None
        self._status = Status.OK

    def start(self, header: Mapping[str, Any]) -> None:
        """Begin a run.

        Raises:
            wandb.errors.Error: If an online run is asked for and cannot begin.
        """
        if self._run is not None:
            self.finish({})
        self.directory.mkdir(parents=True, exist_ok=True)
        self._status = Status.OK
        self._run = wandb.init(
            project=self.project,
            name=self.name,
            dir=str(self.directory.absolute()),  # wandb's process has a directory of its own
            mode=self.mode,  # type: ignore[arg-type]
            config=to_json_ready(header),
            reinit="create_new",
            save_code=False,
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, x_disable_stats=True
            ),
        )
        self._run.define_metric("gfshadow/step", hidden=True)
        for family in ("gfshadow", "bounds", "extras"):
            self._run.define_metric(f"{family}/*", step_metric="gfshadow/step")

    def write(self, record: Record) -> None:
        """Hand one record to wandb, which writes it in a process of its own.

        Raises:
            GFShadowError: If the logger is not started.
        """
        if self._run is None:
            raise not_started(self)
        self._run.log({"gfshadow/step": record.step, **dict(numbers(record))})
        if record.status is not self._status:
            self._run.summary[f"status/{record.step}"] = f"{record.status}: {record.status_detail}"
            self._status = record.status

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Add the summary and end the run; harmless before ``start`` and when repeated."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.summary.update({f"gfshadow/{k}": to_json_ready(v) for k, v in summary.items()})
        finally:
            run.finish()
