"""TensorBoard as a logger of torch_gfshadow: ``attach(..., loggers=["tensorboard:runs/a"])``."""

from __future__ import annotations

from typing import Any

from torch_gfshadow import hookimpl
from torch_gfshadow.specs import LoggerSpec


def _logger(directory: str) -> Any:
    # Imported on use: every run that has this package installed loads this module.
    from gfshadow_tensorboard.logger import TensorBoardLogger

    return TensorBoardLogger(directory)


@hookimpl
def gfshadow_loggers() -> list[LoggerSpec]:
    """Register the logger ``tensorboard:<directory>``."""
    return [
        LoggerSpec(
            name="tensorboard", factory=_logger, summary="scalars in a TensorBoard directory"
        )
    ]
