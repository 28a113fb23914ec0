"""The spectral density of the Hessian along a run: ``attach(..., probes=["slq"])``."""

from __future__ import annotations

from typing import Any

from torch_gfshadow import hookimpl
from torch_gfshadow.specs import ProbeSpec

__version__ = "0.1.0"


def _probe(steps: int | str = 30) -> Any:
    from torch_gfshadow.probes import SLQ

    return SLQ(steps)


@hookimpl
def gfshadow_probes() -> list[ProbeSpec]:
    """Register the probe."""
    return [
        ProbeSpec(
            name="slq",
            factory=_probe,
            summary="spectral density of the Hessian (argument: Lanczos steps, default 30)",
            source="Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019",
        )
    ]
