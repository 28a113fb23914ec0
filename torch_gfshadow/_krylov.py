"""The search space of ``eigen``: vectors, their images under H, and their Ritz pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_gfshadow.errors import CurvatureError, must

NEGLIGIBLE = 5e-3
"""An eigenvalue below this part of the spectral scale needs no relative accuracy of its own."""


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep the block out of the caller's autocast and inference mode."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if device.type != "meta" and torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def norm(vector: Tensor) -> float:
    """Return ‖v‖₂ of a vector whose squares may not be representable.

    Float32 loses the square of 10⁻²³ and of 10²⁰; a residual of 0 that is none would pass for
    convergence.
    """
    plain = float(torch.linalg.vector_norm(vector))
    info = torch.finfo(vector.dtype)
    if 1e4 * math.sqrt(info.tiny) < plain < math.inf:
        return plain
    largest = float(vector.abs().max())
    if not 0.0 < largest < math.inf:
        return largest
    return largest * float(torch.linalg.vector_norm(vector / largest))


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A Ritz pair: value θ, unit vector x, and r = Hx − θx."""

    value: float
    vector: Tensor
    residual: Tensor
    residual_norm: float


class Space:
    """An orthonormal basis V of the search space, kept with its images W = HV.

    Orthogonality is enforced twice per vector and the projected matrix VᵀHV is float64 on the
    CPU, so that float32 vectors lose nothing but their own rounding.

    Args:
        matvec: v → Hv.
        dim: Dimension d.
        capacity: Largest number of basis vectors.
        dtype: Of the vectors.
        device: Of the vectors.
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.dim, self.capacity, self.size, self.products = dim, capacity, 0, 0
        self.dtype, self.device = dtype, device
        self._matvec = matvec
        self._vectors = torch.empty(capacity, dim, dtype=dtype, device=device)
        self._images = torch.empty_like(self._vectors)
        self._projected = torch.zeros(capacity, capacity, dtype=torch.float64, device="cpu")

    @property
    def vectors(self) -> Tensor:
        """V, one vector per row, shape ``[size, d]``."""
        return self._vectors[: self.size]

    @property
    def images(self) -> Tensor:
        """HV, one image per row, shape ``[size, d]``."""
        return self._images[: self.size]

    @property
    def projected(self) -> Tensor:
        """VᵀHV, shape ``[size, size]``, float64 on the CPU."""
        return self._projected[: self.size, : self.size]

    def add(self, direction: Tensor) -> bool:
        """Add what ``direction`` has outside the space, at one product; False if it has nothing.

        Raises:
            ValueError: If the product does not have the shape of the vector, or is not real.
            CurvatureError: If the product is not finite.
        """
        length = norm(direction)
        if not 0.0 < length < math.inf:
            return False
        vector, left = self.outside(direction / length)
        if left < 100 * torch.finfo(vector.dtype).eps:
            return False
        vector, left = self.outside(vector / left)
        vector = vector / left
        image = self._matvec(vector).detach()
        self.products += 1
        if image.shape != vector.shape:
            fix = "Return H·v for a flat vector v."
            raise ValueError(
                must("matvec(v)", f"of shape {list(vector.shape)}", list(image.shape), fix)
            )
        if not image.is_floating_point():
            fix = "A Hessian is real: return H·v as floating-point numbers."
            raise ValueError(must("matvec(v)", "real floating-point", image.dtype, fix))
        k = self.size
        self._vectors[k] = vector
        self._images[k] = image
        self.size = k + 1
        column = (self.vectors @ self._images[k]).cpu().double()
        if not bool(column.isfinite().all()):
            fix = "Check that loss and gradient are finite, and twice differentiable, at this θ."
            raise CurvatureError(
                must("H·v", "finite", f"NaN or inf in product {self.products}", fix)
            )
        self._projected[k, : k + 1] = column
        self._projected[: k + 1, k] = column
        return True

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Return the Ritz values, ascending, and the mixes of V that give the Ritz vectors."""
        values, mixes = torch.linalg.eigh(self.projected)
        return values, mixes

    def ends(self, values: Tensor, mixes: Tensor) -> tuple[Pair, Pair]:
        """Return the smallest and the largest Ritz pair; residuals come from V and W."""
        low, high = float(values[0]), float(values[-1])
        return self._pair(low, mixes[:, 0]), self._pair(high, mixes[:, -1])

    def restart(self, mixes: Tensor, keep: int, also: Tensor) -> None:
        """Shrink the space to the ``keep`` outermost Ritz vectors at each end, and to a few more.

        With the ends' Ritz vectors of one step before, ``also`` (their mixes of the space as it
        was), little of the whole space's convergence is lost: a conjugate gradient step needs no
        more of the past either (Stathopoulos & Saad 1998).
        """
        kept = torch.cat([mixes[:, :keep], mixes[:, -keep:]], dim=1)
        for mix in also.T:
            more = torch.zeros(self.size, dtype=torch.float64, device="cpu")
            more[: len(mix)] = mix
            for _ in range(2):
                more = more - kept @ (kept.T @ more)
            if float(more.norm()) > 1e-8 and kept.shape[1] < self.capacity - 1:
                kept = torch.cat([kept, (more / more.norm())[:, None]], dim=1)
        projected = kept.T @ self.projected @ kept
        vectors = [self._mixed(self.vectors, mix) for mix in kept.T]
        images = [self._mixed(self.images, mix) for mix in kept.T]
        self.size = kept.shape[1]
        self._vectors[: self.size] = torch.stack(vectors)
        self._images[: self.size] = torch.stack(images)
        self._projected[: self.size, : self.size] = projected

    def remainder(self) -> float:
        """Return ‖(I − VVᵀ)w‖ of the newest image w: Lanczos' next off-diagonal entry."""
        return self.outside(self._images[self.size - 1])[1]

    def off_diagonals(self) -> list[float]:
        """Return Lanczos' off-diagonal entries so far (meaningful before a restart only)."""
        inner = self.projected.diagonal(-1).abs().tolist()
        return [*inner, self.remainder()]

    def _pair(self, value: float, mix: Tensor) -> Pair:
        vector = self._mixed(self.vectors, mix)
        residual = self._mixed(self.images, mix) - value * vector
        return Pair(value, vector, residual, norm(residual))

    def _mixed(self, rows: Tensor, mix: Tensor) -> Tensor:
        """Return Σ mix_i row_i, as a matrix-vector product: TensorFloat-32 spares those."""
        return torch.mv(rows.T, self.small(mix))

    def outside(self, vector: Tensor) -> tuple[Tensor, float]:
        """Return (I − VVᵀ)v and its norm."""
        left = vector - self.vectors.T @ (self.vectors @ vector)
        return left, norm(left)

    def small(self, matrix: Tensor) -> Tensor:
        """Move a small float64 matrix to where the vectors are."""
        return matrix.to(self.dtype).to(self.device)
