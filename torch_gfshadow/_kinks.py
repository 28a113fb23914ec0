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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)
from torch.overrides import TorchFunctionMode

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


class _Ramps(NamedTuple):
    """A piecewise linear function: its slope far to the left, and the jumps of the slope."""

    slope: float | Tensor
    jumps: tuple[tuple[float, float | Tensor], ...]


_RELU = _Ramps(0.0, ((0.0, 1.0),))


def _relu(_: Sequence[Any], __: Mapping[str, Any]) -> _Ramps:
    return _RELU


def _abs(_: Sequence[Any], __: Mapping[str, Any]) -> _Ramps:
    return _Ramps(-1.0, ((0.0, 2.0),))


def _leaky_relu(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Ramps:
    slope = float(_argument(args, kwargs, 1, "negative_slope", 0.01))
    return _Ramps(slope, ((0.0, 1.0 - slope),))


def _prelu(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Ramps:
    slope = _own_slope(args, kwargs).detach()
    return _Ramps(slope, ((0.0, 1.0 - slope),))


def _own_slope(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the weight of a PReLU, shaped so that it goes with the input."""
    weight: Tensor = _argument(args, kwargs, 1, "weight", None)
    # a slope per channel, along the second dimension
    return weight if weight.numel() == 1 else weight.view(-1, *[1] * (args[0].dim() - 2))


def _threshold(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Ramps:
    return _Ramps(0.0, ((float(_argument(args, kwargs, 1, "threshold", 0.0)), 1.0),))


def _hardtanh(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Ramps:
    low = float(_argument(args, kwargs, 1, "min_val", -1.0))
    high = float(_argument(args, kwargs, 2, "max_val", 1.0))
    return _Ramps(0.0, ((low, 1.0), (high, -1.0)))


def _relu6(_: Sequence[Any], __: Mapping[str, Any]) -> _Ramps:
    return _Ramps(0.0, ((0.0, 1.0), (6.0, -1.0)))


def _clamp(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Ramps | None:
    low = _argument(args, kwargs, 1, "min", None)
    high = _argument(args, kwargs, 2, "max", None)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    jumps: tuple[tuple[float, float], ...] = ((float(low), 1.0),) if low is not None else ()
    jumps += ((float(high), -1.0),) if high is not None else ()
    return _Ramps(1.0 if low is None else 0.0, jumps)


def _clamp_max(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Ramps | None:
    return _clamp((args[0], None, _argument(args, kwargs, 1, "max", None)), {})


_Rule = Callable[[Sequence[Any], Mapping[str, Any]], "_Ramps | None"]


def _sampled(_: Sequence[Any], __: Mapping[str, Any]) -> None:
    """Averaged over four points of the stretch: not elementwise, or not piecewise linear."""


_RULES: dict[Any, _Rule] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), _relu),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), _leaky_relu),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh),
    **dict.fromkeys((torch.clamp, Tensor.clamp, torch.clamp_min, Tensor.clamp_min), _clamp),
    **dict.fromkeys((torch.clamp_max, Tensor.clamp_max), _clamp_max),
    **dict.fromkeys((torch.abs, Tensor.abs), _abs),
    F.relu6: _relu6,
    **dict.fromkeys((F.prelu, torch.prelu, Tensor.prelu), _prelu),
    **dict.fromkeys((F.threshold, torch.threshold, torch.threshold_), _threshold),
    **dict.fromkeys(
        (
            *(F.max_pool1d, F.max_pool2d, F.max_pool3d),
            *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
            *(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
            *(F.hardswish, F.hardsigmoid, F.selu, F.softshrink),
        ),
        _sampled,
    ),
}


_PAIRS: dict[Any, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **dict.fromkeys(
        (torch.maximum, Tensor.maximum, torch.max, Tensor.max), lambda a, b, relu: b + relu
    ),
    **dict.fromkeys(
        (torch.minimum, Tensor.minimum, torch.min, Tensor.min), lambda a, b, relu: a - relu
    ),
}
"""The larger or smaller of two tensors, as a sum with relu(a − b)."""


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
        if _is_ours(func, args, kwargs):
            self.calls += 1
            if self._keep:
                self.inputs.append(_signal(func, args).detach().clone())
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
        if not _is_ours(func, args, kwargs):
            return func(*args, **kwargs)
        z = _signal(func, args)
        if self._next >= len(self._entered) or self._entered[self._next].shape != z.shape:
            # also where a checkpoint runs its forward again in the backward pass
            raise UnmatchedError("the forward passes differ")
        entered = self._entered[self._next]
        self._next += 1
        if not z.requires_grad:
            return func(*args, **kwargs)
        if func in _PAIRS:
            share = _Ramped.apply(z, z.detach() - entered, F.relu, _RELU, self._glance)
            form = _PAIRS[func](args[0], args[1], share)
            return func(*args, **kwargs).detach() + (form - form.detach())
        in_place = kwargs.get("inplace", False) or func.__name__.endswith("_")
        plain = {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs
        function = _out_of_place(func)
        source = z.clone() if in_place else z
        ramps = _RULES[func](args, kwargs)
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
            own = _own_slope(args, kwargs) * _mean_below(source.detach(), half)
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
        ramps: _Ramps,
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


def _is_ours(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> bool:
    pair = func in _PAIRS
    if not (pair or func in _RULES) or len(args) < 1 + pair:
        return False
    tensors = all(isinstance(a, Tensor) and a.is_floating_point() for a in args[: 1 + pair])
    return tensors and not (kwargs or {}).get("return_indices", False)


def _mean_below(z: Tensor, half: Tensor) -> Tensor:
    """Return the average of min(u, 0) for u from z − d to z + d."""
    width = half.abs()
    crosses = width > z.abs()
    low = (z - width) / width.clamp(min=torch.finfo(z.dtype).tiny).sqrt()
    return torch.where(crosses, -0.25 * low.square(), z.clamp(max=0.0))


def _signal(func: Any, args: Sequence[Any]) -> Tensor:
    """Return what changes its sign, or passes other numbers, at the kinks of ``func``."""
    signal: Tensor = args[0] - args[1] if func in _PAIRS else args[0]
    return signal


def _out_of_place(func: Any) -> Any:
    name = func.__name__
    return getattr(torch, name[:-1]) if name in ("relu_",) else _TWINS.get(func, func)


_TWINS = {
    F.leaky_relu_: F.leaky_relu,
    F.hardtanh_: F.hardtanh,
    torch.threshold_: torch.threshold,
}


def _argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any
) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)
