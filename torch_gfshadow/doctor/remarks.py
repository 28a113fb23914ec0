"""Remarks: modules that are followed rightly but mean something one should know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from torch_gfshadow._purity import is_compiled
from torch_gfshadow.doctor.findings import Finding

_KINKED = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
    nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.RReLU)
_HALVES = (torch.float16, torch.bfloat16)


def remarks(model: nn.Module, n_chunks: int) -> list[Finding]:
    """Return what to know of ``model``, one finding a subject; none for a plain smooth one.

    Args:
        model: Looked at, not run.
        n_chunks: Forward passes one evaluation of the objective takes.
    """
    findings = []
    kinked = _names(model, lambda m: isinstance(m, _KINKED))
    if kinked:
        findings.append(
            Finding(
                "kinks",
                "note",
                f"{kinked}: the gradient jumps, so the shadow is first order there, the error "
                "bar wider, and theorems that need a continuous Hessian do not apply.",
                "Expect more gradients per step; resolution= sets how many.",
            )
        )
    norms = _names(model, lambda m: isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training)
    if norms and n_chunks > 1:
        findings.append(
            Finding(
                "batch statistics",
                "note",
                f"{norms} in training mode over {n_chunks} batches: each batch is normalised by "
                "itself, so the objective depends on how the data are cut.",
                "Pass data in one batch, in the batches trained on, or model.eval() if that is "
                "what you mean.",
            )
        )
    drops = _names(model, lambda m: isinstance(m, _DROPS) and m.training)
    if drops:
        findings.append(
            Finding(
                "dropout",
                "note",
                f"{drops} in training mode: the shadow follows the flow of one fixed mask, the "
                "run draws a new one each step.",
                "Call model.eval() inside the objective for the flow without dropout.",
            )
        )
    tables = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    if any(isinstance(m, nn.Embedding) and m.padding_idx is not None for m in tables):
        found = (
            "Embeddings with padding_idx: the lookup gives their padding rows no gradient, so the "
            "flow leaves them where they are and the Hessian is that of everything else."
        )
        findings.append(Finding("padding", "note", found))
    if any(m.max_norm is not None for m in tables):
        found = (
            "Embeddings with max_norm: a forward pass shortens their rows in place. That is "
            "projected gradient descent, whose limit is no gradient flow: the shadow starts anew "
            "whenever a row was shortened (status external_edit)."
        )
        fix = "Without max_norm, scale the rows looked up inside the model, where it is seen."
        findings.append(Finding("max_norm", "note", found, fix))
    halves = sorted({str(p.dtype)[6:] for p in model.parameters() if p.dtype in _HALVES})
    if halves:
        findings.append(
            Finding(
                "precision",
                "note",
                f"Parameters in {', '.join(halves)}: a step smaller than their rounding is lost "
                "by the run and seen as discrepancy.",
                "Keep master weights in float32 and autocast the forward pass.",
            )
        )
    if any(is_compiled(m) for m in model.modules()):
        found = "torch.compile'd: the run keeps its compiled code, measurements run eagerly."
        findings.append(Finding("compiled", "note", found))
    return findings


def _names(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> str:
    """Name the kinds of the modules wanted, with their number."""
    counts: dict[str, int] = {}
    for module in model.modules():
        if wanted(module):
            counts[type(module).__name__] = counts.get(type(module).__name__, 0) + 1
    return ", ".join(f"{n} × {kind}" if n > 1 else kind for kind, n in counts.items())
