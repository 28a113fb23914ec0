"""Parquet as a logger of torch_gfshadow: ``attach(..., loggers=["parquet:runs/a"])``."""

from __future__ import annotations

from typing import Any

from torch_gfshadow import hookimpl
from torch_gfshadow.specs import LoggerSpec

__version__ = "0.1.0"


def _logger(directory: str) -> Any:
    # Imported on use: every run that has this package installed loads this module.
    from gfshadow_parquet.logger import ParquetLogger

    return ParquetLogger(directory)


@hookimpl
def gfshadow_loggers() -> list[LoggerSpec]:
    """Register the logger ``parquet:<directory>``."""
    return [LoggerSpec(name="parquet", factory=_logger, summary="columns in a Parquet data set")]
