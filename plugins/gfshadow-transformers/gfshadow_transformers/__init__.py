"""Hugging Face models know their own loss: ``attach(optimizer, model, data=batches)``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torch_gfshadow import hookimpl
from torch_gfshadow.errors import must

__version__ = "0.1.0"


@hookimpl
def gfshadow_objective_for(optimizer: Any, model: Any, config: Mapping[str, Any]) -> Any:
    """Return the model's own loss for a Hugging Face model; pass every other model on."""
    library = sys.modules.get("transformers")  # a model of its cannot exist unless it is imported
    inner = getattr(model, "module", getattr(model, "_orig_mod", model))
    if library is None or not isinstance(inner, library.PreTrainedModel):
        return None
    return own_loss


def own_loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Return ``model(**batch).loss``.

    Raises:
        TypeError: If ``batch`` is no mapping of arguments.
        ValueError: If the model returns no loss, because the batch has no labels.
    """
    if not isinstance(batch, Mapping):
        got, fix = f"a {type(batch).__name__}", "Pass what the tokenizer or collator returns."
        raise TypeError(must("batch", "a mapping of the model's arguments", got, fix))
    loss = model(**batch).loss
    if not isinstance(loss, Tensor):
        keys = ", ".join(batch)
        raise ValueError(must("batch", "one with labels", f"the keys {keys}", "Add labels to it."))
    return loss
