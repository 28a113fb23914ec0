"""Kinks that repel: there the companion is sent down the branch that our solution does not take.

Where the loss wants the output of a unit to grow, a ReLU's kink z = 0 repels on both sides. A
unit that comes down to it, slows, and turns or does not turn in time, decides for a long while
whether it pushes or not; and a solution whose z is off by more than what was missing takes the
other branch than the flow. Two solutions that err side by side do not see it. So our solution is
watched for such moments: an entry of z turns nearer to its kink than the error of z, or goes over
it so slowly that the error spans several steps. Then the side of that one entry is reversed for
the companion, until its own z is there. If z stays there by itself, the companion has the other
branch, and from then on its distance to us says what the branch amounts to. If z comes back, so
does the push. Both sides are computed in any case: this costs no evaluation.

How far z may be off is taken from the companion's z, which is further off than ours. Derived.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.solvers.glances import Event, Look, Near, Steer

_OURS = 0.5
"""Error of our z as a part of its distance to the companion's."""
_SLOW = 3.0
"""An entry that moves by no more than this many errors in a step goes slowly."""
_DEEP = 2.0
"""Errors by which the other branch may be short of its side at worst."""


class Branches:
    """Which entries of which kinks are watched on our solution and tried on the companion.

    Attributes:
        taken: Whether the companion was pushed onto another branch and stayed there.
    """

    def __init__(self) -> None:
        self.taken = False
        self._near: list[Near] = []
        self._off: list[float] = []
        self._events: dict[tuple[int, int], Event] = {}

    def look(self, step: float) -> Look:
        """Return what our solution is to be evaluated with after a step of size ``step``."""
        return Look(self._near, [1.25 * _SLOW * off for off in self._off], step, self._events)

    def steer(self, time: float, step: float) -> Steer:
        """Return what the companion is to be evaluated with at ``time``, half-way of a push."""
        return Steer(self._events, time, step)

    def compare(self, look: Look, steer: Steer, scale: float) -> None:
        """Take in both solutions at the same time.

        Args:
            look: Ours.
            steer: The companion's.
            scale: What is to be counted of the distance between the two, at most all.
        """
        before, self._events = self._events, steer.events
        self.taken = self.taken or steer.taken
        for key, event in before.items():
            new = steer.events.get(key)
            if new is not None and new.pushed and key in look.values:
                # two-step Adams–Bashforth first takes half as much again, then gives it back
                pushed = event.pushed + 0.5 * event.last
                new.weigh(event.side * (steer.values[key] - look.values[key]), pushed)
        self._off = [
            _OURS * min(1.0, scale) * float((a - b).square().mean().sqrt())
            for a, b in zip(look.samples, steer.samples, strict=False)
            if a.shape == b.shape and a.numel()
        ]
        if len(self._off) != look.met:  # the two evaluations met different kinks
            self._near, self._off, self._events = [], [], {}

    def go_on(self, look: Look, time: float, step: float) -> None:
        """Take in our newest node and find the entries whose other side is to be tried."""
        for key, x in look.values.items():
            if key in self._events:
                self._events[key].path.append((time, x))
        known = len(self._near) == len(look.near)
        for kink, off in enumerate(self._off):
            if known and kink < len(look.moved) and self._near[kink].index.numel():
                self._find(kink, off, look.moved[kink], time, step)
        self._near = look.near

    def _find(
        self, kink: int, off: float, moved: tuple[Tensor, Tensor], time: float, step: float
    ) -> None:
        near, (x, speed) = self._near[kink], moved
        if near.index.shape != x.shape:
            return
        coming = near.x * near.speed < 0.0
        # before it or while going over
        slowest = torch.minimum(near.speed.abs() * step, (x - near.x).abs())
        over = coming & (near.x * x < 0.0) & (slowest < _SLOW * off)
        turned = coming & (near.x * x > 0.0) & (speed * x > 0.0)
        turned &= torch.minimum(near.x.abs(), x.abs()) < off
        for at in (over | turned).nonzero().flatten().tolist():
            index, before, now = int(near.index[at]), float(near.x[at]), float(x[at])
            side = math.copysign(1.0, before)
            since = time - step
            if before * now < 0.0:  # it would have stayed where it was
                since += step * before / (before - now)
            else:
                side = -side
            event = Event(kink, index, side, since, _DEEP * off, [(time, now)])
            self._events.setdefault((kink, index), event)

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as tensors, numbers and lists."""
        return {
            "taken": self.taken,
            "near": [[near.index, near.x, near.speed] for near in self._near],
            "off": self._off,
            "events": [asdict(event) for event in self._events.values()],
        }

    def load_state_dict(self, saved: Mapping[str, Any], like: Tensor) -> None:
        """Go on from a saved state, on the device of ``like``."""
        self._near = [Near(*(t.to(like.device) for t in near)) for near in saved["near"]]
        self._off, self.taken = list(saved["off"]), saved["taken"]
        self._events = {}
        for plain in saved["events"]:
            event = Event(**dict(plain) | {"path": [(t, x) for t, x in plain["path"]]})
            self._events[event.key] = event
