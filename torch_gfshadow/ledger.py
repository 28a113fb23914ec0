"""Ledger: what we caused, counted by purpose. Nothing in the library evaluates without it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch_gfshadow.errors import OverBudgetError

PURPOSES = ("flow", "error", "audit", "loss", "probes", "bounds", "setup")


class Ledger:
    """Gradient evaluations, forward passes and Hessian products, each under its purpose.

    One gradient evaluation is one pass over the whole objective, however many chunks that takes.

    Args:
        now: The clock, in seconds.

    Attributes:
        seconds: What was spent in the calls that ended.
        entered: When the present call began, by ``now``; ``None`` outside of our own code.
        afford: Says whether one more evaluation can be paid for; ``None`` if nothing limits it.
        covered: Says whether so many seconds more can be; ``None`` if nothing limits it.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.grads: Counter[str] = Counter()
        self.losses: Counter[str] = Counter()
        self.hvps: Counter[str] = Counter()
        self.seconds = 0.0
        self.entered: float | None = None
        self.afford: Callable[[], bool] | None = None
        self.covered: Callable[[float], bool] | None = None
        self._limited = False

    @property
    def spent(self) -> float:
        """Seconds that were ours, those since we were last called included."""
        return self.seconds + (0.0 if self.entered is None else self.now() - self.entered)

    def charge(self) -> None:
        """Ask, before an evaluation that the flow could end without, whether it can be paid for.

        Raises:
            OverBudgetError: If not.
        """
        if self._limited and self.afford is not None and not self.afford():
            raise OverBudgetError(
                f"budget= pays for {self.spent:.3g} s up to now, and they are spent; the next "
                "window starts when it can pay for twice as much"
            )

    def covers(self, seconds: float) -> bool:
        """Say whether work of ``seconds`` can be paid for that may also be left undone."""
        return not self._limited or self.covered is None or self.covered(seconds)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Let :meth:`charge` ask: what is evaluated inside the block may be broken off."""
        self._limited = True
        try:
            yield
        finally:
            self._limited = False

    @property
    def n_grads(self) -> int:
        """Gradients evaluated so far, all purposes."""
        return self.grads.total()

    @property
    def n_losses(self) -> int:
        """Forward passes without gradient evaluated so far, all purposes."""
        return self.losses.total()

    @property
    def n_hvps(self) -> int:
        """Hessian-vector products evaluated so far, all purposes."""
        return self.hvps.total()

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Add the time spent inside the block to ``seconds``."""
        self.entered = start = self.now()
        try:
            yield
        finally:
            self.seconds += self.now() - start
            self.entered = None

    def by_purpose(self) -> dict[str, dict[str, int]]:
        """Return ``{"grads": {purpose: n}, "losses": …, "hvps": …}`` for the summary."""
        return {
            "grads": dict(self.grads),
            "losses": dict(self.losses),
            "hvps": dict(self.hvps),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return every count, and the seconds."""
        return {**self.by_purpose(), "seconds": self.seconds}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from saved counts."""
        self.grads, self.losses = Counter(saved["grads"]), Counter(saved["losses"])
        self.hvps, self.seconds = Counter(saved["hvps"]), saved["seconds"]
