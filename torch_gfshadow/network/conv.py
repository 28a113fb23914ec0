"""Convolutions with zero padding, in one, two and three dimensions, with groups and dilation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)

from torch_gfshadow.network.norms import SAFETY


@dataclass(frozen=True)
class Conv:
    """A convolution with zero padding in one, two or three dimensions.

    Attributes:
        kernel: ``[C_out, C_in/groups, k…]``, the shape of the weight.
        size: Spatial shape of the input.
        stride: Per dimension.
        pads: (before, after) per dimension.
        dilation: Per dimension.
        groups: Number of groups.
    """

    kernel: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def n_dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.size)

    def norm(self, weight: Tensor) -> float:
        """Return the norm on a torus the padded input fits in; ours is a part of that operator.

        On the torus a stride s aliases s^n frequencies to one, so every coarse frequency is a
        small matrix C_out × (C_in · s^n) of its own.
        """
        extents = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel[2:], strict=True)]
        torus = [
            _up(n + left + right + extent, s)
            for n, (left, right), extent, s in zip(
                self.size, self.pads, extents, self.stride, strict=True
            )
        ]
        grids = weight.detach().double().new_zeros(*self.kernel[:2], *torus)
        spread = tuple(slice(0, e, d) for e, d in zip(extents, self.dilation, strict=True))
        grids[(slice(None), slice(None), *spread)] = weight.detach().double()
        # correlation instead of convolution: a conjugate, which no norm sees
        modes = torch.fft.fftn(grids, dim=tuple(range(2, 2 + self.n_dims)))
        out, inside = self.kernel[:2]
        for axis, s in enumerate(self.stride):
            # frequencies ξ, ξ + N/s, ξ + 2N/s, … meet: bring them side by side
            position = 2 + 2 * axis
            modes = modes.unflatten(position, (s, modes.shape[position] // s))
        fold = [2 + 2 * a for a in range(self.n_dims)]
        rest = [3 + 2 * a for a in range(self.n_dims)]
        blocks = modes.permute(*rest, 0, 1, *fold).reshape(
            -1, self.groups, out // self.groups, inside * math.prod(self.stride)
        )
        gram = blocks @ blocks.mH
        if gram.shape[-1] > blocks.shape[-1]:
            gram = blocks.mH @ blocks
        top = float(torch.linalg.eigvalsh(gram)[..., -1].max())
        return math.sqrt(max(top, 0.0) / math.prod(self.stride)) * SAFETY

    def sharing(self) -> tuple[int, float]:
        """Return (N, κ): κ is the least of N, the weights of a row and those of a column.

        With S_c the 0/1 pattern of weight c, ‖Σ_c w_c S_c‖² ≤ ‖w‖²·‖Σ_c S_c S_cᵀ‖, which is
        diagonal and counts the weights of each row; likewise for columns.
        """
        ones = torch.ones(1, 1, *self.size, dtype=torch.float64)
        reached = self.unfold_input(ones, 1)[0]
        out_size = self.out_size()
        hits = self.unfold_signal(torch.ones(1, 1, *out_size, dtype=torch.float64), 1)
        hit = max((float(h[0].sum(0).max()) for h in hits if h.numel()), default=0.0)
        multiplicity = int(reached.sum(1).max())
        row = self.kernel[1] * float(reached.sum(0).max())
        column = self.kernel[0] // self.groups * hit
        return multiplicity, min(float(multiplicity), row, column)

    def out_size(self) -> tuple[int, ...]:
        """Return the spatial shape of the output."""
        return tuple(
            (n + left + right - d * (k - 1) - 1) // s + 1
            for n, (left, right), d, k, s in zip(
                self.size, self.pads, self.dilation, self.kernel[2:], self.stride, strict=True
            )
        )

    def unfold_input(self, z: Tensor, channels: int) -> Tensor:
        """Return the patches of z, ``[S, channels · K, out positions]``."""
        flat = [edge for pair in reversed(self.pads) for edge in pair]
        padded = F.pad(z.reshape(len(z), channels, *self.size), flat)
        out = self.out_size()
        patches = z.new_empty(len(z), channels, len(self._taps()), *out)
        for index, tap in enumerate(self._taps()):
            window = tuple(
                slice(k * d, k * d + (n - 1) * s + 1, s)
                for k, d, n, s in zip(tap, self.dilation, out, self.stride, strict=True)
            )
            patches[:, :, index] = padded[(slice(None), slice(None), *window)]
        return patches.flatten(1, 2).flatten(2)

    def unfold_signal(self, p: Tensor, channels: int) -> list[Tensor]:
        """Return, per input position, the p that each tap reaches: ``[S, channels · K_r, …]``.

        A tap k reaches the padded positions k·dilation + stride·o, all of one residue r modulo
        the stride; so positions and taps fall into classes that never meet, one block each.
        """
        p = p.reshape(len(p), channels, *self.out_size())
        blocks = []
        for residue in product(*(range(s) for s in self.stride)):
            taps = [
                tap
                for tap in self._taps()
                if all(
                    k * d % s == r
                    for k, d, s, r in zip(tap, self.dilation, self.stride, residue, strict=True)
                )
            ]
            if taps:
                blocks.append(self._class(p, residue, taps))
        return blocks

    def _class(self, p: Tensor, residue: Sequence[int], taps: Sequence[Sequence[int]]) -> Tensor:
        """Return the block of one residue, cut to positions inside the unpadded input."""
        out = p.shape[2:]
        rows: list[int] = []
        inside: list[slice] = []
        for axis, r in enumerate(residue):
            n, (left, right), s = self.size[axis], self.pads[axis], self.stride[axis]
            rows.append(max((n + left + right - 1 - r) // s + 1, 0))
            inside.append(slice(max(-((r - left) // s), 0), (left + n - 1 - r) // s + 1))
        block = p.new_zeros(*p.shape[:2], len(taps), *rows)
        for index, tap in enumerate(taps):
            shifts = [
                (k * d - r) // s
                for k, d, s, r in zip(tap, self.dilation, self.stride, residue, strict=True)
            ]
            window = tuple(slice(q, q + n) for q, n in zip(shifts, out, strict=True))
            at: tuple[Any, ...] = (slice(None), slice(None), index, *window)
            block[at] = p
        for axis, part in enumerate(inside, start=3):
            block = block.narrow(axis, part.start, max(part.stop - part.start, 0))
        return block.flatten(1, 2).flatten(2)

    def input_blocks(self, z: Tensor) -> list[Tensor]:
        """Return the patches, one block per group: output channels do not mix."""
        inside = self.kernel[1]
        groups = z.reshape(len(z), self.groups, inside, *self.size).unbind(1)
        return [self.unfold_input(g, inside).mT for g in groups]

    def signal_blocks(self, p: Tensor) -> list[Tensor]:
        """Return what each tap reaches, blocks per group and residue: input channels do not mix."""
        out = self.kernel[0] // self.groups
        groups = p.reshape(len(p), self.groups, out, *self.out_size()).unbind(1)
        return [block.mT for g in groups for block in self.unfold_signal(g, out)]

    def _taps(self) -> list[tuple[int, ...]]:
        return list(product(*(range(k) for k in self.kernel[2:])))


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
