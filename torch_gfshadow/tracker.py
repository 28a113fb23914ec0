"""Tracker: the only wiring. It measures everything before anything moves on.

``before_step`` and ``after_step`` are called by the hooks that attach.py puts on the optimizer.
Everything here reads the run and writes records; nothing here does numerics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_gfshadow.blueprint import Blueprint
from torch_gfshadow.borrowed import BorrowedGradients
from torch_gfshadow.clock import FlowClock, every, next_multiple
from torch_gfshadow.fed import FedShadow
from torch_gfshadow.journey import Journey
from torch_gfshadow.layouts import difference
from torch_gfshadow.outlet import Outlet
from torch_gfshadow.parts import Parts
from torch_gfshadow.passing import Passing, passing
from torch_gfshadow.piecewise import PiecewiseFlow
from torch_gfshadow.rows import Rows
from torch_gfshadow.sampling import Sampler
from torch_gfshadow.session import summarise
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.solvers import is_large
from torch_gfshadow.status import Status
from torch_gfshadow.used import UsedGradients


class Tracker:
    """Follows one optimizer.

    Args:
        parts: What it is made of.
        clock: The run's.
        blueprint: Makes the parts that depend on which parameters are trained.

    Attributes:
        follower: The flow side of it, by mode.
        resyncs: How often the shadow was set to the iterate again; windows that begin not counted.
        passing: What :meth:`idle` and :meth:`count` come to, until the next close look; ``None``
            where these have to be called.
    """

    def __init__(self, parts: Parts, clock: FlowClock, blueprint: Blueprint) -> None:
        self.parts, self.clock, self.blueprint = parts, clock, blueprint
        self.follower = blueprint.follower(parts, clock)
        self.outlet = Outlet(parts)
        self.sampler = Sampler(
            parts.settings,
            parts.session.ledger,
            probed=bool(parts.probes),
            agree=float if parts.ranks is None else self._agreed,
        )
        self._paused = False
        self.resyncs = 0
        self._lean = self._is_lean()
        self._used = BorrowedGradients() if self._lean else UsedGradients()
        self._journey = Journey(parts.watched, lean=self._lean)
        self._rows = Rows(parts, clock, self._journey, self.sampler)
        self._resumed = False
        self._starts = False
        self.passing: Passing | None = None

    def _agreed(self, value: float) -> float:
        parts = self.parts
        assert parts.ranks is not None
        return parts.ranks.agreed(value, parts.watched.layout.device)

    def _is_lean(self) -> bool:
        parts = self.parts
        return is_large(parts.solver, parts.watched.layout.dim)

    @property
    def paused(self) -> bool:
        """Whether steps are counted and nothing else."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self._look_closer()

    @property
    def shadow(self) -> ShadowFlow | FedShadow | PiecewiseFlow | None:
        """The flow now followed, if any."""
        return self.follower.shadow

    # -- the run ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the shadow where the run stands, and make record 0."""
        self.follower.read_step_size()
        if self.sampler.begins(0):
            self.follower.start(self._journey.origin)
        self.parts.watched.mark()
        self.outlet.hold(self._rows.make(self.follower, self._used))
        self._settle()

    def idle(self) -> bool:
        """Say whether the step to come needs nothing but to be counted: the cheapest question.

        Nothing is due before it or after it, nothing is held, nobody touched the optimizer or the
        parameters. False is "look closer", with :meth:`before_step`.
        """
        if self.clock.step >= self.clock.silent_until:
            return False
        ledger = self.parts.session.ledger
        start = ledger.now()
        still = self._is_still() and self.follower.passes()
        ledger.seconds += ledger.now() - start
        return still

    def _is_still(self) -> bool:
        watched = self.parts.watched
        still = self.follower.idle and watched.still()
        if still and not watched.as_set():
            # a schedule moves the rate at every step
            still = watched.only_rates_moved() and self.follower.read_pace()
        return still

    def count(self) -> None:
        """Count a step that :meth:`idle` was true of."""
        ledger = self.parts.session.ledger
        start = ledger.now()
        self.clock.tick(self.follower.step_size)
        self.parts.watched.mark()
        ledger.seconds += ledger.now() - start

    def before_step(self) -> None:
        """Read the gradient the step is about to use, and the rate it will use it with."""
        self.outlet.release()
        self._resumed = False
        watched, step = self.parts.watched, self.clock.step + 1
        self.take_in()
        if watched.edited():
            self.follower.note(Status.EXTERNAL_EDIT, f"before step {step}")
            self._rows.measures.end_limits(f"the parameters were edited before step {step}")
            self._starts = True
        self.follower.read_step_size()
        watched.look()
        self._look_closer()
        if self._starts and not self.paused:
            self._start_here()
        if self.paused:
            self._journey.keep()
            self.follower.skip()
            self._used.skip()
        elif self.follower.needs_gradient or self.sampler.reads(step):
            self.follower.before(self._used.read(watched))
            if self._journey.begins or self.sampler.reads(step + 1):
                self._used.leave(watched)
        else:
            self._journey.keep()
            self._used.skip()
            self.follower.before(None)
            self.clock.silent_until = self._silence(step)
        self.follower.feed()
        if self.clock.silent_until > step:
            self.passing = self._passing()

    def after_step(self) -> None:
        """Advance the clock, bring the shadow along, and write a record if one is due."""
        step = self.clock.step + 1
        self.clock.tick(self.follower.step_size)
        settings, sampler = self.parts.settings, self.sampler
        start = self._used.stepped(self.parts.watched)
        if sampler.whole:  # no copy beyond what the next record needs while the shadow goes on
            if self.paused or not every(step, settings.every):
                self._journey.leave(start)
            start = None
        self.follower.after()
        ends, begins = sampler.ends(step), sampler.begins(step)
        if begins and not ends:
            self._set_to_iterate()
        due = every(step, settings.every) if sampler.whole else begins or ends
        if not due or self.paused:
            self._journey.leave(start)
        del start
        if due and not self.paused:
            self.outlet.write(self._rows.make(self.follower, self._used))
        if ends:
            sampler.closed(self.follower.dearer)
            self.follower.stop()
            if begins:
                self._set_to_iterate()
        if every(step, settings.resync_every) or (due and sampler.whole and self.follower.rested()):
            self.resync()
        self._settle()
        self.parts.watched.mark()

    def take_in(self) -> None:
        """See which parameters the optimizer steps, and go on with these if they are others.

        Nothing is evaluated before the next step: the ranks of a run meet there, not here.
        """
        parts, step = self.parts, self.clock.step + 1
        before = parts.watched.layout
        if not parts.watched.changed():
            return
        self.follower = self.blueprint.relaid(parts, self.clock, self.follower)
        what = difference(before, parts.watched.layout)
        self.follower.note(Status.NEW_LAYOUT, f"before step {step}: {what}")
        self._rows.measures.begin_anew(step, f"other parameters are trained from step {step} on")
        self._lean = self._is_lean()
        self._journey.relaid(before, lean=self._lean)
        self._used = BorrowedGradients() if self._lean else UsedGradients()
        self._starts = True
        self._look_closer()

    def _start_here(self) -> None:
        """Start the shadow at the parameters of this moment, which it cannot have led to."""
        self._starts = False
        self._used.skip()
        if self.parts.objective is not None:
            self.parts.objective.settle()
        self.resync()

    def _settle(self) -> None:
        """Copy what the next step will change, now that the shadow's own vectors are gone."""
        reads = self.sampler.reads(self.clock.step + 1)
        if self._lean and not reads:
            self._used.skip()
        self._used.settle(self.parts.watched)
        self._journey.settle(read=reads or self.follower.needs_gradient)

    def _look_closer(self) -> None:
        """Have the next step looked at, whatever was thought to be known of it."""
        self.clock.silent_until, self.passing = 0, None

    def _passing(self) -> Passing | None:
        """Return what the hooks may call until the next close look."""
        quiet = self.parts.watched.quiet()
        if quiet is None:
            return None
        follower, ledger = self.follower, self.parts.session.ledger
        return passing(quiet, self.clock, ledger, follower, follower.asks())

    def _silence(self, step: int) -> int:
        """Return the last step, from ``step`` on, that is certain to need nothing of us."""
        last, period = self.sampler.silent_until(step), self.parts.settings.resync_every
        return last if period is None else min(last, next_multiple(step, period) - 1)

    def resync(self) -> None:
        """Set the shadow to the run's own parameters; discrepancies start anew from here."""
        if self.sampler.active:
            self.resyncs += self.parts.flow is not None
            self._set_to_iterate()

    def _set_to_iterate(self) -> None:
        why = f"the shadow was set to the iterate at step {self.clock.step}"
        self._rows.measures.end_limits(why, certified=True)
        self._look_closer()
        self.follower.resync()

    def moment(self) -> Any:
        """Return what a forward pass of the run's that begins now begins with."""
        return self.follower.moment()

    def reloaded(self) -> None:
        """Start anew after the optimizer loaded a state, unless that belongs to a resumption."""
        if not self._resumed:
            self.resync()

    def finish(self) -> None:
        """Close the loggers with the summary; tell the plugins."""
        self.outlet.finish(self.summary())

    def summary(self) -> dict[str, Any]:
        """Return the totals of the run so far."""
        session = self.parts.session
        out = summarise(session.records, session.ledger, self.sampler.elapsed)
        out["resyncs"] = self.resyncs
        out["errors"] = [f"{type(e).__name__}: {e}" for e in session.errors]
        return out

    # -- saving -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that the records to come depend on, as plain values."""
        parts = self.parts
        self.take_in()
        self._settle()
        return {
            "clock": self.clock.state_dict(),
            "sampler": self.sampler.state_dict(),
            "ledger": parts.session.ledger.state_dict(),
            "objective": None if parts.objective is None else parts.objective.state_dict(),
            "curvature": None if parts.curvature is None else parts.curvature.state_dict(),
            "follower": self.follower.state_dict(),
            "outlet": self.outlet.state_dict(),
            "used": self._used.state_dict(),
            "marks": list(parts.watched.marks),
            **self._rows.state_dict(),
            "resyncs": self.resyncs,
            "starts": self._starts,
            **self._journey.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state; the model and the optimizer load theirs themselves."""
        parts = self.parts
        for key, part in (("objective", parts.objective), ("curvature", parts.curvature)):
            if part is not None and saved[key] is not None:
                part.load_state_dict(saved[key])
        self.clock.load_state_dict(saved["clock"])
        self.follower.load_state_dict(saved["follower"])
        self._rows.load_state_dict(saved)
        self.outlet.load_state_dict(saved["outlet"])
        self._used.load_state_dict(saved["used"])
        self._journey.load_state_dict(saved)
        self.resyncs, self._starts = saved.get("resyncs", 0), saved.get("starts", False)
        if self._starts:  # saved between a change and its first step
            self._rows.measures.look_anew()
        if parts.objective is not None:
            parts.objective.unsettled = self._starts
        parts.session.ledger.load_state_dict(saved["ledger"])
        self.sampler.load_state_dict(saved["sampler"])
        # the parameters must be those of the saved moment: the next step looks, as it always does
        parts.watched.marks = saved["marks"]
        self._resumed = True
        self._look_closer()
