"""Observed: the batches a step is made of, from the first forward pass to the step itself.

Traps measured on real loops (each is a test): a step that AMP skips fires no hook, so a new window
must be recognised by its gradients; some loops set them to zeros and not to None; Lightning clears
them after the forward pass, so a step that happened must open a new window, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from torch_gfshadow._sandbox import Replay
from torch_gfshadow._streams import Streams, torch_streams
from torch_gfshadow.errors import must
from torch_gfshadow.watched import Watched


class Seen(NamedTuple):
    """One batch of a window."""

    replay: Replay
    weight: float


class Observed:
    """The batches since the last step.

    Args:
        watched: Tells whether gradients are there.
        devices: Those whose random streams a forward pass draws from.
    """

    def __init__(self, watched: Watched, devices: Iterable[torch.device]) -> None:
        self.devices = frozenset(devices)
        self._watched, self._streams = watched, Streams(torch_streams(self.devices))
        self._window: list[Seen] = []

    def add(self, batch: Any, weight: float) -> None:
        """Take in the batch whose forward pass comes next, and the random numbers it will see.

        Raises:
            ValueError: If ``weight`` is not positive.
        """
        if not (isinstance(weight, (int, float)) and 0.0 < weight < math.inf):
            fix = "It weighs the batch's mean loss among those of one step; 1 is alike."
            raise ValueError(must("weight", "a positive number", repr(weight), fix))
        if self._window and not self._accumulating():
            self._window.clear()
        if not isinstance(batch, Replay):
            batch = Replay(batch, self.random_state())
        self._window.append(Seen(batch, weight))

    @property
    def count(self) -> int:
        """Batches whose gradients the next step will use, as far as is known now."""
        return len(self._window) if self._window and self._accumulating() else 0

    def random_state(self) -> Any:
        """Return the state of the streams now."""
        return self._streams.state()

    def take(self) -> list[Seen]:
        """Return the window of the step about to be taken; the next batch opens a new one."""
        window, self._window = self._window, []
        return window

    def _accumulating(self) -> bool:
        """Say whether the gradients of the window's batches are still there."""
        grads = [p.grad for p in self._watched.layout.params]
        with torch.no_grad():
            return any(g is not None and bool(g.detach().any()) for g in grads)
