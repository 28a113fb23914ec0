"""Sums over long vectors, a block at a time: no difference of two vectors is ever stored.

The terms are float64 whatever the vectors are, and the temporaries a few blocks of ``BLOCK``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1 << 17

Terms = Sequence[tuple[Tensor, float]]
"""A linear combination Σ w_i·v_i of vectors of one length, as pairs (v_i, w_i)."""


Pieces = Sequence[tuple[int, float, float]]
"""Sizes of neighbouring pieces of a vector, with two numbers for each."""


class Stretch(NamedTuple):
    """A straight stretch of a path: its middle, and the point where it is entered."""

    middle: Terms
    entered: Terms


def blocks(stop: int, start: int = 0) -> Iterator[slice]:
    """Yield the slices of a vector from ``start`` to ``stop``."""
    for left in range(start, stop, BLOCK):
        yield slice(left, min(left + BLOCK, stop))


def combined(terms: Terms, at: slice = slice(None), dtype: torch.dtype | None = None) -> Tensor:
    """Return Σ w_i·v_i on a block, float64 unless ``dtype`` is given."""
    first, weight = terms[0]
    wide = torch.float64 if first.device.type != "mps" else torch.float32  # mps has no float64
    out = first[at].to(dtype or wide, copy=True)
    if weight != 1.0:
        out.mul_(weight)
    for vector, factor in terms[1:]:
        out.add_(vector[at], alpha=factor)
    return out


def fill(out: Tensor, terms: Terms) -> Tensor:
    """Set ``out`` to Σ w_i·v_i, a block at a time, and return it."""
    for at in blocks(out.numel()):
        out[at] = combined(terms, at, out.dtype)
    return out


def widened(tensor: Tensor) -> Tensor:
    """Return the values of ``tensor`` in float64."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()  # mps has no float64


def length_of(terms: Terms) -> float:
    """Return ‖Σ w_i·v_i‖₂."""
    total = 0.0
    for at in blocks(terms[0][0].numel()):
        block = combined(terms, at)
        total += float(torch.dot(block, block))
    return math.sqrt(total) if total >= 0.0 else math.nan


def dot_of(left: Terms, right: Terms) -> float:
    """Return the inner product of two linear combinations."""
    pairs = ((combined(left, at), combined(right, at)) for at in blocks(left[0][0].numel()))
    return sum(float(torch.dot(a, b)) for a, b in pairs)
