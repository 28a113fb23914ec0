"""What is known of a tensor while the model runs.

A signal inside the stack, a part of the loss, a weight, or nothing, with the reason.

Read next: ``maps`` (what may stand between layers), ``losses``, ``tape`` (who decides).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from torch_gfshadow.network.layers import Layer


@dataclass(frozen=True)
class Map:
    """What stands after a layer: a positively homogeneous, piecewise linear map.

    Attributes:
        norm: Upper limit of the norm of its linear pieces.
        slopes: Its diagonal at this point, shaped like its input, where it acts elementwise;
            ``None`` if it mixes (a pool) or only reshapes.
        linear: Whether it is linear, so that it has one piece.
        elementwise: Whether ``slopes`` (``None`` for all ones) says everything.
        kinks: Which entries of its input (of its output, for a pool) sit on a kink.
        pattern: Which piece we are on, as a flat tensor; ``None`` if there is only one.
        name: For the summary; empty for a mere reshape.
    """

    norm: float = 1.0
    slopes: Tensor | None = None
    linear: bool = True
    elementwise: bool = True
    kinks: Tensor | None = None
    pattern: Tensor | None = None
    name: str = ""


@dataclass(frozen=True)
class Stage:
    """A weight layer met on the way and the maps after it.

    Attributes:
        layer: Its operator.
        name: Name of its weight in the model.
        weight: w, in the shape of the parameter.
        inputs: z_{j−1}, ``[S, …]``.
        outputs: The pre-activation, still in the graph, ``[S, …]``.
        apply: (w, z) ↦ W(w)z, the very call of the model.
        maps: What stands between it and the next layer.
    """

    layer: Layer
    name: str
    weight: Tensor
    inputs: Tensor
    outputs: Tensor
    apply: Callable[[Tensor, Tensor], Tensor]
    maps: tuple[Map, ...] = ()


@dataclass(frozen=True)
class Weight:
    """A parameter of the model, ``transposed`` if seen through ``.T``."""

    name: str
    parameter: Tensor
    transposed: bool = False


@dataclass(frozen=True)
class Signal:
    """The samples inside the stack: a homogeneous function of the layers met so far."""

    stages: tuple[Stage, ...]

    def then(self, done: Map) -> Signal:
        """Return the signal after ``done``."""
        last = self.stages[-1]
        return Signal((*self.stages[:-1], replace(last, maps=(*last.maps, done))))

    def through(self, stage: Stage) -> Signal:
        """Return the signal after one more layer."""
        return Signal((*self.stages, stage))


AFFINE, CONVEX, CONCAVE = "affine", "convex", "concave"


@dataclass(frozen=True)
class Head:
    """A part of the loss: a function of the stack's output (or of the parameters alone).

    Attributes:
        stages: The stack it is a function of; empty for a penalty on the parameters.
        shape: ``"affine"`` (on the piece we are on), ``"convex"`` or ``"concave"``.
        kinds: Which losses made it curved.
        last: Last operation, for the message when it turns out to stand inside the network.
    """

    stages: tuple[Stage, ...]
    shape: str = AFFINE
    kinds: frozenset[str] = frozenset()
    last: str = ""


@dataclass(frozen=True)
class Unknown:
    """A tensor the theory says nothing about, and why, in one sentence."""

    reason: str
    stages: tuple[Stage, ...] = field(default=(), compare=False)


Value = Weight | Signal | Head | Unknown


def stages_of(values: Iterator[Value]) -> tuple[Stage, ...]:
    """Return the longest stack among ``values``."""
    stacks = [v.stages for v in values if not isinstance(v, Weight)]
    return max(stacks, key=len, default=())
