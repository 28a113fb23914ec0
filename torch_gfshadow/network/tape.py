"""Tape: watch a model run and derive what every tensor is, function call by function call.

``torch.overrides.TorchFunctionMode`` shows the calls a model makes, however it is written:
nested Sequential, a forward of its own, functional calls, control flow. Nothing is traced or
compiled; what runs is the model itself, and what is derived holds at this very point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch_gfshadow.network.calls import Call, by_position, name_of, swapped, tensors_in
from torch_gfshadow.network.geometry import again, geometry, is_layer, operands
from torch_gfshadow.network.losses import ADDITIONS, LOSSES
from torch_gfshadow.network.maps import MAPS
from torch_gfshadow.network.slopes import curves
from torch_gfshadow.network.values import (
    Head,
    Signal,
    Stage,
    Unknown,
    Value,
    Weight,
    stages_of,
)
from torch_gfshadow.network.verdicts import NAMES, joined, lossy, title

_TRANSPOSES = ("T.__get__", "mT.__get__", "t", "transpose", "swapaxes")
_OUT_OF_SIGHT = (
    "a tensor was computed where its functions cannot be seen (an autograd.Function, a "
    "checkpoint or a ScriptModule)"
)
NOT_FINITE = "the activations are not finite"
_THROUGH_A_VIEW = "an activation was changed in place through a view"


class Tape(TorchFunctionMode):
    """Active while the objective runs; ask :meth:`value` about its result.

    Args:
        names: Every parameter of the model → its name.

    Attributes:
        curved: The calls that made the loss curved in the output.
    """

    def __init__(self, names: Mapping[Tensor, str]) -> None:
        super().__init__()
        self._parameters = {id(p): Weight(name, p) for p, name in names.items()}
        self._kept: list[Any] = [dict(names)]  # an id is only a name while its object lives
        self._values: dict[int, tuple[Value, int]] = {}
        self.curved: list[Call] = []

    def value(self, tensor: Any) -> Value | None:
        """Return what ``tensor`` is; ``None`` for a constant."""
        if not isinstance(tensor, Tensor):
            return None
        known = self._values.get(id(tensor))
        if known is not None:
            # views and their base share the counter
            return known[0] if known[1] == tensor._version else Unknown(_THROUGH_A_VIEW)
        parameter = self._parameters.get(id(tensor))
        if parameter is not None:
            return parameter if tensor.is_floating_point() else None
        return Unknown(_OUT_OF_SIGHT) if tensor.requires_grad else None

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        known = {id(t): t for t in tensors_in((args, kwargs)) if self.value(t) is not None}
        if all(self._is_frozen(t) for t in known.values()):
            return function(*args, **kwargs)
        name = name_of(function)
        values: dict[int, Value] = {}
        for key, tensor in known.items():
            value = self.value(tensor)
            assert value is not None
            values[key] = value
        args, kwargs = by_position(args, kwargs)
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place or kwargs.get("inplace") or any(a is True for a in args):
            before = {key: t.detach().clone() for key, t in known.items()}
        else:
            before = known
        versions = {key: t._version for key, t in known.items()}
        result = function(*args, **kwargs)
        if not isinstance(result, Tensor):
            self._mark_parts(result, values, name)
            return result
        if id(result) in versions and result._version == versions[id(result)]:
            return result  # nothing was done: contiguous(), to() of what it is already
        call = Call(name, function, swapped(args, before), kwargs, result, result)
        value = self._judge(call, values, before)
        if isinstance(value, Signal) and value.stages[-1].outputs is result:
            # a copy goes on, so that a ReLU in place does not overwrite the pre-activation
            result = result.clone()
        elif isinstance(value, Head) and value.stages and len(known) == 1 and curves(call):
            self.curved.append(replace(call, before=next(iter(before.values()))))
            result = result if in_place else result.clone()  # what it was, if it is scaled in place
        self._set(result, value)
        return result

    def _judge(
        self, call: Call, values: Mapping[int, Value], tensors: Mapping[int, Tensor]
    ) -> Value:
        """Say what the result of a call is, given what its arguments are."""
        stages = stages_of(iter(values.values()))
        unknown = next((v for v in values.values() if isinstance(v, Unknown)), None)
        if unknown is not None:
            return Unknown(unknown.reason, stages)
        if not call.after.requires_grad:
            return Unknown(
                "a part is detached from the graph (detach, no_grad, an autograd.Function)", stages
            )
        if is_layer(call.function):
            return self._layer(call, stages)
        if len(values) > 1:
            return joined(call.name, list(values.values()), stages)
        value, tensor = next(iter(values.values())), next(iter(tensors.values()))
        call = replace(call, before=tensor)
        if isinstance(value, Weight):
            if call.name in _TRANSPOSES and tensor.dim() == 2:
                return replace(value, transposed=not value.transposed)
            value = Head(())
        if isinstance(value, Signal):
            return self._mapped(call, value)
        assert isinstance(value, Head)
        return lossy(call, value)

    def _mapped(self, call: Call, signal: Signal) -> Value:
        rule, why = MAPS.get(call.name), ""
        if rule is not None:
            done = rule(call)
            if not isinstance(done, str):
                return signal.then(done)
            why = done
        if call.name in LOSSES:
            return lossy(call, Head(signal.stages))
        where = f"after {title(signal.stages[-1].name)}"
        what = NAMES.get(call.name, f"{call.name.strip('_')}")
        return Unknown(
            why or f"{what} {where} is no bias-free layer, homogeneous activation or pool",
            signal.stages,
        )

    def _layer(self, call: Call, stages: tuple[Stage, ...]) -> Value:
        z, weight, bias = operands(call)
        seen, shared = self.value(z), self.value(weight)
        if seen is not None and not isinstance(seen, Signal):
            if isinstance(seen, Head) and seen.last:
                name = title(shared.name) if isinstance(shared, Weight) else "a later layer"
                if seen.last in ADDITIONS:
                    return Unknown(f"a constant is added before {name}", stages)
                return Unknown(f"{seen.last} before {name} is not homogeneous", stages)
            return Unknown(f"{call.name} is applied to parameters", stages)
        if shared is None:
            if seen is None:
                return Unknown("a layer without parameters has a trained bias", stages)
            shared = Weight(f"fixed matrix {len(stages)}", weight)
        if not isinstance(shared, Weight):
            return Unknown(f"the weight of {call.name} is computed from parameters", stages)
        if bias is not None:
            return Unknown(f"{title(shared.name)} has a bias", stages)
        if any(stage.weight is shared.parameter for stage in stages):
            return Unknown(f"{title(shared.name)} is used twice", stages)
        layer = geometry(call, z, weight)
        if isinstance(layer, str):
            return Unknown(f"{title(shared.name)}: {layer}", stages)
        if stages and len(z) != len(stages[0].inputs):
            return Unknown(f"the samples are mixed before {title(shared.name)}", stages)
        if not bool(z.detach().isfinite().all()):
            return Unknown(NOT_FINITE, stages)
        stage = Stage(
            layer,
            shared.name,
            shared.parameter,
            z.detach(),
            call.after,
            partial(again, call, z, weight),
        )
        return (seen or Signal(())).through(stage)

    def _is_frozen(self, tensor: Tensor) -> bool:
        return id(tensor) in self._parameters and not tensor.requires_grad

    def _mark_parts(self, result: Any, values: Mapping[int, Value], name: str) -> None:
        """Results that are not one tensor: numbers are constants, parts are what the whole was."""
        stages = stages_of(iter(values.values()))
        for part in tensors_in(result):
            only = next(iter(values.values())) if len(values) == 1 else None
            value: Value = Unknown(f"{name} returns several tensors", stages)
            if isinstance(only, Unknown):
                value = only
            elif isinstance(only, Head) and name in LOSSES:
                value = replace(only, last=name)
            self._set(part, value)

    def _set(self, tensor: Tensor, value: Value) -> None:
        self._kept.append(tensor)
        self._values[id(tensor)] = value, tensor._version
