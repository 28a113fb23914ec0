"""What happened in a run and why, as sentences with a level. The report's plain words.

Each finding is drawn from the records alone and says the numbers it rests on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from torch_gfshadow.record import Record, exceeded
from torch_gfshadow.report.causes import Finding, causes
from torch_gfshadow.report.runs import Run
from torch_gfshadow.report.verdict import judge
from torch_gfshadow.report.words import number, steps
from torch_gfshadow.status import Status

_LEVELS = {
    "resolved": "good",
    "partly resolved": "note",
    "unresolved": "warning",
    "wrong objective": "problem",
    "no shadow": "warning",
}
_TROUBLE = {
    Status.NEW_LAYOUT: "note",
    Status.UNRESOLVED: "warning",
    Status.EXTERNAL_EDIT: "warning",
}
# Statuses that are what the user asked for, or that the verdict has already said
_SILENT = (Status.OK, Status.PENDING, Status.PASSIVE)
EDGE = 2.0


def find(run: Run) -> list[Finding]:
    """Return what happened in ``run``, the verdict first."""
    verdict = judge(run.records, anew=bool(run.anew))
    found = [Finding(_LEVELS[verdict.level], "Verdict", verdict.text)]
    found += _training(run.records)
    if run.anew:
        found += _anew(run)
    elif verdict.level in ("resolved", "partly resolved") and run.last.mode == "reference":
        # batches change the gradient from step to step, and with it the local defect
        found += causes(run.records)
    found += _edge(run.records)
    found += _bounds(run.records)
    found += _audit(run.records)
    found += _trouble(run)
    return found


def _anew(run: Run) -> Iterator[Finding]:
    values = [r.discrepancy for r in run.records if r.discrepancy]
    if values:
        text = (
            f"Shadows were started {run.anew}, so that each discrepancy counts from there. Over "
            f"{len(values):,} records their median is {number(median(values))}, the largest "
            f"{number(max(values))}."
        )
        yield Finding("note", "Discrepancies start anew", text)


def _training(records: Sequence[Record]) -> Iterator[Finding]:
    losses = [r for r in records if r.loss is not None]
    if len(losses) < 2:
        return
    first, last = losses[0], losses[-1]
    text = f"The loss went from {number(first.loss)} to {number(last.loss)} in {steps(last.step)}"
    if last.shadow_loss is not None:
        text += f"; along the flow it is {number(last.shadow_loss)} there"
    worse = (last.loss or 0.0) > (first.loss or 0.0)
    title = "The loss rose" if worse else "The loss fell"
    yield Finding("warning" if worse else "note", title, text + ".")


def _edge(records: Sequence[Record]) -> Iterator[Finding]:
    probed = [r for r in records if r.edge is not None]
    if not probed:
        return
    top = max(probed, key=lambda r: r.edge or 0.0)
    beyond = [r for r in probed if (r.edge or 0.0) > EDGE]
    if beyond:
        yield Finding(
            "warning",
            "Beyond the edge of stability",
            f"η·λ_max exceeds 2 at {len(beyond):,} of {len(probed):,} probes, first at step "
            f"{beyond[0].step:,}, at most {number(top.edge)}. There gradient descent overshoots "
            "along the sharpest direction and oscillates, which the flow never does: a smaller "
            "step follows it.",
        )
    else:
        yield Finding(
            "good",
            "Below the edge of stability",
            f"η·λ_max stays below 2 at all {len(probed):,} probes; the largest is "
            f"{number(top.edge)}, at step {top.step:,}.",
        )


def _bounds(records: Sequence[Record]) -> Iterator[Finding]:
    names = dict.fromkeys(name for record in records for name in record.bounds)
    for name in names:
        pairs = [
            (r, r.bounds[name])
            for r in records
            if name in r.bounds and r.bounds[name].get("value") is not None
        ]
        broken = [(r, cell) for r, cell in pairs if exceeded(r, cell)]
        certain = [pair for pair in broken if pair[1].get("certified")]
        if certain:
            yield Finding(
                "problem",
                "A certified bound is violated",
                f"{name} was exceeded by more than the error bar at step {certain[0][0].step:,}. A "
                "certificate that fails is a bug, in the bound or in the shadow: please report it.",
            )
        elif broken:
            yield Finding(
                "note",
                "An estimated bound is exceeded",
                f"{name} was contradicted at {len(broken):,} of {len(pairs):,} records, "
                f"first at step {broken[0][0].step:,}: what it was estimated from was not the "
                "worst case.",
            )


def _audit(records: Sequence[Record]) -> Iterator[Finding]:
    kinds = Counter(r.audit.split(" ")[0] for r in records)
    audited = {k: n for k, n in kinds.items() if k in ("match", "scaled", "mismatch")}
    if set(audited) == {"match"}:
        text = "Wherever it was compared, the objective's gradient is the one the optimizer used."
        yield Finding("good", "The objective is the one trained", text)
    elif "scaled" in audited and "mismatch" not in audited:
        last = next(r.audit for r in reversed(records) if r.audit.startswith("scaled"))
        if any(r.status is Status.SCALED for r in records):
            text = f"Latest: {last}. {Status.SCALED.sentence}"
            yield Finding("warning", "Gradients were scaled", text)
        else:
            text = f"Latest: {last}. The factor of every step was folded into the flow's pace."
            yield Finding("good", "Gradients were scaled", text)


def _trouble(run: Run) -> Iterator[Finding]:
    counts = Counter(r.status for r in run.records if r.status not in _SILENT)
    for status, count in sorted(counts.items(), key=lambda item: -item[0].severity):
        if status in (Status.MISMATCH, Status.SCALED):
            continue  # the verdict and the audit have said so
        first = next(r for r in run.records if r.status is status)
        level = _TROUBLE.get(status, "problem")
        text = (
            f"{count:,} of {len(run.records):,} records, first at step {first.step:,}. "
            f"{_sentence(first.status_detail or status.sentence)}"
        )
        yield Finding(level, f"Status: {status.value.replace('_', ' ')}", text)
    for error in (run.summary or {}).get("errors", ()):
        yield Finding("problem", "Something of ours or of a plugin failed", str(error))
    if run.resumed_at:
        at = ", ".join(f"{step:,}" for step in run.resumed_at)
        yield Finding("note", "Resumed", f"The run was taken up again at step {at}.")
    if run.state == "cut short":
        text = "The file has no closing line: the run was killed or is still going."
        yield Finding("note", "Not finished", text)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
