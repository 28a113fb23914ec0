"""Ledger: what we caused, counted by purpose. Nothing in the library evaluates without it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PURPOSES = ("flow", "error", "audit", "loss", "probes", "bounds", "setup")


class Ledger:
    """Gradient evaluations, forward passes and Hessian products, each under its purpose.

    One gradient evaluation is one pass over the whole objective, however many chunks that takes.

    Args:
        now: The clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.grads: Counter[str] = Counter()
        self.losses: Counter[str] = Counter()
        self.hvps: Counter[str] = Counter()
        self.seconds = 0.0

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
        start = self.now()
        try:
            yield
        finally:
            self.seconds += self.now() - start

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
