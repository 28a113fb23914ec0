"""Which parameters make up θ, and what of one layout goes over into the next.

A layout is that of one moment: layers are frozen and unfrozen, heads added, models cast and moved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_gfshadow._purity import unwrap
from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import must


def layout_of(
    optimizer: torch.optim.Optimizer, model: nn.Module | None, *, real: bool = True
) -> Layout:
    """Return the parameters the optimizer steps, named as the model names them.

    Args:
        optimizer: Its trainable parameters, in the order of its groups, make up θ.
        model: Gives the names; without one they are numbered.
        real: Whether complex parameters are refused.

    Returns:
        The layout; a tied parameter appears once, frozen ones do not appear.

    Raises:
        ValueError: If the optimizer steps no parameter, or one the model does not hold.
    """
    params = trainable(optimizer.param_groups)
    if not params:
        raise ValueError(
            must(
                "optimizer",
                "stepping at least one trainable parameter",
                "none with requires_grad",
                "Pass model.parameters() to it before attaching.",
            )
        )
    for param in params:
        if isinstance(param, nn.parameter.UninitializedParameter):
            fix = "Run one batch through the model before attaching."
            raise ValueError(must("model", "initialised", "a lazy parameter without shape", fix))
        if real and param.is_complex():
            fix = (
                'Attach with mode="passive", or hold real and imaginary part in a real '
                "parameter: torch.view_as_complex(p)."
            )
            condition = "of real parameters where a flow is followed"
            raise ValueError(must("model", condition, f"one of {param.dtype}", fix))
    if model is None:
        return Layout([f"param_{i}" for i in range(len(params))], params)
    names = {id(p): name for name, p in unwrap(model).named_parameters()}
    missing = [tuple(p.shape) for p in params if id(p) not in names]
    if missing:
        raise ValueError(
            must(
                "model",
                "the module whose parameters the optimizer steps",
                f"one without {len(missing)} of its {len(params)} parameters "
                f"(shapes {missing[:3]})",
                "Pass the same model to attach() and to the optimizer.",
            )
        )
    return Layout([names[id(p)] for p in params], params)


def trainable(groups: Any) -> list[nn.Parameter]:
    """Return the parameters of ``groups`` that require a gradient, in order, each once."""
    found = {id(p): p for group in groups for p in group["params"] if p.requires_grad}
    return list(found.values())


def carried(before: Layout, flat: Tensor, now: Layout) -> Tensor:
    """Return what ``flat``, a vector of one layout, is in another one.

    Args:
        before: The layout of ``flat``.
        flat: Shape ``[d]`` of it.
        now: The layout asked for.

    Returns:
        Shape ``[d]`` of ``now``, in its dtype and on its device. A parameter that is only in
        ``now`` has its present value there, and so has one that changed its shape.
    """
    parts = torch.split(flat, list(before.sizes))
    known = dict(zip(map(id, before.params), zip(parts, before.shapes, strict=True), strict=True))
    chosen: list[Tensor] = []
    for param in now.params:
        part, shape = known.get(id(param), (param, None))
        chosen.append(part if shape == param.shape else param)
    return now.flatten(chosen)


def difference(before: Layout, now: Layout) -> str:
    """Say in words how the parameters of two layouts differ; ``before`` as it was when made."""
    joined, left = _only(now, before), _only(before, now)
    verbs = {
        "joined": [name for name in joined if name not in left],
        "replaced": [name for name in joined if name in left],
        "left": [name for name in left if name not in joined],
    }
    said = []
    for verb, names in verbs.items():
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            said.append(f"{', '.join(names[:2])}{more} {verb}")
    if not said:
        (dtype, device, _), (new, place, _) = before.homes[0], now.homes[0]
        said += [f"{dtype} became {new}".replace("torch.", "")] if dtype != new else []
        said += [f"moved from {device} to {place}"] if device != place else []
    return ", ".join(said) or "some of them changed dtype, device or shape"


def _only(layout: Layout, other: Layout) -> list[str]:
    named = zip(layout.names, layout.params, strict=True)
    return [name for name, param in named if id(param) not in other.ids]
