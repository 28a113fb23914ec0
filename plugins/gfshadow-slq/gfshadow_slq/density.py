"""From nodes and weights to a curve, and to a picture of the spectrum along a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_gfshadow.errors import must
from torch_gfshadow.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTHS = 0.01  # of the spectrum's own extent: narrow enough to show outliers, wide enough to see


def density(
    nodes: Sequence[float], weights: Sequence[float], grid: Sequence[float], width: float
) -> list[float]:
    """Return Σ w_i · normal(λ; λ_i, width²) on ``grid``: the density seen at that resolution.

    Args:
        nodes: λ_i, in f/θ².
        weights: w_i, which sum to 1.
        grid: Where to evaluate it.
        width: Standard deviation of the normal curves, positive.

    Raises:
        ValueError: If ``width`` is not positive.
    """
    if not width > 0.0:
        raise ValueError(must("width", "positive", width, "A hundredth of the spectrum, say."))
    factor = 1.0 / (width * math.sqrt(2.0 * math.pi))
    return [
        factor
        * math.fsum(
            w * math.exp(-0.5 * ((x - node) / width) ** 2)
            for node, w in zip(nodes, weights, strict=True)
        )
        for x in grid
    ]


def plot_densities(
    records: Iterable[Record], path: str | Path | None = None, *, curves: int = 5
) -> Figure:
    """Draw the spectral density at up to ``curves`` steps of a run, on a logarithmic axis.

    Args:
        records: Records of a run with the probe ``slq``.
        path: Where to save the picture, if anywhere.
        curves: Largest number of steps drawn, evenly chosen.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If no record holds a spectrum.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        install = 'Run: pip install "gfshadow-slq[plot]"'
        raise ImportError(f"matplotlib must be installed to plot. {install}") from error
    measured = [(r, r.extras["slq"]) for r in records if "slq" in r.extras]
    if not measured:
        fix = 'Attach with probes=["slq"].'
        raise ValueError(must("records", "of a run with the probe slq", "none with it", fix))
    count = min(curves, len(measured))
    chosen = sorted({round(i * (len(measured) - 1) / max(count - 1, 1)) for i in range(count)})
    low = min(min(spectrum["nodes"]) for _, spectrum in measured)
    high = max(max(spectrum["nodes"]) for _, spectrum in measured)
    extent = max(high - low, 1e-12)
    grid = [low - 0.04 * extent + 1.08 * extent * i / 799 for i in range(800)]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes: Any = figure.add_subplot()
    colours, top = colormaps["viridis"], 0.0
    for place, index in enumerate(chosen):
        record, spectrum = measured[index]
        curve = density(spectrum["nodes"], spectrum["weights"], grid, _WIDTHS * extent)
        colour = colours(0.9 * place / max(len(chosen) - 1, 1))
        top = max(top, *curve)
        axes.semilogy(grid, curve, color=colour, label=f"step {record.step}")
    axes.set_ylim(1e-5 * top, 2.0 * top)  # below, only the tails of the normal curves are left
    edge = next((2.0 / r.step_size for r, _ in reversed(measured) if r.step_size), None)
    if edge is not None and edge <= grid[-1]:
        axes.axvline(edge, color="0.4", linestyle=":", label="2/η, the edge of stability")
    axes.set(
        xlabel="Hessian eigenvalue λ  [f/θ²]",
        ylabel=f"density  (resolution {_WIDTHS * extent:.2g})",
        title="Spectral density of the Hessian along the run",
    )
    axes.legend(frameon=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
