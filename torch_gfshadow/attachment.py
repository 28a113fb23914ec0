"""Attachment: a tracker's hooks on an optimizer, and what happens when something of ours fails.

Read next: ``hooks``, which says when a step is one, and ``tracker``, which they call.
"""

from __future__ import annotations

import logging
import os
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch

from torch_gfshadow.errors import GFShadowError
from torch_gfshadow.hooks import StepHooks
from torch_gfshadow.tracker import Tracker

_log = logging.getLogger(__name__)

_attached: weakref.WeakSet[Attachment] = weakref.WeakSet()


class Attachment:
    """Puts a tracker on its optimizer and takes it off again: when asked to, or when it fails.

    Attributes:
        attached: Whether the hooks are on.
        disabled: Whether an error of ours has taken them off.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._parts = tracker, tracker.parts
        self.attached = False
        self.disabled = False
        self._hooks = StepHooks(
            self.timed(tracker.before_step),
            self.timed(tracker.after_step),
            tracker.parts.watched.skips,
            self._fail,
            idle=tracker.idle,
            count=tracker.count,
            passing=lambda: tracker.passing,
        )

    def start(self, header: dict[str, Any]) -> None:
        """Open the loggers, write record 0, and put the hooks on."""
        parts = self._parts
        optimizer = parts.watched.optimizer
        assert optimizer is not None
        self._tracker.outlet.start(header)
        parts.plugins.notify("gfshadow_attach", session=parts.session)
        with torch.inference_mode(False), torch.no_grad():
            self.timed(self._tracker.start)()
        self._hooks.install(optimizer, self.timed(self._tracker.reloaded))
        self.attached = True
        _attached.add(self)

    def end(self) -> None:
        """Take the hooks off and close the loggers; the second time nothing is left to do."""
        self._hooks.remove()
        if self.attached:
            self.attached = False
            self._tracker.finish()
            if self._parts.ranks is not None:
                self._parts.ranks.leave("detached")

    def stay_behind(self) -> None:
        """Leave everything to the process this one was forked from: its files, ranks, console.

        A worker of a DataLoader, or a child that trains on, has a copy of all that is in memory,
        and shares the files. Nothing is written, closed, warned of or told to anybody.
        """
        self._hooks.remove()
        self.attached, self.disabled = False, True
        self._parts.ranks = None
        self._tracker.outlet.abandon()
        self._parts.session.errors.append(
            GFShadowError(
                "The shadow stayed with the process that attached it; this one was forked from it. "
                "Attach anew to measure here."
            )
        )

    def guarded(self, function: Callable[[], None]) -> None:
        """Call something of ours in the middle of the user's loop; its errors are ours."""
        try:
            with self._parts.session.ledger.timing():
                function()
        except Exception as error:
            self._fail(error)

    def timed(self, function: Callable[[], None]) -> Callable[[], None]:
        """Return ``function`` with its time on the ledger."""
        ledger = self._parts.session.ledger

        def timed() -> None:
            # written out: the context manager costs as much as a step at which nothing is due
            ledger.entered = start = ledger.now()
            try:
                function()
            finally:
                ledger.seconds += ledger.now() - start
                ledger.entered = None

        return timed

    def _fail(self, error: BaseException) -> None:
        """Fail open: one warning, hooks off, training untouched."""
        if self._parts.ranks is not None:
            self._parts.ranks.leave(f"{type(error).__name__}: {error}")
        if self._parts.settings.on_error == "raise":
            raise error
        if self.disabled:
            return
        self.disabled = True
        self._parts.session.errors.append(error)
        self._hooks.remove()
        self.attached = False
        message = (
            f"torch_gfshadow disabled itself at step {self._tracker.clock.step + 1}; training goes "
            f"on untouched. Cause: {type(error).__name__}: {error}"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        _log.debug("traceback", exc_info=error)
        _forget_frames(error)
        self._parts.plugins.notify("gfshadow_error", exc=error, session=self._parts.session)
        try:
            self._tracker.finish()
        except Exception as closing:
            self._parts.session.errors.append(closing)


def _forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks: their frames hold the optimizer, which is ours only weakly."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _stay_behind() -> None:
    for attachment in list(_attached):
        if attachment.attached:
            attachment.stay_behind()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_stay_behind)
