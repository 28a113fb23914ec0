"""The error bar in one copy of the parameters: ε and what is pending, both in bfloat16.

ε is good to a factor, so three digits of it are enough. It is carried when the next step begins:
then the last one's vectors are gone, and their place is free for two stages. The carrier is the
Chebyshev method of first order, which needs no vector of slopes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_gfshadow._blocks import Terms, blocks, combined, length_of
from torch_gfshadow.solvers.base import Field, Node, add_field
from torch_gfshadow.solvers.error_bar import MARGIN, ErrorBar
from torch_gfshadow.solvers.rkc import STRONG, first_order, stages_for


class LowStorageBar(ErrorBar):
    """:class:`ErrorBar` for steppers in low storage.

    Args:
        field: Right-hand side F, counted as error control.
        node: Where the error is zero.
    """

    def __init__(self, field: Field, node: Node) -> None:
        super().__init__(field, Node(node.time, node.field, node.field), torch.bfloat16)

    def add_terms(
        self, terms: Terms | None, node: Node, h_lambda: float, scale: float, evaluations: int
    ) -> None:
        """Add one accepted step as :meth:`add` does, its local error given as a sum."""
        if terms is not None:
            size, self._pending = 0.0, self._pending.contiguous()
            for at in blocks(self._pending.numel()):
                block = combined(terms, at)
                size += float(torch.dot(block, block))
                self._pending[at] = block.add_(self._pending[at])
            self._recent = max(math.sqrt(size), 0.8 * self._recent)
            self._norm = length_of([(self._error, 1.0), (self._pending, 1.0)])
        self.add(None, node, h_lambda, scale, evaluations=evaluations)

    def catch_up(self, node: Node) -> None:
        """Carry ε to ``node``, where the last step ended, if it is time."""
        if super()._is_due():
            self._carry(node)

    def _zeros(self, like: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return zeros that take no space until something is added to them."""
        return like.new_zeros((), dtype=dtype).expand(like.shape)

    def _is_due(self) -> bool:
        return False  # not yet: the step's vectors are still there

    def _needed(self) -> int:
        return stages_for(MARGIN * self._h_lambda, STRONG)

    @staticmethod
    def _length(vector: Tensor) -> float:
        return length_of([(vector, 1.0)])

    def _carried(self, node: Node, span: float, stages: int) -> Tensor:
        scale = self._probe_size(node) / self._norm
        mu, nu, mu_t = first_order(stages, STRONG)

        def add_slope(out: Tensor, error: Tensor, weight: float) -> None:
            share = weight / scale
            add_field(self._field, out, node.shifted(error, scale), share)
            out.add_(node.field, alpha=-share).add_(self._pending, alpha=weight / span)

        before = self._error.to(node.field.dtype)
        current = before.clone()
        if bool(self._error.any()):
            add_slope(current, before, mu_t[1] * span)
        else:
            current.add_(self._pending, alpha=mu_t[1])
        for j in range(2, stages + 1):
            before.mul_(nu[j]).add_(current, alpha=mu[j])
            add_slope(before, current, mu_t[j] * span)
            before, current = current, before
        return current
