"""Sampling: which steps are shadowed. All of them, windows at intervals, or what a budget buys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch_gfshadow.clock import every, next_multiple
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.session import Settings

_PROBES_SHARE = 0.3
_GRAIN = 0.2
_LONGEST = 32
_FIRST_WINDOW = 22.0
"""What the first window is taken to cost, in steps of the loop."""
_SLACK, _MOST_SLACK = 0.2, 0.01
"""How far a window that costs more than foreseen may go beyond its share, of it and at most."""
_FIRST_PROBE = 100.0


class Sampler:
    """Says when a shadow starts, when it ends, and which steps get a record.

    Without ``window`` and ``budget`` one shadow lives as long as the run. With ``window=W,
    every=N`` a fresh one starts at every N-th step and lives W steps. With ``budget`` a fresh one
    starts as soon as it can be paid for: what was spent, and what the window will cost by the last
    one's measure, stay under the budget's share of the loop's own time. Probes have a purse of
    their own, three tenths of it, which windows do not empty.

    Args:
        settings: ``every``, ``window`` and ``budget``.
        ledger: Its seconds are what was spent, its clock is the one everything is timed by.
        probed: Whether there are probes to pay for.
        agree: Returns the value of rank 0 on every rank: clocks differ, decisions may not.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        *,
        probed: bool,
        agree: Callable[[float], float] = float,
    ) -> None:
        self._agree = agree
        self.active = False
        self._settings, self._ledger = settings, ledger
        self._started = ledger.now() - ledger.seconds  # the checks at attach are ours, too
        self._begun = self._end = 0
        self._ended = 0.0, 0
        self._opened = 0.0
        self._unit: float | None = None  # seconds per step of the last window
        self._window = settings.window or 1
        self._steps = 0
        self._probes_spent, self._probe_cost = 0.0, 0.0
        share = settings.budget or 0.0
        self._probes_share = _PROBES_SHARE * share if probed else 0.0
        self._broke = False
        if settings.budget is not None:
            ledger.afford, ledger.covered = self._pays, self._covers

    @property
    def whole(self) -> bool:
        """Whether one shadow lives as long as the run."""
        return self._settings.window is None and self._settings.budget is None

    @property
    def elapsed(self) -> float:
        """Seconds since attach, ours included."""
        return self._ledger.now() - self._started

    def begins(self, step: int) -> bool:
        """Say whether a fresh shadow starts at θ of this step; if so it lives from here."""
        self._steps = step
        if self.whole:
            self.active = True
            return step == 0
        still = self.active and step < self._end
        if still or not every(step, self._settings.every) or not self._paid():
            return False
        self.active, self._end, self._opened = True, step + self._window, self._ledger.spent
        self._begun, self._broke = step, False
        return True

    def ends(self, step: int) -> bool:
        """Say whether the shadow has lived its steps, or all that can be paid for is spent.

        The caller then lets it go.
        """
        if self.whole or not self.active or (step < self._end and not self._broke):
            return False
        self.active, self._ended = False, (self._opened, self._begun)
        return True

    def closed(self, dearer: float = 1.0) -> None:
        """Take the measure of the window that ended, its record included.

        Args:
            dearer: How many times as much the next one wants to spend.
        """
        if not self.whole:
            self._unit = dearer * self._measured()

    def _measured(self) -> float:
        """Return what a step of the window that ended last has cost, in seconds."""
        opened, begun = self._ended  # the next one may have begun already
        unit = (self._ledger.spent - opened) / max(self._steps - begun, 1)
        # broken off in the middle of a step, it does not say what a step costs: twice as much?
        return 2.0 * unit if self._broke else unit

    def reads(self, step: int) -> bool:
        """Say whether the gradient of the step that leads to ``step`` has to be read.

        Two consecutive ones give the defect, so the step before a record counts, too.
        """
        period = self._settings.every
        if self._settings.budget is not None:
            return self.active
        return (self.active and not self.whole) or every(step, period) or every(step + 1, period)

    def silent_until(self, step: int) -> int:
        """Return the last step before which, from ``step`` on, nothing begins, ends or is read.

        ``step`` − 1 if that is not certain of ``step`` itself.
        """
        settings = self._settings
        if settings.budget is not None or (self.active and not self.whole):
            return step - 1
        return next_multiple(step, settings.every) - 2

    def affords_probes(self) -> bool:
        """Say whether the probes of one record can be paid for; without a budget they can."""
        if self._settings.budget is None:
            return True
        if self._steps == 0:
            return False
        cost = self._probe_cost or _FIRST_PROBE * self._own / max(self._steps, 1)
        budget, own = self._settings.budget, self._own
        affordable = self._probes_spent + cost <= self._probes_share * own
        affordable &= self._ledger.spent + cost <= budget * own  # the first window may have lent
        return bool(self._agree(float(affordable)))

    def probed(self, seconds: float) -> None:
        """Take in what the probes of one record cost."""
        self._probes_spent += seconds
        self._probe_cost = max(seconds, 0.7 * self._probe_cost)
        self._opened += seconds  # not the window's

    @property
    def _windows_share(self) -> float:
        """The budget's share for windows: all of it until the first one has ended."""
        share = self._settings.budget or 0.0
        return share if self._unit is None else share - self._probes_share

    @property
    def _own(self) -> float:
        return max(self.elapsed - self._ledger.spent, 0.0)

    @property
    def _left(self) -> float:
        """Seconds a window may still spend: its share and a little more."""
        share = self._windows_share + min(_SLACK * self._windows_share, _MOST_SLACK)
        return share * self._own - (self._ledger.spent - self._probes_spent)

    def _covers(self, seconds: float) -> bool:
        """Say whether the window under way may take that much longer."""
        return bool(self._agree(float(seconds <= self._left)))

    def _pays(self) -> bool:
        """Say whether a window may go on: the first cannot know what it will cost."""
        paid = self._covers(0.0)
        self._broke = self._broke or not paid
        return paid

    def _paid(self) -> bool:
        """Decide on a window, and on its length, as rank 0 does."""
        if self._settings.budget is None:
            return True
        if self._steps == 0:
            return False
        length = int(self._agree(float(self._window if self._affordable() else 0)))
        self._window = length or self._window
        return length > 0

    def _affordable(self) -> bool:
        own = self._own
        unit = self._unit if self._unit is not None else _FIRST_WINDOW * own / self._steps
        if self._settings.window is None and unit > 0.0:
            # longer windows as the run grows, none of them more than a fifth of what there is
            self._window = max(
                1, min(_LONGEST, int(_GRAIN * (self._settings.budget or 0.0) * own / unit))
            )
        spent = self._ledger.spent - self._probes_spent
        return spent + unit * self._window <= self._windows_share * own

    def forecast(self, dearer: float = 1.0) -> int | None:
        """Return the step at which the next number is to be expected; ``None`` without a budget.

        Windows start where the loop has earned what they cost, at the pace it had so far.

        Args:
            dearer: As for :meth:`closed`.
        """
        budget, step = self._settings.budget, self._steps
        if budget is None:
            return None
        if self.active:
            return self._end
        own = self._own
        if step == 0 or not own > 0.0:
            return math.ceil(_FIRST_WINDOW / self._windows_share) + 1
        unit = dearer * self._measured() if self._ended[1] else self._unit
        cost = (_FIRST_WINDOW * own / step if unit is None else unit) * self._window
        share = self._windows_share if unit is None else budget - self._probes_share
        lacking = (self._ledger.spent - self._probes_spent + cost) / share - own
        return step + max(math.ceil(lacking * step / own), 0) + self._window

    def state_dict(self) -> dict[str, Any]:
        """Return where the present window stands, and what was spent."""
        names = ("active", "_end", "_begun", "_opened", "_unit", "_window", "_steps")
        state = {name.lstrip("_"): getattr(self, name) for name in names}
        purse = {"probes_spent": self._probes_spent, "probe_cost": self._probe_cost}
        return state | purse | {"elapsed": self.elapsed}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.active, self._end, self._opened = saved["active"], saved["end"], saved["opened"]
        self._begun = saved["begun"]
        self._unit, self._window, self._steps = saved["unit"], saved["window"], saved["steps"]
        self._probes_spent, self._probe_cost = saved["probes_spent"], saved["probe_cost"]
        self._started = self._ledger.now() - saved["elapsed"]
