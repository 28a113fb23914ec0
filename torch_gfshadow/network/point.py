"""NetworkPoint: a recognised network at one θ, in float64, with all that the bounds need of it.

With x_i the samples, p_{i,j} = ∂f/∂(pre-activation j) and z_{i,j} the output of layer j, the
Hessian is a positive semidefinite part plus, for the pairs of layers j < j'::

    2 Σ_i p_{i,j'}ᵀ W_j'(dw_j') B_{i,jj'} W_j(dw_j) z_{i,j−1},    B = the linear piece from j to j'

wherever no sample sits on a kink and the loss is convex in the output.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from torch_gfshadow.network.layers import Layer


@dataclass(frozen=True)
class Pair:
    """What the samples contribute to a pair of layers j < j', counted from 0.

    Attributes:
        mixed: Upper limit of ‖the (j, j') block of the second part‖₂.
        summed: The same by norms alone, √(κ_j κ_j') Σ_i ‖p‖·‖B‖·‖z‖; never less than ``mixed``.
    """

    mixed: float
    summed: float


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a deep linear network, from which its loss can be told.

    Attributes:
        inputs: x_i, ``[S, d_0]``.
        outputs: h_i = W x_i, ``[S, d_n]``.
        slopes: ∂f/∂h_i, ``[S, d_n]``.
        bends: Sums of the rows of ∂²f/∂h_i², ``[S, d_n]``; ``None`` unless that is diagonal.
    """

    inputs: Tensor
    outputs: Tensor
    slopes: Tensor
    bends: Tensor | None


@dataclass(frozen=True, eq=False)
class NetworkPoint:
    """A recognised network at one θ; equal only to itself.

    Attributes:
        names: Of the weights, from the input to the output.
        layers: Their operators.
        weights: w_j, detached, float64.
        norms: ‖W_j‖₂, upper limits.
        between: Upper limits of the slope (or pool) after layer j, one per gap.
        signal: Σ_i ‖p_{i,n}‖·‖x_i‖; the mean of ‖∇ℓ_i‖‖x_i‖ where f is a mean.
        signal_error: How much of it is room for what float64 may have lost.
        pairs: Contribution of each pair of layers.
        linear: Whether there is only one piece: no activation and no max-pool.
        activations: Names of what stands between, without repetition.
        loss: Which losses make f curved: square, cross-entropy, logistic …
        n_kinks: How many pre-activations (or pools) sit exactly on a kink.
        pattern: Which piece we are on, one entry per unit and sample.
        gradient: ∂f/∂W of the end-to-end matrix, ``[d_n, d_0]``; ``None`` unless every layer is
            a matrix and nothing stands between.
        samples: What the loss of such a network can be told from, unless there are too many.
    """

    names: tuple[str, ...]
    layers: tuple[Layer, ...]
    weights: tuple[Tensor, ...] = field(repr=False)
    norms: tuple[float, ...]
    between: tuple[float, ...]
    signal: float
    signal_error: float
    pairs: dict[tuple[int, int], Pair]
    linear: bool
    activations: tuple[str, ...]
    loss: frozenset[str]
    n_kinks: int
    pattern: Tensor = field(repr=False)
    gradient: Tensor | None = field(repr=False)
    samples: Samples | None = field(default=None, repr=False)

    @property
    def depth(self) -> int:
        """Number of layers n."""
        return len(self.layers)

    def matrices(self) -> list[Tensor] | None:
        """Return W_1 … W_n, ``d_j × d_{j−1}``, of a deep linear network; else ``None``."""
        if self.gradient is None:
            return None
        return [
            w if w.shape == (layer.n_out, layer.n_in) else w.mT  # type: ignore[attr-defined]
            for w, layer in zip(self.weights, self.layers, strict=True)
        ]

    def changed(self, earlier: NetworkPoint) -> int:
        """Return how many units (times samples) are on another piece than at ``earlier``."""
        return int((self.pattern != earlier.pattern).sum())
