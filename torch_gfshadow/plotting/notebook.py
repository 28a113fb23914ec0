"""A figure that shows itself in a notebook, without pyplot and its global state."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """matplotlib's figure; the last value of a notebook's cell, it is shown as a picture."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=120)
        return picture.getvalue()
