"""What may stand between two layers: homogeneous activations, reshapes, idle dropout and pools.

Each rule gets the call as it was made and its result, and returns a :class:`Map`, or a sentence
that says why the call is not covered. All of them are positively homogeneous: scaling the input
by c > 0 scales the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from torch_gfshadow.network.calls import Call
from torch_gfshadow.network.pools import linear_pool, max_pool
from torch_gfshadow.network.values import Map

Rule = Callable[[Call], "Map | str"]
_DIVISIONS = ("div", "true", "itrue")


def two_slopes(
    negative: Tensor | float, positive: float, z: Tensor, name: str = "two slopes"
) -> Map:
    """Return z ↦ positive·z for z ≥ 0 and negative·z below, at z; slopes broadcast."""
    z = z.detach()
    low = torch.as_tensor(negative, dtype=z.dtype, device=z.device)
    straight = bool((low == positive).all())
    return Map(
        norm=max(abs(positive), float(low.abs().max())),
        slopes=torch.where(z >= 0, torch.full_like(z, positive), low.expand_as(z)),
        linear=straight,
        kinks=None if straight else z == 0,
        pattern=None if straight else (z > 0).flatten(),
        name=name,
    )


def _relu(call: Call) -> Map:
    return two_slopes(0.0, 1.0, call.before, "ReLU")


def _absolute(call: Call) -> Map:
    return two_slopes(-1.0, 1.0, call.before, "|·|")


def _leaky(call: Call) -> Map:
    slope = float(call.get(1, "negative_slope", 0.01))
    return two_slopes(slope, 1.0, call.before, "leaky ReLU")


def _prelu(call: Call) -> Map:
    slope: Tensor = call.get(1, "weight")  # a trained one is refused before
    shape = [1, -1] + [1] * (call.before.dim() - 2)
    shaped = slope.detach().reshape(shape[: max(call.before.dim(), 1)])
    return two_slopes(shaped, 1.0, call.before, "PReLU")


def _clamp(call: Call) -> Map | str:
    if call.get(1, "min") == 0 and call.get(2, "max") is None:
        return _relu(call)
    return f"{call.name} is not homogeneous unless it is clamp(min=0)"


def _slice(call: Call) -> Map | str:
    index = call.get(1, "index", ())
    parts = index if isinstance(index, tuple) else (index,)
    if all(part is None or part is ... or isinstance(part, (int, slice)) for part in parts):
        return _reshape(call)
    return "indexing may repeat entries"


def _reshape(call: Call) -> Map | str:
    if call.after.dim() and call.after.shape[0] == call.before.shape[0]:
        if call.after.numel() <= call.before.numel():  # reshapes, and basic slices
            return Map(elementwise=call.after.numel() == call.before.numel())
        return f"{call.name} repeats entries"
    return f"{call.name} does not keep the samples along the first dimension"


def _permute(call: Call) -> Map | str:
    n = call.before.dim()
    first = torch.arange(n).reshape(n)
    shape = [int(i) + 2 for i in first]  # all sizes differ, so the result tells where each went
    after = call.function(torch.empty(shape, device="meta"), *call.args[1:], **call.kwargs)
    if after.shape[0] != shape[0]:
        return f"{call.name} moves the samples from the first dimension"
    return Map(elementwise=False)


def _dropout(call: Call) -> Map | str:
    if call.get(1, "p", 0.5) == 0 or not call.get(2, "training", True):
        return Map()
    return "dropout is active; call model.eval() or remove it"


def _scale(call: Call) -> Map | str:
    if len(call.args) > 1 and call.args[0] is call.args[1]:
        return f"{call.name} of the signal with itself is not homogeneous"
    if call.name.lstrip("_").startswith(_DIVISIONS) and (
        call.args[0] is not call.before or call.kwargs.get("rounding_mode") is not None
    ):
        return f"{call.name} is no division of the signal by a constant"
    factor = next((a for a in call.args if a is not call.before), call.kwargs.get("other", 1.0))
    if isinstance(factor, Tensor) and factor.numel() > 1:
        if call.after.shape != call.before.shape:
            return f"{call.name} by a tensor changes the shape"
        slopes = factor.detach().to(call.before).expand_as(call.before)
    else:
        slopes = torch.full_like(call.before, float(factor), requires_grad=False)
    if call.name.lstrip("_").startswith(_DIVISIONS):
        slopes = 1 / slopes
    slopes = slopes.detach()
    return Map(norm=float(slopes.abs().max()), slopes=slopes, name="scaling")


def _negative(call: Call) -> Map:
    return Map(slopes=-torch.ones_like(call.before, requires_grad=False))


def _pad(call: Call) -> Map | str:
    mode, value = call.get(2, "mode", "constant"), call.get(3, "value")
    if mode == "constant" and value in (None, 0):
        return Map(elementwise=False)
    return f"padding of mode {mode!r} with {value or 0} is not zero padding"


def _same(call: Call) -> Map | str:
    if call.after.dtype != call.before.dtype:
        return f"{call.name} rounds to {call.after.dtype}"
    return Map()


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


MAPS: Mapping[str, Rule] = {
    **_each("relu relu_", _relu),
    **_each("leaky_relu leaky_relu_", _leaky),
    **_each("clamp clamp_ clamp_min clamp_min_ clip", _clamp),
    **_each("abs absolute __abs__", _absolute),
    **_each("neg negative __neg__", _negative),
    "prelu": _prelu,
    **_each(
        "narrow view reshape flatten unflatten squeeze unsqueeze view_as reshape_as",
        _reshape,
    ),
    **_each("__getitem__", _slice),
    **_each("permute transpose movedim swapaxes mT.__get__", _permute),
    **_each("contiguous clone to double float type cpu", _same),
    **_each("dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout", _dropout),
    **_each(
        "mul mul_ multiply __mul__ __rmul__ __imul__ div div_ true_divide __truediv__ __itruediv__",
        _scale,
    ),
    **_each(
        "avg_pool1d avg_pool2d avg_pool3d mean sum adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d",
        linear_pool,
    ),
    **_each("max_pool1d max_pool2d max_pool3d", max_pool),
    "pad": _pad,
}
"""Name of the function, as torch spells it → its rule."""
