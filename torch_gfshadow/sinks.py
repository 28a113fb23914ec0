"""Sinks: the loggers of one run, each of which may fail alone.

A full disk or a server that is gone costs the records of that sink, and never a step of the run.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch_gfshadow.loggers import Logger
from torch_gfshadow.parts import Parts
from torch_gfshadow.patience import Patience
from torch_gfshadow.record import Record

_ATTEMPTS = 3

_log = logging.getLogger(__name__)


class Sinks:
    """Start, write and finish for all loggers.

    One that raises is named once and tried again with the next record, because disks are cleared
    and servers come back; after three failures in a row it is muted for the run, because each may
    have been a timeout. So is one that came with a plugin and is too slow.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._open: list[Logger] = []
        self._failures: Counter[int] = Counter()
        self._patience = Patience()

    def start(self, header: Mapping[str, Any]) -> None:
        """Open every logger; one that cannot reach its target is left out with a warning.

        Raises:
            TypeError: If a logger finds its arguments wrong; the others are closed again.
            ValueError: The same.
        """
        for logger in self._parts.loggers:
            try:
                logger.start(header)
            except Exception as error:
                if self._raises() or isinstance(error, (TypeError, ValueError)):
                    for opened in self._open:
                        opened.finish({})
                    raise
                self._parts.note(error, self._name(logger), "it is left out of this run")
            else:
                self._open.append(logger)

    def write(self, record: Record) -> None:
        """Write one record everywhere."""
        for logger in list(self._open):
            with self._patience.timing(id(logger)):
                failed = self._fails(logger, record)
            self._failures[id(logger)] = self._failures[id(logger)] + 1 if failed else 0
            if self._failures[id(logger)] == _ATTEMPTS:
                self._mute(logger, f"failed {_ATTEMPTS} times in a row")
            elif slow := self._too_slow(logger):
                self._mute(logger, slow)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close what is open."""
        for logger in self._open:
            self._parts.isolated(logger.finish, summary, who=self._name(logger))
        self._open.clear()

    def _too_slow(self, logger: Logger) -> str:
        if self._raises() or not self._parts.plugins.brought(logger):
            return ""
        return self._patience.verdict(id(logger))

    def _fails(self, logger: Logger, record: Record) -> bool:
        try:
            logger.write(record)
        except Exception as error:
            if self._raises():
                raise
            self._parts.note(error, self._name(logger), "the record is kept by the others")
            return True
        return False

    def _mute(self, logger: Logger, why: str) -> None:
        self._open.remove(logger)
        message = f"{self._name(logger)} {why}. It is muted for this run."
        _log.warning("%s", message)
        self._parts.note(RuntimeError(message), self._name(logger), "", quiet=True)
        self._parts.isolated(logger.finish, {}, who=self._name(logger))

    def _raises(self) -> bool:
        return self._parts.settings.on_error == "raise"

    def _name(self, logger: Logger) -> str:
        return f"logger {type(logger).__name__}{self._parts.plugins.origin(logger)}"
