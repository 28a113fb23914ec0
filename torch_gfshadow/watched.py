"""What is read from the user's optimizer, and never written: gradients, rates, edits.

Traps measured on real loops (each is a test): fused AMP leaves the gradient scaled and fires
hooks on the step it skips; distributed checkpointing takes a phantom step with lr = 0 and zero
gradients; parameters change outside the optimizer without any version counter moving.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._sample import Sample
from torch_gfshadow._tree import Layout, dense, real_view
from torch_gfshadow.layouts import trainable
from torch_gfshadow.passing import Quiet, trainable_flag

_LISTS = ("params", "param_names")
_members = itemgetter("params")


class Watched:
    """The optimizer as the tracker sees it: weakly held, read only."""

    def __init__(self, optimizer: torch.optim.Optimizer, layout: Layout) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._seen: list[dict[str, Any]] | None = None
        self.adopt(layout)

    def adopt(self, layout: Layout) -> None:
        """Watch the parameters of ``layout``, where they are now, and let go of those before."""
        self.layout = layout
        self._listed: tuple[list[int], list[bool]] = [], []
        self._first = layout.params[0]
        self._sample = Sample(layout.params)
        self._sample.mark()

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

    def changed(self) -> bool:
        """Say whether θ is made of other parameters than :attr:`layout` says, or in another dtype.

        ``add_param_group``, (un)freezing, rebinding ``param_groups``, casting and moving a model do
        that. Not where nothing is left to train: nothing moves, then.
        """
        if _identities(self.groups) != self._listed:
            now = {id(p) for p in trainable(self.groups)}
            if now and now != self.layout.ids:
                return True
        return self.layout.moved()

    def gradient(self) -> Tensor:
        """Return the gradient the step is about to use, shape ``[d]``, unscaled."""
        flat = self.layout.flatten(
            [dense(p.grad) if p.grad is not None else None for p in self.layout.params]
        )
        scale = getattr(self.optimizer, "grad_scale", None)
        if scale is not None:
            flat.div_(scale.to(flat.device) if isinstance(scale, Tensor) else scale)
        return flat

    def gradients(self) -> list[Tensor] | None:
        """Return the very tensors the step is about to use, one per parameter, or real views.

        ``None`` where they are not plain (sparse, sharded, missing) or not yet unscaled.
        """
        grads = [p.grad for p in self.layout.params]
        if getattr(self.optimizer, "grad_scale", None) is not None:
            return None
        plain = [g for g in grads if g is not None and type(g) is Tensor and not g.is_inference()]
        plain = [real_view(g) for g in plain if g.layout is torch.strided]
        return plain if len(plain) == len(grads) else None

    def skips(self) -> bool:
        """Say whether the step will change nothing.

        AMP found inf, no gradient is there, or it is a phantom step.
        """
        found = getattr(self.optimizer, "found_inf", None)
        if found is not None and float(found) > 0:
            return True
        # not those of the layout: all of them may have been frozen, and others thawed
        grads = [p.grad for g in self.groups for p in g["params"] if p.grad is not None]
        if not grads:
            return True
        if any(float(group["lr"]) != 0.0 for group in self.groups):
            return False
        return not any(bool(dense(grad).any()) for grad in grads)

    def mark(self) -> None:
        """Remember a sample of the parameters as they are now."""
        self._sample.mark()

    @property
    def marks(self) -> list[Tensor]:
        """The sample that :meth:`mark` took."""
        return self._sample.marks

    @marks.setter
    def marks(self, marks: Sequence[Tensor]) -> None:
        self._sample.marks = list(marks)

    def edited(self) -> bool:
        """Say whether the sample changed since :meth:`mark`: somebody else moved the model."""
        return not self._sample.unmoved() and self._sample.moved()

    def look(self) -> None:
        """Remember what :meth:`still` compares with; the caller has read all there is to read."""
        groups = self.groups
        self._listed = _identities(groups)
        plain = all(_is_plain(v) for g in groups for k, v in g.items() if k not in _LISTS)
        moves = any(g.get("lr", 0.0) != 0.0 for g in groups) if plain else False
        self._seen = None
        if moves:  # the lists of parameters as they are now, should they change in place
            self._seen = [{**g, "params": list(g["params"])} for g in groups]

    def still(self) -> bool:
        """Say whether all but settings is as :meth:`look` and :meth:`mark` saw it, and moves.

        False is "look closer". Written for speed: most steps do nothing else, and no operation of
        torch's is among these.
        """
        optimizer = self._optimizer()
        if optimizer is None or self._seen is None or self._first.grad is None:
            return False
        if getattr(optimizer, "found_inf", None) is not None:
            return False
        return _identities(optimizer.param_groups) == self._listed and self._sample.unmoved()

    def quiet(self) -> Quiet | None:
        """Return what to compare with as :meth:`still` and :meth:`as_set` together do.

        Good until the next :meth:`look`; ``None`` where these have to be asked.
        """
        seen, spots = self._seen, self._sample.in_memory()
        if seen is None or spots is None:
            return None
        members = list(chain.from_iterable(map(_members, self.groups)))
        return Quiet(seen, members, self._listed[1], self._first, self._sample, spots)

    def as_set(self) -> bool:
        """Say whether the optimizer's settings are those that :meth:`look` saw."""
        try:
            return self.groups == self._seen
        except (RuntimeError, ValueError):  # of comparing a tensor of several entries
            return False

    def only_rates_moved(self) -> bool:
        """Take in the rates, and say whether no other setting changed, and some rate is not 0."""
        moves = False
        for group, seen in zip(self.groups, self._seen or (), strict=True):
            rate = group.get("lr")
            if not isinstance(rate, (float, int)):
                return False
            seen["lr"] = rate
            moves = moves or rate != 0.0
        return moves and self.as_set()


def _identities(groups: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[bool]]:
    """Return which parameters the groups hold, and which of them are trainable."""
    listed = list(chain.from_iterable(map(_members, groups)))
    return list(map(id, listed)), list(map(trainable_flag, listed))


def _is_plain(value: object) -> bool:
    """Say whether ``value`` cannot change in place."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
