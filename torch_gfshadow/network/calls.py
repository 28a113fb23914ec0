"""Calls of torch functions as the tape sees them: name, arguments in their places, tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor
from torch.overrides import resolve_name


@dataclass(frozen=True)
class Call:
    """One call on the signal: function, arguments by position and name, input and output."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    before: Tensor
    after: Tensor

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument however it was passed."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)


@cache
def name_of(function: Callable[..., Any]) -> str:
    """Return ``relu`` for torch.relu, Tensor.relu and F.relu alike."""
    full: str = resolve_name(function) or getattr(function, "__name__", str(function))
    for prefix in ("torch.Tensor.", "torch.nn.functional.", "torch._C._nn.", "torch."):
        full = full.removeprefix(prefix)
    return full.removeprefix("special.") if full.startswith("special.") else full


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in ``value``, through tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def by_position(args: Any, kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Move ``input``, ``weight`` and ``target`` to their places, so that rules find them."""
    args, rest = list(args), dict(kwargs)
    for position, names in enumerate((("input", "self"), ("weight", "target", "mat2", "other"))):
        if len(args) == position:
            name = next((n for n in names if isinstance(rest.get(n), Tensor)), None)
            if name is None or (position == 1 and name == "weight" and "target" in rest):
                break
            args.append(rest.pop(name))
    return tuple(args), rest


def swapped(args: tuple[Any, ...], before: Mapping[int, Tensor]) -> tuple[Any, ...]:
    """Return ``args`` with tensors replaced by what they were before the call."""
    return tuple(before.get(id(a), a) if isinstance(a, Tensor) else a for a in args)


def per_dimension(value: Any, n_dims: int) -> tuple[int, ...]:
    """Return one number per dimension."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n_dims if len(values) == 1 else values
