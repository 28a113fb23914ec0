"""Limits of λ_min from below along a run: what the network says, against the Ritz value."""

from __future__ import annotations

import math

from torch_gfshadow.bounds._phi import log
from torch_gfshadow.bounds.base import LAMBDA_MIN, Assumption, BoundValue
from torch_gfshadow.bounds.view import View
from torch_gfshadow.network import NetworkPoint, NotCovered
from torch_gfshadow.record import Record


class Floor:
    """A theorem that bounds λ_min at the iterate from the weights, the data and the activations.

    Args:
        quiet: Give no value, instead of one that says why, where the network is of another kind.

    Attributes:
        speaks: Whether it says why a model is not covered at all, even if ``quiet``.
    """

    name = ""
    speaks = False
    of = LAMBDA_MIN
    requires: frozenset[str] = frozenset()

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def update(self, record: Record, view: View | None = None) -> BoundValue | None:
        """Return the limit at a probed record; without a look at the network there is none."""
        if view is None:
            return BoundValue(math.inf, (), "No value between probes.", LAMBDA_MIN)
        network = view.network
        if isinstance(network, NotCovered):
            silent = self.quiet and not self.speaks
            return None if silent else BoundValue(math.inf, (), network.reason, LAMBDA_MIN)
        other = self.is_other(network)
        if other:
            return None if self.quiet else BoundValue(math.inf, (), other, LAMBDA_MIN)
        floor = self.floor(network)
        return BoundValue(log(max(-floor, 0.0)), self.assumptions(network), "ok", LAMBDA_MIN)

    def is_other(self, network: NetworkPoint) -> str:
        """Return why another member of the family is the one to ask; empty if it is this."""
        raise NotImplementedError

    def floor(self, network: NetworkPoint) -> float:
        """Return the limit of λ_min, at most 0."""
        raise NotImplementedError

    def assumptions(self, network: NetworkPoint) -> tuple[Assumption, ...]:
        """Return what it rests on."""
        raise NotImplementedError


def shares_weights(network: NetworkPoint) -> bool:
    """Return whether a weight of the network stands in more than one place."""
    return any(layer.sharing()[0] > 1 for layer in network.layers)
