"""Data in every shape users have it, walked as the same weighted batches each time."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, strided
from torch.utils.data import DataLoader, Dataset, IterableDataset

from torch_gfshadow._plain import from_plain, to_plain
from torch_gfshadow._streams import Stream, Streams, generator_stream, python_streams, torch_streams
from torch_gfshadow.errors import must

CHUNK_SIZE = 1024
CACHE_BYTES = 256 * 2**20

_END = object()


def map_tensors(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return ``batch`` with ``change`` applied to its tensors, itself where nothing changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, (tuple, list)):
        items = [map_tensors(change, item) for item in batch]
        if all(new is old for new, old in zip(items, batch, strict=True)):
            return batch
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if _is_row(batch):
        held = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        changed = {name: map_tensors(change, item) for name, item in held.items()}
        if all(changed[name] is item for name, item in held.items()):
            return batch
        twin = copy.copy(batch)  # as dataclasses.replace, without running its __post_init__
        for name, item in changed.items():
            object.__setattr__(twin, name, item)
        return twin
    if isinstance(batch, MutableMapping):
        changed = {key: map_tensors(change, item) for key, item in batch.items()}
        if all(changed[key] is item for key, item in batch.items()):
            return batch
        twin = copy.copy(batch)  # keeps the class: an OrderedDict, a tokenizer's BatchEncoding
        twin.update(changed)
        return twin
    return batch


def leaves(batch: Any) -> Iterator[Any]:
    """Yield what ``batch`` holds, in order, through tuples, lists, mappings and dataclasses."""
    if isinstance(batch, (tuple, list)):
        for item in batch:
            yield from leaves(item)
    elif isinstance(batch, Mapping):
        for item in batch.values():
            yield from leaves(item)
    elif _is_row(batch):
        for field in dataclasses.fields(batch):
            yield from leaves(getattr(batch, field.name))
    else:
        yield batch


def _is_row(batch: Any) -> bool:
    return dataclasses.is_dataclass(batch) and not isinstance(batch, type)


def head(batch: Any, n: int) -> Any:
    """Return the first ``n`` samples of ``batch``, itself if it has no more or is sparse."""
    size = _batch_size(batch)
    if size <= n or any(isinstance(t, Tensor) and t.layout != strided for t in leaves(batch)):
        return batch
    return map_tensors(lambda t: t[:n] if t.dim() > 0 and t.shape[0] == size else t, batch)


class Chunks:
    """The data as ``(batch, weight)`` pairs, weights summing to 1, the same at every walk.

    A batch (tensor, or tuple, list, mapping or dataclass of tensors), a list of batches, a
    map-style dataset (in chunks of 1024 samples), a DataLoader or any re-iterable of batches, or a
    callable that returns one of these. Weights are batch sizes: the first dimension of the first
    tensor. Small data are walked once and kept. No walk moves a random stream of the caller's; a
    DataLoader is read in this process, beside and not through the user's own iteration.
    """

    def __init__(self, data: Any, devices: Iterable[torch.device] = ()) -> None:
        self._make = _maker(data)
        self._fit: Callable[[Tensor], Tensor] = _usable
        self._streams = Streams(
            [*torch_streams(devices), *python_streams(), *_own_streams(data, set())]
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
            sizes.append(_batch_size(batch))
            room -= sum(_bytes(t) for t in leaves(batch) if isinstance(t, Tensor))
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
            if size is None or (self._kept is None and size != _batch_size(batch)):
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


def _bytes(tensor: Tensor) -> int:
    if tensor.layout == strided:
        return tensor.nbytes
    entries = tensor._nnz() if tensor.is_sparse or tensor.is_sparse_csr else tensor.numel()
    return entries * (tensor.element_size() + 8 * tensor.dim())  # values and their places


def _batch_size(batch: Any) -> int:
    for leaf in leaves(batch):
        shape: Sequence[int] = getattr(leaf, "shape", ())
        if len(shape) > 0:
            return int(shape[0])
    return -1


def _maker(data: Any) -> Callable[[], Iterable[Any]]:
    """Return a function that opens ``data`` anew as an iterable of batches."""
    if data is None or isinstance(data, Iterator):
        raise TypeError(
            must(
                "data",
                "a batch, a dataset, a DataLoader or a callable",
                f"a {type(data).__name__}" if data is not None else "None",
                "A one-shot iterator cannot be walked twice: pass a callable that makes it.",
            )
        )
    if isinstance(data, (str, bytes, int, float)):
        fix = "Pass the samples, as in data=(X, y)."
        wanted = "a batch, a dataset, a DataLoader or a callable"
        raise TypeError(must("data", wanted, repr(data), fix))
    if isinstance(data, DataLoader):
        return lambda: _beside(data)
    if _is_dataset(data):
        return lambda: DataLoader(data, batch_size=CHUNK_SIZE, generator=torch.Generator())
    if isinstance(data, Mapping) and not data:
        raise ValueError(must("data", "non-empty", repr(data), "Pass the samples."))
    if isinstance(data, list) and all(
        isinstance(x, (tuple, list, Mapping)) or _is_row(x) for x in data
    ):
        return lambda: data
    # A container that moves as one (`.to(device)`) is one batch, even if it can be iterated.
    if isinstance(data, (Tensor, tuple, list, Mapping)) or callable(getattr(data, "to", None)):
        return lambda: [data]
    if callable(data):
        return lambda: _called(data)
    if isinstance(data, Iterable) and not hasattr(data, "shape"):
        return lambda: data
    return lambda: [data]


def _called(data: Callable[[], Any]) -> Iterable[Any]:
    try:
        inspect.signature(data).bind()
    except TypeError as error:
        fix = "Bind what it needs: data=lambda: make(...)."
        raise TypeError(must("data", "callable without arguments", repr(data), fix)) from error
    except ValueError:  # built-ins have no signature
        pass
    result = data()
    return result if isinstance(result, Iterator) else _maker(result)()


def _is_dataset(data: Any) -> bool:
    if isinstance(data, Dataset):
        return True
    plain = isinstance(data, (Tensor, tuple, list, Mapping)) or hasattr(data, "shape")
    sized = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return sized and not plain and not callable(getattr(data, "to", None))


def _beside(loader: DataLoader[Any]) -> Iterable[Any]:
    """Return a loader over the same samples that shares no iteration state with ``loader``.

    ``iter(loader)`` would restart the user's own epoch where workers are persistent.
    """
    inner = getattr(loader, "base_dataloader", None)
    if isinstance(inner, DataLoader):
        # Accelerate's: iterating it tells the accelerator which loader is active and at its end.
        device = getattr(loader, "device", None)
        move = partial(map_tensors, lambda t: t if device is None else t.to(device))
        return map(move, _beside(inner))
    if type(loader).__iter__ is not DataLoader.__iter__:
        return loader
    plain: dict[str, Any] = {"collate_fn": loader.collate_fn, "generator": torch.Generator()}
    if isinstance(loader.dataset, IterableDataset):
        return DataLoader(
            loader.dataset, batch_size=loader.batch_size, drop_last=loader.drop_last, **plain
        )
    if loader.batch_sampler is None:
        return DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler, **plain)
    return DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, **plain)


def _own_streams(source: Any, seen: set[int]) -> list[Stream]:
    """Find the generators a loader, its samplers and its datasets carry."""
    if id(source) in seen or not hasattr(source, "__dict__"):
        return []
    seen.add(id(source))
    streams: list[Stream] = []
    for name, value in vars(source).items():
        is_generator = isinstance(value, torch.Generator) or hasattr(value, "bit_generator")
        if (is_generator or hasattr(value, "getstate")) and id(value) not in seen:
            seen.add(id(value))
            streams.append(generator_stream(value))
        elif name in ("sampler", "batch_sampler", "dataset"):
            streams += _own_streams(value, seen)
    return streams
