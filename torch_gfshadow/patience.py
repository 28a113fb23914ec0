"""Patience: how long plugins have kept the run waiting, and which of them for too long."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from torch_gfshadow.errors import must

PATIENCE = "TORCH_GFSHADOW_PLUGIN_PATIENCE"

_SECONDS = 1.0
_SHARE = 0.25
# Below this, a plugin is not slow: the steps it is called at are fast.
_PER_CALL = 0.02


class Patience:
    """Adds up what each plugin costs, its first call apart: that one may import or connect.

    One is too slow if it took more than a second in all (``TORCH_GFSHADOW_PLUGIN_PATIENCE`` sets
    another number), more than a quarter of the time since its first call, and more than 20 ms per
    call.

    Raises:
        ValueError: If the environment variable is no number.
    """

    def __init__(self) -> None:
        self._limit = _limit()
        self._spent: defaultdict[Hashable, float] = defaultdict(float)
        self._calls: defaultdict[Hashable, int] = defaultdict(int)
        self._since: dict[Hashable, float] = {}

    @contextmanager
    def timing(self, who: Hashable) -> Iterator[None]:
        """Charge the block to ``who``; the first one is free."""
        start = time.perf_counter()
        try:
            yield
        finally:
            now = time.perf_counter()
            if who in self._since:
                self._spent[who] += now - start
                self._calls[who] += 1
            else:
                self._since[who] = now

    def verdict(self, who: Hashable) -> str:
        """Say why ``who`` is too slow; nothing if it is not."""
        spent = self._spent[who]
        if not spent > self._limit or spent < _PER_CALL * self._calls[who]:
            return ""
        elapsed = time.perf_counter() - self._since[who]
        if spent < _SHARE * elapsed:
            return ""
        return (
            f"took {spent:.2g} of the last {elapsed:.2g} seconds in {self._calls[who]} calls. "
            f"Let it work in a thread of its own or less often, or set {PATIENCE}=inf"
        )


def _limit() -> float:
    text = os.environ.get(PATIENCE, "").strip()
    try:
        limit = float(text) if text else _SECONDS
    except ValueError:
        limit = float("nan")
    if not limit >= 0.0:
        fix = "Unset it for one second; inf never mutes a slow plugin."
        raise ValueError(must(PATIENCE, "a number of seconds", repr(text), fix))
    return limit
