"""The defect across kinks: one averaged evaluation in the middle of every slab of time.

As in ``defect``, P is the path that the run's own gradients give, θ̃ = P + S and S' = F(θ̃) − F̂.
Across kinks F̂ jumps, and so does S'. But time is cut into slabs, and over a slab [a, b] of length h

    S(b) = S(a) + h·⟨F⟩ − (P(b) − P(a)),

where ⟨F⟩ is one evaluation at θ̃ in the middle, with the slopes of the activations averaged over the
slab (``_kinks``), and P(b) − P(a) holds every single jump of the run's. So the jumps that F̂ times
badly, half a step of the run early or late, cancel; and where in the slab θ̃ is, P says exactly. A
method that has to foresee its own path (``adams``) takes twice as many evaluations for it.

Beside it a companion takes one slab for every three, centred on the middle one. The distance of
the two is the error bar, as in ``adams``: it costs a third as much again. At the same moment both
see their kinks, so the companion can be sent down the other branch (``branches``).

Source: as ``defect`` and ``adams``; the two combined: derived.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._kinks import Glance
from torch_gfshadow.solvers.adams import ON_A_BRANCH, SAFETY, resized
from torch_gfshadow.solvers.base import (
    AveragingField,
    Field,
    averaged_over,
    load_plain,
    save_plain,
)
from torch_gfshadow.solvers.branches import Branches

SLABS = 3
"""Slabs that the companion takes as one."""
PRICE = (SLABS + 1) / SLABS
"""Evaluations in a slab."""
_FADES = 0.8
"""What is left, a slab later, of the largest change of S' from one slab to the next."""
_PLAIN = ["next_step", "evaluations", "_gap", "_increment", "_h", "_number", "_middle_at"]
_PLAIN += ["_lambda_max", "_fell", "_square", "_evaluated", "_turn"]


class _Line:
    """S of one solution, slab after slab.

    Attributes:
        offset: S where the slab under way begins, shape ``[d]``.
        rate: S' over the slab before, and what is taken for it over this one.
        start: Time where it begins.
        length: Its length.
    """

    def __init__(self, time: float, offset: Tensor, rate: Tensor) -> None:
        self.start, self.length = time, 0.0
        self.offset, self.rate = offset, rate
        self._entered = self.slope = offset

    def begin(self, path: Tensor, length: float) -> None:
        """Begin a slab at P = ``path``."""
        self._entered, self.length = path + self.offset, length

    def move(self, way: Tensor) -> None:
        """Move the solution by ``way``, shape ``[d]``, at the beginning of a slab."""
        self.offset, self._entered = self.offset + way, self._entered + way

    def at(self, time: float) -> Tensor:
        """Return S at a time within the slab."""
        return torch.add(self.offset, self.rate, alpha=time - self.start)

    def evaluate(self, field: Field, path: Tensor, glance: Glance) -> Tensor:
        """Evaluate the slab at its middle, where P = ``path``; return θ̃ there."""
        middle = path + self.at(self.start + 0.5 * self.length)
        if isinstance(field, AveragingField):
            self.slope = averaged_over(field, middle, self._entered, glance)
        else:
            self.slope = field(middle)
        return middle

    @property
    def end_at(self) -> float:
        """Time where it ends."""
        return self.start + self.length

    def foreseen(self, path: Tensor) -> tuple[Tensor, Tensor]:
        """Return S at the slab's end, where P = ``path``, and S' over it."""
        offset = torch.add(self._entered, self.slope, alpha=self.length).sub_(path)
        return offset, (offset - self.offset).div_(self.length)

    def end(self, path: Tensor) -> None:
        """Go to the slab's end, where P = ``path``."""
        offset, self.rate = self.foreseen(path)
        self.start, self.offset = self.end_at, offset

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as tensors and numbers."""
        return save_plain(self, ["start", "length", "offset", "rate", "slope", "_entered"])

    @classmethod
    def resumed(cls, saved: Mapping[str, Any], like: Tensor) -> _Line:
        """Return the line that was saved."""
        self = cls(saved["start"], saved["offset"].to(like), saved["rate"].to(like))
        self.length = saved["length"]
        self.slope, self._entered = saved["slope"].to(like), saved["entered"].to(like)
        return self


class SlabStepper:
    """S and its companion's, three slabs at a time.

    Args:
        field: Right-hand side F.
        time: Where it begins.
        path: P there, which is θ̃, shape ``[d]``.
        rate: F(θ̃) − F̂ there.
        first_step: Length of the first slabs.

    Attributes:
        next_step: Length of the next three.
        evaluations: Of both solutions so far.
    """

    name = "slabs"

    def __init__(
        self, field: Field, time: float, path: Tensor, rate: Tensor, first_step: float
    ) -> None:
        self._field, self._branches = field, Branches()
        zero = torch.zeros_like(path)
        self._fine, self._coarse = _Line(time, zero, rate), _Line(time, zero, rate)
        self.next_step, self.evaluations = first_step, 0
        self._gap = self._increment = 0.0
        self._fell = self._square = self._lambda_max = 0.0
        self._turn = float(torch.linalg.vector_norm(rate))
        self._middle_at = time
        self._begin(path)

    def _begin(self, path: Tensor) -> None:
        """Begin three slabs."""
        self._h, self._number, self._evaluated = self.next_step, 0, False
        self._fine.begin(path, self._h)
        self._coarse.begin(path, SLABS * self._h)
        self._apart = self._fine.offset - self._coarse.offset

    @property
    def due(self) -> float:
        """Time of the next evaluation, or of the end of the slab under way."""
        fine = self._fine
        return fine.end_at if self._evaluated else fine.start + 0.5 * fine.length

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation is due next."""
        return not self._evaluated

    @property
    def error(self) -> float:
        """Error bar where slabs end, in the units of θ."""
        safety = ON_A_BRANCH if self._branches.taken else SAFETY
        return safety * math.hypot(self._gap, self._increment)

    def ahead(self, path: Tensor, field: Tensor, time: float, step: float) -> Tensor:
        """Return S at the run's own time, shape ``[d]``.

        Args:
            path: P there, as far as is known.
            field: F̂ there, as far as is known.
            time: The moment.
            step: The run's η: no further F̂ is taken to stay as it is.
        """
        fine = self._fine
        if not self._foresees(time, step):
            return fine.at(time)
        offset, rate = fine.foreseen(torch.add(path, field, alpha=fine.end_at - time))
        return offset.add_(rate, alpha=time - fine.end_at)

    def lag(self, time: float, step: float) -> float:
        """Return by how much :meth:`ahead` is off because S' is that of the slab before."""
        fine = self._fine
        known = fine.end_at if self._foresees(time, step) else fine.start
        return self._turn * max(time - known, 0.0)

    def _foresees(self, time: float, step: float) -> bool:
        """Say whether the slab under way is evaluated, and its end near."""
        return self._evaluated and self._fine.end_at - time <= step

    def hint(self, lambda_max: float | None) -> None:
        """Take in λ_max as a probe found it."""
        if lambda_max is not None and math.isfinite(lambda_max):
            self._lambda_max = lambda_max

    def inherit(self, error: Tensor | None) -> None:
        """Take over the error of the solution so far: the companion starts that far away."""
        if error is not None:
            self._coarse.move(error / -SAFETY)
            self._apart = self._fine.offset - self._coarse.offset
            self._gap = float(torch.linalg.vector_norm(self._apart))

    def hand_over(self) -> Tensor | None:
        """Return an error as long as the bar, pointing as it does by estimate, shape ``[d]``."""
        size = float(torch.linalg.vector_norm(self._apart))
        return self._apart * (self.error / size) if size > 0.0 else None

    def evaluate(self, path: Tensor, tolerance: float) -> Tensor:
        """Evaluate what is due at the middle of a slab.

        Args:
            path: P there, shape ``[d]``.
            tolerance: What the error bar is to be.

        Returns:
            θ̃ there, where the field was evaluated last.
        """
        time, h = self.due, self._h
        look = self._branches.look(h)
        if self._number != SLABS // 2:
            state = self._fine.evaluate(self._field, path, look)
            self.evaluations += 1
        else:
            # the companion first: whoever reads loss and slope of the last evaluation gets ours
            steer = self._branches.steer(time, SLABS * h)
            other = self._coarse.evaluate(self._field, path, steer)
            state = self._fine.evaluate(self._field, path, look)
            self.evaluations += 2
            self._see_curvature(state - other)
            self._branches.compare(look, steer, tolerance / max(self._gap, 1e-300))
        self._branches.go_on(look, time, max(time - self._middle_at, 0.5 * h))
        self._middle_at, self._evaluated = time, True
        return state

    def _see_curvature(self, apart: Tensor) -> None:
        """Take in what the two solutions say of the field's curvature.

        Where the companion is not stable the stiffest direction soon fills the distance between
        the two, and this is λ_max. Else single kinks make it up, and it says nothing.
        """
        fell = torch.dot(apart, self._coarse.slope - self._fine.slope)
        self._fell = _FADES * self._fell + float(fell)
        self._square = _FADES * self._square + float(torch.dot(apart, apart))

    def end(self, path: Tensor, tolerance: float, shortest: float, longest: float) -> bool:
        """End a slab where P = ``path``; say whether the solution is finite.

        Args:
            path: P, shape ``[d]``.
            tolerance: What the error bar is to be.
            shortest: Slabs are not made shorter.
            longest: Nor longer.
        """
        rate = self._fine.rate
        self._fine.end(path)
        turn = float(torch.linalg.vector_norm(self._fine.rate - rate))
        self._turn = max(turn, _FADES * self._turn)
        self._number, self._evaluated = self._number + 1, False
        if self._number < SLABS:
            self._fine.begin(path, self._h)
            return True
        self._coarse.end(path)
        self._coarse.start = self._fine.start  # to the last bit
        apart = self._fine.offset - self._coarse.offset
        self._gap = float(torch.linalg.vector_norm(apart))
        self._increment = float(torch.linalg.vector_norm(apart - self._apart))
        error = math.hypot(self.error, self._turn * self._h)
        if error > tolerance:
            shortest = min(shortest, _stable(self._fell / max(self._square, 1e-300)))
        longest = min(longest, _stable(self._lambda_max))
        wanted = resized(self._h, error, self._increment, tolerance, shortest, longest)
        self.next_step = min(wanted, longest)
        self._begin(path)
        return math.isfinite(self._gap)

    def offset(self, time: float) -> Tensor:
        """Return S at ``time``, in the slab under way or shortly after it."""
        return self._fine.at(time)

    def rate(self) -> Tensor:
        """Return S', shape ``[d]``."""
        return self._fine.rate

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next evaluations depend on, as tensors and numbers."""
        return save_plain(self, [*_PLAIN, "_apart"]) | {
            "fine": self._fine.state_dict(),
            "coarse": self._coarse.state_dict(),
            "branches": self._branches.state_dict(),
        }

    @classmethod
    def resumed(cls, field: Field, saved: Mapping[str, Any], like: Tensor) -> SlabStepper:
        """Return the stepper that was saved, on the device and in the dtype of ``like``."""
        self = cls.__new__(cls)
        self._field, self._branches = field, Branches()
        load_plain(self, _PLAIN, saved)
        self._apart = saved["apart"].to(like)
        self._fine = _Line.resumed(saved["fine"], like)
        self._coarse = _Line.resumed(saved["coarse"], like)
        self._branches.load_state_dict(saved["branches"], like)
        return self


def _stable(curvature: float) -> float:
    """Return the length of a slab beyond which the companion would not be stable."""
    return 1.0 / (SLABS * curvature) if curvature > 0.0 else math.inf
