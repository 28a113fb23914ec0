"""What the callbacks share: a shadow that is made when training starts, and kept afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from torch_gfshadow.attach import attach
from torch_gfshadow.handle import Shadow

ObjectiveFunction = Callable[[nn.Module, Any], Tensor]


class Attached:
    """Holds the options until there is an optimizer, and the shadow from then on.

    Args:
        options: Arguments of :func:`torch_gfshadow.attach`, all but the optimizer, the model, the
            objective and the data.

    Attributes:
        shadow: The shadow; None before training starts. Its records outlive training.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self.shadow: Shadow | None = None
        self._saved: dict[str, Any] = {}

    def begin(
        self, optimizer: Any, model: nn.Module, objective: ObjectiveFunction, data: Any
    ) -> None:
        """Attach, and go on from a saved state if one was handed in before."""
        self.end()
        self.shadow = attach(optimizer, model, objective, data=data, **self.options)
        saved, self._saved = self._saved, {}
        if saved:
            self._resume(self.shadow, saved)

    def observe(self, batch: Any) -> None:
        """Show the shadow the batch whose forward pass comes next."""
        if self.shadow is not None:
            self.shadow.observe(batch)

    def end(self) -> None:
        """Detach; the records stay."""
        if self.shadow is not None:
            self.shadow.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the shadow's state; empty before training starts."""
        return {} if self.shadow is None else self.shadow.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state`` as soon as training starts."""
        self._saved = dict(state)

    def _resume(self, shadow: Shadow, state: Mapping[str, Any]) -> None:
        try:
            shadow.load_state_dict(state)
        except ValueError as error:
            if self.options.get("on_error") == "raise":
                raise
            message = f"torch_gfshadow starts a new shadow here, the saved one is not used: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
