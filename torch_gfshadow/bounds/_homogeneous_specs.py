"""The results on networks with homogeneous activations as they are registered."""

from torch_gfshadow.bounds import convolution, nonlinear
from torch_gfshadow.specs import BoundSpec

_PAPER = "Elkabetz & Cohen 2021"

SPECS = (
    BoundSpec(
        name="nonlinear",
        factory=nonlinear.Nonlinear,
        evaluate=nonlinear.evaluate,
        parts={"nonlinear_bound": nonlinear.evaluate},
        summary="λ_min of a fully connected network with two-slope activations, pointwise",
        source=f"{_PAPER}, non-linear version of Lemma 2; tightening derived",
    ),
    BoundSpec(
        name="convolution",
        factory=convolution.Convolution,
        evaluate=convolution.evaluate,
        parts={"conv_bound": convolution.evaluate},
        summary="λ_min of a network with shared weights (convolutions), pointwise",
        source=f"{_PAPER}, weight-sharing version of Lemma 2; tightenings derived",
    ),
)
