"""Shadow: the handle the user holds. It never is, and never holds, an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from torch_gfshadow.attachment import Attachment
from torch_gfshadow.capture import Capture, Watching
from torch_gfshadow.checkpoint import load_state, read_file, save_state, write_file
from torch_gfshadow.errors import must
from torch_gfshadow.flows.base import position
from torch_gfshadow.minibatch import Minibatch
from torch_gfshadow.plotting import plot_records
from torch_gfshadow.record import Record
from torch_gfshadow.report import run_of, write_report
from torch_gfshadow.status import Status
from torch_gfshadow.tracker import Tracker

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Shadow:
    """The gradient-flow shadow of one optimizer, made by :func:`torch_gfshadow.attach`.

    Leaving it as a context manager detaches it. Copies and pickles of the optimizer are plain.
    """

    def __init__(self, tracker: Tracker, model: nn.Module | None = None) -> None:
        self._tracker, self._model = tracker, model
        self._parts = tracker.parts
        self._attachment = Attachment(tracker)

    # -- what was measured --------------------------------------------------------------------

    @property
    def records(self) -> Sequence[Record]:
        """All records so far, the first from step 0."""
        return self._parts.session.records

    @property
    def status(self) -> Status:
        """State of the last record; ``disabled`` after an error of ours."""
        return Status.DISABLED if self._attachment.disabled else self._parts.session.status

    @property
    def errors(self) -> list[BaseException]:
        """Everything that was caught so that training could go on."""
        plugins = self._parts.plugins
        return [*self._parts.session.errors, *plugins.errors, *plugins.load_errors]

    def summary(self) -> dict[str, Any]:
        """Return final and largest discrepancy with bars, cost by purpose, worst status."""
        out = self._tracker.summary()
        if self._attachment.disabled:
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
            self._attachment.guarded(lambda: self._tracker.follower.observe(batch, weight))
        return batch

    def watch(self, loader: Iterable[Any]) -> Watching:
        """Return ``loader``, each of its batches observed as it is handed out.

        Raises:
            TypeError: If ``loader`` cannot be iterated over.
        """
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
            self._tracker.moment,
        )
        self._attachment.guarded(capture.install)
        if parts.source is None:
            parts.source = self._tracker.blueprint.source(parts, capture.objective)
        return capture

    # -- saving -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything the records to come depend on; save it beside the model's state.

        Flow state, times, interpolant, error bar, eigenvectors, counters, schedules, random
        state and the records so far: tensors, numbers and strings, for ``torch.save`` and
        ``torch.load(..., weights_only=True)``. Tensors are shared with the live shadow, which
        never changes them in place. Call it between steps.
        """
        with torch.inference_mode(False), torch.no_grad():
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
            self._attachment.timed(self._tracker.resync)()

    def detach(self) -> None:
        """Take the hooks off the optimizer and close the loggers; records stay."""
        self._attachment.end()

    def __enter__(self) -> Shadow:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def __reduce__(self) -> NoReturn:
        fix = "It belongs to its optimizer in this process: save shadow.state_dict() instead."
        raise TypeError(must("shadow", "left where it is", "a copy or pickle of it", fix))

    def __repr__(self) -> str:
        count = len(self.records)
        last = self.records[-1] if count else None
        shown = f", discrepancy={last.discrepancy}" if last and last.discrepancy else ""
        return f"<Shadow {self.status}, {count} records{shown}>"

    # -- wiring -------------------------------------------------------------------------------

    @property
    def _attached(self) -> bool:
        return self._attachment.attached

    def _start(self, header: dict[str, Any]) -> None:
        self._attachment.start(header)
