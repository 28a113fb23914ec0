"""Eigen: both ends of a Hessian's spectrum from one search space, each with its residual.

Cold, the search is Lanczos from a random vector, which comes with a probabilistic lower bound on
λ_min. Warm, it starts from the eigenvectors of the previous point, turned on as they turned
before, and adds residuals, the easier end first (Davidson). In both, directions of known curvature
are weighted in the residual by their distance from the end in question: on networks the few large
outliers of the Hessian would cost up to half of all products otherwise. They come from the
previous point and, at a restart, from the search space itself. Read next: ``_search``, the loop;
``_recycled``, what is handed on; ``probes``, which report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_gfshadow._krylov import Space, full_precision
from torch_gfshadow._recycled import Recycled, condense
from torch_gfshadow._search import FAILURE_PROBABILITY, KEEP, Start, search
from torch_gfshadow.errors import must


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
        age: Number of warm starts since the last cold or fresh one.
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
    n_outliers: int = 30,
    seed: int = 0,
    fresh: bool = False,
) -> Spectrum:
    """Compute the smallest and the largest eigenpair of a symmetric operator H.

    Stops when both ends satisfy, with the spectral scale s = max(|λ_min|, |λ_max|)::

        ‖Hv − λv‖ ≤ tol · max(|λ|, 0.005·s)        (or 16 machine epsilons of s)

    One product with H per vector added to the search space. Memory: 2·``max_basis`` +
    2·``n_outliers`` vectors of length d while it runs, ``n_outliers`` + 8 in the result. The
    global random state is neither read nor moved.

    Args:
        matvec: v → Hv on vectors of shape ``[dim]``.
        dim: Dimension d ≥ 1.
        dtype: Of the vectors, float32 or float64; the projected matrix is float64 always.
        device: Of the vectors.
        start: The spectrum at a nearby point, or vectors close to the extreme eigenvectors; empty
            for a cold start from a random vector. A warm start can stay on an eigenvector that
            is no longer extreme, so ask for a ``fresh`` one now and then (``Spectrum.age``).
        tol: Relative residual asked for.
        max_products: Largest number of products; the result then says ``converged=False``.
        max_basis: Largest number of search vectors.
        n_outliers: Largest number of outlying directions to remember.
        seed: Of the random vectors, drawn on the CPU: the same on every device and rank.
        fresh: Begin with Lanczos from a random vector although there is a ``start``, which joins
            when the basis is full: the lower bound of a cold start, without what it costs to
            find again what is known.

    Returns:
        The two ends. After a cold or a fresh start ``lower_bound`` comes from the Lanczos
        polynomial, fails with probability ``FAILURE_PROBABILITY`` over the random start, and is
        sharper than the a-priori bound of Kuczyński & Woźniakowski (1992) because it uses the
        Ritz values found.

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
    earlier = start.recycled if isinstance(start, Spectrum) else None
    with full_precision(device):
        space = Space(matvec, dim, min(max_basis, dim), dtype, device)
        begin = _unpack(start, fresh, dim, dtype, device)
        found = search(space, begin, tol, max_products, n_outliers, seed)
        recycled = condense(space, found.known, n_outliers)
        earlier = None if earlier is None else earlier.to(dtype, device)
        recycled = recycled.following(earlier)
        low, high = found.low, found.high
        vectors = [end.vector / torch.linalg.vector_norm(end.vector) for end in (low, high)]

    exhausted = space.size == space.dim
    bound = None if exhausted else found.bound
    age = start.age + 1 if isinstance(start, Spectrum) else 1
    return Spectrum(
        lambda_min=low.value,
        lambda_max=high.value,
        residual_min=low.residual_norm,
        residual_max=high.residual_norm,
        vector_min=vectors[0],
        vector_max=vectors[1],
        n_products=space.products,
        converged=found.converged,
        lower_bound=low.value - low.residual_norm if bound is None else bound,
        failure_probability=0.0 if exhausted else None if bound is None else FAILURE_PROBABILITY,
        age=0 if exhausted or bound is not None else age,
        recycled=recycled,
    )


def _unpack(
    start: Spectrum | Sequence[Tensor],
    fresh: bool,
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Start:
    """Return the start vectors and what is known of the outliers."""
    known: Recycled | None = None
    left: tuple[list[Tensor], list[Tensor]] = ([], [])
    if isinstance(start, Spectrum):
        if start.lambda_min == start.lambda_max == 0.0:
            return Start()  # nothing was learnt: a random vector is as good, and vouches for more
        if start.recycled is None:
            start = start.vector_min, start.vector_max
        else:
            known = start.recycled.to(dtype, device)
            start, left = known.ahead()
    for index, vector in enumerate(start):
        if vector.shape != (dim,):
            got = f"of shape {list(vector.shape)}"
            fix = "Start cold after the model has changed."
            raise ValueError(must(f"start[{index}]", f"of shape [{dim}]", got, fix))
    return Start([vector.detach().to(device, dtype) for vector in start], left, known, fresh)


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
    if max_basis < 2 * KEEP + 2:
        fix = "A restart needs room to go on from."
        raise ValueError(must("max_basis", f"at least {2 * KEEP + 2}", max_basis, fix))
    if n_outliers < 0:
        raise ValueError(must("n_outliers", "at least 0", n_outliers, "Pass 0 to remember none."))
