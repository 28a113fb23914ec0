"""Parts: what a tracker is made of, and how to call one so that it cannot hurt a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch_gfshadow.alerts import Alerts
from torch_gfshadow.bounds import Bound
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.errors import NotAGradientError
from torch_gfshadow.flows import Flow
from torch_gfshadow.loggers import Logger
from torch_gfshadow.objective import Objective
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.probes import Probe
from torch_gfshadow.ranks import Ranks
from torch_gfshadow.session import Session, Settings
from torch_gfshadow.solvers import SolverConfig
from torch_gfshadow.watched import Watched

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Parts:
    """What a tracker is made of. Without ``objective`` and ``flow`` it is passive."""

    watched: Watched
    settings: Settings
    session: Session
    plugins: Plugins
    objective: Objective | None
    curvature: Curvature | None
    flow: Flow | None
    solver: SolverConfig
    probes: Sequence[Probe]
    bounds: Sequence[Bound]
    loggers: Sequence[Logger]
    why_passive: str = ""
    alerts: Alerts | None = None
    source: Callable[[Any], Objective] | None = None
    """Makes the objective of a first batch, in a mode without data."""
    ranks: Ranks | None = None

    def isolated(self, function: Any, *args: Any, who: str) -> Any:
        """Call one part; if it raises, note it and go on without its result."""
        try:
            return function(*args)
        except Exception as error:
            # What the model is, and the same on every rank; of other errors the other ranks know
            # nothing: they are in the middle of this part, and averages would be mixed up.
            refused = isinstance(error, NotAGradientError)
            if not refused and (self.settings.on_error == "raise" or self.ranks is not None):
                raise
            origin = self.plugins.origin(getattr(function, "__self__", None))
            self.note(error, f"{who}{origin}", "it is skipped")
            return None

    def note(self, error: Exception, who: str, what: str, *, quiet: bool = False) -> None:
        """Keep an error that was caught, tell the plugins, and warn; the same words only once.

        Args:
            error: What was caught.
            who: Name of the part that raised it, with its package and version.
            what: What becomes of it.
            quiet: Whether the warning has been given.
        """
        if any(str(error) == str(known) for known in self.session.errors):
            return
        self.session.errors.append(error)
        if not quiet:
            _log.warning("%s failed, %s: %s: %s", who, what, type(error).__name__, error)
        self.plugins.notify("gfshadow_error", exc=error, session=self.session)
