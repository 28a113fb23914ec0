"""Recognise a network: run the objective once under the tape and collect what it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_gfshadow._batch import head
from torch_gfshadow._sandbox import cast_batch
from torch_gfshadow.network.assemble import Part, assemble
from torch_gfshadow.network.point import NetworkPoint
from torch_gfshadow.network.slopes import slope_of
from torch_gfshadow.network.tape import NOT_FINITE, Tape
from torch_gfshadow.network.values import CONCAVE, Head, Signal, Stage, Unknown, Value, Weight
from torch_gfshadow.objective import Objective

# ⟨p_j, W_j z_{j−1}⟩ is the same at every layer of a bias-free homogeneous network (Euler); in
# float64 it is off by rounding only, and by whatever a call did that we did not understand.
_EULER_TOLERANCE = 1e-8


@dataclass(frozen=True)
class NotCovered:
    """Why no theorem about bias-free homogeneous networks applies, in one sentence.

    Attributes:
        reason: The sentence.
        raised: Whether the objective failed, instead of being of another kind.
    """

    reason: str
    raised: bool = False

    @property
    def lasting(self) -> bool:
        """Whether it is a property of the model, not of the point."""
        return NOT_FINITE not in self.reason


class _RefusalError(Exception):
    pass


def recognise(objective: Objective, theta: Tensor) -> NetworkPoint | NotCovered:
    """Return the stack of layers that ``objective`` is at ``theta``, or why it is none.

    Covered are bias-free linear and convolution layers, each followed by homogeneous activations
    (ReLU, leaky and fixed parametric ReLU, |·|, identity), average- or max-pools, reshapes and
    scalings, in whatever way the model is written, under a loss that is convex in the output.
    Everything is evaluated in float64, at a cost of one gradient; nothing of the live model is
    touched.

    Args:
        objective: f.
        theta: Flat parameters, shape ``[d]``.

    Returns:
        The network at this point, or a sentence.
    """
    objective.ledger.grads["bounds"] += 1
    if objective.ranks is not None:
        return NotCovered("Not covered: the objective is spread over several ranks.")
    try:
        with objective.guard():
            return assemble(_parts(objective, theta))
    except _RefusalError as refusal:
        return NotCovered(f"Not covered: {refusal}.")
    except Exception as error:  # the model's own code, on tensors of another dtype
        line = (str(error).splitlines() or [""])[0]
        reason = f"the objective does not run in float64 ({type(error).__name__}: {line})"
        return NotCovered(f"Not covered: {reason}.", raised=True)


def _parts(objective: Objective, theta: Tensor) -> Iterator[Part]:
    sandbox, dtype = objective.sandbox, torch.float64
    params = sandbox.params_at(theta, dtype, requires_grad=True)
    names = {parameter: name for name, parameter in params.items()}
    for batch, weight in objective.chunks():
        cast = cast_batch(batch, dtype)
        with sandbox.swapped(params, dtype):
            with Tape(names) as tape:
                loss = sandbox.forward(cast)
            stages, kinds = _stack(tape.value(loss))
            outputs = [stage.outputs for stage in stages]
            straight = kinds == {"square"} and all(m.linear for s in stages for m in s.maps)
            bends = _bends(loss, outputs[-1], weight) if straight else None
            slope = slope_of(loss, outputs[-1], tape.curved).times(weight)
            signals = [g * weight for g in torch.autograd.grad(loss, outputs)]
        part = Part(stages, signals, kinds, bends, slope)
        _check_euler(part)
        yield part


def _bends(loss: Tensor, output: Tensor, weight: float) -> Tensor | None:
    """Return the diagonal of ∂²f/∂h², ``None`` if there is more than a diagonal."""
    (slope,) = torch.autograd.grad(loss, output, create_graph=True)
    # two directions, one of no particular kind: what is not diagonal cannot look so in both
    odd = torch.linspace(0.5, 2.0, output.numel(), dtype=output.dtype, device=output.device)
    odd = (odd + 1).square().sin().reshape(output.shape)
    ones = torch.ones_like(output)
    (rows,) = torch.autograd.grad(slope, output, ones, retain_graph=True)
    (turned,) = torch.autograd.grad(slope, output, odd, retain_graph=True)
    if bool(((turned - rows * odd).abs() > 1e-12 * rows.abs().max()).any()):
        return None
    return rows.detach() * weight


def _stack(value: Value | None) -> tuple[tuple[Stage, ...], frozenset[str]]:
    """Return the stack behind the loss.

    Raises:
        _RefusalError: If it is not one, or the loss is not known to be convex in its output.
    """
    if isinstance(value, Unknown):
        raise _RefusalError(value.reason)
    if value is None or isinstance(value, Weight) or not value.stages:
        raise _RefusalError("the loss does not depend on a layer applied to data")
    if isinstance(value, Signal):
        return value.stages, frozenset()
    assert isinstance(value, Head)
    if value.shape == CONCAVE:
        raise _RefusalError("the loss is concave in the output")
    return value.stages, value.kinds


def _check_euler(part: Part) -> None:
    sums = [
        (p * s.outputs.detach()).flatten(1).sum(1)
        for p, s in zip(part.signals, part.stages, strict=True)
    ]
    scale = max(
        float((p * s.outputs.detach()).abs().flatten(1).sum(1).max())
        for p, s in zip(part.signals, part.stages, strict=True)
    )
    for here, stage in zip(sums[:-1], part.stages, strict=False):
        if float((here - sums[-1]).abs().max()) > _EULER_TOLERANCE * scale:
            raise _RefusalError(
                f"what follows layer {stage.name.removesuffix('.weight')!r} is not homogeneous"
            )


class Recogniser:
    """Recognises one objective again and again; a model that is not covered costs nothing more.

    Args:
        objective: f. It is tried on two samples first: large models that are not covered are
            most of them.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._refused: dict[tuple[bool, ...], NotCovered] = {}
        self._tried: set[tuple[bool, ...]] = set()

    def at(self, theta: Tensor) -> NetworkPoint | NotCovered:
        """Return the network at ``theta``, or why there is none, as :func:`recognise` does."""
        objective = self.objective
        mode = tuple(module.training for module in objective.sandbox.model.modules())
        if mode in self._refused:
            return self._refused[mode]
        if mode not in self._tried:
            first = next(objective.chunks())[0]
            found = recognise(objective.over(head(first, 2)), theta)
            if isinstance(found, NetworkPoint) or found.raised:  # two samples may be too few
                self._tried.add(mode)
        if mode in self._tried:
            found = recognise(objective, theta)
        if isinstance(found, NotCovered) and found.lasting:
            self._refused[mode] = found
        return found
