"""Random streams: found, saved and put back, so that a measurement draws from nobody's."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class Stream:
    """One source of randomness, by the functions that read and set its state."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]


class Streams:
    """Several sources of randomness, saved and restored together."""

    def __init__(self, streams: Iterable[Stream]) -> None:
        self._streams = tuple(streams)

    def state(self) -> list[Any]:
        """Return the present state of every stream."""
        return [stream.get() for stream in self._streams]

    def load(self, state: Iterable[Any]) -> None:
        """Put every stream back to ``state``."""
        for stream, value in zip(self._streams, state, strict=True):
            stream.set(value)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leave every stream as it was found, whatever the block draws."""
        state = self.state()
        try:
            yield
        finally:
            self.load(state)


def generator_stream(generator: Any) -> Stream:
    """Return the stream of a torch, numpy or standard-library generator object."""
    if isinstance(generator, torch.Generator):
        return Stream(generator.get_state, generator.set_state)
    if isinstance(generator, random.Random):
        return Stream(generator.getstate, generator.setstate)
    bits = generator.bit_generator
    return Stream(lambda: bits.state, lambda state: setattr(bits, "state", state))


def torch_streams(devices: Iterable[torch.device]) -> list[Stream]:
    """Return torch's own streams: the CPU's and those of ``devices``."""
    streams = [generator_stream(torch.default_generator)]
    for device in sorted(set(devices), key=str):
        if device.type not in ("cpu", "meta"):
            module = torch.get_device_module(device)
            if device.type == "mps":  # one device, and functions that do not ask which
                streams.append(Stream(module.get_rng_state, module.set_rng_state))
            else:
                get = partial(module.get_rng_state, device)
                streams.append(Stream(get, partial(module.set_rng_state, device=device)))
    return streams


def python_streams() -> list[Stream]:
    """Return the global streams of ``random`` and, if anybody imported it, of numpy."""
    streams = [Stream(random.getstate, random.setstate)]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        streams.append(Stream(numpy.random.get_state, numpy.random.set_state))
    return streams
