"""Objective: (model, objective, data) → f(θ) and ∇f(θ) on flat vectors, without side effects.

Read next: ``curvature`` (its second derivative), ``solvers`` (which follow −∇f).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from torch_gfshadow._blocks import Stretch
from torch_gfshadow._checks import check_function, explain
from torch_gfshadow._data import Chunks
from torch_gfshadow._kinks import Glance, Noting
from torch_gfshadow._pour import add_gradient, write_gradient
from torch_gfshadow._purity import probing
from torch_gfshadow._sandbox import Sandbox
from torch_gfshadow._streams import Streams, python_streams
from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import ObjectiveError, must
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.ranks import Ranks

__all__ = ["Objective", "probing"]


class Objective:
    """The mean loss as a pure function of the flat parameter vector θ ∈ R^d.

    Defined as::

        f(θ) = Σ_b w_b · fn(model at θ, batch_b),    w_b = batch size / number of samples

    The live model is evaluated with other parameters lent to it and is then as before: same
    parameters, gradients, buffers, attributes, train/eval flags and random streams. Random
    numbers drawn by the model are the same at every evaluation (dropout has one mask). Buffers,
    and parameters outside the layout, are held at their live values. Autocast is off.

    Args:
        model: The module trained; DistributedDataParallel and torch.compile are looked through.
        fn: ``fn(model, batch)`` → scalar mean loss.
        data: A batch, dataset, DataLoader, list of batches, or a callable that returns one.
        layout: Which parameters make up θ.
        ledger: Where every evaluation is counted.
        ranks: The processes of a distributed run, each with its own part of the data; by default
            this one has all.

    Attributes:
        initial: ``(f, ∇f)`` at the parameters the objective was built at.
        n_chunks: Forward passes one evaluation takes.
        unsettled: Whether :meth:`settle` is due.
        sandbox: Raw, uncounted derivatives of single batches.

    Raises:
        TypeError: If ``model``, ``fn`` or ``data`` are not of the kinds above.
        ValueError: If ``data`` is empty.
        ObjectiveError: If the loss cannot be evaluated on the data, or is not scalar, finite,
            deterministic and differentiable by the layout's parameters.

    Example:
        The loss ½w² of a model with the single weight w = 2, seen at w = 3:

        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> _ = torch.nn.init.constant_(model.weight, 2.0)
        >>> f = Objective(
        ...     model,
        ...     lambda model, x: 0.5 * (model(x) ** 2).mean(),
        ...     torch.ones(4, 1, dtype=torch.float64),
        ...     Layout(["weight"], [model.weight]),
        ...     Ledger(),
        ... )
        >>> f.loss_and_grad(torch.tensor([3.0], dtype=torch.float64), "flow")
        (4.5, tensor([3.], dtype=torch.float64))
        >>> model.weight.item()
        2.0
    """

    def __init__(
        self,
        model: nn.Module,
        fn: Callable[[nn.Module, Any], Tensor],
        data: Any,
        layout: Layout,
        ledger: Ledger,
        *,
        ranks: Ranks | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            got = f"a {type(model).__name__}"
            raise TypeError(must("model", "a torch.nn.Module", got, "Pass the model trained."))
        check_function(fn)
        self.layout = layout
        self.ledger = ledger
        self.ranks = ranks
        self.sandbox = Sandbox(model, fn, layout)
        self._chunks: Chunks | list[tuple[Any, float]] = Chunks(data, self.sandbox.devices)
        self._share = self._part_of_all()
        self._loss_needs_graph = False
        self.unsettled = False
        self._as_given = self._chunks, layout.homes[0][:2]
        # The user's function may draw from these; only torch's streams are replayed.
        with Streams(python_streams()).kept():
            self.initial = self._checked()

    @property
    def n_chunks(self) -> int:
        """Number of forward passes one evaluation takes."""
        return len(self._chunks)

    def loss(self, theta: Tensor, purpose: str) -> float:
        """Return f(θ), one forward pass over the data, accumulated in float64."""
        self.ledger.losses[purpose] += 1
        return self.mean(self._loss(theta, self._chunks))

    def loss_and_grad(
        self,
        theta: Tensor,
        purpose: str,
        *,
        entered: Tensor | None = None,
        glance: Glance | None = None,
    ) -> tuple[float, Tensor]:
        """Return f(θ) and ∇f(θ), shape ``[d]``, in the layout's dtype and on its device.

        Args:
            theta: Where.
            purpose: What it is counted under.
            entered: Average the slopes of ReLU, max-pool and other activations with kinks over
                the straight stretch from ``entered`` through ``theta`` and as far again. Costs a
                forward pass more. Without effect on models that have none, or whose activations
                cannot be matched between two forward passes.
            glance: Looks at the kinks of what is averaged, and may decide which side counts.
        """
        self.ledger.grads[purpose] += 1
        if entered is not None and self.sandbox.averages:
            self.ledger.losses[purpose] += 1
        loss, grad = self.sandbox.gradient(theta, self._chunks, entered=entered, glance=glance)
        return self.mean(loss), self.averaged(grad)

    def beyond(self, theta: Tensor, purpose: str) -> list[Tensor]:
        """Return how far beyond each kink its entries are at θ, one forward pass over the data.

        In the order in which a ``glance`` meets them; of this rank's part of the data.
        """
        self.ledger.losses[purpose] += 1
        return self.sandbox.beyond(theta, self._chunks)

    def add_grad(
        self,
        out: Tensor,
        theta: Tensor | None,
        weight: float | Sequence[tuple[int, float]],
        purpose: str,
    ) -> float:
        """Add ``weight``·∇f(θ) to ``out`` and return f(θ), one evaluation.

        What :meth:`loss_and_grad` gives, but no gradient is stored beyond one parameter's at a
        time. On several ranks ``out`` must be the same everywhere, and is so afterwards.

        Args:
            out: Shape ``[d]``.
            theta: Where; ``None`` for where the model is.
            weight: One number, or sizes of pieces of the vector with a number for each.
            purpose: What it is counted under.
        """
        self.ledger.grads[purpose] += 1
        pieces = [(self.layout.dim, weight)] if isinstance(weight, float) else weight
        loss = add_gradient(self.sandbox, theta, self._chunks, out, pieces)
        return self._agreed(loss, out)

    def write_grad(
        self, out: Tensor, stretch: Stretch, purpose: str, glance: Glance | None = None
    ) -> float:
        """Set ``out`` to ∇f in the middle of ``stretch`` and return f there, one evaluation.

        Slopes are averaged over the stretch as :meth:`loss_and_grad` averages them. The model is
        lent one vector, which is either end of the stretch in turn.
        """
        self.ledger.grads[purpose] += 1
        if self.sandbox.averages:
            self.ledger.losses[purpose] += 1
        loss = write_gradient(self.sandbox, stretch, self._chunks, out, glance)
        return self._agreed(loss, out)

    def _agreed(self, loss: float, out: Tensor) -> float:
        """Average over the ranks, ``out`` in place and without another vector of its size."""
        if self.ranks is not None:
            self.ranks.mean_in_place(out, self._share)
        return self.mean(loss)

    def grad_in(self, theta: Tensor, dtype: torch.dtype, purpose: str) -> Tensor:
        """Return ∇f(θ) as a loop under autocast of ``dtype`` computes it, shape ``[d]``."""
        self.ledger.grads[purpose] += 1
        self.sandbox.autocast = dtype
        try:
            return self.averaged(self.sandbox.gradient(theta, self._chunks)[1])
        finally:
            self.sandbox.autocast = None

    @property
    def kinked(self) -> bool:
        """Whether the model has activations with kinks that can be averaged over."""
        return self.sandbox.averages

    def mean(self, value: float) -> float:
        """Return ``value`` averaged over the ranks of a distributed run."""
        if self.ranks is None:
            return value
        wide = torch.promote_types(self.layout.dtype, torch.float32)
        return float(self.averaged(torch.tensor(value, dtype=wide, device=self.layout.device)))

    def averaged(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` averaged over the ranks of a distributed run, by their samples."""
        return tensor if self.ranks is None else self.ranks.mean(tensor, self._share)

    def chunks(self) -> Iterator[tuple[Any, float]]:
        """Yield ``(batch, weight)``; the weights sum to 1."""
        return iter(self._chunks)

    def over(self, data: Any) -> Objective:
        """Return the same objective on other data, with the random state of this moment.

        Nothing is evaluated or checked again, and ``initial`` stays that of the original.
        """
        twin = copy.copy(self)
        twin.sandbox = copy.copy(self.sandbox)
        twin.sandbox.random_state = self.sandbox.streams.state()
        twin._chunks = Chunks(data, self.sandbox.devices)
        twin._share = twin._part_of_all()
        return twin

    def relaid(self, layout: Layout) -> Objective:
        """Return the same objective of other parameters of the model, or of the model cast.

        Same data, same random numbers. Nothing is evaluated yet, and there is no ``initial``:
        :meth:`settle` comes before the first evaluation.
        """
        twin = copy.copy(self)
        twin.layout, twin.sandbox = layout, self.sandbox.relaid(layout)
        twin.initial = math.nan, torch.zeros(0)
        twin.unsettled = True
        return twin

    def settle(self) -> None:
        """Evaluate once after :meth:`relaid`, to learn what the model's activations are.

        Data that do not fit a model that was cast or moved are cast or moved alike. What the
        user's function raises then is raised here.
        """
        if not self.unsettled:
            return
        self.unsettled = False
        self._chunks, was = self._as_given
        theta, now = self.layout.current(), self.layout.homes[0][:2]
        needs_graph = self._loss_needs_graph
        self.ledger.losses["setup"] += 1
        try:
            self._trial(theta, next(self.chunks())[0])
        except RuntimeError:
            if was == now or not isinstance(self._chunks, Chunks):
                raise
            self._loss_needs_graph = needs_graph
            self._chunks = self._chunks.fitted(was, now)
            self._trial(theta, next(self.chunks())[0])

    def forget_initial(self) -> None:
        """Let go of the gradient at the parameters the objective was built at."""
        self.initial = self.initial[0], self.initial[1].new_empty(0)

    @property
    def sizes(self) -> list[int]:
        """Number of samples in each chunk."""
        return self._chunks.sizes if isinstance(self._chunks, Chunks) else []

    def state_dict(self) -> dict[str, Any]:
        """Return the random numbers of every evaluation."""
        data = self._chunks.state_dict() if isinstance(self._chunks, Chunks) else None
        return {"sandbox": self.sandbox.state_dict(), "data": data}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Evaluate as the objective that was saved: same dropout masks, same order of data."""
        self.sandbox.load_state_dict(saved["sandbox"])
        if isinstance(self._chunks, Chunks):
            self._chunks.load_state_dict(saved["data"])

    def on(self, batches: Sequence[tuple[Any, float]]) -> Objective:
        """Return the same objective as a weighted sum over ``batches``; nothing is checked again.

        Args:
            batches: Pairs of batch and weight; a ``Replay`` brings its own random state along.
        """
        twin = copy.copy(self)
        twin._chunks = list(batches)
        twin._share = None  # the run averages its ranks alike, whatever each batch holds
        return twin

    def guard(self) -> AbstractContextManager[None]:
        """Return the context to call :meth:`pure` in.

        Gradients on; inference mode, autocast and fused attention off; random streams restored.
        """
        return self.sandbox.guard()

    def pure(self, batch: Any) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Return params → loss on ``batch``, fit for torch.func and autograd."""
        return self.sandbox.pure(batch)

    def _part_of_all(self) -> float | None:
        """Return this rank's part of the samples of all ranks."""
        if self.ranks is None:
            return None
        return self.ranks.share_of(sum(self.sizes), self.layout.device)

    def _loss(self, theta: Tensor, chunks: Iterable[tuple[Any, float]]) -> float:
        total = 0.0
        with self.guard():
            # Leaves without gradient build no graph; reentrant checkpoints warn of them.
            graph = self._loss_needs_graph or self.sandbox.by_backward
            params = self.sandbox.params_at(theta, requires_grad=graph)
            for batch, weight in chunks:
                with self.sandbox.swapped(params):
                    total += weight * self.sandbox.forward(batch).item()
        return total

    def _checked(self) -> tuple[float, Tensor]:
        """Refuse what cannot be followed; return ``(f, ∇f)`` where the model is."""
        theta = self.layout.current()
        first = next(self.chunks())[0]
        try:
            loss, grad = self._watched(theta)
            once = loss if self.n_chunks == 1 and self.ranks is None else self._trial(theta, first)
            again = self._trial(theta, first)
        except ObjectiveError:
            raise
        except Exception as error:
            raise ObjectiveError(explain(error, first, self.layout)) from error
        self.ledger.losses["setup"] += 1
        if not (math.isfinite(loss) and bool(grad.isfinite().all())):
            got = f"{loss:.6g}" if not math.isfinite(loss) else f"{loss:.6g} with a gradient of NaN"
            fix = "Check the data, and the parameters at attach."
            raise ObjectiveError(must("objective", "finite, with its gradient", got, fix))
        noise = max(1e-6, 4 * torch.finfo(self.layout.dtype).eps)
        if abs(once - again) > noise * max(abs(once), abs(again)):
            got = f"{once:.6g} and {again:.6g} from two evaluations at the same θ"
            fix = (
                "Call model.eval(), or draw every random number from torch's own generators: "
                "those are replayed."
            )
            raise ObjectiveError(must("objective", "deterministic", got, fix))
        if not bool(grad.any()):
            self._check_reached(theta, first)
        return loss, grad

    def _watched(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return ``(f, ∇f)``; a forward pass that writes into parameters reaches no live ones."""
        try:
            with self.sandbox.finding_writes():
                return self.loss_and_grad(theta, "setup")
        except Exception:  # the watch's own, or one that comes again
            return self.loss_and_grad(theta, "setup")

    def _trial(self, theta: Tensor, batch: Any) -> float:
        try:
            with Noting(keep=False) as noting:
                loss = self._loss(theta, [(batch, 1.0)])
            self.sandbox.averages = noting.calls > 0
            return loss
        except RuntimeError:
            if self._loss_needs_graph:
                raise
            # An objective that differentiates by the parameters itself (a gradient penalty).
            self._loss_needs_graph = True
            return self._trial(theta, batch)

    def _check_reached(self, theta: Tensor, batch: Any) -> None:
        with self.guard():
            params = self.sandbox.params_at(theta, requires_grad=True)
            loss, grads = self.sandbox.grads(params, batch)
        if all(grad is None for grad in grads):
            raise ObjectiveError(
                must(
                    "objective",
                    "differentiable by the optimizer's parameters",
                    "a loss that depends on none of them"
                    if loss.requires_grad
                    else "a loss without a graph",
                    "Compute it from the model argument, without .item(), .detach() or no_grad().",
                )
            )
