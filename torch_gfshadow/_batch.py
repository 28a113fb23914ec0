"""Batches in every shape users have them: what is in one, how large it is, the same one changed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, strided


def map_tensors(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return ``batch`` with ``change`` applied to its tensors, itself where nothing changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, (tuple, list)):
        items = [map_tensors(change, item) for item in batch]
        if all(new is old for new, old in zip(items, batch, strict=True)):
            return batch
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if is_row(batch):
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
    elif is_row(batch):
        for field in dataclasses.fields(batch):
            yield from leaves(getattr(batch, field.name))
    else:
        yield batch


def is_row(batch: Any) -> bool:
    """Return whether ``batch`` is an instance of a dataclass."""
    return dataclasses.is_dataclass(batch) and not isinstance(batch, type)


def head(batch: Any, n: int) -> Any:
    """Return the first ``n`` samples of ``batch``, itself if it has no more or is sparse."""
    size = size_of(batch)
    if size <= n or any(isinstance(t, Tensor) and t.layout != strided for t in leaves(batch)):
        return batch
    return map_tensors(lambda t: t[:n] if t.dim() > 0 and t.shape[0] == size else t, batch)


def bytes_of(tensor: Tensor) -> int:
    """Return what ``tensor`` takes in memory; of a sparse one, about that."""
    if tensor.layout == strided:
        return tensor.nbytes
    entries = tensor._nnz() if tensor.is_sparse or tensor.is_sparse_csr else tensor.numel()
    return entries * (tensor.element_size() + 8 * tensor.dim())  # values and their places


def size_of(batch: Any) -> int:
    """Return the number of samples: the first dimension of the first tensor, −1 without one."""
    for leaf in leaves(batch):
        shape: Sequence[int] = getattr(leaf, "shape", ())
        if len(shape) > 0:
            return int(shape[0])
    return -1
