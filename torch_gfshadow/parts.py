"""Parts: what a tracker is made of, and how to call one so that it cannot hurt a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch_gfshadow.bounds import Bound
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.flows import Flow
from torch_gfshadow.loggers import Logger
from torch_gfshadow.objective import Objective
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.probes import Probe
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

    def isolated(self, function: Any, *args: Any, who: str) -> Any:
        """Call one part; if it raises, note it once and go on without its result."""
        try:
            return function(*args)
        except Exception as error:
            if self.settings.on_error == "raise":
                raise
            known = {str(e) for e in self.session.errors}
            if str(error) not in known:
                self.session.errors.append(error)
                _log.warning("%s failed and is skipped: %s", who, error)
                self.plugins.notify("gfshadow_error", exc=error, session=self.session)
            return None
