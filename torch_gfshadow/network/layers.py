"""Weight layers as operators W(w): their norm, their weight sharing, their im2col matrices.

A layer is linear in its input and in its weights. For the second derivative both views count:
W(w)z = M(z)w, and W(w)ᵀp = M'(p)w.

Read next: ``conv``, then ``values`` (what is known of a tensor while the model runs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import torch
from torch import Tensor

from torch_gfshadow.network.norms import SAFETY, spectral_norm


class Layer(Protocol):
    """A bias-free layer z ↦ W(w)z on samples along the first dimension."""

    def norm(self, weight: Tensor) -> float:
        """Return an upper limit of ‖W(w)‖₂."""

    def sharing(self) -> tuple[int, float]:
        """Return (N, κ): the largest multiplicity of a weight, and κ with ‖W(w)‖² ≤ κ‖w‖²."""

    def input_blocks(self, z: Tensor) -> list[Tensor]:
        """Return M(z_i) as ``[S, rows, columns]``; of several, M is their block diagonal."""

    def signal_blocks(self, p: Tensor) -> list[Tensor]:
        """Return M'(p_i) likewise."""


@dataclass(frozen=True)
class Dense:
    """z ↦ W z along the last dimension, at ``positions`` places of each sample."""

    n_in: int
    n_out: int
    positions: int = 1

    def norm(self, weight: Tensor) -> float:
        """Return ‖W‖₂; the places share it and do not mix."""
        return spectral_norm(weight)

    def sharing(self) -> tuple[int, float]:
        """Return (N, κ); without sharing both are 1."""
        return self.positions, float(min(self.positions, self.n_in, self.n_out))

    def input_blocks(self, z: Tensor) -> list[Tensor]:
        """Return z_i: M(z) = I ⊗ zᵀ."""
        return [z.reshape(len(z), -1, self.n_in)]

    def signal_blocks(self, p: Tensor) -> list[Tensor]:
        """Return p_i: M'(p) = pᵀ ⊗ I up to order."""
        return [p.reshape(len(p), -1, self.n_out)]


@dataclass(frozen=True)
class Shared:
    """Any sharing pattern: W[p, q] = w[index[p][q]], 0 where the index is −1.

    Attributes:
        index: One row per output.
        n_weights: Length of w.
    """

    index: tuple[tuple[int, ...], ...]
    n_weights: int

    def pattern(self) -> Tensor:
        """Return the 0/1 tensor ``[c, p, q]`` of coordinate c."""
        index = torch.tensor(self.index)
        coordinates = torch.arange(self.n_weights)
        return (index[None] == coordinates[:, None, None]).double()

    def matrix(self, weight: Tensor) -> Tensor:
        """Return W(w)."""
        return torch.einsum("c,cpq->pq", weight, self.pattern().to(weight))

    def norm(self, weight: Tensor) -> float:
        """Return ‖W(w)‖₂."""
        return spectral_norm(self.matrix(weight))

    def sharing(self) -> tuple[int, float]:
        """Return (N, κ)."""
        s = self.pattern()
        if not len(s):
            return 0, 0.0
        rows, columns = torch.einsum("cpq,crq->pr", s, s), torch.einsum("cpq,cpr->qr", s, s)
        multiplicity = int(s.sum((1, 2)).max())
        return multiplicity, min(
            float(multiplicity), spectral_norm(rows) / SAFETY, spectral_norm(columns) / SAFETY
        )

    def input_blocks(self, z: Tensor) -> list[Tensor]:
        """Return M(z_i)[p, c] = Σ_q S_c[p, q] z_i[q]."""
        return [torch.einsum("cpq,iq->ipc", self.pattern().to(z), z)]

    def signal_blocks(self, p: Tensor) -> list[Tensor]:
        """Return M'(p_i)[q, c] = Σ_p S_c[p, q] p_i[p]."""
        return [torch.einsum("cpq,ip->iqc", self.pattern().to(p), p)]


def every_pair(n: int) -> Sequence[tuple[int, int]]:
    """Return the pairs j < j' of n layers, counted from 0."""
    return list(combinations(range(n), 2))
