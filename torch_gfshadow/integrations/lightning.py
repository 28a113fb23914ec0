"""Lightning: the shadow as a callback of ``Trainer``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from torch_gfshadow.errors import must
from torch_gfshadow.handle import Shadow
from torch_gfshadow.integrations._attached import Attached, ObjectiveFunction

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise ImportError(
            "lightning must be installed for torch_gfshadow.integrations.lightning. "
            'Run: pip install "torch-gfshadow[lightning]"'
        ) from error

TRAIN = "train"
_COLUMNS = ("discrepancy", "solver_error", "lambda_min", "lambda_max", "edge")


class GFShadowCallback(Callback):  # type: ignore[misc]
    """Puts a gradient-flow shadow beside the optimizer of a Lightning run.

    Works with automatic and manual optimization, accumulation, clipping, mixed precision and
    checkpoints: the shadow's state travels in Lightning's own, and a resumed run goes on.

    Args:
        objective: ``objective(module, batch)`` → scalar mean loss. By default the module's own
            ``training_step``; under manual optimization that takes steps itself, so an objective
            must be given. What either logs is not logged.
        data: As for :func:`torch_gfshadow.attach`; ``"train"`` is the run's training data, moved
            to its device. None follows the flow of each batch trained on (mode ``"batch"``).
        optimizer: Which of several optimizers, counted from 0.
        log: Hand discrepancy, error bar and eigenvalues to the trainer's loggers.
        **options: Further arguments of :func:`torch_gfshadow.attach`.

    Raises:
        ValueError: When training starts, if the objective is missing, or as ``attach``.

    Attributes:
        shadow: The shadow, once training has started.

    Example:
        ``Trainer(callbacks=[GFShadowCallback(loggers=["jsonl:run.jsonl"])])``
    """

    def __init__(
        self,
        objective: ObjectiveFunction | None = None,
        data: Any = None,
        *,
        optimizer: int = 0,
        log: bool = True,
        **options: Any,
    ) -> None:
        self._objective, self._data, self._index, self._log = objective, data, optimizer, log
        self._attached = Attached(options)
        self._logged = 0

    @property
    def shadow(self) -> Shadow | None:
        """The shadow; None before training starts. Its records outlive training."""
        return self._attached.shadow

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizer Lightning has made."""
        if not 0 <= self._index < len(trainer.optimizers):
            fix = f"The run has {len(trainer.optimizers)} optimizers."
            raise ValueError(must("optimizer", "the number of one", repr(self._index), fix))
        objective = _quiet(self._objective) if self._objective else _own_step(pl_module)
        data = self._data
        if isinstance(data, str):
            if data != TRAIN:
                fix = "Pass the data themselves, or 'train' for the run's."
                raise ValueError(must("data", "data or 'train'", repr(data), fix))
            data = _training_data(trainer)
        self._attached.begin(trainer.optimizers[self._index], pl_module, objective, data)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show the shadow the batch about to be trained on."""
        self._attached.observe(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand what is new to the trainer's loggers."""
        shadow = self.shadow
        if shadow is None or not self._log or len(shadow.records) <= self._logged:
            return
        self._logged = len(shadow.records)
        record = shadow.records[-1]
        values = {name: getattr(record, name) for name in _COLUMNS}
        metrics = {f"gfshadow/{name}": v for name, v in values.items() if v is not None}
        for logger in trainer.loggers if metrics else ():
            logger.log_metrics(metrics, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach."""
        self._attached.end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Detach; what was recorded stays."""
        self._attached.end()

    def state_dict(self) -> dict[str, Any]:
        """Return the shadow's state, for Lightning's checkpoint."""
        return self._attached.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint as soon as training starts."""
        self._attached.load_state_dict(state_dict)


def _own_step(module: LightningModule) -> ObjectiveFunction:
    """Return the module's ``training_step`` as an objective."""
    if not module.automatic_optimization:
        raise ValueError(
            must(
                "objective",
                "given under manual optimization",
                "None",
                "training_step takes optimizer steps itself there: pass "
                "GFShadowCallback(objective=lambda module, batch: …).",
            )
        )
    takes_index = len(inspect.signature(module.training_step).parameters) > 1

    def objective(model: Any, batch: Any) -> Tensor:
        out = model.training_step(batch, 0) if takes_index else model.training_step(batch)
        loss = out["loss"] if isinstance(out, Mapping) else out
        if not isinstance(loss, Tensor):
            fix = "Return the loss, or a dict with the key 'loss'."
            raise ValueError(must("training_step", "returning a loss", repr(loss), fix))
        return loss

    return _quiet(objective)


def _quiet(objective: ObjectiveFunction) -> ObjectiveFunction:
    """Return ``objective`` with the module's logging silenced while it runs."""

    @functools.wraps(objective)
    def quiet(model: Any, batch: Any) -> Tensor:
        with _silent(model):
            return objective(model, batch)

    return quiet


@contextmanager
def _silent(module: Any) -> Iterator[None]:
    """Keep what our evaluations log out of the run's metrics."""
    names = ("log", "log_dict")
    before = {name: vars(module)[name] for name in names if name in vars(module)}
    try:
        for name in names:
            object.__setattr__(module, name, lambda *args, **kwargs: None)
        yield
    finally:
        for name in names:
            object.__delattr__(module, name)
        vars(module).update(before)


def _training_data(trainer: Trainer) -> Any:
    loader = trainer.train_dataloader

    def batches() -> Iterator[Any]:
        for batch in loader:
            yield trainer.strategy.batch_to_device(batch)

    return batches
