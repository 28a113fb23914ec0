"""The run at a probed step as a bound sees it: read only, evaluated when asked."""

from __future__ import annotations

from collections.abc import Callable

from torch_gfshadow.network import NetworkPoint, NotCovered
from torch_gfshadow.record import Record


class View:
    """The record at a probed step, and what the model is made of there.

    Args:
        record: Clock, discrepancy with its error bar, λ_min and λ_max with their residuals.
        look: Recognises the network at the iterate.
        plain: Whether the flow followed is θ' = −∇f(θ) in all the network's weights and in nothing
            else: no weight decay, no ascent, one rate.
    """

    def __init__(
        self,
        record: Record,
        look: Callable[[], NetworkPoint | NotCovered],
        *,
        plain: bool = False,
    ) -> None:
        self.record = record
        self.plain = plain
        self._look = look
        self._network: NetworkPoint | NotCovered | None = None

    @property
    def network(self) -> NetworkPoint | NotCovered:
        """Layers, weights and block norms, or why there are none; one gradient when first asked."""
        if self._network is None:
            self._network = self._look()
        return self._network
