"""A mirror of torch.optim: every optimizer of it, able to carry a shadow. Change one import.

``torch_gfshadow.optim.SGD(params, lr=…, shadow=dict(model=…, objective=…, data=…))``
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from torch_gfshadow.shadowed import shadowed

__all__ = sorted(
    name
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value)
    and issubclass(value, torch.optim.Optimizer)
    and value is not torch.optim.Optimizer
)
_made: dict[str, Any] = {}


def __getattr__(name: str) -> Any:
    if name in __all__:
        if name not in _made:
            _made[name] = shadowed(getattr(torch.optim, name))
        return _made[name]
    return getattr(torch.optim, name)


def __dir__() -> list[str]:
    return sorted({*__all__, *dir(torch.optim)})
