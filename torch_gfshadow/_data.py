"""Data in every shape users have it, walked as the same weighted batches each time.

Read next: ``_sources``, which opens what the user passed; ``_batch``, what comes out of it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._batch import bytes_of, leaves, map_tensors, size_of
from torch_gfshadow._plain import from_plain, to_plain
from torch_gfshadow._sources import maker, own_streams
from torch_gfshadow._streams import Streams, python_streams, torch_streams
from torch_gfshadow.errors import must

CACHE_BYTES = 256 * 2**20

_END = object()


class Chunks:
    """The data as ``(batch, weight)`` pairs, weights summing to 1, the same at every walk.

    A batch (tensor, or tuple, list, mapping or dataclass of tensors), a list of batches, a
    map-style dataset (in chunks of 1024 samples), a DataLoader or any re-iterable of batches, or a
    callable that returns one of these. Weights are batch sizes: the first dimension of the first
    tensor. Small data are walked once and kept. No walk moves a random stream of the caller's; a
    DataLoader is read in this process, beside and not through the user's own iteration.
    """

    def __init__(self, data: Any, devices: Iterable[torch.device] = ()) -> None:
        self._make = maker(data)
        self._fit: Callable[[Tensor], Tensor] = _usable
        self._streams = Streams(
            [*torch_streams(devices), *python_streams(), *own_streams(data, set())]
        )
        self._start = self._streams.state()
        self._look()

    def state_dict(self) -> dict[str, Any]:
        """Return the random numbers every walk begins with."""
        return {"start": to_plain(self._start)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Walk as the walk that was saved: shuffled and augmented alike."""
        if _same(saved["start"], to_plain(self._start)):
            return
        streams = saved["start"]
        if len(streams) != len(self._start):  # numpy was imported in only one of the two
            return
        self._start = from_plain(streams)
        self._look()

    def fitted(
        self, old: tuple[torch.dtype, torch.device], new: tuple[torch.dtype, torch.device]
    ) -> Chunks:
        """Return the same data for a model that was cast or moved.

        Args:
            old: Dtype and device that the model had.
            new: Those it has now. Tensors of the old dtype are cast, tensors on the old device
                moved; others are left alone.
        """
        twin, given = copy.copy(self), self._fit

        def fit(tensor: Tensor) -> Tensor:
            tensor = given(tensor)
            dtype = new[0] if tensor.dtype == old[0] else tensor.dtype
            return tensor.to(new[1] if tensor.device == old[1] else tensor.device, dtype)

        twin._fit = fit
        if self._kept is not None:
            twin._kept = [map_tensors(fit, batch) for batch in self._kept]
        return twin

    @property
    def sizes(self) -> list[int]:
        """Number of samples in each batch."""
        return self._sizes

    def _look(self) -> None:
        """Walk the data once: learn the sizes, keep what is small."""
        self._kept: list[Any] | None = []
        sizes: list[int] = []
        room = CACHE_BYTES
        for batch in self._walk():
            sizes.append(size_of(batch))
            room -= sum(bytes_of(t) for t in leaves(batch) if isinstance(t, Tensor))
            if self._kept is not None:
                self._kept.append(batch)
                if room < 0 and len(sizes) > 1:
                    self._kept = None
        if len(sizes) == 1:
            sizes = [1 if sizes[0] < 0 else sizes[0]]
        if not sizes or max(sizes) == 0:
            raise ValueError(
                must("data", "non-empty", f"{len(sizes)} batches of size 0", "Pass the samples.")
            )
        if min(sizes) < 0:
            raise ValueError(
                must(
                    "data",
                    "batches whose size can be read",
                    f"batches without a tensor of one or more dimensions, {len(sizes)} of them",
                    "Let a batch hold a tensor whose first dimension is the batch.",
                )
            )
        self._sizes = sizes
        self._total = sum(sizes)

    def __len__(self) -> int:
        return sum(size > 0 for size in self._sizes)

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        batches = self._walk() if self._kept is None else self._kept
        for size, batch in itertools.zip_longest(self._sizes, batches, fillvalue=None):
            if size is None or (self._kept is None and size != size_of(batch)):
                raise ValueError(
                    must(
                        "data",
                        "the same at every walk",
                        f"not the {len(self._sizes)} batches of {self._total} samples seen first",
                        "Pass a fixed dataset and a sampler that keeps its length.",
                    )
                )
            if size:
                yield batch, size / self._total

    def _walk(self) -> Iterator[Any]:
        """Yield the batches; our random state is in place only while the source is working."""
        state, iterator, batch = self._start, None, None
        while True:
            with self._streams.kept(), torch.inference_mode(False):
                self._streams.load(state)
                if iterator is None:
                    iterator = iter(self._make())
                batch = map_tensors(self._fit, next(iterator, _END))
                state = self._streams.state()
            if batch is _END:
                return
            yield batch


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a.cpu(), b.cpu())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def _usable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
