"""Observed: the batches a step is made of, from the first forward pass to the step itself.

Traps measured on real loops (each is a test): a step that AMP skips fires no hook, so a new window
must be recognised by its gradients; some loops set them to zeros and not to None; Lightning clears
them after the forward pass, so a step that happened must open a new window, too; a loop over
``watch`` clears them when the next batch is observed already.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_gfshadow._moment import Moment, Place, all_places, hold
from torch_gfshadow._sandbox import Replay
from torch_gfshadow._streams import Streams, torch_streams
from torch_gfshadow._tree import dense
from torch_gfshadow.errors import must
from torch_gfshadow.watched import Watched


class Seen(NamedTuple):
    """One batch of a window.

    Attributes:
        mark: A gradient that was there when it was observed; None for the first of a window.
    """

    replay: Replay
    weight: float
    mark: Tensor | None = None


class Observed:
    """The batches since the last step.

    Args:
        watched: Tells whether gradients are there.
        devices: Those whose random streams a forward pass draws from.
        model: What else a forward pass begins with is read from it; without one, nothing is.

    Attributes:
        places: Where a forward pass leaves something for the next; None while that is not known.
    """

    def __init__(
        self, watched: Watched, devices: Iterable[torch.device], model: nn.Module | None = None
    ) -> None:
        self._model = model
        self.places: list[Place] | None = [] if model is None else None
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
            batch = Replay(batch, self.moment())
        self._window.append(Seen(batch, weight, self._smallest() if self._window else None))

    @property
    def count(self) -> int:
        """Batches whose gradients the next step will use, as far as is known now."""
        return len(self._window) if self._window and self._accumulating() else 0

    def moment(self, *, whole: bool = True) -> Moment:
        """Return what a forward pass that begins now begins with; the random numbers or more."""
        places = self.places if whole else []
        if places is None:
            assert self._model is not None
            places = all_places(self._model, self._watched.layout.ids)
        return Moment(self._streams.state(), hold(places))

    def take(self) -> list[Seen]:
        """Return the window of the step about to be taken; the next batch opens a new one."""
        window, self._window = self._window, []
        return window

    def replaced(self, window: list[Seen]) -> int:
        """Return how many of the window's first batches may have no part in the gradients now.

        A step that the loop itself left out leaves gradients behind, which it clears when the next
        batch has been observed already. They are other tensors then.
        """
        now = [p.grad for p in self._watched.layout.params]
        for i in reversed(range(1, len(window))):
            mark = window[i].mark
            if mark is not None and not any(grad is mark for grad in now):
                return i
        return 0

    def _smallest(self) -> Tensor | None:
        grads = [p.grad for p in self._watched.layout.params if p.grad is not None]
        return min(grads, key=lambda grad: grad.numel(), default=None)

    def _accumulating(self) -> bool:
        """Say whether the gradients of the window's batches are still there, and of any use.

        Infinite ones are not: AMP leaves their step out, and the loop begins anew.
        """
        grads = [p.grad.detach() for p in self._watched.layout.params if p.grad is not None]
        with torch.no_grad():
            if not any(bool(grad.any()) for grad in grads):
                return False
            return all(bool(dense(grad).isfinite().all()) for grad in grads)
