"""Hugging Face: the shadow as a callback of ``transformers.Trainer``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        self._objective, self._data = objective or own_loss, data
        self._attached = Attached(options)
        self._hook: Any = None

    @property
    def shadow(self) -> Shadow | None:
        """The shadow; None before training starts. Its records outlive training."""
        return self._attached.shadow

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
        self._attached.begin(optimizer, model, self._objective, self._data)
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
        fix = "Put labels into the batch, or pass GFShadowTrainerCallback(objective=…)."
        raise ValueError(must("model", "one that returns its loss", "none", fix))
    return loss


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
