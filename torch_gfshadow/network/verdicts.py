"""What the result of a call is, given what its arguments are, and the words for what is refused."""

from __future__ import annotations

from dataclasses import replace

from torch_gfshadow.network.calls import Call
from torch_gfshadow.network.losses import ADDITIONS, LOSSES, added
from torch_gfshadow.network.slopes import is_square
from torch_gfshadow.network.values import Head, Signal, Stage, Unknown, Value, Weight

NAMES = {
    "batch_norm": "batch normalisation",
    "layer_norm": "layer normalisation",
    "group_norm": "group normalisation",
    "instance_norm": "instance normalisation",
    "scaled_dot_product_attention": "attention",
    "multi_head_attention_forward": "attention",
    "embedding": "an embedding",
}
"""Words for functions whose names are none."""


def joined(name: str, values: list[Value], stages: tuple[Stage, ...]) -> Value:
    """Several arguments depend on θ: fine for sums of parts of one loss, nowhere else."""
    heads = [_as_head(v) for v in values]
    stacks = [h.stages for h in heads if h.stages]
    same = all(s[-1].outputs is stacks[0][-1].outputs for s in stacks)
    if name in ADDITIONS and len(heads) == 2:
        if same and not all(isinstance(v, Signal) for v in values):
            total = added(heads[0], heads[1], ADDITIONS[name])
            return Unknown(total, stages) if isinstance(total, str) else replace(total, last=name)
        if any(isinstance(v, Weight) for v in values):
            return Unknown("a trained bias is added", stages)
        return Unknown("a skip connection or a second branch is added", stages)
    if any(isinstance(v, Weight) for v in values):
        weight = next(v for v in values if isinstance(v, Weight))
        if name == "prelu":
            return Unknown(f"the slope {weight.name!r} of a PReLU is trained; freeze it", stages)
        what = NAMES.get(name, name.strip("_"))
        return Unknown(f"{what} with {weight.name!r} is no bias-free layer", stages)
    return Unknown(f"{name.strip('_')} joins two branches", stages)


def lossy(call: Call, head: Head) -> Value:
    """Return what a function of the output, or of a part of the loss, makes of the loss."""
    if is_square(call):
        rule = LOSSES["square"]
    elif call.name in LOSSES:
        rule = LOSSES[call.name]
    else:
        return Unknown(f"{call.name.strip('_')} in the loss is not known to be convex", head.stages)
    done = rule(call, head)
    if isinstance(done, str):
        return Unknown(done, head.stages)
    return replace(done, last=call.name)


def _as_head(value: Value) -> Head:
    if isinstance(value, Head):
        return value
    return Head(value.stages if isinstance(value, Signal) else ())


def title(name: str) -> str:
    """Return the words for the layer of a weight."""
    return f"layer {name.removesuffix('.weight')!r}"
