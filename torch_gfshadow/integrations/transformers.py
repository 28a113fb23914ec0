"""Hugging Face: the shadow as a callback of ``transformers.Trainer``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from torch_gfshadow._purity import probing, unwrap
from torch_gfshadow.checkpoint import read_file
from torch_gfshadow.errors import must
from torch_gfshadow.handle import Shadow
from torch_gfshadow.integrations._attached import Attached, ObjectiveFunction

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "transformers must be installed for torch_gfshadow.integrations.transformers. "
        'Run: pip install "torch-gfshadow[transformers]"'
    ) from error

FILE = "gfshadow.pt"


class GFShadowTrainerCallback(TrainerCallback):  # type: ignore[misc]
    """Puts a gradient-flow shadow beside the optimizer of a ``Trainer``.

    The trainer shows its callbacks no batch, so the arguments of the model's forward passes are
    read by a hook on the model. The shadow's state is saved beside each checkpoint, and a run
    resumed from one goes on.

    Where the trainer computes the loss itself (label smoothing, ``compute_loss_func``, a subclass
    with its own ``compute_loss``), call :meth:`follow` with it before training.

    Args:
        objective: ``objective(model, batch)`` → scalar mean loss, where a batch is the keyword
            arguments of ``model.forward``. By default the loss the model returns.
        data: As for :func:`torch_gfshadow.attach`. None follows the flow of each batch trained on
            (mode ``"batch"``).
        **options: Further arguments of :func:`torch_gfshadow.attach`.

    Attributes:
        shadow: The shadow, once training has started.

    Example:
        ``Trainer(model, args, train_dataset=…, callbacks=[GFShadowTrainerCallback()])``
    """

    def __init__(
        self, objective: ObjectiveFunction | None = None, data: Any = None, **options: Any
    ) -> None:
        self._objective, self._data = objective, data
        self._attached = Attached(options)
        self._hook: Any = None
        self._trainer: Any = None

    @property
    def shadow(self) -> Shadow | None:
        """The shadow; None before training starts. Its records outlive training."""
        return self._attached.shadow

    def follow(self, trainer: Any) -> None:
        """Take the loss from ``trainer.compute_loss``, with the batches it is called with.

        Raises:
            TypeError: If ``trainer`` is no ``transformers.Trainer``.
            ValueError: If an ``objective`` was given, too.
        """
        if not callable(getattr(trainer, "compute_loss", None)):
            got, fix = f"a {type(trainer).__name__}", "Call it before trainer.train()."
            raise TypeError(must("trainer", "a transformers.Trainer", got, fix))
        if self._objective is not None:
            fix = "Leave one of the two out."
            got = f"{self._objective!r} beside a trainer to follow"
            raise ValueError(must("objective", "the trainer's or yours", got, fix))
        self._trainer = trainer

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Any,
        **others: Any,
    ) -> None:
        """Attach to the optimizer the trainer has made."""
        saved = _checkpoint(args, state) / FILE
        if state.global_step and saved.is_file():
            device = next(model.parameters()).device
            self._attached.load_state_dict(read_file(saved, device))
        if self._trainer is not None:
            compute_loss = self._trainer.compute_loss
            self._attached.begin(optimizer, model, _loss_of(compute_loss), self._data)
            self._hook = _Observing(self._trainer, compute_loss, self._attached.observe)
            return
        self._attached.begin(optimizer, model, self._objective or own_loss, self._data)
        self._hook = unwrap(model).register_forward_pre_hook(self._seen, with_kwargs=True)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Save the shadow beside the checkpoint."""
        if self.shadow is not None and state.is_world_process_zero:
            self.shadow.save(_checkpoint(args, state) / FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Detach from the optimizer and the model."""
        self._attached.end()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _seen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # evaluation passes, and our own, are not the run's
        if module.training and not probing() and not args:
            self._attached.observe(kwargs)

    def __deepcopy__(self, memo: Any) -> GFShadowTrainerCallback:
        # the trainer copies callbacks into its state; a shadow belongs to one run
        return self


def own_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the loss a Hugging Face model computes from its own keyword arguments.

    Raises:
        ValueError: If it returns none: the batch has no labels.
    """
    out = model(**batch)
    loss = out.get("loss") if isinstance(out, Mapping) else out[0]
    if not isinstance(loss, Tensor):
        fix = (
            "Put labels into the batch, or, where the trainer computes the loss, call "
            "callback.follow(trainer) before training."
        )
        raise ValueError(must("model", "one that returns its loss", "none", fix))
    return loss


class Computed(NamedTuple):
    """What ``compute_loss`` was called with."""

    inputs: Mapping[str, Any]
    others: Mapping[str, Any]


class _Observing:
    """Stands in for a trainer's ``compute_loss`` and shows each batch of training to a shadow."""

    def __init__(
        self, trainer: Any, compute_loss: Callable[..., Any], observe: Callable[[Any], None]
    ) -> None:
        self._trainer, self._compute_loss, self._observe = trainer, compute_loss, observe
        trainer.compute_loss = self

    def __call__(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training and not probing():
            others = {k: v for k, v in kwargs.items() if k != "return_outputs"}
            # a copy: labels are popped from it
            self._observe(Computed(dict(inputs), others))
        return self._compute_loss(model, inputs, *args, **kwargs)

    def remove(self) -> None:
        """Give the trainer its own method back."""
        del self._trainer.compute_loss


def _loss_of(compute_loss: Callable[..., Any]) -> ObjectiveFunction:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        inputs, others = batch if isinstance(batch, Computed) else (batch, {})
        loss: Tensor = compute_loss(model, dict(inputs), **others)
        return loss

    return objective


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
