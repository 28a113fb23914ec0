"""Passing: a step at which nothing is due, seen in one function before it and one after it.

The pass before a step has emptied the caches, and every function that is called and every
attribute that is read has to come from memory first. That takes most of the time of such a step,
so all that is asked at one stands here in a row, with what it needs at hand
(``benchmarks/idle.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from torch_gfshadow._sample import Sample, address, bits_of
from torch_gfshadow.clock import FlowClock
from torch_gfshadow.ledger import Ledger

trainable_flag = attrgetter("requires_grad")

Asks = Callable[[float, float], bool]
"""Says whether the step that begins at this flow time, of this length, may pass."""


class Pace(Protocol):
    """Knows how long a step takes in flow time."""

    step_size: float


class Quiet(NamedTuple):
    """What an optimizer is compared with at a step.

    Attributes:
        groups: Its parameter groups.
        members: Their parameters.
        flags: Which of these are trainable.
        first: A parameter that has a gradient.
        sample: Entries of the parameters.
        spots: Where they are in memory, from :meth:`Sample.in_memory`.
    """

    groups: list[dict[str, Any]]
    members: Sequence[Tensor]
    flags: list[bool]
    first: Tensor
    sample: Sample
    spots: tuple[list[Tensor], list[int], list[Any]]


class Passing(NamedTuple):
    """What the hooks call at a step while nothing is due.

    Attributes:
        before: Called with the optimizer and the arguments of its step; whether it passes. False
            is "look closer".
        after: Whether the step under way passed, and is counted now.
        interrupt: Whether a step that ``before`` let pass was not counted; no more is known of it.
    """

    before: Callable[[Any, Sequence[Any], Any], bool]
    after: Callable[[Any, Any, Any], bool]
    interrupt: Callable[[], bool]


def passing(
    quiet: Quiet, clock: FlowClock, ledger: Ledger, pace: Pace, asks: Asks | None
) -> Passing:
    """Return what to call at steps up to ``clock.silent_until``.

    Args:
        quiet: What must be as it was.
        clock: The run's.
        ledger: Keeps the time.
        pace: Knows η of the step.
        asks: Asked last, if anything has to be.
    """
    groups, members, flags, first, sample, (params, places, memory) = quiet
    now, under_way = ledger.now, False

    def before(optimizer: Any, args: Sequence[Any], kwargs: Any) -> bool:
        nonlocal under_way
        if clock.step >= clock.silent_until or under_way or kwargs or len(args) != 1:
            return False
        start = now()
        try:
            under_way = (
                # parameters are compared by identity first
                optimizer.param_groups == groups
                and first.grad is not None
                and getattr(optimizer, "found_inf", None) is None
                and getattr(optimizer, "grad_scale", None) is None
                and list(map(trainable_flag, members)) == flags
                and list(map(address, params)) == places
                and list(map(bits_of, memory)) == sample.bits
                and (asks is None or asks(clock.time, pace.step_size))
            )
        except Exception:  # of comparing other tensors; of anything else a closer look says more
            return False
        ledger.seconds += now() - start
        return under_way

    def after(optimizer: Any, args: Any, kwargs: Any) -> bool:
        nonlocal under_way
        if not under_way or list(map(address, params)) != places:
            return False
        under_way, start = False, now()
        clock.tick(pace.step_size)
        sample.bits = list(map(bits_of, memory))
        ledger.seconds += now() - start
        return True

    def interrupt() -> bool:
        nonlocal under_way
        was, under_way = under_way, False
        return was

    return Passing(before, after, interrupt)
