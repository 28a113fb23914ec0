"""The trace of the Hessian by random signs (Hutchinson)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from torch_gfshadow.errors import CurvatureError, must
from torch_gfshadow.probes.base import Point, checked_every


class Trace:
    """tr ∇²f(θ_k) as the mean of zᵀHz over random sign vectors z, with its standard error.

    The signs are the same at every step, so that a curve of traces moves with the Hessian and
    not with the sampling. One Hessian product per sample.

    Args:
        samples: Number m of sign vectors, at least 2.
        seed: Of the signs, drawn from a generator of their own.
        every: Measure only at multiples of this step.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Hutchinson, Commun. Stat. Simul. Comput. 19 (1990) 433.
    """

    name = "trace"

    def __init__(self, samples: int | str = 8, seed: int = 0, every: int | None = None) -> None:
        if not str(samples).strip().isdecimal() or int(samples) < 2:
            fix = "The standard error needs two samples or more."
            raise ValueError(must("samples", "an integer of at least 2", repr(samples), fix))
        self.samples = int(samples)
        self.seed = seed
        self.every = checked_every(every)

    def measure(self, point: Point) -> Mapping[str, Any]:
        """Return ``value``, ``standard_error`` (sample deviation / √m) and ``samples``.

        Raises:
            CurvatureError: If a product is not finite.
        """
        layout = point.objective.layout
        dtype = torch.promote_types(layout.dtype, torch.float32)
        generator = torch.Generator("cpu").manual_seed(self.seed)
        forms = []
        for _ in range(self.samples):
            signs = torch.randint(
                0, 2, (layout.dim,), generator=generator, dtype=torch.int8, device="cpu"
            )
            z = (2 * signs - 1).to(layout.device).to(dtype)
            forms.append(float(torch.dot(z, point.hessian(z).to(dtype))))
        mean = math.fsum(forms) / self.samples
        if not math.isfinite(mean):
            fix = f"Check that the objective is twice differentiable at step {point.step}."
            raise CurvatureError(must("zᵀHz", "finite", mean, fix))
        variance = math.fsum((form - mean) ** 2 for form in forms) / (self.samples - 1)
        return {
            "value": mean,
            "standard_error": math.sqrt(variance / self.samples),
            "samples": self.samples,
        }
