"""Why the discrepancy is what it is: local defects, spread or forgotten by the flow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch_gfshadow.record import Record
from torch_gfshadow.report.words import number, steps


@dataclass(frozen=True)
class Finding:
    """One thing that happened.

    Attributes:
        level: ``good``, ``note``, ``warning`` or ``problem``.
        title: A few words.
        text: What, by which numbers, and what to do about it.
    """

    level: str
    title: str
    text: str


def causes(records: Sequence[Record]) -> Iterator[Finding]:
    """Compare the discrepancy with what the local defects alone add up to."""
    measured = [r for r in records if r.discrepancy is not None]
    last = measured[-1]
    value = last.discrepancy or 0.0
    defects = _sum_of_defects(records)
    if not defects or not value:
        return
    peak = max(measured, key=lambda r: r.discrepancy or 0.0)
    growth = _log_growth(records)
    ratio = value / defects
    said = (
        f"The local defects of {steps(last.step)} add up to {number(defects)}; the discrepancy is "
        f"{number(ratio)} times that"
    )
    if ratio > 1.5:
        why = "directions of negative curvature amplified what each step added"
        if growth is not None:
            why += f" (∫ −λ_min dt = {number(growth)}, at most a factor e^{number(growth)})"
        yield Finding("note", "The flow spreads", f"{said}: {why}.")
    elif ratio < 0.5:
        why = "the flow contracts, or the defects point different ways, and most of it is forgotten"
        if (peak.discrepancy or 0.0) > 1.2 * value:
            why += (
                f"; the largest discrepancy, {number(peak.discrepancy)}, was at step {peak.step:,}"
            )
        yield Finding("good", "The flow forgets", f"{said}: {why}.")
    else:
        yield Finding("note", "Defects add up", f"{said}: they neither spread nor fade.")


def _sum_of_defects(records: Sequence[Record]) -> float:
    """Return Σ ½ηδ, each record standing for the steps since the one before."""
    known = [r for r in records if r.local_defect is not None]
    total, before = 0.0, records[0].time
    for record in known:
        total += 0.5 * (record.local_defect or 0.0) * (record.time - before)
        before = record.time
    return total


def _log_growth(records: Sequence[Record]) -> float | None:
    """Return ∫ max(−λ_min, 0) dt by the trapezoidal rule over the probes."""
    probed = [r for r in records if r.lambda_min is not None]
    if len(probed) < 2:
        return None
    return sum(
        0.5
        * (max(-(a.lambda_min or 0.0), 0.0) + max(-(b.lambda_min or 0.0), 0.0))
        * (b.time - a.time)
        for a, b in pairwise(probed)
    )
