"""What a run showed, in words and in one JSON-ready dictionary.

A discrepancy without an error bar is a rumour: every sentence here starts with how well the
solver resolved what it reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch_gfshadow.experiments.ratios import RatioRow
from torch_gfshadow.record import Record
from torch_gfshadow.status import Status

RESOLUTION = 0.1
"""An error bar below this share of the discrepancy counts as resolved."""


@dataclass(frozen=True)
class Verdict:
    """How well the discrepancy is known: ``level`` for programs, ``text`` for people.

    ``level`` is ``resolved`` (bar ≤ 10 %), ``partly resolved`` (bar below the discrepancy),
    ``unresolved`` (only an upper limit is known), ``wrong objective`` or ``no shadow``.
    """

    level: str
    text: str


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


def judge(records: Sequence[Record]) -> Verdict:
    """Say what the last measured discrepancy is worth.

    Args:
        records: Records of one run.

    Returns:
        The verdict; its text gives discrepancy ± error bar in units of θ.
    """
    last = last_measured(records)
    if last is None or last.discrepancy is None:
        status = records[-1].status if records else Status.PENDING
        return Verdict("no shadow", f"No discrepancy was measured. {status.sentence}")
    if last.audit.startswith("mismatch"):
        return Verdict("wrong objective", Status.MISMATCH.sentence)
    value, bar = last.discrepancy, last.solver_error
    where = f"after {last.step:,} steps gradient descent lies"
    if bar is None:
        return Verdict("unresolved", f"Unresolved: {where} {value:.2g} away, of unknown accuracy.")
    travelled = last.distance_from_init or 0.0
    share = f", {value / travelled:.2%} of the {travelled:.3g} it travelled" if travelled else ""
    known = f"{where} {value:.2g} ± {bar:.1g} from gradient flow{share}."
    if bar <= RESOLUTION * value:
        return Verdict("resolved", f"Resolved to {_share(bar, value)}: {known}")
    if bar < value:
        return Verdict(
            "partly resolved",
            f"Partly resolved: {known} The error bar is {_share(bar, value)} of it, so the truth "
            f"lies between {value - bar:.2g} and {value + bar:.2g}; a smaller resolution narrows "
            "that at a price.",
        )
    return Verdict(
        "unresolved",
        f"Unresolved: {where} at most {value + bar:.2g} from gradient flow "
        f"(reported {value:.2g} ± {bar:.1g}); resolution={RESOLUTION} would tell more, at a price.",
    )


def last_measured(records: Sequence[Record], name: str = "discrepancy") -> Record | None:
    """Return the last record whose field ``name`` was measured, or ``None``."""
    return next((r for r in reversed(records) if getattr(r, name) is not None), None)


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


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if part >= 0.01 * whole else f"{part / whole:.1g}"
