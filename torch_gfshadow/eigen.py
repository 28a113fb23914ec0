"""Eigen: both ends of a Hessian's spectrum from one search space, each with its residual.

Cold, the search is Lanczos from a random vector, which comes with a probabilistic lower bound on
λ_min. Warm, it starts from the eigenvectors of the previous point and adds residuals, the easier
end first (Davidson). In both, directions of known curvature are weighted in the residual by their
distance from the end in question: on networks the few large outliers of the Hessian would cost
up to half of all products otherwise. They come from the previous point and, at a restart, from
the search space itself. Read next: ``_krylov``, the search space; ``_recycled``, what is handed
on; ``probes``, which report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_gfshadow._krylov import NEGLIGIBLE, Pair, Space, full_precision
from torch_gfshadow._lower_bound import probabilistic_lower_bound
from torch_gfshadow._recycled import Recycled, condense, damped
from torch_gfshadow.errors import must

FAILURE_PROBABILITY = 0.01
"""Chance, over the random start, that ``lower_bound`` of a cold start lies above λ_min."""

_KEEP = 3  # Ritz vectors that survive a restart, at each end


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Both ends of a symmetric operator's spectrum, as far as they were resolved.

    Ritz values lie inside the spectrum: the true λ_min is at most ``lambda_min`` and the true
    λ_max at least ``lambda_max``. *Some* eigenvalue lies within each residual of its value.

    Attributes:
        lambda_min: Smallest Ritz value.
        lambda_max: Largest Ritz value.
        residual_min: ‖Hv − λ_min v‖₂ for ``vector_min``.
        residual_max: ‖Hv − λ_max v‖₂ for ``vector_max``.
        vector_min: Unit Ritz vector of ``lambda_min``, shape ``[d]``.
        vector_max: Unit Ritz vector of ``lambda_max``, shape ``[d]``.
        n_products: Products with H spent.
        converged: Whether both residuals met the tolerance.
        lower_bound: Lower bound on the true λ_min; how far to trust it says the next one.
        failure_probability: Chance that ``lower_bound`` is wrong; 0 if the whole space was
            searched; None after a warm start, where ``lower_bound`` = λ_min − residual is an
            estimate: no random vector vouches for directions the search did not enter.
        age: Number of warm starts since the last cold one.
        recycled: What a search at the next point takes from this one (pass it as ``start``).
    """

    lambda_min: float
    lambda_max: float
    residual_min: float
    residual_max: float
    vector_min: Tensor = field(repr=False)
    vector_max: Tensor = field(repr=False)
    n_products: int
    converged: bool
    lower_bound: float
    failure_probability: float | None = None
    age: int = 0
    recycled: Recycled | None = field(default=None, repr=False)


def extreme_eigenpairs(
    matvec: Callable[[Tensor], Tensor],
    dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    start: Spectrum | Sequence[Tensor] = (),
    tol: float = 0.01,
    max_products: int = 100,
    max_basis: int = 24,
    n_outliers: int = 32,
    seed: int = 0,
) -> Spectrum:
    """Compute the smallest and the largest eigenpair of a symmetric operator H.

    Stops when both ends satisfy, with the spectral scale s = max(|λ_min|, |λ_max|)::

        ‖Hv − λv‖ ≤ tol · max(|λ|, 0.005·s)        (or 16 machine epsilons of s)

    One product with H per vector added to the search space. Memory: 2·``max_basis`` +
    2·``n_outliers`` vectors of length d while it runs, ``n_outliers`` + 6 in the result. The
    global random state is neither read nor moved.

    Args:
        matvec: v → Hv on vectors of shape ``[dim]``.
        dim: Dimension d ≥ 1.
        dtype: Of the vectors, float32 or float64; the projected matrix is float64 always.
        device: Of the vectors.
        start: The spectrum at a nearby point, or vectors close to the extreme eigenvectors; empty
            for a cold start from a random vector. A warm start can stay on an eigenvector that
            is no longer extreme, so start cold now and then (``Spectrum.age``).
        tol: Relative residual asked for.
        max_products: Largest number of products; the result then says ``converged=False``.
        max_basis: Largest number of search vectors.
        n_outliers: Largest number of outlying directions to remember.
        seed: Of the random vectors, drawn on the CPU: the same on every device and rank.

    Returns:
        The two ends. After a cold start ``lower_bound`` comes from the Lanczos polynomial, fails
        with probability ``FAILURE_PROBABILITY`` over the random start, and is sharper than the
        a-priori bound of Kuczyński & Woźniakowski (1992) because it uses the Ritz values found.

    Raises:
        ValueError: If an argument is out of range, or a start vector has another length.
        CurvatureError: If a product is not finite.

    References:
        van Dorsselaer, Hochstenbach & van der Vorst, "Computing probabilistic bounds for extreme
        eigenvalues of symmetric matrices with the Lanczos method", SIAM J. Matrix Anal. Appl. 22
        (2000); Stathopoulos & Saad, "Restarting techniques for the (Jacobi-)Davidson symmetric
        eigenvalue methods", ETNA 7 (1998). Damping by recycled outliers is derived here.

    Example:
        >>> h = torch.tensor([-1.0, 0.0, 3.0], dtype=torch.float64)
        >>> ends = extreme_eigenpairs(lambda v: h * v, 3, dtype=h.dtype, device="cpu")
        >>> round(ends.lambda_min, 9), round(ends.lambda_max, 9)
        (-1.0, 3.0)
    """
    _check(dim, dtype, tol, max_products, max_basis, n_outliers)
    device = torch.device(device)
    age = start.age if isinstance(start, Spectrum) else 0
    with full_precision(device):
        space = Space(matvec, dim, min(max_basis, dim), dtype, device)
        starts, known = _unpack(start, dim, dtype, device)
        return _search(space, starts, known, age, tol, max_products, n_outliers, seed)


def _search(
    space: Space,
    starts: Sequence[Tensor],
    known: Recycled | None,
    age: int,
    tol: float,
    max_products: int,
    n_outliers: int,
    seed: int,
) -> Spectrum:
    generator = torch.Generator("cpu").manual_seed(seed)
    for vector in starts[: min(max_products, space.capacity)]:
        space.add(vector)
    cold = space.size == 0
    if cold:
        space.add(_random(space, generator))

    lanczos, bound = cold, -math.inf
    while True:
        values, mixes = space.ritz()
        low, high = space.ends(values, mixes)
        scale = max(abs(low.value), abs(high.value))
        worst_low, worst_high = (_excess(pair, scale, tol) for pair in (low, high))
        converged = max(worst_low, worst_high) <= 1.0
        done = converged or space.products >= max_products or space.size == space.dim
        full = space.size == space.capacity
        if lanczos and (done or full):
            beta = space.off_diagonals()
            bound = probabilistic_lower_bound(values, beta, space.dim, FAILURE_PROBABILITY)
        if done:
            break
        if full:
            known = condense(space, known, n_outliers)
            space.restart(mixes, _KEEP)
            lanczos = False
        # The easier end first: a budget that ends early then leaves one end short, not both.
        easier = low if worst_high <= 1.0 or 1.0 < worst_low <= worst_high else high
        direction = space.images[-1] if lanczos else damped(easier, known, scale)
        if not (space.add(direction) or space.add(easier.residual)):
            # The space is invariant up to rounding: look elsewhere.
            bound = low.value if lanczos else bound
            lanczos = False
            if not space.add(_random(space, generator)):
                break

    exhausted = space.size == space.dim
    estimate = low.value - low.residual_norm
    return Spectrum(
        lambda_min=low.value,
        lambda_max=high.value,
        residual_min=low.residual_norm,
        residual_max=high.residual_norm,
        vector_min=low.vector / torch.linalg.vector_norm(low.vector),
        vector_max=high.vector / torch.linalg.vector_norm(high.vector),
        n_products=space.products,
        converged=converged,
        lower_bound=min(bound, low.value) if cold and not exhausted else estimate,
        failure_probability=0.0 if exhausted else FAILURE_PROBABILITY if cold else None,
        age=0 if cold or exhausted else age + 1,
        recycled=condense(space, known, n_outliers),
    )


def _excess(pair: Pair, scale: float, tol: float) -> float:
    """Return the residual in units of what is allowed."""
    rounding = 16 * torch.finfo(pair.residual.dtype).eps * scale
    allowed = max(tol * max(abs(pair.value), NEGLIGIBLE * scale), rounding)
    if pair.residual_norm == 0.0:
        return 0.0
    return pair.residual_norm / allowed if allowed > 0.0 else math.inf  # values underflowed


def _random(space: Space, generator: torch.Generator) -> Tensor:
    # On the CPU whatever the default device is, so that the vector is the same everywhere.
    vector = torch.randn(space.dim, dtype=space.dtype, generator=generator, device="cpu")
    return vector.to(space.device)


def _unpack(
    start: Spectrum | Sequence[Tensor], dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Sequence[Tensor], Recycled | None]:
    """Return the start vectors and what is known of the outliers."""
    known = None
    if isinstance(start, Spectrum):
        if start.lambda_min == start.lambda_max == 0.0:
            return (), None  # nothing was learnt: a random vector is as good, and vouches for more
        known = start.recycled
        start = (start.vector_min, start.vector_max) if known is None else tuple(known.starts)
    for index, vector in enumerate(start):
        if vector.shape != (dim,):
            got = f"of shape {list(vector.shape)}"
            fix = "Start cold after the model has changed."
            raise ValueError(must(f"start[{index}]", f"of shape [{dim}]", got, fix))
    starts = [vector.detach().to(device, dtype) for vector in start]
    return starts, None if known is None else known.to(dtype, device)


def _check(
    dim: int, dtype: torch.dtype, tol: float, max_products: int, max_basis: int, n_outliers: int
) -> None:
    if dim < 1:
        raise ValueError(must("dim", "at least 1", dim, "Pass the number of parameters."))
    if dtype not in (torch.float32, torch.float64):
        fix = "Search in float32 and cast inside matvec."
        raise ValueError(must("dtype", "torch.float32 or torch.float64", dtype, fix))
    if not 0.0 < tol < math.inf:
        raise ValueError(must("tol", "positive and finite", tol, "Pass a relative residual, 0.01."))
    if max_products < 1:
        raise ValueError(must("max_products", "at least 1", max_products, "Pass 100, say."))
    if max_basis < 2 * _KEEP + 2:
        fix = "A restart needs room to go on from."
        raise ValueError(must("max_basis", f"at least {2 * _KEEP + 2}", max_basis, fix))
    if n_outliers < 0:
        raise ValueError(must("n_outliers", "at least 0", n_outliers, "Pass 0 to remember none."))
