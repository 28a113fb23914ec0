"""What is read from the user's optimizer, and never written: gradients, rates, edits.

Traps measured on real loops (each is a test): fused AMP leaves the gradient scaled and fires
hooks on the step it skips; distributed checkpointing takes a phantom step with lr = 0 and zero
gradients; parameters change outside the optimizer without any version counter moving.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_gfshadow._purity import unwrap
from torch_gfshadow._tree import Layout, dense, is_sharded, local
from torch_gfshadow.errors import must

_SAMPLED_PARAMS, _SAMPLED_VALUES = 8, 64


def layout_of(optimizer: torch.optim.Optimizer, model: nn.Module | None) -> Layout:
    """Return the parameters the optimizer steps, named as the model names them.

    Args:
        optimizer: Its trainable parameters, in the order of its groups, make up θ.
        model: Gives the names; without one they are numbered.

    Returns:
        The layout; a tied parameter appears once, frozen ones do not appear.

    Raises:
        ValueError: If the optimizer steps no parameter, or one the model does not hold.
    """
    seen: set[int] = set()
    params: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            if id(param) not in seen and param.requires_grad:
                seen.add(id(param))
                params.append(param)
    if not params:
        raise ValueError(
            must(
                "optimizer",
                "stepping at least one trainable parameter",
                "none with requires_grad",
                "Pass model.parameters() to it before attaching.",
            )
        )
    if model is None:
        return Layout([f"param_{i}" for i in range(len(params))], params)
    names = {id(p): name for name, p in unwrap(model).named_parameters()}
    missing = [tuple(p.shape) for p in params if id(p) not in names]
    if missing:
        raise ValueError(
            must(
                "model",
                "the module whose parameters the optimizer steps",
                f"one without {len(missing)} of its {len(params)} parameters "
                f"(shapes {missing[:3]})",
                "Pass the same model to attach() and to the optimizer.",
            )
        )
    return Layout([names[id(p)] for p in params], params)


class Watched:
    """The optimizer as the tracker sees it: weakly held, read only."""

    def __init__(self, optimizer: torch.optim.Optimizer, layout: Layout) -> None:
        self._optimizer = weakref.ref(optimizer)
        self.layout = layout
        self._ids = {id(p) for p in layout.params}
        self._marks: list[Tensor] = []
        self._located: list[tuple[Tensor, int]] = []
        self._views: list[list[Tensor]] = []

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer, or ``None`` once the user has dropped it."""
        return self._optimizer()

    @property
    def groups(self) -> Sequence[dict[str, Any]]:
        """Its live parameter groups: read anew each time, loading a state rebinds them."""
        optimizer = self.optimizer
        return [] if optimizer is None else optimizer.param_groups

    @property
    def state(self) -> Mapping[Any, Mapping[str, Any]]:
        """The optimizer's own state by parameter: momenta, running means."""
        optimizer = self.optimizer
        return {} if optimizer is None else optimizer.state

    def has_other_params(self) -> bool:
        """Say whether the optimizer steps more or fewer parameters than when it was attached.

        ``add_param_group``, (un)freezing and rebinding ``param_groups`` do that.
        """
        now = {id(p) for g in self.groups for p in g["params"] if p.requires_grad}
        return now != self._ids

    def gradient(self) -> Tensor:
        """Return the gradient the step is about to use, shape ``[d]``, unscaled."""
        flat = self.layout.flatten(
            [dense(p.grad) if p.grad is not None else None for p in self.layout.params]
        )
        scale = getattr(self.optimizer, "grad_scale", None)
        if scale is not None:
            flat.div_(scale.to(flat.device) if isinstance(scale, Tensor) else scale)
        return flat

    def skips(self) -> bool:
        """Say whether the step will change nothing.

        AMP found inf, no gradient is there, or it is a phantom step.
        """
        found = getattr(self.optimizer, "found_inf", None)
        if found is not None and float(found) > 0:
            return True
        if all(p.grad is None for p in self.layout.params):
            return True
        if any(float(group["lr"]) != 0.0 for group in self.groups):
            return False
        return all(p.grad is None or not bool(dense(p.grad).any()) for p in self.layout.params)

    def mark(self) -> None:
        """Remember a sample of the parameters as they are now."""
        self._marks = self._sample()

    @property
    def marks(self) -> list[Tensor]:
        """The sample that :meth:`mark` took."""
        return self._marks

    @marks.setter
    def marks(self, marks: Sequence[Tensor]) -> None:
        self._marks = [m.to(now) for m, now in zip(marks, self._sample(), strict=True)]

    def edited(self) -> bool:
        """Say whether the sample changed since :meth:`mark`: somebody else moved the model."""
        if not self._marks:
            return False
        now = self._sample()
        return not all(map(_unchanged, self._marks, now))

    def _sample(self) -> list[Tensor]:
        """Return copies, one vector per dtype and device; most steps do nothing else."""
        for part, at in self._located:
            if part.data_ptr() != at:
                self._located = []
                break
        if not self._located:
            self._locate()
        return [torch.cat(views) for views in self._views]

    def _locate(self) -> None:
        """Find the sampled entries in memory; they stay there until somebody sets ``.data``."""
        params = self.layout.params
        n = min(len(params), _SAMPLED_PARAMS)
        last = len(params) - 1
        groups: dict[Any, list[Tensor]] = {}
        for param in (params[i * last // max(n - 1, 1)] for i in range(n)):  # both ends are in
            part = local(param.detach())
            flat = part.reshape(-1)
            view = flat[:: max(1, flat.numel() // _SAMPLED_VALUES)]
            groups.setdefault((part.dtype, part.device), []).append(view)
            # a copy would not follow: of these, and of shards, look anew each time
            plain = part.is_contiguous() and not is_sharded(param)
            self._located.append((param, part.data_ptr()) if plain else (part, -1))
        self._views = list(groups.values())


def _unchanged(mark: Tensor, now: Tensor) -> bool:
    # a run that diverged is not an edit: NaN equals NaN here
    return torch.equal(mark, now) or torch.equal(mark.nan_to_num(), now.nan_to_num())
