"""What goes wrong with objectives, in words that say what to do."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from torch_gfshadow._batch import leaves
from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import must


def check_function(fn: object) -> None:
    """Refuse what cannot be called with a model and a batch.

    Raises:
        TypeError: If ``fn`` is not callable or takes other arguments.
    """
    if not callable(fn):
        raise TypeError(
            must(
                "objective",
                "a function (model, batch) -> scalar loss",
                f"a {type(fn).__name__}",
                "Pass e.g. lambda model, batch: loss_fn(model(batch[0]), batch[1]).",
            )
        )
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # built-ins have none
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            must(
                "objective",
                "a function of two arguments, (model, batch)",
                f"one with the signature {signature}",
                "Pass e.g. lambda model, batch: loss_fn(model(batch[0]), batch[1]).",
            )
        ) from error


def explain(error: Exception, batch: Any, layout: Layout) -> str:
    """Say which property of the batch is the likely cause."""
    fix = "Make fn(model, batch) run on one batch of data."
    for tensor in leaves(batch):
        if isinstance(tensor, Tensor):
            if tensor.device != layout.device:
                fix = (
                    f"The batch is on {tensor.device}, the parameters are on {layout.device}: "
                    "move it, here or inside the objective."
                )
                break
            if tensor.is_floating_point() and tensor.dtype != layout.dtype:
                fix = (
                    f"The batch holds {tensor.dtype}, the parameters are {layout.dtype}: "
                    "cast the data, e.g. x.to(next(model.parameters()).dtype)."
                )
                break
    else:
        kinds = [t.dtype for t in leaves(batch) if isinstance(t, Tensor)]
        if kinds and not any(kind.is_floating_point for kind in kinds):
            fix = (
                f"The batch holds no floating-point tensor, only {kinds[0]}: cast the "
                "inputs, unless they are indices; see whether your own loop raises it, too."
            )
    return must(
        "objective",
        "a function (model, batch) -> scalar loss that runs on the data",
        f"{type(error).__name__} ({str(error).splitlines()[0] if str(error) else ''})",
        fix,
    )
