"""Capture: batches and loss taken from the loop by hooks. Opt-in, and audited like any other.

Traps measured on real loops (each is a test): averaged copies of a model copy its hooks along; our
own evaluations call the same modules; an input changed in place after the forward pass is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_gfshadow._batch import leaves
from torch_gfshadow._purity import probing
from torch_gfshadow._sandbox import Replay
from torch_gfshadow.errors import ObjectiveError, must
from torch_gfshadow.hooks import Hook


class Watching:
    """An iterable of batches that observes each one before it is handed out."""

    def __init__(self, batches: Iterable[Any], observe: Callable[[Any], Any]) -> None:
        if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
            fix = "Pass the DataLoader, as in: for batch in shadow.watch(loader)."
            got = f"a {type(batches).__name__}"
            raise TypeError(must("loader", "an iterable of batches", got, fix))
        self._batches, self._observe = batches, observe

    def __iter__(self) -> Iterator[Any]:
        return (self._observe(batch) for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]


class Call(NamedTuple):
    """What model and criterion were called with in one forward pass.

    Attributes:
        place: Which of the model's outputs the criterion was called with.
        name: The keyword it was handed over by; empty for the first argument.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rest: tuple[Any, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012 - never written
    place: int = -1
    name: str = ""


class Capture:
    """Hooks on a model and on its criterion.

    Args:
        model: The module that the loop calls.
        criterion: The loss module that the loop calls with the model's output.
        observe: Takes each call, with what its forward pass began with.
        moment: Returns what a forward pass begins with.
    """

    def __init__(
        self,
        model: nn.Module | None,
        criterion: nn.Module | None,
        observe: Callable[[Any], Any],
        moment: Callable[[], Any],
    ) -> None:
        for name, module in (("model", model), ("criterion", criterion)):
            if not isinstance(module, nn.Module):
                got = f"a {type(module).__name__}"
                fix = "A loss from torch.nn.functional is not seen: observe() the batches instead."
                raise TypeError(must(name, "a torch.nn.Module", got, fix))
        self._model, self._criterion = model, criterion
        self._observe, self._moment = observe, moment
        self._handles: list[Any] = []
        self._hooks: list[Hook] = []
        self._started: tuple[Call, Any, list[tuple[Tensor, int]]] | None = None
        self._output: Any = None

    def install(self) -> None:
        """Put the hooks on."""
        assert self._model is not None
        assert self._criterion is not None
        begin, end, judged = Hook(self._begin), Hook(self._end), Hook(self._judge)
        self._hooks = [begin, end, judged]
        self._handles = [
            self._model.register_forward_pre_hook(begin, with_kwargs=True),
            self._model.register_forward_hook(end),
            self._criterion.register_forward_pre_hook(judged, with_kwargs=True),
        ]

    def remove(self) -> None:
        """Take the hooks off again."""
        for hook in self._hooks:
            hook.clear()
        for handle in self._handles:
            handle.remove()
        self._hooks, self._handles = [], []
        self._started = self._output = None

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def objective(self, model: nn.Module, call: Call) -> Tensor:
        """Return the criterion of what the model was called with."""
        assert self._criterion is not None
        outputs = list(leaves(model(*call.args, **call.kwargs)))
        judged = outputs[call.place]
        if call.name:
            loss = self._criterion(*call.rest, **{**call.options, call.name: judged})
        else:
            loss = self._criterion(judged, *call.rest, **call.options)
        if not isinstance(loss, Tensor):
            got = f"a {type(loss).__name__}"
            raise ObjectiveError(must("criterion", "a module that returns a tensor", got, ""))
        return loss

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._started = self._output = None
        if probing() or not torch.is_grad_enabled():  # ours, or an evaluation pass
            return
        given = [t for t in leaves((args, kwargs)) if isinstance(t, Tensor)]
        versions = [(t, t._version) for t in given if not t.is_inference()]
        self._started = Call(args, kwargs), self._moment(), versions

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._started is not None and not probing():
            self._output = output

    def _judge(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if probing() or self._started is None:
            return
        outputs = list(leaves(self._output))
        given = {"": args[0]} if args else kwargs
        found = ((i, n) for n, g in given.items() for i, out in enumerate(outputs) if out is g)
        place, name = next(found, (-1, ""))
        call, state, versions = self._started
        if place < 0 or any(t._version != version for t, version in versions):
            return  # a loss of something else, or of an input that is no more: not observed
        others = {key: value for key, value in kwargs.items() if key != name}
        whole = call._replace(rest=tuple(args[1:]), options=others, place=place, name=name)
        self._started = self._output = None
        self._observe(Replay(whole, state))
