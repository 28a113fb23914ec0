"""Which functions of torch have kinks, and what they are between them. Read next: ``_kinks``.

Derived; the piecewise linear ones are sums of ramps, whose average over a stretch is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)


class Ramps(NamedTuple):
    """A piecewise linear function: its slope far to the left, and the jumps of the slope."""

    slope: float | Tensor
    jumps: tuple[tuple[float, float | Tensor], ...]


RELU = Ramps(0.0, ((0.0, 1.0),))


def _relu(_: Sequence[Any], __: Mapping[str, Any]) -> Ramps:
    return RELU


def _abs(_: Sequence[Any], __: Mapping[str, Any]) -> Ramps:
    return Ramps(-1.0, ((0.0, 2.0),))


def _leaky_relu(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ramps:
    slope = float(_argument(args, kwargs, 1, "negative_slope", 0.01))
    return Ramps(slope, ((0.0, 1.0 - slope),))


def _prelu(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ramps:
    slope = own_slope(args, kwargs).detach()
    return Ramps(slope, ((0.0, 1.0 - slope),))


def own_slope(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the weight of a PReLU, shaped so that it goes with the input."""
    weight: Tensor = _argument(args, kwargs, 1, "weight", None)
    # a slope per channel, along the second dimension
    return weight if weight.numel() == 1 else weight.view(-1, *[1] * (args[0].dim() - 2))


def _threshold(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ramps:
    return Ramps(0.0, ((float(_argument(args, kwargs, 1, "threshold", 0.0)), 1.0),))


def _hardtanh(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ramps:
    low = float(_argument(args, kwargs, 1, "min_val", -1.0))
    high = float(_argument(args, kwargs, 2, "max_val", 1.0))
    return Ramps(0.0, ((low, 1.0), (high, -1.0)))


def _relu6(_: Sequence[Any], __: Mapping[str, Any]) -> Ramps:
    return Ramps(0.0, ((0.0, 1.0), (6.0, -1.0)))


def _clamp(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ramps | None:
    low = _argument(args, kwargs, 1, "min", None)
    high = _argument(args, kwargs, 2, "max", None)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    jumps: tuple[tuple[float, float], ...] = ((float(low), 1.0),) if low is not None else ()
    jumps += ((float(high), -1.0),) if high is not None else ()
    return Ramps(1.0 if low is None else 0.0, jumps)


def _clamp_max(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ramps | None:
    return _clamp((args[0], None, _argument(args, kwargs, 1, "max", None)), {})


_Rule = Callable[[Sequence[Any], Mapping[str, Any]], "Ramps | None"]


def _sampled(_: Sequence[Any], __: Mapping[str, Any]) -> None:
    """Averaged over four points of the stretch: not elementwise, or not piecewise linear."""


RULES: dict[Any, _Rule] = {
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


PAIRS: dict[Any, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **dict.fromkeys(
        (torch.maximum, Tensor.maximum, torch.max, Tensor.max), lambda a, b, relu: b + relu
    ),
    **dict.fromkeys(
        (torch.minimum, Tensor.minimum, torch.min, Tensor.min), lambda a, b, relu: a - relu
    ),
    F.l1_loss: lambda a, b, relu: 2.0 * relu - (a - b),
}
"""Functions of two tensors a and b with a kink where they are equal, as sums with relu(a − b)."""


def is_ours(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> bool:
    """Return whether the call is one whose slopes are averaged."""
    pair = func in PAIRS
    if not (pair or func in RULES) or len(args) < 1 + pair:
        return False
    others = [value for name, value in (kwargs or {}).items() if name != "reduction"]
    if func is F.l1_loss and not (len(args) == 2 and all(value is None for value in others)):
        return False  # weighted
    tensors = all(isinstance(a, Tensor) and a.is_floating_point() for a in args[: 1 + pair])
    return tensors and not (kwargs or {}).get("return_indices", False)


def mean_below(z: Tensor, half: Tensor) -> Tensor:
    """Return the average of min(u, 0) for u from z − d to z + d."""
    width = half.abs()
    crosses = width > z.abs()
    low = (z - width) / width.clamp(min=torch.finfo(z.dtype).tiny).sqrt()
    return torch.where(crosses, -0.25 * low.square(), z.clamp(max=0.0))


def signal_of(func: Any, args: Sequence[Any]) -> Tensor:
    """Return what changes its sign, or passes other numbers, at the kinks of ``func``."""
    signal: Tensor = args[0] - args[1] if func in PAIRS else args[0]
    return signal


def of_pair(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], relu: Tensor) -> Tensor:
    """Return what a function of two tensors gives, from relu(a − b)."""
    form = PAIRS[func](args[0], args[1], relu)
    how = kwargs.get("reduction", "mean") if func is F.l1_loss else "none"
    return form if how == "none" else form.mean() if how == "mean" else form.sum()


def out_of_place(func: Any) -> Any:
    """Return the function that gives the result of ``func`` in a tensor of its own."""
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
