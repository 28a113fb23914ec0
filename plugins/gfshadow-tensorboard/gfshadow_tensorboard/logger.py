"""The logger: one scalar per number of a record, text for the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from torch_gfshadow.loggers import checked_directory, not_started, numbers
from torch_gfshadow.record import Record
from torch_gfshadow.status import Status


class TensorBoardLogger:
    """Write records as TensorBoard scalars in double precision, at the step they belong to.

    Tags are ``gfshadow/<field>``, ``bounds/<name>`` and ``extras/<plugin>/<key>``. Header,
    summary and every change of status are text. What is not a finite number is left out.

    Args:
        directory: Where the event file goes; created on ``start``.

    Raises:
        ValueError: If ``directory`` is a file, or lies under one.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = checked_directory(directory)
        self._writer: SummaryWriter | None = None
        self._status = Status.OK

    def start(self, header: Mapping[str, Any]) -> None:
        """Open an event file; a resumed run adds another one to the same directory."""
        self._writer = SummaryWriter(str(self.directory))
        self._status = Status.OK
        self._writer.add_text("header", _code(header))

    def write(self, record: Record) -> None:
        """Write one record, and see it to the disk."""
        if self._writer is None:
            raise not_started(self)
        for tag, value in numbers(record):
            self._writer.add_scalar(tag, value, record.step, new_style=True, double_precision=True)
        if record.status is not self._status:
            detail = record.status_detail or record.status.sentence
            self._writer.add_text("status", f"**{record.status}** {detail}", record.step)
            self._status = record.status
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and close the event file."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.add_text("summary", _code(summary))
        finally:
            writer.close()


def _code(mapping: Mapping[str, Any]) -> str:
    # TensorBoard renders text as Markdown, in which four spaces make a block of code.
    text = json.dumps(dict(mapping), indent=2, default=_plain)
    return "\n".join(f"    {line}" for line in text.splitlines())


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)
