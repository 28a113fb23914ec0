"""How well a run's discrepancy is known, in words.

A discrepancy without an error bar is a rumour: every sentence here starts with how well the
solver resolved what it reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


_FLOWS = {
    "batch": "the flow of its own batches",
    "local": "the flow of that step alone",
}


# docs/numerics.md, "The error bar"
_BRANCHES = " At kinks the flow can branch, and the bar does not see every branch."


def judge(records: Sequence[Record], anew: bool = False) -> Verdict:
    """Say what the last measured discrepancy is worth.

    Args:
        records: Records of one run.
        anew: Whether the shadow was started anew on the way, and discrepancies count from there.

    Returns:
        The verdict; its text gives discrepancy ± error bar in units of θ.
    """
    last = last_telling(records)
    if last is None or last.discrepancy is None:
        status = records[-1].status if records else Status.PENDING
        return Verdict("no shadow", f"No discrepancy was measured. {status.sentence}")
    if last.audit.startswith("mismatch"):
        return Verdict("wrong objective", Status.MISMATCH.sentence)
    value, bar = last.discrepancy, last.solver_error
    where = f"{'at step' if anew else 'after'} {last.step:,}{'' if anew else ' steps'}"
    where += " gradient descent lies"
    if bar is None:
        return Verdict("unresolved", f"Unresolved: {where} {value:.2g} away, of unknown accuracy.")
    flow = _FLOWS.get(last.mode, "gradient flow")
    if value == 0.0:
        return Verdict(
            "resolved" if bar == 0.0 else "unresolved", f"{where} on {flow}.".capitalize()
        )
    travelled = 0.0 if anew else last.distance_from_init or 0.0
    share = f", {value / travelled:.2%} of the {travelled:.3g} it travelled" if travelled else ""
    known = f"{where} {value:.2g} ± {bar:.1g} from {flow}{share}."
    caveat = _BRANCHES if last.solver.endswith(("adams2", "slabs")) else ""
    if bar <= RESOLUTION * value:
        return Verdict("resolved", f"Resolved to {_share(bar, value)}: {known}{caveat}")
    if bar < value:
        return Verdict(
            "partly resolved",
            f"Partly resolved: {known} The error bar is {_share(bar, value)} of it, so the truth "
            f"lies between {value - bar:.2g} and {value + bar:.2g}; a smaller resolution narrows "
            f"that at a price.{caveat}",
        )
    return Verdict(
        "unresolved",
        f"Unresolved: {where} at most {value + bar:.2g} from {flow} "
        f"(reported {value:.2g} ± {bar:.1g}); resolution={RESOLUTION} would tell more, at a price.",
    )


def last_measured(records: Sequence[Record], name: str = "discrepancy") -> Record | None:
    """Return the last record whose field ``name`` was measured, or ``None``."""
    return next((r for r in reversed(records) if getattr(r, name) is not None), None)


def last_telling(records: Sequence[Record]) -> Record | None:
    """Return the last record with a discrepancy that is not 0, as it is where a shadow starts."""
    telling = (r for r in reversed(records) if r.discrepancy)
    return next(telling, None) or last_measured(records)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if part >= 0.01 * whole else f"{part / whole:.1g}"
