"""Whether two protocols agree, within the error bars of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch_gfshadow.experiments.ratio_rows import RatioRow
from torch_gfshadow.record import Record


@dataclass(frozen=True)
class Agreement:
    """Whether the shadow and the ratio protocol say the same, within both error bars.

    Attributes:
        agree: Whether they do at the last common step.
        step: That step.
        shadow: (discrepancy, error bar) by the shadow, in units of θ.
        ratios: (discrepancy, error bar) by extrapolation of the finer runs.
        share: Share of the common steps at which they agree, 0 to 1.
        n_common: Number of common steps, step 0 left out.
        text: The same in words.
    """

    agree: bool
    step: int
    shadow: tuple[float, float]
    ratios: tuple[float, float]
    share: float
    n_common: int
    text: str


def compare(records: Sequence[Record], rows: Sequence[RatioRow]) -> Agreement | None:
    """Compare the shadow's discrepancy with the ratio protocol's at every common step.

    They agree where |difference| ≤ sum of the two error bars.

    Args:
        records: Records of the shadow's run.
        rows: Rows of the ratio protocol from the same start.

    Returns:
        The comparison, or ``None`` without a common step after step 0.
    """
    by_step = {row.step: row for row in rows if row.step > 0}
    pairs = [
        ((r.discrepancy, r.solver_error or 0.0), by_step[r.step])
        for r in records
        if r.discrepancy is not None and r.step in by_step
    ]
    if not pairs:
        return None
    hits = [
        abs(value - row.extrapolated) <= bar + row.extrapolated_error for (value, bar), row in pairs
    ]
    (value, bar), row = pairs[-1]
    there = (
        "agree within their error bars there, and"
        if hits[-1]
        else "differ by more than their error bars there; they agree"
    )
    finest = max(row.distances)
    text = (
        f"At step {row.step:,} the shadow says {value:.3g} ± {bar:.1g}; runs down to η/{finest}, "
        f"extrapolated to step size zero, say {row.extrapolated:.3g} ± "
        f"{row.extrapolated_error:.1g}. They {there} at "
        f"{sum(hits):,} of {len(hits):,} common steps."
    )
    return Agreement(
        agree=hits[-1],
        step=row.step,
        shadow=(value, bar),
        ratios=(row.extrapolated, row.extrapolated_error),
        share=sum(hits) / len(hits),
        n_common=len(hits),
        text=text,
    )
