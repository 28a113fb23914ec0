"""Gradient audit: is the objective's gradient the one the optimizer used?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_gfshadow._blocks import blocks, widened

# Largest sine of the angle (and relative error of the scale) that is still rounding. Correct
# pairs are at 1e-15 (float64), 1e-7 to 1e-5 (float32, other order of summation) and 6e-3
# (bfloat16 autocast); a forgotten L2 term is at 1e-1.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Audit:
    """Verdict on one pair of gradients; ``str(audit)`` is what records carry.

    Attributes:
        kind: ``"match"``, ``"scaled"``, ``"mismatch"``, ``"pending"`` (not compared yet) or
            ``"none"`` (nothing to compare).
        scale: The c that minimises ‖used − c·own‖; fold it into the step size when scaled.
        cosine: Cosine of the angle between the two.
    """

    kind: str
    scale: float = math.nan
    cosine: float = math.nan

    def __str__(self) -> str:
        return f"scaled {self.scale:.4g}" if self.kind == "scaled" else self.kind


def compare(
    used: Tensor, own: Tensor, *, dtype: torch.dtype | None = None, atol: float = 0.0
) -> Audit:
    """Compare the gradient a step used with the objective's own at the same parameters.

    Args:
        used: What the optimizer consumed, shape ``[d]``.
        own: ∇f(θ) of the objective, shape ``[d]``, same order.
        dtype: Coarsest precision in either computation, if coarser than the tensors' own: the
            autocast dtype of a mixed-precision loop.
        atol: Largest ‖used − own‖ that is rounding whatever the gradients' size, in units of the
            gradient. At a minimum both are rounding, and only an absolute scale can tell.

    Returns:
        ``match`` if equal up to rounding; ``scaled`` if parallel, used ≈ c·own with c > 0
        (clipping, accumulation, loss scaling); ``mismatch`` otherwise, also for NaN.

    Example:
        >>> import torch
        >>> g = torch.tensor([3.0, 4.0])
        >>> str(compare(g, g)), str(compare(0.5 * g, g)), str(compare(g.flip(0), g))
        ('match', 'scaled 0.5', 'mismatch')
    """
    tolerance = max(_TOLERANCE.get(d, 1e-3) for d in (used.dtype, own.dtype, dtype) if d)
    parts = [(used.reshape(-1), own.reshape(-1))]
    return _judged(parts, tolerance, atol)


def compare_parts(used: Sequence[Tensor], own: Tensor) -> Audit:
    """Compare as :func:`compare` does, the gradient used given parameter by parameter.

    Args:
        used: One tensor per parameter.
        own: ∇f(θ), shape ``[d]``; no other vector of that size is made.
    """
    sizes = [grad.numel() for grad in used]
    flat = [grad.detach().reshape(-1) for grad in used]
    tolerance = max(_TOLERANCE.get(d, 1e-3) for d in {own.dtype, *(g.dtype for g in used)})
    return _judged(list(zip(flat, torch.split(own, sizes), strict=True)), tolerance)


def _judged(parts: Sequence[tuple[Tensor, Tensor]], tolerance: float, atol: float = 0.0) -> Audit:
    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for used, own in parts:
            for at in blocks(used.numel()):
                yield widened(used[at]), widened(own[at].to(used.device))

    largest_a = largest_b = apart = 0.0
    for a, b in pairs():
        largest_a, largest_b = _larger(largest_a, a), _larger(largest_b, b)
        apart += float((a - b).square().sum()) if atol > 0.0 else 0.0
    if not (math.isfinite(largest_a) and math.isfinite(largest_b)):
        return Audit("mismatch")
    # entries below the smallest normal number have lost their digits
    tiny = max(torch.finfo(part.dtype).tiny for pair in parts[:1] for part in pair)
    if max(largest_a, largest_b) < tiny or (atol > 0.0 and math.sqrt(apart) <= atol):
        return Audit("match", 1.0, 1.0)
    if largest_a == 0.0 or largest_b == 0.0:
        return Audit("mismatch", 0.0 if largest_a == 0.0 else math.nan, 0.0)
    squares_a = squares_b = both = 0.0
    for a, b in pairs():  # squares of tiny or huge entries would be lost
        a, b = a / largest_a, b / largest_b
        squares_a += float(a @ a)
        squares_b += float(b @ b)
        both += float(a @ b)
    norm_a, norm_b = math.sqrt(squares_a), math.sqrt(squares_b)
    cosine = max(-1.0, min(1.0, both / (norm_a * norm_b)))
    scale = cosine * (norm_a / norm_b) * (largest_a / largest_b)
    # ‖û − (û·ŵ)ŵ‖ is the sine; from 1 − cos² half the digits would be lost.
    beside = 0.0
    for a, b in pairs():
        left = a / (largest_a * norm_a) - b * (cosine / (largest_b * norm_b))
        beside += float(left @ left)
    sine = math.sqrt(beside)
    if cosine <= 0.0 or sine > tolerance:
        return Audit("mismatch", scale, cosine)
    return Audit("match" if abs(scale - 1.0) <= tolerance else "scaled", scale, cosine)


def _larger(largest: float, values: Tensor) -> float:
    """Return the larger absolute value; NaN if there is one."""
    here = float(values.abs().amax()) if values.numel() else 0.0
    return here if math.isnan(here) or here > largest else largest
