"""Activations with kinks whose slope is its average over a stretch of the path.

A ReLU's slope jumps from 0 to 1 where its input z changes sign. A solver that evaluates the field
once a step sees the jump up to a step early or late, and these errors of timing, one for every
sample and unit, are what limits every method on such networks. But z is continuous: over a
step it moves almost straight from z − d to z + d, and the average of the slope over the step is
the share of that way on which z > 0. With it, the jump is timed to second order.

The first forward pass, at the point where the stretch is entered, notes the inputs; the second,
at its middle, takes d from them. Nothing else about the evaluation changes: values are those of
the network at the middle. Derived; a discrete gradient in the sense of Gonzalez, J. Nonlinear
Sci. 6 (1996), taken activation by activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)
from torch.overrides import TorchFunctionMode

from torch_gfshadow._ramps import (
    PAIRS,
    RELU,
    RULES,
    Ramps,
    is_ours,
    mean_below,
    of_pair,
    out_of_place,
    own_slope,
    signal_of,
)

_QUADRATURE = (-0.75, -0.25, 0.25, 0.75)


class UnmatchedError(RuntimeError):
    """The two forward passes did not call the same activations on the same shapes."""


class Glance(Protocol):
    """Looks at kinks while averaged slopes are computed, and may decide which side counts.

    The kinks of piecewise linear activations are met one by one, in the order of the forward
    passes; entries of a kink are numbered as in the flattened input.
    """

    @property
    def met(self) -> int:
        """How many kinks were met so far: the number of the next."""
        ...

    def meet(self, x: Tensor, half: Tensor, share: Tensor) -> Tensor:
        """Return the share of the stretch spent beyond a kink, changed where that is wanted.

        Args:
            x: How far beyond it each entry is in the middle of the stretch.
            half: How far each comes in half the stretch.
            share: What those two say, in [0, 1]; may be changed in place.
        """
        ...

    def pull(self, kink: int, grad: Tensor) -> None:
        """Take in the change of d(loss)/dx across a kink that was met, entry by entry."""
        ...


class Noting(TorchFunctionMode):
    """Notes what goes into every activation with a kink, in the order of the calls.

    Args:
        keep: Whether to keep the inputs, or only to count the calls.
    """

    def __init__(self, *, keep: bool = True) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.calls = 0
        self._keep = keep

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``; note its input before, for it may work in place."""
        if is_ours(func, args, kwargs):
            self.calls += 1
            if self._keep:
                self.inputs.append(signal_of(func, args).detach().clone())
        return func(*args, **(kwargs or {}))


class Placing(TorchFunctionMode):
    """Notes how far beyond the kinks that a ``Glance`` would meet the entries are, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.beyond: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``; note its input before, for it may work in place."""
        z = signal_of(func, args) if is_ours(func, args, kwargs) else None
        if z is not None and z.requires_grad:
            ramps = RELU if func in PAIRS else RULES[func](args, kwargs or {})
            self.beyond += [z.detach() - at for at, _ in ramps.jumps] if ramps else []
        return func(*args, **(kwargs or {}))


class Averaging(TorchFunctionMode):
    """Gives the same activations the average of their slopes between ``entered`` and its mirror.

    Args:
        entered: Inputs noted where the stretch is entered.
        glance: Looks at the kinks of piecewise linear activations.
    """

    def __init__(self, entered: Sequence[Tensor], glance: Glance | None = None) -> None:
        super().__init__()
        self._entered, self._glance = entered, glance
        self._next = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, or its averaged form."""
        kwargs = kwargs or {}
        if not is_ours(func, args, kwargs):
            return func(*args, **kwargs)
        z = signal_of(func, args)
        if self._next >= len(self._entered) or self._entered[self._next].shape != z.shape:
            # also where a checkpoint runs its forward again in the backward pass
            raise UnmatchedError("the forward passes differ")
        entered = self._entered[self._next]
        self._next += 1
        if not z.requires_grad:
            return func(*args, **kwargs)
        if func in PAIRS:
            share = _Ramped.apply(z, z.detach() - entered, F.relu, RELU, self._glance)
            form = of_pair(func, args, kwargs, share)
            return func(*args, **kwargs).detach() + (form - form.detach())
        in_place = kwargs.get("inplace", False) or func.__name__.endswith("_")
        plain = {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs
        function = out_of_place(func)
        source = z.clone() if in_place else z
        ramps = RULES[func](args, kwargs)
        half = source.detach() - entered

        def value(x: Tensor) -> Tensor:
            out: Tensor = function(x, *args[1:], **plain)
            return out

        out = (
            _Sampled.apply(source, half, value)
            if ramps is None
            else _Ramped.apply(source, half, value, ramps, self._glance)
        )
        if ramps is not None and isinstance(ramps.slope, Tensor):
            # the slope is a parameter: its gradient is that of slope · min(z, 0)
            own = own_slope(args, kwargs) * mean_below(source.detach(), half)
            out = out + (own - own.detach())
        return z.copy_(out) if in_place else out

    def finish(self) -> None:
        """Check that every input noted was used.

        Raises:
            UnmatchedError: If some were not.
        """
        if self._next != len(self._entered):
            raise UnmatchedError("the forward passes differ")


class _Ramped(torch.autograd.Function):
    """A piecewise linear function with its slope averaged over [z − d, z + d], exactly."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        half: Tensor,
        value: Callable[[Tensor], Tensor],
        ramps: Ramps,
        glance: Glance | None,
    ) -> Tensor:
        ctx.glance, ctx.jumps, ctx.first = glance, ramps.jumps, glance.met if glance else 0
        width = half.abs().clamp_(min=torch.finfo(half.dtype).tiny)
        slope = torch.zeros_like(z) + ramps.slope
        for at, jump in ramps.jumps:
            x = z - at
            share = (x / (2.0 * width)).add_(0.5).clamp_(0.0, 1.0)
            if glance is not None:
                share = glance.meet(x, half, share)
            if isinstance(jump, Tensor):
                slope.addcmul_(share, jump)
            else:
                slope.add_(share, alpha=jump)
        ctx.save_for_backward(slope)
        return value(z)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        if ctx.glance is not None:
            for number, (_, jump) in enumerate(ctx.jumps, ctx.first):
                plain = not isinstance(jump, Tensor) and jump == 1.0
                ctx.glance.pull(number, grad if plain else jump * grad)
        return grad * slope, None, None, None, None


class _Sampled(torch.autograd.Function):
    """Any function with its derivative averaged over four points of [z − d, z + d]."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, half: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(z, half)
        ctx.value = value
        return value(z)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, half = ctx.saved_tensors
        total = torch.zeros_like(z)
        for share in _QUADRATURE:
            with torch.enable_grad():
                x = torch.add(z, half, alpha=share).requires_grad_()
                out = ctx.value(x)
            total += torch.autograd.grad(out, x, grad)[0]
        return total / len(_QUADRATURE), None, None
