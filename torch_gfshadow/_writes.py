"""Writes: a forward pass that changes, in place, parameters it was only lent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class WriteError(Exception):
    """An operation is about to write into a parameter."""


class Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises :class:`WriteError` before an operation in its block writes into one of ``params``.

    Sees what version counters do not: ``p.data.mul_()``, momentum encoders that follow the trained
    one inside ``forward``, ``nn.Embedding(max_norm=…)``.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ours = {place for p in params if (place := _place(p)) is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` unless it writes into ours."""
        if any(_place(tensor) in self._ours for tensor in _written(func, args, kwargs or {})):
            raise WriteError(str(func))
        return func(*args, **(kwargs or {}))


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(tensor, Tensor):
                yield tensor


def _place(tensor: Tensor) -> int | None:
    """Return what tells the tensor's memory from other memory; None if it has none of its own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse, or a wrapper around other tensors
        return None
