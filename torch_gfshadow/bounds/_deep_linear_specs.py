"""The results on deep linear networks as they are registered."""

from torch_gfshadow.bounds import lemma1, lemma2, lemma2_live, proposition1, tube, tube_live
from torch_gfshadow.specs import BoundSpec

_PAPER = "Elkabetz & Cohen 2021"

SPECS = (
    BoundSpec(
        name="lemma1",
        factory=lemma1.lemma1,
        summary="Hessian of a deep linear network as a quadratic form, and its spectrum",
        source=f"{_PAPER}, Lemma 1",
        evaluate=lemma1.evaluate,
        live=False,
    ),
    BoundSpec(
        name="lemma2",
        factory=lemma2_live.Lemma2,
        summary="λ_min of a deep linear network from below: Eq. 13 and three tighter ones",
        source=f"{_PAPER}, Lemma 2 (Eq. 13); tightenings derived",
        evaluate=lemma2.evaluate,
    ),
    BoundSpec(
        name="proposition1",
        factory=proposition1.proposition1,
        summary="weights at which λ_min of a deep linear network is any negative number",
        source=f"{_PAPER}, Proposition 1",
        evaluate=proposition1.evaluate,
        parts={"prop1": proposition1.evaluate},
        live=False,
    ),
    BoundSpec(
        name="tube",
        factory=tube_live.LiveTube,
        summary="radius around gradient descent that provably contains the flow",
        source="derived",
        evaluate=tube.evaluate,
        parts={"tube_step": tube.evaluate},
    ),
)
