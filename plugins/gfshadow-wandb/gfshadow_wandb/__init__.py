"""Weights & Biases as a logger of torch_gfshadow: ``attach(..., loggers=["wandb:project"])``."""

from __future__ import annotations

from typing import Any

from torch_gfshadow import hookimpl
from torch_gfshadow.specs import LoggerSpec

__version__ = "0.1.0"


def _logger(project: str = "torch_gfshadow") -> Any:
    # Imported on use: every run that has this package installed loads this module.
    from gfshadow_wandb.logger import WandbLogger

    return WandbLogger(project)


@hookimpl
def gfshadow_loggers() -> list[LoggerSpec]:
    """Register the logger ``wandb:<project>``."""
    summary = "a Weights & Biases run, offline unless WANDB_MODE=online"
    return [LoggerSpec(name="wandb", factory=_logger, summary=summary)]
