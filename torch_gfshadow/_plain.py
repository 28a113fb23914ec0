"""State as plain values: what torch.load reads back with weights_only=True, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

_ARRAY, _SET = "__array__", "__set__"


def to_plain(value: Any) -> Any:
    """Return ``value`` as tensors, numbers, strings, tuples, lists and dictionaries.

    Raises:
        TypeError: If it holds anything that these cannot express.
    """
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor, torch.dtype)):
        return value.detach() if isinstance(value, torch.Tensor) else value
    if isinstance(value, (list, tuple)):
        items = [to_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return {_SET: sorted(to_plain(item) for item in value)}
    if hasattr(value, "__array__"):  # numpy's generators keep their state in arrays
        return {_ARRAY: value.tolist(), "dtype": str(value.dtype)}
    raise TypeError(f"no plain form of a {type(value).__name__}")


def from_plain(value: Any) -> Any:
    """Return what :func:`to_plain` was given."""
    if isinstance(value, (list, tuple)):
        items = [from_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, dict):
        if _SET in value:
            return set(value[_SET])
        if _ARRAY in value:
            import numpy as np

            return np.asarray(value[_ARRAY], dtype=value["dtype"])
        return {key: from_plain(item) for key, item in value.items()}
    return value


def saved_attributes(source: object, names: Iterable[str]) -> dict[str, Any]:
    """Return the attributes ``names`` of ``source``, keyed without a leading underscore."""
    return {name.lstrip("_"): to_plain(getattr(source, name)) for name in names}


def load_attributes(target: object, names: Iterable[str], saved: Mapping[str, Any]) -> None:
    """Set the attributes that :func:`saved_attributes` saved."""
    for name in names:
        setattr(target, name, from_plain(saved[name.lstrip("_")]))


def state_of(member: object) -> dict[str, Any] | None:
    """Return the state of a bound or probe; ``None`` if it has one that cannot be saved.

    Its own ``state_dict()`` if it has one, otherwise its attributes.
    """
    own = getattr(member, "state_dict", None)
    try:
        return dict(to_plain(own() if callable(own) else getattr(member, "__dict__", {})))
    except TypeError:
        return None


def load_state(member: object, saved: Mapping[str, Any]) -> None:
    """Put back what :func:`state_of` returned."""
    own = getattr(member, "load_state_dict", None)
    if callable(own):
        own(from_plain(saved))
    else:
        vars(member).update(from_plain(saved))
