"""MLflow as a logger of torch_gfshadow: ``attach(..., loggers=["mlflow:mlruns"])``."""

from __future__ import annotations

from typing import Any

from torch_gfshadow import hookimpl
from torch_gfshadow.specs import LoggerSpec

__version__ = "0.1.0"


def _logger(target: str = "mlruns") -> Any:
    # Imported on use: every run that has this package installed loads this module.
    from gfshadow_mlflow.logger import MlflowLogger

    return MlflowLogger(target)


@hookimpl
def gfshadow_loggers() -> list[LoggerSpec]:
    """Register the logger ``mlflow:<directory or URI>``."""
    summary = "metrics of an MLflow run, in a directory or at a tracking URI"
    return [LoggerSpec(name="mlflow", factory=_logger, summary=summary)]
