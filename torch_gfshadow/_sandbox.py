"""Sandbox: loss and derivatives of one batch at any θ, nothing of the live run disturbed.

Read next: ``objective``, which adds the data, the counting and the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks

from torch_gfshadow._batch import map_tensors
from torch_gfshadow._host import Host
from torch_gfshadow._kinks import Averaging, Glance, Noting, Placing
from torch_gfshadow._moment import Moment, Place
from torch_gfshadow._plain import load_attributes, to_plain
from torch_gfshadow._purity import is_compiled, isolated, unwrap
from torch_gfshadow._streams import Streams, torch_streams
from torch_gfshadow._tree import Layout, dense
from torch_gfshadow._writes import WriteError, Writes
from torch_gfshadow.errors import ObjectiveError, must


class Replay(NamedTuple):
    """A batch with what its own forward pass in the loop began with."""

    batch: Any
    moment: Moment


class Sandbox:
    """Evaluates ``fn(model, batch)`` with other parameters and recorded random numbers.

    ``dtype`` in the methods below casts parameters, buffers and batch, to check a derivative in
    a finer precision than the model's.
    """

    def __init__(
        self, model: nn.Module, fn: Callable[[nn.Module, Any], Tensor], layout: Layout
    ) -> None:
        self.model = unwrap(model)
        self.fn = getattr(fn, "_torchdynamo_orig_callable", fn)
        self.layout = layout
        self.devices = {p.device for p in self.model.parameters()}
        self.eager = any(is_compiled(module) for module in self.model.modules())
        self.streams = Streams(torch_streams(self.devices))
        self.random_state = self.streams.state()
        self._host = Host(self.model, layout)
        self.by_backward = False
        self.autocast: torch.dtype | None = None  # as an audit asks; measurements are without
        self._unused: set[str] = set()
        self._watches = False
        self.averages = True
        self.direct = True  # see _direct

    def relaid(self, layout: Layout) -> Sandbox:
        """Return a sandbox for another layout of the same model, with the same random numbers.

        On other devices there are other streams: then it draws those of this moment.
        """
        twin = Sandbox(self.model, self.fn, layout)
        if twin.devices == self.devices:
            twin.random_state = self.random_state
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Return the random numbers of every evaluation, and what was learned of the model."""
        state = {"random_state": self.random_state, "by_backward": self.by_backward}
        state["averages"] = self.averages
        return to_plain(state | {"unused": self._unused})  # type: ignore[no-any-return]

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        load_attributes(self, ("by_backward", "_unused", "averages"), saved)
        # torch takes the states of its generators from the CPU, whatever the device
        self.random_state = [torch.as_tensor(s).cpu() for s in saved["random_state"]]

    def guard(self) -> AbstractContextManager[None]:
        """Return the context every evaluation runs in; entering it again is cheap."""
        return isolated({d.type for d in self.devices}, self.streams, eager=self.eager)

    def params_at(
        self, theta: Tensor, dtype: torch.dtype | None = None, *, requires_grad: bool = False
    ) -> dict[str, Tensor]:
        """Split ``theta`` into leaf tensors of the parameters' own dtypes, or of ``dtype``."""
        theta = theta.clone() if theta.is_inference() else theta.detach()
        if dtype is None:
            params = self.layout.unflatten(theta)
        else:
            layout = self.layout
            parts = torch.split(theta.to(dtype), list(layout.sizes))
            params = {
                name: part.view(param.shape).to(param.device)
                for name, part, param in zip(layout.names, parts, layout.params, strict=True)
            }
        return {name: part.requires_grad_(requires_grad) for name, part in params.items()}

    def swapped(
        self, params: Mapping[str, Tensor], dtype: torch.dtype | None = None
    ) -> AbstractContextManager[nn.Module]:
        """Lend ``params`` to the live model for the length of a block."""
        return self._host.swapped(params, dtype)

    def forward(self, batch: Any) -> Tensor:
        """Return the scalar loss of the model as it stands, with the recorded random numbers."""
        state = self.random_state
        if isinstance(batch, Replay):
            batch, moment = batch
            moment.lend()
            state = moment.random_state
        self.streams.load(state)
        with self._casting(), self._watching():
            loss = self.fn(self.model, batch)
        if isinstance(loss, Tensor) and loss.numel() == 1:
            return loss.reshape(())
        shape = f" of shape {list(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise ObjectiveError(
            must(
                "objective",
                "a function that returns a scalar tensor",
                f"a {type(loss).__name__}{shape}",
                "Return the mean loss as a tensor, e.g. losses.mean().",
            )
        )

    @property
    def moves(self) -> list[Place] | None:
        """Where a forward pass leaves something for the next; None before the first evaluation."""
        return self._host.moves

    @contextmanager
    def finding_writes(self) -> Iterator[None]:
        """Find out in this block whether a forward pass writes into parameters.

        It is broken off by a :class:`WriteError` before it does; from then on it is lent copies.
        """
        self._watches = True
        try:
            yield
        except WriteError:
            self._host.copies = True
            raise
        finally:
            self._watches = False

    def _watching(self) -> AbstractContextManager[Any]:
        return Writes(self.model.parameters()) if self._watches else nullcontext()

    def _casting(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        kind = next(iter(self.devices)).type
        return torch.autocast(kind, dtype=self.autocast, cache_enabled=False)

    def pure(
        self, batch: Any, dtype: torch.dtype | None = None
    ) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Return params → loss on ``batch``, for torch.func and autograd, to be called in a guard.

        Buffers are cloned inside, so transforms may trace it and in-place updates stay there.
        """
        batch = cast_batch(batch, dtype)

        def loss(params: Mapping[str, Tensor]) -> Tensor:
            with self.swapped(params, dtype):
                return self.forward(batch)

        return loss

    def grads(
        self,
        params: Mapping[str, Tensor],
        batch: Any,
        dtype: torch.dtype | None = None,
        *,
        create_graph: bool = False,
        noted: Sequence[Tensor] | None = None,
        glance: Glance | None = None,
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the loss on ``batch`` and its derivative by each of the leaves ``params``.

        With ``noted``, inputs of the activations where a stretch is entered, their slopes are
        averaged over it, under the eyes of ``glance``.

        Differentiates while the parameters are lent: a checkpointed model runs its forward again
        during the backward pass, and must find the same ones.
        """
        batch = cast_batch(batch, dtype)
        if noted is not None:
            with averaging(noted, glance):
                return self._differentiated(params, batch, dtype, _grad)
        if create_graph:
            return self._differentiated(params, batch, dtype, _grad_with_graph)
        missing: set[str] = set()
        if not self.by_backward:
            try:
                loss, grads = self._differentiated(params, batch, dtype, _grad)
            except RuntimeError as error:
                if "use_reentrant" not in str(error):
                    raise
                self.by_backward = True
            else:
                missing = {name for name, g in zip(params, grads, strict=True) if g is None}
                if missing <= self._unused:
                    return loss, grads
        # Reentrant checkpoints (and others who run a backward pass inside theirs) reach their
        # parameters by accumulation only: autograd.grad refuses or says "unused".
        loss, grads = self._differentiated(params, batch, dtype, _backward)
        reached = {name for name, g in zip(params, grads, strict=True) if g is not None}
        self.by_backward |= bool(missing & reached)
        self._unused |= missing
        return loss, grads

    def _differentiated(
        self,
        params: Mapping[str, Tensor],
        batch: Any,
        dtype: torch.dtype | None,
        derivative: Callable[[Tensor, list[Tensor]], Iterable[Tensor | None]],
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        with self.swapped(params, dtype):
            loss = self.forward(batch)
            if not loss.requires_grad:
                return loss, (None,) * len(params)
            grads = derivative(loss, list(params.values()))
        return loss, tuple(dense(g) if g is not None else None for g in grads)

    def gradient(
        self,
        theta: Tensor,
        chunks: Iterable[tuple[Any, float]],
        dtype: torch.dtype | None = None,
        *,
        entered: Tensor | None = None,
        glance: Glance | None = None,
    ) -> tuple[float, Tensor]:
        """Return the weighted loss (float64) and the flat gradient over ``chunks``.

        With ``entered``, slopes of activations with kinks are averaged over a stretch, see
        :meth:`Objective.loss_and_grad`. What cannot be averaged is evaluated plainly, from then on.
        """
        out = dtype or self.layout.dtype
        # Half precision would lose the small summands.
        wide = torch.promote_types(out, torch.float32)
        total = 0.0
        flat = torch.zeros((), dtype=wide, device=self.layout.device)
        with self.guard():
            params = self.params_at(theta, dtype, requires_grad=True)
            before = self.params_at(entered, dtype) if entered is not None else None
            for batch, weight in chunks:
                loss, grads = self._stretched(params, before, batch, dtype, glance)
                total += weight * loss.item()
                if weight == 1.0:
                    return total, self.layout.flatten(grads, out)
                flat = torch.add(flat, self.layout.flatten(grads, wide), alpha=weight)
        return total, flat.to(out)

    def noted(
        self, params: Mapping[str, Tensor], batch: Any, dtype: torch.dtype | None = None
    ) -> list[Tensor]:
        """Return what goes into every activation with a kink on a forward pass at ``params``."""
        noting = Noting()
        with torch.no_grad(), self.swapped(params, dtype), noting:
            self.forward(cast_batch(batch, dtype))
        return noting.inputs

    def beyond(self, theta: Tensor, chunks: Iterable[tuple[Any, float]]) -> list[Tensor]:
        """Return how far beyond every kink its entries are, as a ``Glance`` meets them."""
        placing = Placing()
        with self.guard():
            params = self.params_at(theta, requires_grad=True)
            for batch, _ in chunks:
                with self.swapped(params), placing:
                    self.forward(batch)
        return placing.beyond

    def _stretched(
        self,
        params: Mapping[str, Tensor],
        before: Mapping[str, Tensor] | None,
        batch: Any,
        dtype: torch.dtype | None,
        glance: Glance | None,
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return loss and derivatives, averaged from ``before`` on where that is possible."""
        if before is not None and self.averages:
            try:
                noted = self.noted(before, batch, dtype)
                if noted:
                    return self.grads(params, batch, dtype, noted=noted, glance=glance)
            except RuntimeError:
                # a checkpoint, a gradient penalty, a forward pass that changes its course: if the
                # error is another, the plain evaluation below raises it again
                pass
            self.averages = False
        return self.grads(params, batch, dtype)


@contextmanager
def averaging(noted: Sequence[Tensor], glance: Glance | None = None) -> Iterator[None]:
    """Differentiate with slopes averaged over the stretch that ``noted`` was noted at.

    ``glance`` looks at the kinks.

    Raises:
        UnmatchedError: If the forward pass inside is not the one that was noted.
    """
    mode = Averaging(noted, glance)
    # a checkpoint would run the forward again and take what it saves for what we saved
    with mode, disable_saved_tensors_hooks("a checkpointed model"):
        yield
    mode.finish()


def _grad(loss: Tensor, inputs: list[Tensor]) -> Iterable[Tensor | None]:
    return torch.autograd.grad(loss, inputs, allow_unused=True)


def _grad_with_graph(loss: Tensor, inputs: list[Tensor]) -> Iterable[Tensor | None]:
    return torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)


def _backward(loss: Tensor, inputs: list[Tensor]) -> Iterable[Tensor | None]:
    """Differentiate by accumulation, into the lent leaves and nobody else's ``.grad``."""
    kept = [(leaf, leaf.grad) for leaf in _leaves(loss)]
    try:
        for leaf, _ in kept:
            leaf.grad = None
        torch.autograd.backward(loss)
        return [tensor.grad for tensor in inputs]
    finally:
        for tensor in inputs:
            tensor.grad = None
        for leaf, grad in kept:
            leaf.grad = grad


def _leaves(loss: Tensor) -> Iterable[Tensor]:
    """Return the tensors a backward pass from ``loss`` would accumulate into."""
    pending, seen, leaves = [loss.grad_fn], set(), []
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        pending.extend(following for following, _ in node.next_functions)
    return leaves


def cast_batch(batch: Any, dtype: torch.dtype | None) -> Any:
    """Return ``batch`` with its floating-point tensors in ``dtype``; ``None`` changes nothing."""
    if dtype is None:
        return batch
    return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, batch)
