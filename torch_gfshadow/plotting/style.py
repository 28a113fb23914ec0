"""What every picture shares: the palette, an empty figure, tidy axes.

Drawn through matplotlib's object interface: no pyplot, no backend, no global state.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from torch_gfshadow.errors import must

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinguishable under every common colour blindness.
BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
MARKERS = "ov^*sD"
FONT = 8.0


def require_matplotlib() -> None:
    """Raise the error of a missing matplotlib now, before hours of work for a picture.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            must(
                "matplotlib",
                "installed to draw pictures",
                "no such package",
                'Run `pip install "torch-gfshadow[demo]"`.',
            )
        )


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches; ImportError without matplotlib."""
    require_matplotlib()
    from torch_gfshadow.plotting.notebook import NotebookFigure

    return NotebookFigure(figsize=(width, height), layout="constrained")


def finish(axes: Axes) -> None:
    """Add a quiet grid, take off the upper and right edge."""
    axes.grid(visible=True, color="#dddddd", lw=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT - 1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend_above(axes: Axes) -> None:
    """Put the legend above the panel."""
    # above the panel: with the finer runs there is no free corner left inside
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2,
        fontsize=FONT - 1,
        frameon=False,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.8,
    )
