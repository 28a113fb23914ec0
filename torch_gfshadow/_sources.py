"""Sources of batches: what users pass as ``data=``, opened anew for each walk."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from torch_gfshadow._batch import is_row, map_tensors
from torch_gfshadow._streams import Stream, generator_stream
from torch_gfshadow.errors import must

CHUNK_SIZE = 1024


def maker(data: Any) -> Callable[[], Iterable[Any]]:
    """Return a function that opens ``data`` anew as an iterable of batches.

    Raises:
        TypeError: If ``data`` can be walked only once, or holds no samples.
        ValueError: If it is an empty mapping.
    """
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
        isinstance(x, (tuple, list, Mapping)) or is_row(x) for x in data
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
    return result if isinstance(result, Iterator) else maker(result)()


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


def own_streams(source: Any, seen: set[int]) -> list[Stream]:
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
            streams += own_streams(value, seen)
    return streams
