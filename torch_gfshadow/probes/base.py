"""What a probe is, and the point it measures at. Next: lambda_min.py, then any other member."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from torch_gfshadow.curvature import Curvature
from torch_gfshadow.eigen import Spectrum, extreme_eigenpairs
from torch_gfshadow.errors import CurvatureError, must
from torch_gfshadow.objective import Objective
from torch_gfshadow.products import HessianProduct

REFRESH = 32
"""Warm starts after which a search begins with a random vector again."""
_WITHOUT_END = 40
"""Products for a Jacobian that is nearly symmetric: residuals keep what is not, at any price."""


class Point:
    """The iterate θ_k with what probes derive from it, each derived once and shared.

    Nothing is evaluated before it is asked for. The Hessian's graphs live as long as the point.

    Args:
        step: Steps taken, k.
        time: Flow time t_k.
        step_size: Step size η; None or 0 if there is none yet.
        theta: Flat parameters, shape ``[d]``.
        objective: f.
        curvature: Its Hessian products.
        previous: Spectrum at an earlier point, to start from.
        seed: Of the random start of a spectrum without an earlier one, with the step.
    """

    def __init__(
        self,
        *,
        step: int,
        time: float,
        step_size: float | None,
        theta: Tensor,
        objective: Objective,
        curvature: Curvature,
        previous: Spectrum | None = None,
        seed: int = 0,
    ) -> None:
        self.step = step
        self.time = time
        self.step_size = step_size
        self.theta = theta
        self.objective = objective
        self._curvature = curvature
        self._previous = previous
        self._seed = seed
        self._hessian: HessianProduct | None = None
        self._loss_and_grad: tuple[float, Tensor] | None = None
        self._spectrum: Spectrum | None = None
        self._asked = (float("inf"), 0)
        self._failure: CurvatureError | None = None

    @property
    def hessian(self) -> HessianProduct:
        """The map v → ∇²f(θ)v, linearised at the first use.

        Raises:
            CurvatureError: If no backend is right for the model.
        """
        if self._hessian is None:
            self._hessian = self._curvature.at(self.theta, "probes")
        return self._hessian

    @property
    def linearised(self) -> bool:
        """Whether the Hessian is at hand, so that :attr:`loss` and :attr:`grad` come with it."""
        return self._hessian is not None

    @property
    def loss(self) -> float:
        """f(θ): a by-product of the linearisation, or else one gradient."""
        return self._values()[0]

    @property
    def grad(self) -> Tensor:
        """∇f(θ), shape ``[d]``; costs as :attr:`loss`."""
        return self._values()[1]

    @property
    def spectrum_known(self) -> bool:
        """Whether :meth:`spectrum` was computed here, so that asking again costs nothing."""
        return self._spectrum is not None

    def spectrum(self, tol: float = 0.01, max_products: int = 100) -> Spectrum:
        """Return both ends of the Hessian's spectrum, computed once for all probes.

        It starts from the previous point's, and at every ``REFRESH``-th point from a random
        vector, too: only that can find an end the warm starts have lost sight of. Asking for
        more than was asked before goes on from what is there.

        Args:
            tol: Relative residual asked for.
            max_products: Largest number of Hessian products for it.

        Raises:
            CurvatureError: If the products are not finite, no backend is right, or the gradient
                is not that of a function.
        """
        if self._failure is not None:
            raise self._failure
        known = self._spectrum
        if known is not None and not self._asks_more(known, tol, max_products):
            return known
        start = known or self._previous
        if start is not None and len(start.vector_min) != len(self.theta):
            start = None
        if known is not None and known.recycled is not None:
            start = replace(known, recycled=known.recycled.still())
        layout = self.objective.layout
        try:
            most = max_products if self.hessian.symmetric else min(max_products, _WITHOUT_END)
            found = extreme_eigenpairs(
                self.hessian.eigen,
                layout.dim,
                dtype=torch.promote_types(layout.dtype, torch.float32),
                device=layout.device,
                start=() if start is None else start,
                tol=tol,
                max_products=most,
                seed=self._seed + self.step,  # each random start a new chance
                fresh=known is None and start is not None and start.age >= REFRESH,
            )
        except CurvatureError as failure:
            self._failure = failure
            raise
        if not self.hessian.symmetric:
            below = found.lambda_min - found.residual_min
            found = replace(found, lower_bound=below, failure_probability=None)
        elif known is not None and known.failure_probability is not None:
            # The random start vouched for this very Hessian, and Ritz values only improve.
            found = replace(
                found,
                lower_bound=min(known.lower_bound, found.lambda_min),
                failure_probability=known.failure_probability,
                age=known.age,
            )
        if known is not None and known.recycled is not None and found.recycled is not None:
            now, last = found.recycled, known.recycled
            found = replace(found, recycled=replace(now, before=last.before, turns=last.turns))
        self._asked = (tol, max_products)
        self._spectrum = found
        return found

    def _asks_more(self, known: Spectrum, tol: float, max_products: int) -> bool:
        asked_tol, asked_products = self._asked
        exhausted = known.failure_probability == 0.0
        tighter = tol < asked_tol and (known.converged or max_products > asked_products)
        longer = not known.converged and max_products > asked_products
        return not exhausted and (tighter or longer)

    def _values(self) -> tuple[float, Tensor]:
        if self._hessian is not None:
            return self._hessian.loss, self._hessian.grad
        if self._loss_and_grad is None:
            self._loss_and_grad = self.objective.loss_and_grad(self.theta, "probes")
        return self._loss_and_grad


@runtime_checkable
class Probe(Protocol):
    """A measurement at the iterate. It may ask the point for anything and change nothing.

    Attributes:
        name: Under which the tracker files what is not a field of the record.
        every: Measure only at steps that are multiples of this; None for every probed step.
    """

    name: str
    every: int | None

    def measure(self, point: Point) -> Mapping[str, Any]:
        """Return what was measured.

        Keys that are fields of ``Record`` go there, others to ``Record.extras[name]``.

        Raises:
            CurvatureError: If it cannot be measured here: no number is better than a wrong one.
        """


class SpectrumProbe:
    """Options of the probes that read the extreme eigenpairs.

    Args:
        tol: Relative residual asked for.
        max_products: Largest number of Hessian products per point, for both ends together.
        every: Measure only at multiples of this step.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, tol: float | str = 0.01, max_products: int = 100, every: int | None = None
    ) -> None:
        self.tol, self.max_products = checked_solve(tol, max_products)
        self.every = checked_every(every)


def checked_every(every: int | None) -> int | None:
    """Return ``every`` if it is a period.

    Raises:
        ValueError: If it is smaller than 1.
    """
    if every is not None and every < 1:
        fix = "Pass None to measure whenever probes are due."
        raise ValueError(must("every", "at least 1", every, fix))
    return every


def checked_solve(tol: float | str, max_products: int) -> tuple[float, int]:
    """Return the options of an eigenvalue probe; a string is what follows ``"name:"``.

    Raises:
        ValueError: If one of them is out of range.
    """
    try:
        number = float(tol)
    except ValueError:
        number = float("nan")
    if not 0.0 < number < float("inf"):
        fix = "Pass a relative residual, 0.01."
        raise ValueError(must("tol", "positive and finite", repr(tol), fix))
    if max_products < 1:
        raise ValueError(must("max_products", "at least 1", max_products, "Pass 100, say."))
    return number, max_products
