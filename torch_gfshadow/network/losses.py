"""What may stand after the last layer: a loss that is convex in the network's output.

Convexity is derived call by call (the rules of disciplined convex programming), from the
functions the objective really called, on the piece where the point lies: an affine part stays
affine under |·|, relu and max. What cannot be derived is not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from torch_gfshadow.network.calls import Call
from torch_gfshadow.network.values import AFFINE, CONCAVE, CONVEX, Head

PENALTY = "penalty on the weights"

Rule = Callable[[Call, Head], "Head | str"]


def _keep(call: Call, head: Head) -> Head:
    return head


def _flip(call: Call, head: Head) -> Head:
    return _of(head, {CONVEX: CONCAVE, CONCAVE: CONVEX}.get(head.shape, AFFINE))


def _subtract(call: Call, head: Head) -> Head:
    first = call.args[0] is call.before
    if call.name == "__rsub__":
        first = not first
    return head if first else _flip(call, head)


def _scale(call: Call, head: Head) -> Head | str:
    if len(call.args) > 1 and call.args[0] is call.args[1]:
        return f"{call.name} of a part of the loss with itself"
    if call.name.lstrip("_").startswith(("div", "true", "itrue")) and (
        call.args[0] is not call.before or call.kwargs.get("rounding_mode") is not None
    ):
        return "a constant divided by the output is not convex"
    factor = next((a for a in call.args if a is not call.before), call.kwargs.get("other", 1.0))
    signs = torch.as_tensor(factor).detach()
    if head.shape == AFFINE or bool((signs >= 0).all()):
        return head
    if bool((signs <= 0).all()):
        return _flip(call, head)
    return "a curved part of the loss is weighted with both signs"


def _kinked(call: Call, head: Head) -> Head | str:
    """|·|, relu, clamp and max: affine on each piece, and relu and max keep convexity."""
    if head.shape == AFFINE:
        return head
    if head.shape == CONVEX and call.name not in ("abs", "absolute", "__abs__", "clamp", "clip"):
        return head
    return f"{call.name} of a curved part of the loss"


def _convex(kind: str, *, keeps_convex: bool = False) -> Rule:
    def rule(call: Call, head: Head) -> Head | str:
        if head.shape == AFFINE or (keeps_convex and head.shape == CONVEX):
            return _of(head, CONVEX, kind)
        return f"{call.name} of a {head.shape} part of the loss"

    return rule


def _concave(kind: str) -> Rule:
    def rule(call: Call, head: Head) -> Head | str:
        if head.shape == AFFINE:
            return _of(head, CONCAVE, kind)
        return f"{call.name} of a {head.shape} part of the loss"

    return rule


_square = _convex("square")


def _power(call: Call, head: Head) -> Head | str:
    exponent = call.get(1, "exponent")
    if isinstance(exponent, Tensor):
        exponent = exponent.item() if exponent.numel() == 1 else None
    if exponent == 1:
        return head
    if exponent == 2:
        return _square(call, head)
    if isinstance(exponent, (int, float)) and exponent > 2 and exponent % 2 == 0:
        return _convex(f"power {exponent:g}")(call, head)
    return f"the power {exponent} is not convex on the whole line"


def _with_target(kind: str) -> Rule:
    """A loss of (output, target) that is convex in the output for any target."""

    def rule(call: Call, head: Head) -> Head | str:
        if call.args[0] is not call.before:
            return f"{call.name} with the output as target"
        weight = call.kwargs.get("weight")
        if weight is not None and bool((weight < 0).any()):
            return f"{call.name} with negative weights"
        return _convex(kind)(call, head)

    return rule


def _weighted(kind: str, *, target_is_share: bool = False) -> Rule:
    """The same, with class weights, and targets that must lie between 0 and 1."""

    def rule(call: Call, head: Head) -> Head | str:
        if call.args[0] is not call.before:
            return f"{call.name} with the output as target"
        for name in ("weight", "pos_weight"):
            weight = call.get(2, name) if name == "weight" else call.kwargs.get(name)
            if weight is not None and bool((weight < 0).any()):
                return f"{call.name} with negative weights"
        target = call.get(1, "target")
        outside = bool((target < 0).any()) or (target_is_share and bool((target > 1).any()))
        if target.is_floating_point() and outside:
            return f"{call.name} with targets outside [0, 1]"
        return _convex(kind)(call, head)

    return rule


def _nll(call: Call, head: Head) -> Head | str:
    weight = call.get(2, "weight")
    if call.args[0] is not call.before or (weight is not None and bool((weight < 0).any())):
        return "nll_loss with negative weights"
    return _flip(call, head)


def _l1(call: Call, head: Head) -> Head | str:
    """|h − y|, affine on each piece: its convexity has no curvature."""
    return head if head.shape == AFFINE else f"{call.name} of a {head.shape} part of the loss"


def _norm(call: Call, head: Head) -> Head | str:
    order = call.get(1, "p", call.kwargs.get("ord"))
    if isinstance(order, (int, float)) and order < 1:
        return f"the norm of order {order} is not convex"
    return _convex("norm")(call, head)


def _log1p(call: Call, head: Head) -> Head | str:
    if head.last == "exp" and head.kinds == {"exponential"}:
        return Head(head.stages, CONVEX, frozenset({"logistic"}))
    return f"{call.name} is not convex"


def _of(head: Head, shape: str, kind: str | None = None) -> Head:
    kinds = head.kinds if kind is None else head.kinds | {kind}
    return Head(head.stages, shape, kinds)


def added(a: Head, b: Head, sign: int = 1) -> Head | str:
    """Return the sum or difference of two parts of the loss."""
    if sign < 0:
        b = _of(b, {CONVEX: CONCAVE, CONCAVE: CONVEX}.get(b.shape, AFFINE))
    shapes = {a.shape, b.shape} - {AFFINE}
    if len(shapes) > 1:
        return "the loss is a difference of convex functions"
    penalty = frozenset() if a.stages and b.stages else frozenset({PENALTY})
    return Head(a.stages or b.stages, next(iter(shapes), AFFINE), a.kinds | b.kinds | penalty)


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_ADD = ("add", "add_", "__add__", "__radd__", "__iadd__")
_SUB = ("sub", "sub_", "subtract", "__sub__", "__rsub__", "__isub__", "rsub")
ADDITIONS: Mapping[str, int] = {**dict.fromkeys(_ADD, 1), **dict.fromkeys(_SUB, -1)}

LOSSES: Mapping[str, Rule] = {
    **dict.fromkeys(_ADD, _keep),
    **dict.fromkeys(_SUB, _subtract),
    **_each(
        "sum mean nansum view reshape flatten squeeze unsqueeze clone contiguous "
        "__getitem__ gather index_select take_along_dim select permute transpose "
        "T.__get__ mT.__get__ t masked_select diagonal unbind narrow expand "
        "expand_as trace view_as reshape_as stack",
        _keep,
    ),
    **_each("neg negative __neg__", _flip),
    **_each(
        "mul mul_ multiply __mul__ __rmul__ __imul__ div div_ true_divide "
        "__truediv__ __itruediv__ dot inner matmul mv __matmul__ __rmatmul__",
        _scale,
    ),
    **_each("abs absolute __abs__ relu relu_ clamp clip clamp_min maximum max amax", _kinked),
    **_each("pow pow_ __pow__ float_power", _power),
    "square": _square,
    "mse_loss": _with_target("square"),
    **_each("huber_loss smooth_l1_loss", _with_target("Huber")),
    "l1_loss": _l1,
    **_each("exp exp_", _convex("exponential", keeps_convex=True)),
    "softplus": _convex("logistic", keeps_convex=True),
    "log1p": _log1p,
    **_each("logsumexp", _convex("cross-entropy", keeps_convex=True)),
    "soft_margin_loss": _with_target("logistic"),
    "binary_cross_entropy_with_logits": _weighted("logistic", target_is_share=True),
    "cross_entropy": _weighted("cross-entropy"),
    "log_softmax": _concave("cross-entropy"),
    "logsigmoid": _concave("logistic"),
    "nll_loss": _nll,
    **_each("norm linalg.vector_norm linalg.norm", _norm),
}
"""Name of the function, as torch spells it → its rule for one argument that depends on θ."""
