"""What the solver sees of a model's kinks at a node: our solution looks, the companion is pushed.

Why and when: ``branches``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

_FAR = 4.0
"""Errors of z, the most that a push makes up for on the companion's side."""
_LONG = 4.0
"""Steps, the longest push for that: beyond it the kink is too weak to matter."""
_TRIALS = 4
_SAMPLE = 4096


@dataclass
class Event:
    """An entry that might have stayed on the other side.

    Attributes:
        kink: Number of the kink in the forward pass.
        index: Entry of its flattened input.
        side: +1.0 if the other side is z > 0, else −1.0.
        since: Time at which the branches parted.
        depth: How far off z may be.
        path: Times and values of our z from then on.
        pushed: For how long in all the companion was pushed.
        last: For how long at its newest node.
        apart: By how much its z was nearer to the other side than ours, before the push.
        rate: How fast a push moves its z; 0 while unknown.
        seen: How many of its nodes have been looked at.
        closed: Whether the other branch was found to come back.
    """

    kink: int
    index: int
    side: float
    since: float
    depth: float
    path: list[tuple[float, float]] = field(default_factory=list)
    pushed: float = 0.0
    last: float = 0.0
    apart: float | None = None
    rate: float = 0.0
    seen: int = 0
    closed: bool = False

    @property
    def key(self) -> tuple[int, int]:
        """Which entry of which kink."""
        return self.kink, self.index

    def weigh(self, apart: float, pushed: float) -> None:
        """Close the event if the other branch comes back, as far as is seen.

        Args:
            apart: By how much the companion's z is nearer to the other side than ours.
            pushed: How much of the pushes has come to bear on it.
        """
        if self.apart is None:
            self.apart = apart
        elif pushed > 0.0:
            self.rate = (apart - self.apart) / pushed
            least = min(self.side * x + self.rate * (time - self.since) for time, x in self.path)
            self.closed = self.rate <= 0.0 or least < -self.depth


@dataclass
class Near:
    """Entries of one kink that are near it and repelled by it, at our newest node."""

    index: Tensor
    x: Tensor
    speed: Tensor


class Look:
    """Our solution at one node: how the entries near their kinks have moved since the last."""

    def __init__(
        self,
        before: list[Near],
        reach: list[float],
        step: float,
        asked: Iterable[tuple[int, int]],
    ) -> None:
        self.samples: list[Tensor] = []
        self.near: list[Near] = []
        self.moved: list[tuple[Tensor, Tensor]] = []
        self.values: dict[tuple[int, int], float] = {}
        self._before, self._reach, self._step, self._asked = before, reach, step, list(asked)

    @property
    def met(self) -> int:
        """How many kinks were met so far."""
        return len(self.samples)

    def meet(self, x: Tensor, half: Tensor, share: Tensor) -> Tensor:
        """Note entries near the kink; change nothing."""
        number, flat, speed = self.met, x.reshape(-1), half.reshape(-1)
        per_time = 2.0 / self._step
        self.samples.append(_sample(flat))
        known = number < len(self._before)
        index = self._before[number].index if known else flat.new_empty(0, dtype=torch.long)
        if index.numel() and int(index[-1]) >= flat.numel():
            index = index[:0]
        self.moved.append((flat[index], speed[index] * per_time))
        self.values |= _values(flat, number, self._asked)
        reach = self._reach[number] if number < len(self._reach) else 0.0
        new = (flat.abs() < reach).nonzero().flatten()
        self.near.append(Near(new, flat[new], speed[new] * per_time))
        return share

    def pull(self, kink: int, grad: Tensor) -> None:
        """Keep the entries that the kink repels: the loss falls as they go on."""
        near = self.near[kink]
        keep = grad.reshape(-1)[near.index] < 0.0
        self.near[kink] = Near(near.index[keep], near.x[keep], near.speed[keep])


class Steer:
    """The companion at one node: pushes the entries whose other side is to be tried."""

    def __init__(self, events: Mapping[tuple[int, int], Event], time: float, step: float) -> None:
        self.samples: list[Tensor] = []
        self.values: dict[tuple[int, int], float] = {}
        self.taken = False
        self.events = {key: replace(event) for key, event in events.items()}
        self._time, self._step = time, step

    @property
    def met(self) -> int:
        """How many kinks were met so far."""
        return len(self.samples)

    def meet(self, x: Tensor, half: Tensor, share: Tensor) -> Tensor:
        """Reverse the side of entries that are tried, for as long as they lag behind."""
        number, flat = self.met, x.reshape(-1)
        self.samples.append(_sample(flat))
        values = _values(flat, number, self.events)
        self.values |= values
        if not values:
            return share
        changed = share.reshape(-1)
        for key, value in values.items():
            new = self._share(self.events[key], value)
            if new is not None:
                changed[key[1]] = new
        return changed.view(share.shape)

    def pull(self, kink: int, grad: Tensor) -> None:
        """Nothing: which kinks repel is seen on our solution."""

    def _share(self, event: Event, x: float) -> float | None:
        """Return the share to be given to an entry that is ``x`` beyond its kink, if any."""
        there = event.side * x > 0.0
        other, ours = (1.0, 0.0) if event.side > 0.0 else (0.0, 1.0)
        if event.closed or event.seen >= _TRIALS:
            del self.events[event.key]
            if event.pushed and (event.closed or not there):
                return ours - (other - ours) * event.pushed / self._step
            self.taken = self.taken or event.pushed > 0.0
            return None
        event.seen += 1
        event.last = 0.0
        if there:
            return None
        if not event.pushed:  # also for the time since the branches parted
            event.last = self._step + max(self._time - event.since, 0.0)
        elif event.rate > 0.0:  # also for what its own error takes it to our side
            lift = min(abs(x) + 0.5 * event.depth, _FAR * event.depth) / event.rate
            event.last = self._step + min(lift, _LONG * self._step)
        else:
            event.last = self._step
        event.pushed += event.last
        return ours + (other - ours) * event.last / self._step


def _values(
    flat: Tensor, kink: int, keys: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """Return the entries of ``flat`` among ``keys``, by key."""
    here = [key for key in keys if key[0] == kink and key[1] < flat.numel()]
    if not here:
        return {}
    index = torch.tensor([index for _, index in here], device=flat.device)
    return dict(zip(here, flat[index].tolist(), strict=True))


def _sample(flat: Tensor) -> Tensor:
    """Return entries spread over all of ``flat``, the same ones of every tensor of its size."""
    return flat[:: max(1, flat.numel() // _SAMPLE)].clone()
