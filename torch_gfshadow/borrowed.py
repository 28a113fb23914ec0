"""The gradients the steps used, in one vector: for models of which four copies are too many.

Between two steps the last gradient is kept, and the way the step went as a multiple of it; or,
with decay and momentum, as a sum of it, the parameters and the optimizer's own momentum. During
a step and while the shadow is brought along there is only the optimizer's own ``.grad``, which is
borrowed: copied afterwards, if nobody has written to it in the meantime.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._blocks import blocks, widened
from torch_gfshadow._span import dot_of_sum, weights_of
from torch_gfshadow._tree import real_view, whole
from torch_gfshadow.used import UsedGradients
from torch_gfshadow.watched import Watched

_ALONG = 1e-3
"""Part of a step that may point elsewhere than its gradient, or than the sum."""


class BorrowedGradients(UsedGradients):
    """:class:`UsedGradients` that compares at once and keeps numbers.

    Attributes:
        step_length: ‖θ_{k+1} − θ_k‖ of the last step that was read.
    """

    state = ("now", "_at", "_moved", "_along", "_sum", "_against", "_copies", "step_length")

    def __init__(self) -> None:
        super().__init__()
        self.step_length = 0.0
        self._along: float | None = None
        # weights of gradient, parameters and momentum in the last step, by parameter; and the
        # inner product of that sum with the gradient
        self._sum: Tensor | None = None
        self._against = 0.0
        self._copies = False
        self._lent: list[tuple[Tensor, int]] | None = None
        self._defect: float | None = None
        self._secant: dict[str, Any] = {}
        self._norm: float | None = None

    @property
    def norm(self) -> float | None:
        """Norm of the last gradient read."""
        return self._norm

    def read(self, watched: Watched) -> Tensor | None:
        """Take in the gradient the step is about to use; ``None`` if it is borrowed."""
        lent = None if self._copies else watched.gradients()
        copy = watched.gradient() if lent is None else None
        parts = lent if copy is None else [copy]
        assert parts is not None
        self._compare(parts, watched)
        self.now, self._moved, self._along, self._sum = copy, None, None, None
        self._lent = None if lent is None else [(g, g._version) for g in lent]
        return copy

    def leave(self, watched: Watched) -> None:
        """Remember where the step begins, after all else that is done before it."""
        self._at = watched.layout.current()

    def stepped(self, watched: Watched) -> Tensor | None:
        """Take in where the step has led; return where it began, if that was remembered."""
        at, self._at = self._at, None
        if at is None:
            return None
        layout = watched.layout
        self.step_length = layout.distance([(at, -1.0)])
        parts = [self.now] if self.now is not None else [g for g, _ in self._lent or []]
        size = (self._norm or 0.0) ** 2
        there = _here(watched)
        along = (_dot(parts, there) - _dot(parts, [at])) / size if size > 0.0 else 0.0
        left = math.sqrt(max(self.step_length**2 - along**2 * size, 0.0))
        rounding = torch.finfo(layout.dtype).eps * layout.distance([])
        allowed = max(_ALONG * self.step_length, rounding)
        if left <= allowed:
            self._along = along
            return at
        others = [parts, there, *self._momentum(watched)]
        found = weights_of((there, [at]), others, layout.sizes, allowed)
        if found is not None:
            self._sum, self._against = found[0], float(found[1][0])
        else:
            self._moved = torch.empty_like(at, dtype=torch.bfloat16)
            cut = (torch.split(v, list(layout.sizes)) for v in (self._moved, at))
            for moved, before, now in zip(*cut, there, strict=True):
                for here in blocks(len(moved)):
                    moved[here] = now.reshape(-1)[here].to(moved.device) - before[here]
        return at

    def _momentum(self, watched: Watched) -> list[list[Tensor]]:
        """Return the optimizer's velocity, one tensor for each parameter, if it has one."""
        held = [watched.state.get(p, {}).get("momentum_buffer") for p in watched.layout.params]
        plain = [real_view(v) for v in held if type(v) is Tensor and v.layout is torch.strided]
        return [plain] if len(plain) == len(held) else []

    def settle(self, watched: Watched) -> None:
        """Copy what is borrowed still."""
        lent, self._lent = self._lent, None
        if lent is None:
            return
        if all(g._version == version for g, version in lent):
            self.now = watched.layout.flatten([g for g, _ in lent])
        else:
            self._copies = True  # this optimizer writes to its gradients

    def skip(self) -> None:
        """Let a step pass unread."""
        super().skip()
        self._lent = self._moved = self._along = self._sum = None

    def compared(self) -> None:
        """Let go of what only the present record needs."""
        self._defect, self._secant = None, {}

    def defect(self) -> float | None:
        """Return δ = ‖g_k − g_{k−1}‖₂, if both were read."""
        return self._defect

    def secant(self) -> dict[str, Any]:
        """Return turning and curvature along the path."""
        return self._secant

    def _compare(self, parts: list[Tensor], watched: Watched) -> None:
        self._norm = math.sqrt(_dot(parts, parts))
        self._defect, self._secant = None, {}
        last = self.now
        if last is None:
            return
        before = _dot([last], [last])
        both = _dot(parts, [last])
        self._defect = _apart(parts, last)
        size = self._norm * math.sqrt(before)
        if size > 0.0:
            self._secant["gradient_cosine"] = both / size
        if self._along is not None and self._along != 0.0 and before > 0.0:
            self._secant["secant_curvature"] = (both - before) / (self._along * before)
        elif self._sum is not None and self.step_length > 0.0:
            layout = watched.layout
            others = [[last], _here(watched), *self._momentum(watched)]
            if len(others) == self._sum.shape[1]:
                along = dot_of_sum(parts, self._sum, others, layout.sizes)
                bend = along - self._against
                self._secant["secant_curvature"] = bend / self.step_length**2
        elif self._moved is not None:
            moved = [self._moved]
            length = _dot(moved, moved)
            if length > 0.0:
                bend = _dot(parts, moved) - _dot([last], moved)
                self._secant["secant_curvature"] = bend / length


def _here(watched: Watched) -> list[Tensor]:
    return [real_view(whole(p.detach())) for p in watched.layout.params]


def _dot(left: list[Tensor], right: list[Tensor]) -> float:
    """Return the inner product of two vectors, each in one piece or by parameter."""
    if len(left) != len(right):
        whole, cut = (left[0], right) if len(left) == 1 else (right[0], left)
        left, right = list(torch.split(whole, [c.numel() for c in cut])), cut
    total = 0.0
    for a, b in zip(left, right, strict=True):
        a, b = a.detach().reshape(-1), b.detach().reshape(-1)
        for at in blocks(a.numel()):
            total += float(torch.dot(widened(a[at]), widened(b[at])))
    return total


def _apart(parts: list[Tensor], other: Tensor) -> float:
    total, start = 0.0, 0
    for part in parts:
        flat = part.detach().reshape(-1)
        for at in blocks(flat.numel()):
            here = slice(start + at.start, start + at.stop)
            gap = widened(flat[at]) - widened(other[here])
            total += float(torch.dot(gap, gap))
        start += flat.numel()
    return math.sqrt(total)
