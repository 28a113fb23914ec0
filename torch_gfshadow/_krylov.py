"""The search space of ``eigen``: vectors, their images under H, and what to remember of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_gfshadow.errors import CurvatureError, must

NEGLIGIBLE = 5e-3
"""An eigenvalue below this part of the spectral scale needs no relative accuracy of its own."""

_FAR = 1.5  # a stale direction is trusted from this distance on, in units of the end sought
_CLOSE = 0.2  # a neighbour this near, relatively, may have overtaken the end by next time


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep the block out of the caller's autocast and inference mode."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if device.type != "meta" and torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


@dataclass(frozen=True, slots=True, eq=False)
class Recycled:
    """What the next search may start from. Opaque to everyone else.

    Attributes:
        starts: Unit vectors near the two ends, shape ``[p, d]``.
        outliers: Orthonormal directions of the largest curvatures known, some of them stale,
            shape ``[q, d]``.
        curvatures: Their curvatures, shape ``[q]``, float64 on the CPU.
    """

    starts: Tensor
    outliers: Tensor
    curvatures: Tensor

    def to(self, dtype: torch.dtype, device: torch.device) -> Recycled:
        """Return the same on another device or in another precision."""
        starts, outliers = self.starts.to(device, dtype), self.outliers.to(device, dtype)
        return Recycled(starts, outliers, self.curvatures)


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

    def add(self, direction: Tensor) -> bool:
        """Add what ``direction`` has outside the space, at one product; False if it has nothing.

        Raises:
            ValueError: If the product does not have the shape of the vector.
            CurvatureError: If the product is not finite.
        """
        norm = float(torch.linalg.vector_norm(direction))
        if not 0.0 < norm < math.inf:
            return False
        vector, left = self._outside(direction / norm)
        if left < 100 * torch.finfo(vector.dtype).eps:
            return False
        vector, left = self._outside(vector / left)
        vector = vector / left
        image = self._matvec(vector).detach()
        self.products += 1
        if image.shape != vector.shape:
            fix = "Return H·v for a flat vector v."
            raise ValueError(
                must("matvec(v)", f"of shape {list(vector.shape)}", list(image.shape), fix)
            )
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
        values, mixes = torch.linalg.eigh(self._projected[: self.size, : self.size])
        return values, mixes

    def ends(self, values: Tensor, mixes: Tensor) -> tuple[Pair, Pair]:
        """Return the smallest and the largest Ritz pair; residuals come from V and W."""
        return self._pair(values, mixes, 0), self._pair(values, mixes, -1)

    def restart(self, mixes: Tensor, keep: int) -> None:
        """Shrink the space to the span of the ``keep`` outermost Ritz vectors at each end."""
        kept = torch.cat([mixes[:, :keep], mixes[:, -keep:]], dim=1)
        projected = kept.T @ self._projected[: self.size, : self.size] @ kept
        vectors = [self._mixed(self.vectors, mix) for mix in kept.T]
        images = [self._mixed(self.images, mix) for mix in kept.T]
        self.size = 2 * keep
        self._vectors[: self.size] = torch.stack(vectors)
        self._images[: self.size] = torch.stack(images)
        self._projected[: self.size, : self.size] = projected

    def recycle(self, known: Recycled | None, n_outliers: int) -> Recycled:
        """Condense the space, and what was ``known`` before, for the next search.

        The outliers are a Rayleigh–Ritz projection onto span(V) ⊕ span(Z), Z what the old
        outliers have outside V. VᵀHV and VᵀHZ = WᵀZ are exact and free; ZᵀHZ is the old one.
        """
        values, mixes = self.ritz()
        picked = {0, self.size - 1}
        for end, inner in ((0, 1), (-1, -2)):
            if self.size > 2 and _near(values[end], values[inner]):
                picked.add(inner % self.size)
        starts = self._small(mixes[:, sorted(picked)].T) @ self.vectors

        stale = self._outside_known(known)
        projected = self._projected[: self.size, : self.size]
        if known is not None and len(stale):
            overlap = (known.outliers @ stale.T).cpu().double()
            corner = overlap.T @ (known.curvatures[:, None] * overlap)
            side = (self.images @ stale.T).cpu().double()
            projected = torch.cat(
                [torch.cat([projected, side], dim=1), torch.cat([side.T, corner], dim=1)]
            )
        curvatures, mixes = torch.linalg.eigh(projected)
        largest = curvatures.abs().argsort(descending=True)[:n_outliers]
        mix = self._small(mixes[:, largest].T)
        outliers = mix[:, : self.size] @ self.vectors + mix[:, self.size :] @ stale
        return Recycled(starts, outliers, curvatures[largest])

    def remainder(self) -> float:
        """Return ‖(I − VVᵀ)w‖ of the newest image w: Lanczos' next off-diagonal entry."""
        return self._outside(self._images[self.size - 1])[1]

    def off_diagonals(self) -> list[float]:
        """Return Lanczos' off-diagonal entries so far (meaningful before a restart only)."""
        inner = self._projected[: self.size, : self.size].diagonal(-1).abs().tolist()
        return [*inner, self.remainder()]

    def _pair(self, values: Tensor, mixes: Tensor, index: int) -> Pair:
        value = float(values[index])
        vector = self._mixed(self.vectors, mixes[:, index])
        residual = self._mixed(self.images, mixes[:, index]) - value * vector
        return Pair(value, vector, residual, float(torch.linalg.vector_norm(residual)))

    def _mixed(self, rows: Tensor, mix: Tensor) -> Tensor:
        """Return Σ mix_i row_i, as a matrix-vector product: TensorFloat-32 spares those."""
        return torch.mv(rows.T, self._small(mix))

    def _outside(self, vector: Tensor) -> tuple[Tensor, float]:
        """Return (I − VVᵀ)v and its norm."""
        left = vector - self.vectors.T @ (self.vectors @ vector)
        return left, float(torch.linalg.vector_norm(left))

    def _outside_known(self, known: Recycled | None) -> Tensor:
        """Return an orthonormal basis of what the old outliers have outside V."""
        if known is None or not len(known.outliers):
            return self._vectors[:0]
        left = known.outliers
        for _ in range(2):
            left = left - (left @ self.vectors.T) @ self.vectors
        sizes, turns = torch.linalg.eigh((left @ left.T).cpu().double())
        kept = sizes > 1e-3  # less than that is rounding, magnified
        return self._small((turns[:, kept] / sizes[kept].sqrt()).T) @ left

    def _small(self, matrix: Tensor) -> Tensor:
        """Move a small float64 matrix to where the vectors are."""
        return matrix.to(self._vectors.dtype).to(self._vectors.device)


def damped(pair: Pair, known: Recycled | None, scale: float) -> Tensor:
    """Return the residual with outlying directions shrunk, as (H − θ)⁻¹ would shrink them.

    A direction y of curvature c far across the spectrum enters the residual |c − θ| times its
    weight in the error, against about |θ| for the bulk around 0: without damping it would take
    one product per outlier to remove them.
    """
    if known is None or not len(known.outliers):
        return pair.residual
    unit = max(abs(pair.value), NEGLIGIBLE * scale)
    distances = (known.curvatures - pair.value).abs()
    if unit == 0.0:
        return pair.residual
    cut = torch.where(distances >= _FAR * unit, 1.0 - unit / distances, 0.0)
    cut = cut.to(pair.residual.dtype).to(pair.residual.device)
    return pair.residual - known.outliers.T @ (cut * (known.outliers @ pair.residual))


def probabilistic_lower_bound(
    values: Tensor, off_diagonals: Sequence[float], dim: int, failure_probability: float
) -> float:
    """Bound the smallest eigenvalue from below after k steps of Lanczos from a random vector.

    The Lanczos polynomial p_k(t) = Π(t − θ_i) / Πβ_j maps the start v to the unit vector
    v_{k+1} = p_k(H)v, so |γ·p_k(λ_min)| ≤ 1 with γ the component of v along the eigenvector.
    For v uniform on the sphere in R^d, P(|γ| < δ) ≤ 2cδ, c = Γ(d/2) / (√π Γ((d−1)/2)). As |p_k|
    grows monotonically below its roots, λ_min ≥ t where |p_k(t)| = 1/δ.
    """
    lowest = float(values[0])
    if min(off_diagonals) <= 0.0:
        return lowest
    d = max(dim, 3)  # for d = 2 the density is not largest at 0; that of d = 3 bounds it
    log_c = math.lgamma(d / 2) - math.lgamma((d - 1) / 2) - 0.5 * math.log(math.pi)
    log_delta = math.log(failure_probability) - math.log(2) - log_c
    target = sum(math.log(beta) for beta in off_diagonals) - log_delta
    gaps = [value - lowest for value in values.tolist()]
    # Every factor exceeds the distance x = θ_1 − t, so x ≤ exp(target / k).
    low, high = 0.0, math.exp(target / len(gaps))
    for _ in range(100):
        middle = 0.5 * (low + high)
        if middle > 0.0 and sum(math.log(gap + middle) for gap in gaps) < target:
            low = middle
        else:
            high = middle
    return lowest - high


def _near(end: Tensor, inner: Tensor) -> bool:
    return bool((inner - end).abs() <= _CLOSE * end.abs())
