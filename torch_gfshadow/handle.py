"""Shadow: the handle the user holds. It never is, and never holds, an optimizer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torch_gfshadow.capture import Capture, Watching
from torch_gfshadow.checkpoint import load_state, read_file, save_state, write_file
from torch_gfshadow.errors import must
from torch_gfshadow.flows.base import position
from torch_gfshadow.hooks import StepHooks
from torch_gfshadow.minibatch import Minibatch
from torch_gfshadow.plotting import plot_records
from torch_gfshadow.record import Record
from torch_gfshadow.report import run_of, write_report
from torch_gfshadow.request import source_of
from torch_gfshadow.status import Status
from torch_gfshadow.tracker import Tracker

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)


class Shadow:
    """The gradient-flow shadow of one optimizer, made by :func:`torch_gfshadow.attach`.

    Leaving it as a context manager detaches it. Copies and pickles of the optimizer are plain.
    """

    def __init__(self, tracker: Tracker, model: nn.Module | None = None) -> None:
        self._tracker, self._model = tracker, model
        self._parts = tracker.parts
        self._attached = False
        self._disabled = False
        self._hooks = StepHooks(
            self._timed(tracker.before_step),
            self._timed(tracker.after_step),
            tracker.parts.watched.skips,
            self._fail,
            idle=tracker.idle,
            count=tracker.count,
        )

    # -- what was measured --------------------------------------------------------------------

    @property
    def records(self) -> Sequence[Record]:
        """All records so far, the first from step 0."""
        return self._parts.session.records

    @property
    def status(self) -> Status:
        """State of the last record; ``disabled`` after an error of ours."""
        return Status.DISABLED if self._disabled else self._parts.session.status

    @property
    def errors(self) -> list[BaseException]:
        """Everything that was caught so that training could go on."""
        plugins = self._parts.plugins
        return [*self._parts.session.errors, *plugins.errors, *plugins.load_errors]

    def summary(self) -> dict[str, Any]:
        """Return final and largest discrepancy with bars, cost by purpose, worst status."""
        out = self._tracker.summary()
        if self._disabled:
            out["status"] = Status.DISABLED.value
        return out

    def theta(self) -> dict[str, torch.Tensor] | None:
        """Return θ̃, where the shadow stands at the run's clock, by the parameters' names.

        Its error is the last record's ``solver_error``. Float64 (or the solver's dtype) on the
        parameters' device, whatever theirs is; ``None`` where there is no shadow, or one that
        lives in step time (modes ``batch`` and ``local``).
        """
        shadow, layout = self._tracker.follower.shadow, self._parts.watched.layout
        flow, now = self._parts.flow, self._tracker.clock.time
        if self._tracker.follower.mode != "reference" or shadow is None or flow is None:
            return None
        if not shadow.advance(now):
            return None
        parts = torch.split(position(flow, shadow.state(now)), list(layout.sizes))
        shaped = zip(layout.names, parts, layout.shapes, strict=True)
        return {name: part.view(shape).clone() for name, part, shape in shaped}

    def to_pandas(self) -> pd.DataFrame:
        """Return the records as a table, one row each, columns as in ``Record``.

        What is nested has a column per value: ``bounds.theorem2.value``, ``extras.trace.…``.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "pandas must be installed for to_pandas(). "
                'Run: pip install "torch-gfshadow[pandas]"'
            ) from error
        return pd.DataFrame([record.to_flat() for record in self.records])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw loss, discrepancy with its band, and eigenvalues; save to ``path`` if given.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        return plot_records(self.records, path)

    def report(self, path: str | Path, name: str = "this run") -> Path:
        """Write what happened and why as one HTML file that loads nothing; return its path.

        Args:
            path: The file; an existing one is replaced.
            name: What to call the run.

        Raises:
            ImportError: If plotly or jinja2 is not installed.
            OSError: If the file cannot be written.
            ValueError: If ``path`` is a folder.
        """
        state = "running" if self._attached else "finished"
        run = run_of(self._parts.session, self.summary(), self.errors, name, state)
        return write_report([run], path)

    # -- batches ------------------------------------------------------------------------------

    def observe(self, batch: Any, *, weight: float = 1.0) -> Any:
        """Hand over the batch whose forward pass comes next; modes ``batch`` and ``local``.

        Under gradient accumulation call it before each forward pass. The batch is kept until the
        step and must not be changed in place before it.

        Args:
            batch: What ``objective(model, batch)`` takes.
            weight: Weight of its mean loss among those of the step.

        Returns:
            ``batch``.
        """
        if self._attached and not self._tracker.paused:
            self._guarded(lambda: self._tracker.follower.observe(batch, weight))
        return batch

    def watch(self, loader: Iterable[Any]) -> Watching:
        """Return ``loader``, each of its batches observed as it is handed out."""
        return Watching(loader, self.observe)

    def capture(
        self, model: nn.Module | None = None, criterion: nn.Module | None = None
    ) -> Capture:
        """Take batches and loss from the loop itself: hooks on the model and on a loss module.

        For loops that cannot be told to observe. The objective is then ``criterion(model(*args),
        *rest)`` with what both were called with. A loss computed otherwise is never seen, and
        what is added to it afterwards shows as ``audit="mismatch"``.

        Args:
            model: The module that is called; by default the one attached.
            criterion: The loss module, such as ``nn.CrossEntropyLoss()``, that is called with the
                model's output.

        Returns:
            A handle; ``remove()`` it, or use it as a context manager.

        Raises:
            TypeError: If one of them is no module.
            ValueError: If the shadow takes no batches: modes ``reference`` and ``passive``.
        """
        follower, parts = self._tracker.follower, self._parts
        if not isinstance(follower, Minibatch):
            fix = 'Attach with mode="batch" or mode="local" and without data.'
            raise ValueError(must("mode", "'batch' or 'local' to capture", follower.mode, fix))
        capture = Capture(
            model if model is not None else self._model,
            criterion,
            self.observe,
            follower.random_state,
        )
        self._guarded(capture.install)
        if parts.source is None and self._model is not None:
            layout, ledger = parts.watched.layout, parts.session.ledger
            parts.source = source_of(self._model, capture.objective, layout, ledger, parts.ranks)
        return capture

    # -- saving -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything the records to come depend on; save it beside the model's state.

        Flow state, times, interpolant, error bar, eigenvectors, counters, schedules, random
        state and the records so far: tensors, numbers and strings, for ``torch.save`` and
        ``torch.load(..., weights_only=True)``. Tensors are shared with the live shadow, which
        never changes them in place. Call it between steps.
        """
        return save_state(self._tracker)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the saved shadow stood, bit for bit on the CPU.

        Load the model and the optimizer, attach as before, then load this. Records made since
        attach are dropped.

        Raises:
            ValueError: If the state is of another model, objective, data or configuration; then
                nothing is changed.
        """
        with torch.inference_mode(False), torch.no_grad():
            load_state(self._tracker, state)

    def save(self, path: str | Path) -> None:
        """Write :meth:`state_dict` to a file; a crash leaves the old file or the new one.

        Raises:
            OSError: If it cannot be written.
        """
        write_file(self.state_dict(), path)

    def load(self, path: str | Path) -> None:
        """Load what :meth:`save` wrote; nothing in the file is executed.

        Raises:
            OSError: If it cannot be read.
            ValueError: As :meth:`load_state_dict`.
        """
        self.load_state_dict(read_file(path, self._parts.watched.layout.device))

    # -- control ------------------------------------------------------------------------------

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Write no records and integrate nothing inside the block; the clock goes on."""
        before, self._tracker.paused = self._tracker.paused, True
        try:
            yield
        finally:
            self._tracker.paused = before

    def resync(self) -> None:
        """Set the shadow to the parameters as they are now."""
        with torch.inference_mode(False), torch.no_grad():
            self._timed(self._tracker.resync)()

    def detach(self) -> None:
        """Take the hooks off the optimizer and close the loggers; records stay."""
        self._hooks.remove()
        if self._attached:
            self._attached = False
            self._tracker.finish()
            if self._parts.ranks is not None:
                self._parts.ranks.leave("detached")

    def __enter__(self) -> Shadow:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        count = len(self.records)
        last = self.records[-1] if count else None
        shown = f", discrepancy={last.discrepancy}" if last and last.discrepancy else ""
        return f"<Shadow {self.status}, {count} records{shown}>"

    # -- wiring -------------------------------------------------------------------------------

    def _start(self, header: dict[str, Any]) -> None:
        """Open the loggers, write record 0, and put the hooks on."""
        parts = self._parts
        optimizer = parts.watched.optimizer
        assert optimizer is not None
        self._tracker.outlet.start(header)
        parts.plugins.notify("gfshadow_attach", session=parts.session)
        with torch.inference_mode(False), torch.no_grad():
            self._timed(self._tracker.start)()
        self._hooks.install(optimizer, self._timed(self._tracker.reloaded))
        self._attached = True

    def _guarded(self, function: Callable[[], None]) -> None:
        try:
            with self._parts.session.ledger.timing():
                function()
        except Exception as error:
            self._fail(error)

    def _timed(self, function: Any) -> Any:
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
        if self._disabled:
            return
        self._disabled = True
        self._parts.session.errors.append(error)
        self._hooks.remove()
        self._attached = False
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
