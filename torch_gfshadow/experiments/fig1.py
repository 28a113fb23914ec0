"""The paper's Figures 1 and 3 with the flow itself: gradient descent and its shadow on digits.

One call per network, one directory per call. Everything a reader needs later is in that
directory's ``records.jsonl``, complete up to the last record at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.attach import attach
from torch_gfshadow.errors import must
from torch_gfshadow.experiments.data import Digits
from torch_gfshadow.experiments.networks import NETWORKS, cross_entropy
from torch_gfshadow.experiments.ratio_rows import RatioRow, append_row
from torch_gfshadow.experiments.ratios import RATIOS, RatioRun, run_ratios
from torch_gfshadow.record import Record

TITLES = {name: network.title for name, network in NETWORKS.items()}
RECORDS_FILE, RATIOS_FILE = "records.jsonl", "ratios.jsonl"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_N_RECORDS, _N_PROBES = 500, 100


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The protocol; the defaults are the paper's.

    Attributes:
        steps: Gradient descent steps at ``step_size``.
        step_size: η_0.
        every: Steps between records; ``None`` makes 500 records.
        probe_every: Steps between probes of λ_min and λ_max; ``None`` makes 100.
        seed: Seed of the weights, of the draw of digits and of the probes.
        dtype: ``"float32"`` or ``"float64"``, of weights and data.
        ratios: The r of the ratio protocol.
        fine_dtype: Precision of the runs at η_0/r. The paper's is float32, where rounding
            outweighs what is measured; see :func:`~torch_gfshadow.experiments.ratios.run_ratios`.
        shadow: Further keyword arguments of :func:`torch_gfshadow.attach`.
    """

    steps: int = 10_000
    step_size: float = 1e-3
    every: int | None = None
    probe_every: int | None = None
    seed: int = 0
    dtype: str = "float32"
    ratios: Sequence[int] = RATIOS
    fine_dtype: str = "float64"
    shadow: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "every", "probe_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(must(name, "at least 1", value, "It counts gradient steps."))
        if not (self.step_size > 0 and math.isfinite(self.step_size)):
            raise ValueError(must("step_size", "positive", self.step_size, "The paper uses 1e-3."))
        for name in ("dtype", "fine_dtype"):
            value = getattr(self, name)
            if value not in _DTYPES:
                raise ValueError(
                    must(name, "'float32' or 'float64'", repr(value), "Choose one of the two.")
                )

    @property
    def record_period(self) -> int:
        """Steps between records."""
        return self.every or max(1, self.steps // _N_RECORDS)

    @property
    def probe_period(self) -> int:
        """Steps between probes; a multiple of ``record_period`` unless it was given."""
        spacing = max(1, round(self.steps / _N_PROBES / self.record_period))
        return self.probe_every or spacing * self.record_period

    def batch(self, digits: Digits, network: str = "linear") -> tuple[Tensor, Tensor]:
        """Return the full batch in this protocol's dtype, shaped as ``network`` takes it."""
        shape = NETWORKS[network].sample
        return digits.images.to(_DTYPES[self.dtype]).reshape(-1, *shape), digits.labels

    def model(self, network: str) -> torch.nn.Sequential:
        """Return a network at its starting point.

        Raises:
            ValueError: If there is none of that name.
        """
        if network not in NETWORKS:
            fix = "Figure 1 has the first two, Figure 3 the others."
            raise ValueError(must("network", f"one of {', '.join(NETWORKS)}", repr(network), fix))
        return NETWORKS[network].build(self.seed, _DTYPES[self.dtype])


@dataclass(frozen=True)
class ShadowRun:
    """One network's run with the shadow beside it: its records and the shadow's own summary."""

    network: str
    records: Sequence[Record]
    summary: Mapping[str, Any]


def run_shadow(
    network: str,
    digits: Digits,
    settings: Settings,
    directory: str | Path,
    on_record: Callable[[Record], None] | None = None,
) -> ShadowRun:
    """Train ``network`` by plain ``torch.optim.SGD`` on the full batch with the shadow beside it.

    Records are written to ``directory / "records.jsonl"`` as they are made; an earlier file of
    that name is replaced. An exception out of ``on_record``, or Ctrl-C, detaches the shadow,
    closes the file and travels on: what was recorded stays, complete.

    Args:
        network: One of ``TITLES``.
        digits: The full batch.
        settings: The protocol.
        directory: Where the records go; created if need be.
        on_record: Called with each record as soon as it exists.

    Returns:
        All records and ``shadow.summary()``.

    Raises:
        ValueError: If the network is unknown.
    """
    model = settings.model(network)
    batch = settings.batch(digits, network)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.step_size)
    path = _fresh(directory, RECORDS_FILE)
    with attach(
        optimizer,
        model,
        cross_entropy,
        data=batch,
        every=settings.record_period,
        probe_every=settings.probe_period,
        seed=settings.seed,
        loggers=[f"jsonl:{path}"],
        **settings.shadow,
    ) as shadow:
        reported = 0
        for _ in range(settings.steps):
            reported = _report(shadow.records, reported, on_record)
            optimizer.zero_grad()
            cross_entropy(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        _report(shadow.records, reported, on_record)
        return ShadowRun(network, list(shadow.records), shadow.summary())


def run_fig1_ratios(
    network: str,
    digits: Digits,
    settings: Settings,
    directory: str | Path,
    on_row: Callable[[RatioRow], None] | None = None,
) -> RatioRun:
    """Run the paper's ratio protocol from the same start; rows go to ``ratios.jsonl``.

    Args:
        network: One of ``TITLES``.
        digits: The full batch.
        settings: The protocol.
        directory: Where the rows go; created if need be.
        on_row: Called with each row as soon as it exists and is on disk.

    Returns:
        The rows and what they cost.
    """
    path = _fresh(directory, RATIOS_FILE)

    def keep(row: RatioRow) -> None:
        append_row(path, row)
        if on_row is not None:
            on_row(row)

    return run_ratios(
        settings.model(network),
        cross_entropy,
        settings.batch(digits, network),
        step_size=settings.step_size,
        steps=settings.steps,
        ratios=settings.ratios,
        every=settings.record_period,
        fine_dtype=_DTYPES[settings.fine_dtype],
        on_row=keep,
    )


def _fresh(directory: str | Path, name: str) -> Path:
    path = Path(directory) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def _report(
    records: Sequence[Record], reported: int, on_record: Callable[[Record], None] | None
) -> int:
    if on_record is not None:
        for record in records[reported:]:
            on_record(record)
    return len(records)
