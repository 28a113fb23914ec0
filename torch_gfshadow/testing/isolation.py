"""What keeps tests apart: installed plugins, and every random state."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from torch_gfshadow.discovery import LOAD, forget_installed


@contextmanager
def isolated_plugins(load: Sequence[str] = ()) -> Iterator[None]:
    """Inside the block only the installed plugins named in ``load`` exist, none by default.

    What was loaded before is forgotten on entry and on exit, so tests do not see each other.
    """
    before = os.environ.get(LOAD)
    os.environ[LOAD] = ",".join(load)
    forget_installed()
    try:
        yield
    finally:
        forget_installed()
        if before is None:
            del os.environ[LOAD]
        else:
            os.environ[LOAD] = before


@contextmanager
def own_random_state(seed: int = 0) -> Iterator[None]:
    """Seed torch, NumPy and Python inside the block; outside, none of them has moved."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def random_states() -> dict[str, object]:
    """Return the random states of torch, NumPy and Python, for comparison."""
    return {
        "torch's random state": torch.get_rng_state(),
        "NumPy's random state": np.random.get_state()[1].tolist(),  # type: ignore[index] # noqa: NPY002
        "Python's random state": random.getstate(),
    }


def same(a: object, b: object) -> bool:
    """Compare what may be a tensor, bit by bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return a is b or a == b
