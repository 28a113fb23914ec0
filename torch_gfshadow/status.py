"""Status: why a number is missing or must not be trusted, as a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Status(StrEnum):
    """State of a record, worst last. Compares equal to its own string: ``status == "ok"``."""

    OK = "ok"
    PENDING = "pending"
    PASSIVE = "passive"
    UNRESOLVED = "unresolved"
    BEHIND = "behind"
    TRUNCATED = "truncated"
    SCALED = "scaled"
    UNOBSERVED = "unobserved"
    MISMATCH = "mismatch"
    NEW_LAYOUT = "new_layout"
    EXTERNAL_EDIT = "external_edit"
    STIFF = "stiff"
    NON_FINITE = "non_finite"
    BLOW_UP = "blow_up"
    DISABLED = "disabled"

    @property
    def sentence(self) -> str:
        """What happened and what to do about it, in words."""
        return _SENTENCES[self]

    @property
    def severity(self) -> int:
        """Rank from 0 (``OK``) upwards."""
        return list(Status).index(self)


def worst(statuses: Iterable[Status]) -> Status:
    """Return the most severe of ``statuses`` (``OK`` for none)."""
    return max(statuses, key=lambda status: status.severity, default=Status.OK)


_SENTENCES = {
    Status.OK: "Every reported value is resolved.",
    Status.PENDING: "Nothing has been measured yet.",
    Status.PASSIVE: (
        "No gradient flow is integrated: only the run's own gradients are read. "
        "Give attach() a model, an objective and an optimizer whose flow is known to get a shadow."
    ),
    Status.UNRESOLVED: (
        "The solver error exceeds the discrepancy, so the discrepancy is not resolved. "
        "Ask for a smaller resolution=, or resync() closer to where you look."
    ),
    Status.BEHIND: (
        "The flow costs more than one step of the run may (max_burst= of the solver), so it is "
        "integrated a share at every step and has no value here. Values return once it has caught "
        "up with the run."
    ),
    Status.TRUNCATED: (
        "The solver spent what it may (max_evals= and max_burst= of the solver, budget= of "
        "attach()) before it reached the run's time. Allow more, or resync() more often."
    ),
    Status.SCALED: (
        "The optimizer used a multiple of the objective's gradient (clipping, accumulation or loss "
        "scaling), and not all of it could be folded into the pace of the flow. "
        "resync() where clipping began; with weight decay, scale the objective alike."
    ),
    Status.UNOBSERVED: (
        "No batch was observed for a step, so the flow of its loss is not known and the shadow "
        "starts anew after it. Call shadow.observe(batch) before every forward pass, or iterate "
        "over shadow.watch(loader)."
    ),
    Status.MISMATCH: (
        "The gradient of the objective is not the gradient the optimizer used. If the run steps "
        "on minibatches of the data, the discrepancy holds their sampling noise, too; otherwise "
        "this is the shadow of another problem: make objective(model, batch) the loss trained."
    ),
    Status.NEW_LAYOUT: (
        "The optimizer steps other parameters than before, or they changed their dtype or device. "
        "The shadow starts anew with these, where the run stands; discrepancies start from 0."
    ),
    Status.EXTERNAL_EDIT: (
        "The parameters were changed outside the optimizer (a forward pass does that to "
        "nn.Embedding(max_norm=...)). "
        "The shadow was resynchronised there; discrepancies start anew."
    ),
    Status.STIFF: (
        "The gradient flow became too stiff for the solver. "
        "Raise the tolerances, choose a stabilised solver, or resync()."
    ),
    Status.NON_FINITE: (
        "The objective or its gradient is not finite along the flow. "
        "Check the objective at the shadow; training continues, the shadow is paused."
    ),
    Status.BLOW_UP: (
        "The gradient flow left every bounded region: it may not exist beyond this time. "
        "Training continues, the shadow is paused."
    ),
    Status.DISABLED: (
        "torch_gfshadow disabled itself after an error; training went on untouched. "
        "See shadow.errors, or attach with on_error='raise'."
    ),
}
