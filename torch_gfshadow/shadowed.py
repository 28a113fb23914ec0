"""The door for configurations that name a class: an optimizer that attaches to itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from torch_gfshadow.attach import attach
from torch_gfshadow.errors import must

_Opt = TypeVar("_Opt", bound=torch.optim.Optimizer)


def shadowed(cls: type[_Opt]) -> type[_Opt]:
    """Return a subclass of a concrete optimizer class that attaches to itself.

    For configurations that name a class: ``shadowed(SGD)(params, lr=…, shadow=dict(model=…,
    objective=…, data=…))``. Without ``shadow`` it is a plain optimizer. It is a ``cls`` by
    ``isinstance`` and by name, so that logs and checkpoints have the same keys, and its state dict
    is one of ``cls``. Copies and pickles are plain ``cls`` objects.

    Args:
        cls: A subclass of ``torch.optim.Optimizer``.

    Raises:
        TypeError: If ``cls`` is no optimizer class.
    """
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        fix = "Use shadowed(torch.optim.SGD)."
        got = repr(cls) if isinstance(cls, type) else f"a {type(cls).__name__}"
        raise TypeError(must("cls", "an optimizer class", got, fix))

    def __init__(  # noqa: N807
        self: Any, *args: Any, shadow: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if shadow is not None and not isinstance(shadow, Mapping):
            fix = "Pass shadow=dict(model=…, objective=…, data=…)."
            raise TypeError(must("shadow", "a dict of attach()'s arguments", repr(shadow), fix))
        cls.__init__(self, *args, **kwargs)
        if shadow is not None:
            attach(self, **shadow)

    def __reduce__(self: Any) -> Any:  # noqa: N807
        return _plain_copy, (cls, self.__getstate__())

    namespace = {"__init__": __init__, "__reduce__": __reduce__, "__doc__": cls.__doc__}
    made: Any = type(cls.__name__, (cls,), namespace)
    made.__module__, made.__qualname__ = cls.__module__, f"shadowed({cls.__qualname__})"
    return made  # type: ignore[no-any-return]


def _plain_copy(cls: type[torch.optim.Optimizer], state: dict[str, Any]) -> Any:
    optimizer = cls.__new__(cls)
    optimizer.__setstate__(state)
    return optimizer
