"""Convolutions with zero padding, in one, two and three dimensions, with groups and dilation."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        hit = self.unfold_signal(torch.ones(1, 1, *out_size, dtype=torch.float64), 1)[0]
        multiplicity = int(reached.sum(1).max())
        row = self.kernel[1] * float(reached.sum(0).max())
        column = self.kernel[0] // self.groups * float(hit.sum(0).max())
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
        taps = self._taps(z)
        flat = [edge for pair in reversed(self.pads) for edge in pair]
        padded = F.pad(z.reshape(-1, 1, *self.size), flat)
        conv = (F.conv1d, F.conv2d, F.conv3d)[self.n_dims - 1]
        patches = conv(padded, taps, stride=self.stride, dilation=self.dilation)
        return patches.reshape(len(z), channels * len(taps), -1)

    def unfold_signal(self, p: Tensor, channels: int) -> Tensor:
        """Return, per input position, the p that each tap reaches: ``[S, channels · K, in]``."""
        taps = self._taps(p).transpose(0, 1)
        conv: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.n_dims - 1]
        full = conv(
            p.reshape(-1, 1, *self.out_size()), taps, stride=self.stride, dilation=self.dilation
        )
        edges: list[int] = []  # cut the padding off; add what no window reached
        for n, (left, _), reached in reversed(
            list(zip(self.size, self.pads, full.shape[2:], strict=True))
        ):
            edges += [-left, n + left - reached]
        return F.pad(full, edges).reshape(len(p), channels * taps.shape[1], -1)

    def input_blocks(self, z: Tensor) -> list[Tensor]:
        """Return the patches, one block per group: output channels do not mix."""
        inside = self.kernel[1]
        groups = z.reshape(len(z), self.groups, inside, *self.size).unbind(1)
        return [self.unfold_input(g, inside).mT for g in groups]

    def signal_blocks(self, p: Tensor) -> list[Tensor]:
        """Return what each tap reaches, one block per group: input channels do not mix."""
        out = self.kernel[0] // self.groups
        groups = p.reshape(len(p), self.groups, out, *self.out_size()).unbind(1)
        return [self.unfold_signal(g, out).mT for g in groups]

    def _taps(self, like: Tensor) -> Tensor:
        """Return one kernel per tap, ``[K, 1, k…]``."""
        taps = math.prod(self.kernel[2:])
        eye = torch.eye(taps, dtype=like.dtype, device=like.device)
        return eye.reshape(taps, 1, *self.kernel[2:])


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
