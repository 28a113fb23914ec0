"""solver="auto": a pair where accuracy sets the step, RKC2 where stiffness does, adams2 on kinks.

A pair needs h·λ_max below 3.3 whatever the accuracy; where that is what holds its steps down,
Runge–Kutta–Chebyshev takes longer ones for the square root of the price. Where accuracy is, the
pair's higher order wins. The choice is by predicted evaluations per unit of flow time.

Error controllers trust the order of their method. Across kinks every method is first order,
the controller shrinks the step again and again, and the evaluations buy nothing. So when
rejections pile up, the field is asked directly whether it is rough.

Every change takes place where the solver stands, without losing the solution or its error bar.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._blocks import Terms
from torch_gfshadow.solvers.adams import AdamsStepper
from torch_gfshadow.solvers.base import (
    AveragingField,
    Blended,
    Field,
    Node,
    Refreshing,
    SelfGrading,
    SolverConfig,
    Stepper,
    check_saved,
    load_plain,
    remembers,
    save_plain,
)
from torch_gfshadow.solvers.doubled import doubled
from torch_gfshadow.solvers.embedded import EmbeddedStepper, dopri5
from torch_gfshadow.solvers.low_adams import LowStorageAdams
from torch_gfshadow.solvers.low_storage import LowStorageRKC2
from torch_gfshadow.solvers.rkc2 import RKC2Stepper, predict
from torch_gfshadow.solvers.roughness import is_rough
from torch_gfshadow.solvers.spectral import SpectralRadius
from torch_gfshadow.solvers.storage import SMALL

_WINDOW, _REJECTIONS = 12, 4
_PAIR_COST, _PAIR_LIMIT = 6, 2.65
"""Evaluations of a dopri5 step, and the h·λ_max it keeps up without wasting steps (of 3.31)."""
_FIRST, _FIRST_OF_ROOTS = 4.0, 0.2
"""The first step of adams2 over the one asked for; the root of a running mean in the field."""
_STIFF = 0.25
"""h·λ_max of a first step from which on it is RKC2's."""
_RESTLESS, _RELUCTANT, _NEAR = 3, 1.3, 0.85
_PLAIN = ["_patience", "_stay", "_wasteful", "_returns", "_may_be_rough", "_told"]

_Smooth = EmbeddedStepper | RKC2Stepper


class AutoStepper:
    """Delegates to the solver in use; ``name`` says which it is."""

    def __init__(
        self, field: Field, node: Node, first_step: float, low: bool = False, looks: bool = True
    ) -> None:
        self._field = field
        self._low = low
        self.spectral = SpectralRadius(field, torch.bfloat16 if low else None)
        self._inner: _Smooth | AdamsStepper
        if isinstance(field, AveragingField) and field.kinked:
            # The pairs hardly see a single kink in a step, and few kinks look smooth when sampled:
            # on small networks their bar was 25 times too low. adams2 compares two solutions.
            # means that start to fill turn sharply, and an error of the first step stays
            first = _FIRST if getattr(field, "smooth", True) else _FIRST_OF_ROOTS
            self._inner = self._adams(node, first * first_step)
        elif low or node.field.numel() > SMALL:
            self._inner = self._rkc2(node, first_step)
        else:
            if looks:
                self.spectral.measure(node)
            stiff = self.spectral.bound * first_step > _STIFF
            start = self._rkc2 if stiff else self._pair
            self._inner = start(node, first_step)
        self._outcomes: deque[bool] = deque(maxlen=_WINDOW)
        self._owed: Tensor | None = None
        self._told = False
        self._patience = 0
        self._stay, self._wasteful, self._returns = 0, 0, 0
        # RKC2's estimate sees only the ends of a step, so ask before it, unless the field knows
        self._may_be_rough = not isinstance(field, AveragingField)

    @property
    def name(self) -> str:
        """Name of the solver in use."""
        return f"auto:{self._inner.name}"

    @property
    def order(self) -> int:
        """Order of the solver in use."""
        return self._inner.order

    @property
    def rough(self) -> bool:
        """Whether the field was found to have kinks."""
        return self._inner.rough

    @property
    def stability(self) -> float:
        """Real stability interval of the solver in use."""
        return self._inner.stability

    @property
    def stiffness(self) -> float | None:
        """λ_max as far as it was needed."""
        return self.spectral.bound if self.spectral.radius is not None else None

    @property
    def left(self) -> Node:
        """Start of the last step."""
        return self._inner.left

    @property
    def right(self) -> Node:
        """End of the last step."""
        return self._inner.right

    def blend(self, time: float) -> Terms:
        """Return the solution inside the last step as a sum."""
        if isinstance(self._inner, Blended):
            return self._inner.blend(time)
        return [(self._inner.interpolate(time), 1.0)]

    def release(self) -> None:
        """Let go of the last step, if the solver in use can."""
        if isinstance(self._inner, Blended):
            self._inner.release()

    @property
    def error_terms(self) -> Terms | None:
        """Local error of the last step as a sum."""
        return self._inner.error_terms if isinstance(self._inner, Blended) else None

    @property
    def local_error(self) -> Tensor | None:
        """Local error of the last step, and what the solver before still owed."""
        error, owed = self._inner.local_error, self._owed if self._told else None
        return owed if error is None else error if owed is None else error + owed

    @property
    def ungraded(self) -> float:
        """Error of recent steps still to come."""
        return self._inner.ungraded

    @property
    def next_step(self) -> float:
        """Size of the next attempt."""
        return self._inner.next_step

    @property
    def error(self) -> float | None:
        """Error bar of the solver in use, if it has its own."""
        return self._inner.error if isinstance(self._inner, SelfGrading) else None

    def shift(self, offset: Tensor) -> None:
        """Move the solution, if the solver in use can."""
        if isinstance(self._inner, Refreshing):
            self._inner.shift(offset)

    def refresh(self) -> None:
        """Evaluate the field anew where the solver in use stands."""
        if isinstance(self._inner, Refreshing):
            self._inner.refresh()
            return
        inner, node = self._inner, self._inner.right
        again = Node(node.time, node.state, self._field(node.state))
        first = inner.next_step
        self._inner = (
            self._rkc2(again, first)
            if isinstance(inner, RKC2Stepper)
            else dopri5(self._field, again, first)
        )

    def inherit(self, error: Tensor) -> None:
        """Hand an error bar to the solver in use."""
        if isinstance(self._inner, SelfGrading):
            self._inner.inherit(error)

    def hand_over(self) -> Tensor | None:
        """Return the error bar of the solver in use as a vector, if it has its own."""
        inner = self._inner
        return inner.hand_over() if isinstance(inner, AdamsStepper) and not self._low else None

    def step(
        self,
        tolerance: float,
        shortest: float = 0.0,
        longest: float = math.inf,
        lambda_max: float | None = None,
    ) -> bool:
        """Reconsider the solver, then try one step with it."""
        if self._told:
            self._owed, self._told = None, False
        if not isinstance(self._inner, AdamsStepper):
            self.spectral.hint(lambda_max)
            self._weigh(self._inner, tolerance, shortest)
        accepted = self._told = self._inner.step(tolerance, shortest, longest, lambda_max)
        if not isinstance(self._inner, AdamsStepper):
            if isinstance(self._inner, EmbeddedStepper):
                self.spectral.spend(_PAIR_COST)
            self._outcomes.append(accepted)
            self._patience -= 1
            if not accepted and self._patience <= 0 and self._rejections >= _REJECTIONS:
                self._ask_for_kinks(self._inner, shortest)
        return accepted

    def interpolate(self, time: float) -> Tensor:
        """Return the solution inside the last step."""
        return self._inner.interpolate(time)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the solver in use, and what the choice depends on."""
        inner = self._inner.state_dict()
        return save_plain(self, _PLAIN) | {
            "solver": "auto",
            "right": inner["right"],
            "inner": inner,
            "spectral": self.spectral.state_dict(),
            "outcomes": list(self._outcomes),
            "owed": self._owed,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state, with the solver that was in use."""
        check_saved("auto", saved)
        like, inner = self.right.state, saved["inner"]
        self.spectral.load_state_dict(saved["spectral"], like)
        if inner["solver"] == AdamsStepper.name:
            self._inner = self._adams(self.right, 1.0)
        elif inner["solver"] == RKC2Stepper.name:
            self._inner = self._rkc2(self.right, 1.0)
        else:
            self._inner = dopri5(self._field, self.right, 1.0)
        self._inner.load_state_dict(inner)
        self._outcomes = deque(saved["outcomes"], maxlen=_WINDOW)
        load_plain(self, _PLAIN, saved)
        owed = saved["owed"]
        self._owed = None if owed is None else owed.to(like)

    @property
    def _rejections(self) -> int:
        return self._outcomes.count(False)

    def _weigh(self, inner: _Smooth, tolerance: float, shortest: float) -> None:
        """Change between the pair and RKC2 if the other is predicted to cost less."""
        self._stay -= 1
        if isinstance(inner, EmbeddedStepper):
            if self._stay > 0 or not inner.left.time < inner.right.time:
                return
            self.spectral.measure(inner.right)
            h, per_time = predict(inner.left, inner.right, self.spectral.bound, tolerance)
            # at its stability limit the pair stirs stiff modes up, and h is underrated
            limit = _NEAR * _PAIR_LIMIT / max(self.spectral.radius or 0.0, 1e-300)
            held = inner.next_step > limit
            if held or per_time < _PAIR_COST / inner.next_step:
                if self._may_be_rough and self._ask_for_kinks(inner, shortest):
                    return
                h = min(max(h, inner.next_step) if held else h, 5.0 * inner.next_step)
                node, left = inner.right, inner.left
                self._take_over(RKC2Stepper(self._field, node, h, left, self.spectral))
        elif self._may_be_rough and inner.left.time < inner.right.time:
            self._ask_for_kinks(inner, shortest)
        elif not self._low and inner.right.field.numel() <= SMALL:
            per_time = inner.stages_at(inner.next_step) / inner.next_step
            pair = _PAIR_COST * (self.spectral.radius or 0.0) / _PAIR_LIMIT
            self._wasteful = self._wasteful + 1 if per_time > _RELUCTANT * pair else 0
            if self._wasteful >= _RESTLESS:
                h, node, left = inner.next_step, inner.right, inner.left
                self._take_over(dopri5(self._field, node, h, left))
                self._stay = _WINDOW * 2**self._returns
                self._returns += 1

    def _rkc2(self, node: Node, first_step: float) -> RKC2Stepper:
        if self._low:
            return LowStorageRKC2(self._field, node, first_step, self.spectral)
        return RKC2Stepper(self._field, node, first_step, spectral=self.spectral)

    def _pair(self, node: Node, first_step: float) -> EmbeddedStepper:
        return dopri5(self._field, node, first_step)

    def _adams(self, node: Node, first_step: float, left: Node | None = None) -> AdamsStepper:
        if self._low:
            return LowStorageAdams(self._field, node, first_step)
        return AdamsStepper(self._field, node, first_step, left=left)

    def _take_over(self, new: _Smooth | AdamsStepper) -> None:
        if isinstance(self._inner, EmbeddedStepper):
            self._owed, self._told = self._inner.owed, False
        self._inner, self._wasteful = new, 0

    def _ask_for_kinks(self, inner: _Smooth, shortest: float) -> bool:
        """Sample the field on a line; if it has kinks, go over to adams2 and say so."""
        self._may_be_rough = False
        here = inner.right
        spacing = max(inner.next_step / 4.0, shortest / 4.0)
        if is_rough(self._field, here, spacing):
            first = max(inner.next_step, shortest)
            self._take_over(self._adams(here, first, inner.left))
            return True
        self._outcomes.clear()
        self._patience = 10 * _WINDOW
        return False


@dataclass(frozen=True, kw_only=True)
class Auto(SolverConfig):
    """Dormand–Prince 5(4) or RKC2 on smooth fields, two-step Adams–Bashforth across kinks.

    Flows with memory, whose spectrum is not real, take :class:`Doubled` without kinks.
    Beyond two million parameters RKC2 throughout, and both in low storage (:mod:`..storage`).
    """

    def is_low(self, field: Field, dim: int) -> bool:
        """Say so of models beyond two million parameters, without velocities or running means."""
        return dim > SMALL and isinstance(field, AveragingField) and not remembers(field)

    @property
    def fed(self) -> bool:
        """Say so where accuracy is not asked for by tolerances."""
        return self.rtol is None and self.atol is None

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return the live solver."""
        kinked = isinstance(field, AveragingField) and field.kinked
        if remembers(field) and not kinked:
            return doubled(field, node, first_step, "auto:")
        return self._live(field, node, first_step, looks=True)

    def resume(self, field: Field, saved: Mapping[str, Any], like: Tensor | None = None) -> Stepper:
        """Return the live solver that was saved; costs no evaluation."""
        if saved["solver"] != "auto":
            return super().resume(field, saved, like)
        stepper = self._live(field, Node.from_state(saved["right"], like), 1.0, looks=False)
        stepper.load_state_dict(saved)
        return stepper

    def _live(self, field: Field, node: Node, first_step: float, *, looks: bool) -> AutoStepper:
        low = self.is_low(field, node.field.numel())
        return AutoStepper(field, node, first_step, low, looks)
